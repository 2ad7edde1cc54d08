"""Every family against its stock class: features, hidden states, padding, loading, pooling."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedConfig,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from toolkit import backbones, plugins, testing
from toolkit.backbones.base import Backbone
from toolkit.errors import BackboneError, ConfigError
from toolkit.features import mel
from toolkit.model import AudioClassifier
from toolkit.registry import BACKBONES, PEFT
from toolkit.testing import matrix

plugins.load()
FAMILIES = matrix.families()
SPEECH = ["data2vec_audio", "hubert", "sew", "unispeech_sat", "wav2vec2", "wavlm"]
VARIABLE = [*SPEECH, "clap", "wav2vec2_bert", "whisper"]


def stock_model(family: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A small random stock model of a family, as `tiny` makes it before it is wrapped."""
    source = BACKBONES.get(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = source.config_class(**{**source.tiny_config, **source.options, **settings})
        model = source.model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def wrapped(family: str, model: nn.Module) -> Backbone:
    """A backbone around a copy of a stock model."""
    source = BACKBONES.get(family)
    extractor = source.extractor_class(**source.tiny_extractor)
    return source().wrap(copy.deepcopy(model), extractor, source.tiny_length)


def whole_clips(backbone: Backbone, clips: int = 2) -> Tensor:
    """Normalised features of random clips of the backbone's full input length."""
    generator = torch.Generator().manual_seed(3)
    spec = backbone.features
    return spec.normalise(torch.randn(clips, spec.rows, spec.width, generator=generator))


def stock_input(family: str, features: Tensor) -> Tensor:
    """The backbone's features [B, T, F] in the layout that the stock class expects."""
    if family in SPEECH:
        return features.squeeze(-1)
    if family == "wav2vec2_bert":  # its extractor stacks pairs of frames
        return features.reshape(len(features), features.shape[1] // 2, -1)
    if family == "whisper":
        return features.mT
    return features[:, None] if family == "clap" else features


def block_outputs(backbone: Backbone, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The tokens of the backbone, and the output of each block."""
    seen: list[Tensor] = []
    handles = [
        site.module.register_forward_hook(
            lambda module, inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for site in backbone.sites("block")
    ]
    with torch.no_grad():
        tokens = backbone(features)
    for handle in handles:
        handle.remove()
    return tokens, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_stock_model(family: str) -> None:
    model = stock_model(family)
    backbone = wrapped(family, model)
    features = whole_clips(backbone)
    with torch.no_grad():
        stock = model(stock_input(family, features), output_hidden_states=True)
    tokens, layers = block_outputs(backbone, features)
    expected = stock.last_hidden_state
    if family == "clap":
        expected = expected.flatten(2).mT
    torch.testing.assert_close(tokens, expected[:, : tokens.shape[1]], rtol=0, atol=1e-5)
    assert backbone.depth == len(layers) == 2
    if family != "clap":  # its hidden states are those of stages, as images
        first = stock.hidden_states[1]
        torch.testing.assert_close(layers[0], first[:, : layers[0].shape[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_large_sizes_normalise_before_each_sublayer(family: str) -> None:
    settings = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    model = stock_model(family, **settings)
    backbone = wrapped(family, model)
    features = whole_clips(backbone)
    with torch.no_grad():
        expected = model(features.squeeze(-1)).last_hidden_state
        torch.testing.assert_close(backbone(features), expected, rtol=0, atol=1e-5)
    assert backbone.pre_norm and backbone.norm is backbone.model.encoder.layer_norm


def test_fusion_of_clap_equals_the_stock_model() -> None:
    model = stock_model("clap", enable_fusion=True)
    backbone = wrapped("clap", model)
    features = whole_clips(backbone)
    images = features[:, None].expand(-1, 4, -1, -1)
    with torch.no_grad():
        stock = model(images, is_longer=torch.zeros(2, 1)).last_hidden_state.flatten(2).mT
        torch.testing.assert_close(backbone(features), stock, rtol=0, atol=1e-5)


# Padding


@pytest.mark.parametrize("family", VARIABLE)
def test_padding_changes_no_result(family: str) -> None:
    testing.check_padding(PEFT.create("linear_probe"), family)


@pytest.mark.parametrize("family", ["wav2vec2", "sew", "wavlm", "wav2vec2_bert"])
@pytest.mark.parametrize(
    "method",
    [
        {"name": "soft_moa", "placement": "both", "slots": 2, "normalize": True},
        {"name": "dense_moa", "block": "conformer"},
        {"name": "adapter", "block": "convpass", "placement": "both"},
        {"name": "lst"},
        {"name": "prompt_shallow", "prompts": 3},
        {"name": "prompt_deep", "prompts": 3},
        {"name": "prefix", "tokens": 6},
    ],
    ids=lambda method: method["name"],
)
def test_padding_has_no_part_in_a_method(method: dict[str, Any], family: str) -> None:
    testing.check_padding(PEFT.create(method), family)


def test_padding_has_no_part_in_statistics_and_losses() -> None:
    mixtures = {
        name
        for name in PEFT.names()
        if testing.check_padding_in_statistics(PEFT.create(name), "wav2vec2")
    }
    assert {"dense_moa", "soft_moa", "topk_moa", "dynmoe", "thor", "mumoe", "peer"} <= mixtures


@pytest.mark.parametrize("pooling", ["all", "weighted"])
@pytest.mark.parametrize("family", ["hubert", "sew", "whisper"])
def test_padding_has_no_part_in_pooling(family: str, pooling: str) -> None:
    testing.check_padding(PEFT.create("linear_probe"), family, pooling)


def test_what_stands_behind_a_clip_is_not_read() -> None:
    backbone = testing.tiny_backbone(family="wav2vec2")
    rows, lengths = testing.tiny_rows(backbone)
    features = backbone.features.normalise(rows, lengths)
    behind = torch.arange(rows.shape[1])[None, :, None] >= lengths[:, None, None]
    noisy = torch.where(behind, torch.full_like(features, 7.0), features)
    with torch.no_grad():
        quiet, loud = backbone(features, lengths), backbone(noisy, lengths)
    real = backbone.context.output_mask
    torch.testing.assert_close(loud[real], quiet[real], rtol=0, atol=1e-5)


def test_batch_statistics_of_a_conformer_leave_padding_out() -> None:
    method = PEFT.create({"name": "adapter", "block": "conformer"})
    states = []
    for more in (0, 4000):
        model = testing.tiny_classifier(method, family="wav2vec2")
        rows, lengths = testing.tiny_rows(model.backbone)
        rows = nn.functional.pad(rows, (0, 0, 0, more))
        model.train().logits(rows, lengths)
        states.append({n: t for n, t in model.state().items() if "running" in n})
    assert states[0] and states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-5)


# Features


@pytest.fixture
def clips() -> list[np.ndarray]:
    """Three sounds of different lengths, up to a second at 16 kHz."""
    rng = np.random.default_rng(5)
    return [0.1 * rng.standard_normal(n).astype(np.float32) for n in (16000, 9000, 4321)]


def as_batch(clips: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Samples [B, S], padded with zeros, and the lengths [B]."""
    rows = nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    return rows, torch.tensor([len(clip) for clip in clips])


def test_waveforms_are_normalised_as_the_extractor_does(clips: list[np.ndarray]) -> None:
    rows, lengths = as_batch(clips)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    stock = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    found = mel.unit_variance(rows[..., None], lengths).squeeze(-1)
    torch.testing.assert_close(found, stock.input_values, rtol=0, atol=1e-5)


def test_whisper_features_are_those_of_the_extractor(clips: list[np.ndarray]) -> None:
    rows, _ = as_batch(clips)
    stock = WhisperFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt")
    padded = nn.functional.pad(rows, (0, 480_000 - rows.shape[1]))
    found = mel.whisper(padded, 80)
    torch.testing.assert_close(found, stock.input_features.mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_clap_features_are_those_of_the_extractor(truncation: str, clips: list[np.ndarray]) -> None:
    extractor = ClapFeatureExtractor(max_length_s=1, truncation=truncation)
    rows, lengths = as_batch(clips)
    found = mel.clap(rows, lengths, 48_000, 64, slaney=truncation != "fusion")
    for place, clip in enumerate(clips):
        stock = extractor([clip], sampling_rate=48000, return_tensors="pt").input_features
        torch.testing.assert_close(found[place], stock[0, 0].float(), rtol=0, atol=2e-3)


def test_wav2vec2_bert_features_are_those_of_the_extractor(clips: list[np.ndarray]) -> None:
    backbone = testing.tiny_backbone(family="wav2vec2_bert")
    for clip in clips:
        stock = SeamlessM4TFeatureExtractor()([clip], sampling_rate=16000, return_tensors="pt")
        found = backbone.features.normalise(torch.from_numpy(clip)[None, :, None])
        pairs = stock_input("wav2vec2_bert", found[:, : found.shape[1] // 2 * 2])
        count = int(stock.attention_mask.sum())
        torch.testing.assert_close(
            pairs[0, :count], stock.input_features[0, :count], rtol=0, atol=2e-3
        )


# Loading


def loaded(folder: Path, family: str) -> Backbone:
    """Load a checkpoint's folder through the registry, by the model type in its configuration."""
    source = backbones.create({"name": str(folder)})
    assert source.registered_name == family
    return source.load(BACKBONES.get(family).tiny_length)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_the_stock_class_loads_whole(family: str, tmp_path: Path) -> None:
    source, model = BACKBONES.get(family), stock_model(family)
    expected = wrapped(family, model)
    features = whole_clips(expected)
    model.save_pretrained(tmp_path)
    source.extractor_class(**source.tiny_extractor).save_pretrained(tmp_path)
    found = loaded(tmp_path, family)
    assert found.fingerprint == expected.fingerprint and found.features == expected.features
    with torch.no_grad():
        torch.testing.assert_close(found(features), expected(features), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_once_and_not_for_the_spec(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family_source = BACKBONES.get(family)
    stock_model(family).save_pretrained(tmp_path)
    family_source.extractor_class(**family_source.tiny_extractor).save_pretrained(tmp_path)
    stock, read = family_source.model_class, []
    from_pretrained = stock.from_pretrained.__func__
    monkeypatch.setattr(
        stock,
        "from_pretrained",
        classmethod(lambda cls, *a, **o: read.append(cls) or from_pretrained(cls, *a, **o)),
    )
    length = family_source.tiny_length
    spec = backbones.create({"name": str(tmp_path)}).spec(length)
    assert read == []
    first, second = (backbones.create({"name": str(tmp_path)}).load(length) for _ in range(2))
    assert len(read) == 1
    assert spec == first.features == second.features
    rows, lengths = testing.tiny_rows(second, clips=3)
    inputs = spec.normalise(rows, lengths)
    with torch.no_grad():
        expected = second(inputs, lengths)
        for parameter in first.parameters():
            parameter.zero_()
        torch.testing.assert_close(second(inputs, lengths), expected, rtol=0, atol=0)
        third = backbones.create({"name": str(tmp_path)}).load(length)
        torch.testing.assert_close(third(inputs, lengths), expected, rtol=0, atol=0)
    assert len(read) == 1 and third.fingerprint == second.fingerprint


def test_a_checkpoint_that_changes_is_read_again(tmp_path: Path) -> None:
    model = stock_model("hubert")
    model.save_pretrained(tmp_path)
    before = loaded(tmp_path, "hubert").fingerprint
    with torch.no_grad():
        model.encoder.layers[0].attention.q_proj.weight.add_(1)
    model.save_pretrained(tmp_path)
    assert loaded(tmp_path, "hubert").fingerprint != before


@pytest.mark.parametrize("family", ["clap", "whisper"])
def test_the_encoder_of_a_whole_model_loads(family: str, tmp_path: Path) -> None:
    encoder = stock_model(family)
    if family == "whisper":
        config = copy.deepcopy(encoder.config)
        config.update({"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
                       "vocab_size": 64, "max_target_positions": 8, "pad_token_id": 0,
                       "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
                       "suppress_tokens": None, "begin_suppress_tokens": None})  # fmt: skip
        whole = WhisperForConditionalGeneration(config)
        whole.model.encoder.load_state_dict(encoder.state_dict())
    else:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 32, "vocab_size": 64}  # fmt: skip
        config = ClapModel.config_class(
            audio_config=encoder.config.to_dict(), text_config=text, projection_dim=16
        )
        whole = ClapModel(config)
        whole.audio_model.load_state_dict(encoder.state_dict())
    whole.save_pretrained(tmp_path)
    source = BACKBONES.get(family)
    source.extractor_class(**source.tiny_extractor).save_pretrained(tmp_path)
    assert loaded(tmp_path, family).fingerprint == wrapped(family, encoder).fingerprint


def test_a_classifier_of_wav2vec2_with_the_names_of_version_4_loads(tmp_path: Path) -> None:
    """transformers 4 used the prefix `wav2vec2.`, and `weight_g` and `weight_v` for weight norm."""
    model = stock_model("wav2vec2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    new_names = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in new_names.items():
            name = name.replace(new, old)
        tensors[f"wav2vec2.{name}"] = tensor.clone().contiguous()
    assert any(name.endswith("pos_conv_embed.conv.weight_g") for name in tensors)
    assert not any("parametrizations" in name for name in tensors)
    tensors |= {"projector.weight": torch.zeros(2, 96), "classifier.bias": torch.zeros(3)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert set(load_file(file)) == set(tensors)
    found = loaded(tmp_path, "wav2vec2")
    assert found.fingerprint == wrapped("wav2vec2", model).fingerprint


def test_a_checkpoint_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    model = stock_model("hubert")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if "feed_forward.output_dense.weight" in name)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="is not a whole HubertModel"):
        loaded(tmp_path, "hubert")


def test_a_backbone_that_reads_less_says_so(tmp_path: Path) -> None:
    model = stock_model("whisper")
    model.save_pretrained(tmp_path)
    source = backbones.create({"name": str(tmp_path)})
    with pytest.raises(ConfigError, match="--max_length 100"):
        source.load(101)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_a_lasting_name(family: str) -> None:
    backbone = testing.tiny_backbone(family=family)
    names = list(backbone.model.state_dict())
    assert len(backbone.stock) == len(names)
    for role in ("attn.q", "attn.o", "ffn.up", "ffn.down"):
        assert f"blocks.1.{role}.weight" in backbone.stock


# Pooling


def test_weighted_layers_are_those_of_the_stock_classifier() -> None:
    """Wav2Vec2ForSequenceClassification with `use_weighted_layer_sum`; no projector."""
    model = stock_model("wav2vec2")
    config = Wav2Vec2Config(**{**model.config.to_dict(), "use_weighted_layer_sum": True,
                               "classifier_proj_size": 96, "num_labels": 5})  # fmt: skip
    stock = Wav2Vec2ForSequenceClassification(config).eval()
    stock.wav2vec2.load_state_dict(model.state_dict(), strict=False)
    backbone = wrapped("wav2vec2", model)
    classifier = AudioClassifier(backbone, PEFT.create("linear_probe"), 5, "weighted").eval()
    features = whole_clips(backbone)
    with torch.no_grad():
        stock.projector.weight.copy_(torch.eye(96))
        stock.projector.bias.zero_()
        stock.layer_weights.copy_(torch.tensor([0.3, -1.0, 2.0]))
        classifier.layers.weights.copy_(stock.layer_weights)
        classifier.head.load_state_dict(stock.classifier.state_dict())
        expected = stock(features.squeeze(-1)).logits
        torch.testing.assert_close(classifier(features), expected, rtol=0, atol=1e-4)


def test_weighted_layers_train_and_are_saved() -> None:
    method = PEFT.create("lora")
    first, second = (
        testing.tiny_classifier(method, seed, noise=0.1, pooling="weighted") for seed in (0, 1)
    )
    features, labels = testing.tiny_batch(first.backbone)
    assert "layers.weights" in first.trainable()
    plain = testing.tiny_classifier(method).count()
    assert first.count().head == plain.head + 3 and first.count().method == plain.method
    nn.functional.cross_entropy(first(features), labels).backward()
    assert first.layers.weights.grad.abs().min() > 0
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    with torch.no_grad():
        assert torch.equal(second.eval()(features), first.eval()(features))


def test_layers_of_different_widths_cannot_be_averaged() -> None:
    with pytest.raises(ConfigError, match="not of one width"):
        testing.tiny_classifier(PEFT.create("linear_probe"), family="clap", pooling="weighted")


@pytest.mark.parametrize("pooling", ["cls", "first"])
def test_special_tokens_that_are_not_there_cannot_be_pooled(pooling: str) -> None:
    with pytest.raises(ConfigError, match="needs special tokens"):
        testing.tiny_classifier(PEFT.create("linear_probe"), family="hubert", pooling=pooling)


@pytest.mark.parametrize(("layers", "block"), [("first 1", "0"), ("last 1", "1")])
@pytest.mark.parametrize("family", ["wavlm", "whisper", "clap"])
def test_first_and_last_blocks(family: str, layers: str, block: str) -> None:
    method = PEFT.create({"name": "lora", "layers": layers, "final_norm": False})
    state = testing.tiny_classifier(method, family=family).state()
    assert {name.split(".")[1] for name in state if name.startswith("blocks.")} == {block}


# The product of the two registries


def impossible() -> Iterator[tuple[str, str, str]]:
    """Combinations that default settings do not allow: method, family, and part of the reason."""
    for name in ("prompt_shallow", "prompt_deep"):
        yield name, "clap", "takes no further tokens"
    yield "prefix", "clap", "takes no further keys"
    yield "soft_moa", "clap", "use `placement: ffn`"
    for name in ("automoe", "dynmoe", "fact", "lst", "mumoe", "peer", "thor"):
        yield name, "clap", "not of one width"


IMPOSSIBLE = {(method, family): reason for method, family, reason in impossible()}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ast"])
@pytest.mark.parametrize("method", PEFT.names())
def test_cell(method: str, family: str) -> None:
    found = matrix.cell(method, family)
    reason = IMPOSSIBLE.get((method, family))
    if reason is None:
        assert found.verdict in ("works", "merges"), found.reason
    else:
        assert found.verdict == "impossible" and reason in found.reason


@pytest.mark.parametrize("family", ["sew", "clap", "whisper"])
def test_soft_mixtures_at_the_feed_forward(family: str) -> None:
    testing.check_method("soft_moa", {"placement": "ffn"}, family)


def test_the_table_shows_every_cell_and_every_reason() -> None:
    cells = [
        matrix.Cell("lora", "ast", "merges"),
        matrix.Cell("lora", "clap", "works"),
        matrix.Cell("prefix", "ast", "broken", "it does not"),
        matrix.Cell("prefix", "clap", "impossible", "no keys"),
    ]
    assert matrix.rows(cells) == [["lora", "m", "+"], ["prefix", "!", "-"]]
    assert matrix.notes(cells)[1:] == ["prefix on ast: it does not", "prefix on clap: no keys"]


def test_a_checkpoint_of_clap_names_its_family(tmp_path: Path) -> None:
    for kind in ("clap", "clap_audio_model"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert backbones.create({"name": str(tmp_path)}).registered_name == "clap"


# What is never done


def test_a_hub_id_that_needs_code_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither run nor asked about: its configuration is read as data."""
    said = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    get = classmethod(lambda cls, source, **options: (said, {}))
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", get)
    with pytest.raises(BackboneError, match="'evil/model' needs code of its own, which this toolk"):
        backbones.create({"name": "evil/model"})


def test_a_copy_without_weights_has_the_same_shapes_and_takes_no_memory() -> None:
    backbone = testing.tiny_backbone(family="wav2vec2")
    empty = backbone.without_weights()
    assert {n: t.shape for n, t in empty.state_dict().items()} == {
        n: t.shape for n, t in backbone.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert not any(tensor.is_meta for tensor in backbone.state_dict().values())
    with torch.device("meta"):
        AudioClassifier(empty, PEFT.create("lora"), 3, "mean")
    assert backbone.adapted_by is None
