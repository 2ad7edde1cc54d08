"""Folders of backbones, and files of SSAST, that must be refused; nothing in them ever runs."""

import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import rewrite_bundle, whole_bundle
from hostile import Hostile, check_refused
from programs import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.backbones.stock import StockSource
from toolkit.registry import BACKBONES

CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
Prepare = Callable[[Path], object]


@functools.cache
def saved(family: str) -> dict[str, bytes]:
    """The files of a whole checkpoint of a family, by name."""
    source = BACKBONES.get(family)
    assert issubclass(source, StockSource)
    model = source.model_class(source.config_class(**{**source.tiny_config, **source.options}))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        source.extractor_class(**source.tiny_extractor).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def write(folder: Path, family: str = "ast") -> Path:
    """A bundle, and a whole checkpoint in the folder `odd`."""
    whole_bundle(folder)
    odd = folder / "odd"
    odd.mkdir()
    for name, content in saved(family).items():
        (odd / name).write_bytes(content)
    return odd


def says(name: str, text: str | bytes) -> Prepare:
    """A checkpoint in which a file holds this."""
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (write(folder) / name).write_bytes(content)


def config(family: str = "ast", **changes: Any) -> Prepare:
    """A checkpoint whose config.json says other things."""
    return lambda folder: _change(write(folder, family) / CONFIG, changes)


def extractor(family: str = "ast", **changes: Any) -> Prepare:
    """A checkpoint that says other things of its features."""
    return lambda folder: _change(write(folder, family) / EXTRACTOR, changes)


