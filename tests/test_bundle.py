"""Bundles: loading gives what was saved, or an error that says why not."""

import json
from pathlib import Path

import pytest
import torch
from bundles import rewrite_bundle

from toolkit.backbones import load_backbone
from toolkit.backbones.ast import ASTTiny
from toolkit.bundle import Origin, load_bundle, save_bundle
from toolkit.errors import BundleError
from toolkit.model import AudioClassifier
from toolkit.registry import BACKBONES, PEFT
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES, Task

NAMES = ["dog", "rain", "siren"]


def _saved(folder: Path, method: str = "soft_moa") -> AudioClassifier:
    torch.manual_seed(0)
    source = ASTTiny()
    model = AudioClassifier(source.load(64), PEFT.create(method), 3, "all").eval()
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_bundle(folder, model, NAMES, ONE_CLASS, origin=Origin(corpus="none"))
    return model


@pytest.mark.parametrize("method", PEFT.names())
def test_round_trip(method: str, tmp_path: Path) -> None:
    model = _saved(tmp_path / "bundle", method)
    loaded = load_bundle(tmp_path / "bundle")
    features = torch.randn(2, 64, 128)
    with torch.no_grad():
        assert torch.equal(loaded.model(features), model(features))
    assert loaded.classes == NAMES and loaded.task is ONE_CLASS
    assert {f.name for f in (tmp_path / "bundle").iterdir()} == {
        "bundle.json",
        "weights.safetensors",
    }


def test_saving_again_replaces_the_old_one(tmp_path: Path) -> None:
    _saved(tmp_path / "bundle", "lora")
    _saved(tmp_path / "bundle", "adapter")
    assert load_bundle(tmp_path / "bundle").info.peft.name == "adapter"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("origin", "task"),
    [
        ({"multi_label": True}, SEVERAL_CLASSES),
        ({"multi_label": False}, ONE_CLASS),
        ({"corpus": "none"}, ONE_CLASS),
    ],
)
def test_a_bundle_from_before_tasks_had_names(
    origin: dict[str, object], task: Task, tmp_path: Path
) -> None:
    _saved(tmp_path / "bundle", "lora")
    rewrite_bundle(tmp_path / "bundle", {"format": 1, "origin": origin}, without=["task"])
    bundle, logits = load_bundle(tmp_path / "bundle"), torch.randn(2, 3)
    assert bundle.task is task
    torch.testing.assert_close(bundle.probabilities(logits), task.probabilities(logits))


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "bundle", "lora")
    rewrite_bundle(tmp_path / "bundle", {"task": "counting"})
    with pytest.raises(
        BundleError,
        match=r"task should be one of one_class, several_classes, not 'counting'.*version",
    ):
        load_bundle(tmp_path / "bundle")


def test_damage_is_named(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(bundle)
    _saved(bundle)
    weights = bundle / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle)
    weights.write_bytes(whole)
    rewrite_bundle(bundle, {"format": 99})
    with pytest.raises(BundleError, match="format 99"):
        load_bundle(bundle)
    (bundle / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "bundle")
    other = tmp_path / "other"
    model = ASTTiny().load(512).model
    with torch.no_grad():
        model.layers[0].mlp.fc1.bias[0] += 1e-3
    model.save_pretrained(other)
    with pytest.raises(BundleError, match="another backbone"):
        load_bundle(tmp_path / "bundle", backbone=str(other))


def test_other_settings_than_the_weights_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "bundle")
    peft = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["peft"]
    rewrite_bundle(tmp_path / "bundle", {"peft": {**peft, "num_experts": 3}})
    with pytest.raises(BundleError, match="of another shape"):
        load_bundle(tmp_path / "bundle")
    rewrite_bundle(tmp_path / "bundle", {"peft": {"name": "lora"}})
    with pytest.raises(BundleError, match="without a place"):
        load_bundle(tmp_path / "bundle")


def test_a_bundle_of_format_1_loads(tmp_path: Path) -> None:
    """Written by version 0.2, whose bundle.json had no checksum."""
    bundle = load_bundle(Path(__file__).with_name("old_bundle"))
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            bundle.model(features), torch.tensor(OLD_LOGITS), rtol=1e-4, atol=1e-5
        )
    assert bundle.info.format == 1 and bundle.info.origin == Origin(corpus="none", test_fold=2)
    save_bundle(tmp_path / "new", bundle.model, bundle.classes, bundle.task)
    with pytest.raises(BundleError, match="another backbone"):
        rewrite_bundle(tmp_path / "new", {"fingerprint": bundle.info.fingerprint})
        load_bundle(tmp_path / "new")


OLD_LOGITS = [[-0.81965083, 0.08654932, -1.1688937], [-0.89864802, -0.13560568, -1.1306232]]


def _small(folder: Path, family: str, **said: object) -> str:
    """A folder with a tiny checkpoint that says this of its features."""
    source = BACKBONES.get(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = source.model_class(source.config_class(**source.tiny_config, **source.options))
    model.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(source.tiny_extractor | said))
    return str(folder)


def test_other_statistics_in_the_backbones_folder_are_noticed(tmp_path: Path) -> None:
    name = _small(tmp_path / "ast", "ast", mean=-4.0, std=4.0)
    model = AudioClassifier(load_backbone(name, 64), PEFT.create("lora"), 3, "all")
    save_bundle(tmp_path / "bundle", model, NAMES, ONE_CLASS)
    assert load_bundle(tmp_path / "bundle").features == model.backbone.features
    _small(tmp_path / "ast", "ast", mean=-9.0, std=4.0)
    with pytest.raises(BundleError, match=r"mean: -4.0 in the bundle, -9.0 here"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 2), ("hidden_act", "relu"), ("layer_norm_eps", 0.1)]
)
def test_what_no_shape_shows_is_in_the_fingerprint(key: str, value: object, tmp_path: Path) -> None:
    name = _small(tmp_path / "ast", "ast")
    model = AudioClassifier(load_backbone(name, 64), PEFT.create("lora"), 3, "all")
    save_bundle(tmp_path / "bundle", model, NAMES, ONE_CLASS)
    file = tmp_path / "ast" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(BundleError, match="another backbone"):
        load_bundle(tmp_path / "bundle")


def test_an_old_bundle_of_clap_keeps_the_features_that_it_was_trained_on(tmp_path: Path) -> None:
    """Format 1 knew no frequency range: every model was trained on 0 to 14,000 Hz."""
    name = _small(tmp_path / "clap", "clap", frequency_min=50)
    model = AudioClassifier(load_backbone(name, 50), PEFT.create("linear_probe"), 3, "all")
    assert model.backbone.features.frequency_min == 50
    save_bundle(tmp_path / "bundle", model, NAMES, ONE_CLASS)
    features = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["features"]
    old = {k: features[k] for k in ("sample_rate", "max_length", "unit_variance", "mel_bins",
                                    "samples", "slaney")}  # fmt: skip
    rewrite_bundle(tmp_path / "bundle", {"format": 1, "features": old})
    assert load_bundle(tmp_path / "bundle").features.frequency_min == 0


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = _saved(tmp_path / "bundle", "linear_probe")
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    save_bundle(tmp_path / "bundle", model, NAMES, ONE_CLASS)
    with pytest.raises(BundleError, match=r"not finite numbers, in head\.weight"):
        load_bundle(tmp_path / "bundle")
