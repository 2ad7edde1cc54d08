"""Bundles: loading gives what was saved, or an error that says why not."""

import json
from pathlib import Path

import pytest
import torch

from toolkit.backbones.ast import ASTTiny
from toolkit.bundle import Origin, load_bundle, save_bundle
from toolkit.errors import BundleError
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
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


def _edit(folder: Path, **changes: object) -> None:
    info = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**info, **changes}))


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
    file = tmp_path / "bundle" / "bundle.json"
    info = json.loads(file.read_text())
    del info["task"]
    file.write_text(json.dumps({**info, "origin": origin}))
    bundle, logits = load_bundle(tmp_path / "bundle"), torch.randn(2, 3)
    assert bundle.task is task
    torch.testing.assert_close(bundle.probabilities(logits), task.probabilities(logits))


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "bundle", "lora")
    _edit(tmp_path / "bundle", task="counting")
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
    _edit(bundle, format=99)
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
    _edit(tmp_path / "bundle", peft={**peft, "num_experts": 3})
    with pytest.raises(BundleError, match="of another shape"):
        load_bundle(tmp_path / "bundle")
    _edit(tmp_path / "bundle", peft={"name": "lora"})
    with pytest.raises(BundleError, match="without a place"):
        load_bundle(tmp_path / "bundle")