def _change(file: Path, changes: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replaced(name: str, make: Callable[[Path], object]) -> Prepare:
    """A checkpoint in which something else has the name of a file."""

    def prepare(folder: Path) -> None:
        file = write(folder) / name
        file.unlink()
        make(file)

    return prepare


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Prepare:
    """A checkpoint with other tensors."""

    def prepare(folder: Path) -> None:
        file = write(folder) / WEIGHTS
        found = load_file(file)
        change(found)
        save_file(found, file, metadata={"format": "pt"})

    return prepare


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("it-ran",)


def torch_file(content: object, legacy: bool = False) -> Prepare:
    """A checkpoint whose weights are in a file of torch."""

    def prepare(folder: Path) -> None:
        odd = write(folder)
        (odd / WEIGHTS).unlink()
        torch.save(content, odd / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)

    return prepare


def bare_pickle(folder: Path) -> None:
    odd = write(folder)
    (odd / WEIGHTS).unlink()
    (odd / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def lost_shards(folder: Path) -> None:
    odd = write(folder)
    (odd / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"layernorm.bias": "../../gone.safetensors"}}
    (odd / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


WIDE = {"hidden_size": 10**6, "num_attention_heads": 1}
ROWS: Mapping[str, tuple[Prepare, str]] = {
    # config.json as a file
    "no configuration": (replaced(CONFIG, lambda file: None), "holds no config.json"),
    "configuration is a folder": (replaced(CONFIG, Path.mkdir), "holds no config.json"),
    "configuration is a pipe": (replaced(CONFIG, os.mkfifo), "holds no config.json"),
    "configuration is huge": (
        replaced(CONFIG, lambda file: (file.touch(), os.truncate(file, 2**24 + 1))),
        "larger than 16 MiB",
    ),
    "configuration is empty": (says(CONFIG, ""), "cannot be read"),
    "configuration is cut": (says(CONFIG, '{"model_type": '), "cannot be read"),
    "configuration is a list": (says(CONFIG, "[1]"), "should hold an object"),
    "configuration is bytes": (says(CONFIG, b"\xff\x00"), "cannot be read"),
    "configuration is nested": (says(CONFIG, "[" * 100_000), "cannot be read"),
    # what it asks for
    "an unknown family": (config(model_type="bert"), "model type 'bert'"),
    "a family as a list": (config(model_type=["hubert"]), "model type"),
    "no family": (config(model_type=None), "model type None"),
    "code of its own": (config(auto_map={"AutoModel": "evil.Model"}), "needs code of its own"),
    "quantised": (config(quantization_config={"load_in_4bit": True}), "holds quantised weights"),
    "an unknown kernel": (config(attn_implementation="evil/kernels"), "attention kernel 'evil/"),
    "a private kernel": (config(_attn_implementation="flash_9"), "attention kernel 'flash_9'"),
    "an unknown type of weights": (config(dtype="float31"), "of the type 'float31'"),
    "weights of integers": (config(torch_dtype="int8"), "of the type 'int8'"),
    "an unknown activation": (config(hidden_act="swishy"), "cannot be used .KeyError"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers.*from 1 to 1,000"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers.*from 1 to 1,000"),
    "layers below zero": (config(num_hidden_layers=-2), "num_hidden_layers.*from 1 to 1,000"),
    "layers as text": (config(num_hidden_layers="two"), "cannot be used"),
    "a width of 10^14": (config(hidden_size=10**14), "hidden_size.*to 1,000,000"),
    "a width of 10^6": (config(**WIDE), "at most 10,000,000,000"),
    "a width of 8,000": (
        config(hidden_size=8_000, intermediate_size=8_000, num_attention_heads=1),
        "files of weights hold",
    ),
    "a width below zero": (config(hidden_size=-96), "cannot be used"),
    "no heads": (config(num_attention_heads=0), "cannot be used"),
    "an odd number of heads": (config(num_attention_heads=7), "of another shape: layers.0"),
    "another width": (config(hidden_size=48), "missing or of another shape"),
    "another depth": (config(num_hidden_layers=3), "missing or of another shape: layers.2"),
    "patches of nothing": (config(patch_size=0), "of another shape: embeddings"),
    "an epsilon of infinity": (config(layer_norm_eps=1e999), "layer_norm_eps"),
    "100,000 values": (config(conv_dim=[1] * 100_000), "more than 10,000 values"),
    "convolutions that do not match": (config("hubert", conv_kernel=[10, 4]), "cannot be used"),
    "a convolution as text": (config("hubert", conv_dim=["a", 16, 16]), "cannot be used"),
    "an unknown norm": (config("wav2vec2", feat_extract_norm="batch"), "cannot be used"),
    "a billion layers of whisper": (config("whisper", encoder_layers=10**9), "encoder_layers"),
    "a billion blocks of a stage": (config("clap", depths=[1, 10**9]), "depths: 1000000000"),
    "a tower as text": (
        config("clap", model_type="clap", audio_config="HTSAT"), "is not that of a model",
    ),
    # what it says of its features
    "features that are cut": (says(EXTRACTOR, '{"mean": '), "preprocessor_config.json cannot be"),
    "features as a list": (says(EXTRACTOR, "[1]"), "should hold an object"),
    "a processor as a list": (says("processor_config.json", "[1]"), "should hold an object"),
    "a processor's features as text": (
        says("processor_config.json", '{"feature_extractor": "ast"}'), "should be an object",
    ),
    "a sample rate of 0": (extractor(sampling_rate=0), "sampling_rate: 0.*from 1000"),
    "a sample rate below zero": (extractor(sampling_rate=-16000), "sampling_rate: -16000"),
    "a sample rate as text": (extractor(sampling_rate="16k"), "sampling_rate: '16k'"),
    "half a sample": (extractor(sampling_rate=16000.5), "whole number"),
    "a sample rate of 10^12": (extractor(sampling_rate=10**12), "sampling_rate"),
    "a spread of 0": (extractor(std=0), "std: 0"),
    "a mean of NaN": (extractor(mean=float("nan")), "mean: nan"),
    "a mean as text": (extractor(mean="-4"), "mean: '-4'"),
    "normalised perhaps": (extractor(do_normalize="no"), "do_normalize: 'no'"),
    "other mel bands": (extractor(num_mel_bins=64), "num_mel_bins: 64.*asks for 32"),
    "a key that is not known": (extractor(preemphasis=0.5), "does not know"),
    "an extractor of another family": (
        extractor(feature_extractor_type="WhisperFeatureExtractor"), "WhisperFeatureExtractor",
    ),
    "samples of two channels": (extractor("wav2vec2", feature_size=2), "feature_size: 2"),
    "another window": (extractor("whisper", n_fft=512), "n_fft: 512.*takes 400"),
    "dither": (extractor("whisper", dither=0.1), "dither: 0.1"),
    "another length": (extractor("whisper", chunk_length=30), "chunk_length: 30.*asks for 1"),
    "an unknown padding": (extractor("clap", padding="mirror"), "padding: 'mirror'"),
    "an unknown truncation": (extractor("clap", truncation="cut"), "truncation: 'cut'"),
    "a limit in dB": (extractor("clap", top_db=80), "top_db: 80"),
    "a band upside down": (
        extractor("clap", frequency_min=9000, frequency_max=100), "9000|ClapFeatureExtractor",
    ),
    "frames of no stride": (extractor("wav2vec2_bert", stride=0), "stride: 0"),
    "frames of another width": (extractor("wav2vec2_bert", stride=4), "80 x 4 values"),
    # weights
    "no weights": (replaced(WEIGHTS, lambda file: None), "cannot be loaded from"),
    "weights are text": (says(WEIGHTS, "weights" * 99_999), "is damaged"),
    "weights are cut": (
        lambda folder: os.truncate(write(folder) / WEIGHTS, 600_000), "is damaged",
    ),
    "weights of a smaller model": (tensors(lambda t: [t.pop(n) for n in list(t)[9:]]), "hold"),
    "weights of NaN": (tensors(lambda t: t["layernorm.bias"].fill_(torch.nan)), "not finite"),
    "weights without fractions": (
        tensors(lambda t: t.update({"layernorm.bias": torch.ones(96, dtype=torch.int8)})),
        "holds integers where ASTModel has fractions, in layernorm.bias",
    ),
    "a tensor is missing": (tensors(lambda t: t.pop("layernorm.bias")), "layernorm.bias"),
    "shards that are gone": (lost_shards, "cannot be loaded from"),
    "an adapter of another library": (
        says("adapter_config.json", '{"base_model_name_or_path": "/"}'), "holds an adapter",
    ),
    "an evil pickle": (torch_file({"layernorm.bias": Evil()}), "which is never run|hold"),
    "an evil pickle of old": (torch_file(Evil(), legacy=True), "which is never run|hold"),
    "a bare evil pickle": (bare_pickle, "which is never run|hold"),
    "an evil pickle of the right size": (
        torch_file({"evil": Evil(), "bulk": torch.zeros(10**6)}), "which is never run",
    ),
    "an evil pickle of old of the right size": (
        torch_file({"evil": Evil(), "bulk": torch.zeros(10**6)}, legacy=True), "which is never run",
    ),
}  # fmt: skip

TABLE = [
    Hostile(
        name,
        ["toolkit", "predict", "bundle", "clip.wav", "--backbone", "./odd"],
        [pattern],
        prepare,
        variables={"HF_HUB_OFFLINE": "1"},
    )
    for name, (prepare, pattern) in ROWS.items()
]


def ssast(content: object) -> Prepare:
    """A bundle of an SSAST whose file holds this."""

    def prepare(folder: Path) -> None:
        backbone = {"name": "ssast", "source": "./odd.pth"}
        rewrite_bundle(whole_bundle(folder), {"backbone": backbone})
        torch.save(content, folder / "odd.pth")

    return prepare


def ssast_tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    """The first tensors of an SSAST, some of them changed or, if None, missing."""
    v = "module.v."
    whole = {
        f"{v}patch_embed.proj.weight": torch.zeros(128, 1, 16, 16),
        f"{v}dist_token": torch.zeros(1, 1, 128),
        f"{v}blocks.0.mlp.fc1.weight": torch.zeros(512, 128),
        "module.p_input_fdim": torch.tensor(32),
        "module.p_input_tdim": torch.tensor(64),
    } | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in whole.items() if tensor is not None}


SSAST_ROWS: Mapping[str, tuple[object, str]] = {
    "evil": ({"module.v.dist_token": Evil()}, "is not a file of tensors"),
    "a list": ([torch.zeros(3)], "is not a file of tensors"),
    "numbers": ({"module.v.dist_token": 3}, "is not a file of tensors"),
    "other tensors": ({"weight": torch.zeros(3)}, "is not an SSAST"),
    "tensors are missing": (ssast_tensors(), "is not a whole SSAST"),
    "no blocks": (ssast_tensors(module__v__blocks__0__mlp__fc1__weight=None), "sizes are missing"),
    "no mel bands": (ssast_tensors(module__p_input_fdim=None), "sizes are missing"),
    "0 mel bands": (ssast_tensors(module__p_input_fdim=torch.tensor(0)), "or impossible"),
    "10^12 frames": (ssast_tensors(module__p_input_tdim=torch.tensor(10**12)), "or impossible"),
    "several lengths": (ssast_tensors(module__p_input_tdim=torch.ones(3)), "or impossible"),
    "patches of one axis": (
        ssast_tensors(module__v__patch_embed__proj__weight=torch.zeros(128)), "is not an SSAST",
    ),
    "half a head": (
        ssast_tensors(module__v__patch_embed__proj__weight=torch.zeros(96, 1, 16, 16)),
        "or impossible",
    ),
}  # fmt: skip

TABLE += [
    Hostile(f"SSAST: {name}", ["toolkit", "predict", "bundle", "clip.wav"], [pattern], ssast(file))
    for name, (file, pattern) in SSAST_ROWS.items()
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
