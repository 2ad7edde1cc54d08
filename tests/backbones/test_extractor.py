"""What a checkpoint says of its features, key by key: obeyed as the stock extractor does, or
refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit import backbones
from toolkit.backbones.extractor import SHARED_KEYS, Ignored
from toolkit.backbones.stock import StockSource
from toolkit.errors import BackboneError
from toolkit.features.pipeline import pipeline_for
from toolkit.registry import BACKBONES

FAMILIES = {
    name: source
    for name in BACKBONES.names()
    if issubclass(source := BACKBONES.get(name), StockSource)
    and name not in ("ast_tiny", "ssast")  # which say nothing of features
}
VALUES = (
    None, True, False, 0, 1, -1, 2, 50, 400, 480, 8000, 16000, 22050, 48000, 0.0, 0.1, -4.0, 2.5,
    "pad", "repeat", "repeatpad", "rand_trunc", "fusion", "left", "right", [1],
)  # fmt: skip
CHECKED = [
    (family, key)
    for family, source in FAMILIES.items()
    for key in {**SHARED_KEYS, **source.extractor_keys}
]


def checkpoint(folder: Path, family: str, **changes: Any) -> str:
    """A folder with the configuration of a tiny backbone, and what it says of its features."""
    source = FAMILIES[family]
    source.config_class(**{**source.tiny_config, **source.options}).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**source.tiny_extractor, **changes}))
    return str(folder)


def found(folder: str, family: str, wave: np.ndarray) -> np.ndarray:
    """The toolkit's features [T, F] of a clip."""
    spec = backbones.create({"name": folder}).spec(FAMILIES[family].tiny_length)
    rows = pipeline_for(spec).rows(torch.from_numpy(wave), spec)[None, : spec.rows]
    return spec.normalise(rows, torch.tensor([rows.shape[1]]) if spec.variable else None)[0].numpy()


def stock(folder: str, family: str, wave: np.ndarray) -> np.ndarray:
    """The stock extractor's features [T, F] of a clip."""
    extractor = FAMILIES[family].extractor_class.from_pretrained(folder)
    made = extractor([wave], sampling_rate=extractor.sampling_rate, return_tensors="np")
    if family == "clap":
        return made["input_features"][0, 0]
    if family == "whisper":
        return made["input_features"][0].T
    if family == "wav2vec2_bert":
        counts = made["attention_mask"].sum()
        return made["input_features"][0, :counts].reshape(counts * extractor.stride, -1)
    values = made["input_values"][0]
    return values if family == "ast" else values[:, None]


@pytest.mark.parametrize(("family", "key"), CHECKED)
def test_every_value_is_obeyed_or_refused(family: str, key: str, tmp_path: Path) -> None:
    wave = (0.1 * np.random.default_rng(0).standard_normal(1500)).astype(np.float32)
    ignored = isinstance({**SHARED_KEYS, **FAMILIES[family].extractor_keys}[key], Ignored)
    usual = found(checkpoint(tmp_path, family), family, wave)
    for value in VALUES:
        folder = checkpoint(tmp_path, family, **{key: value})
        try:
            features = found(folder, family, wave)
        except BackboneError:
            continue
        if ignored:
            np.testing.assert_array_equal(features, usual)
            continue
        expected = stock(folder, family, wave)
        length = min(len(features), len(expected))
        np.testing.assert_allclose(features[:length], expected[:length], rtol=0, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_stock_extractor_has_a_rule(family: str) -> None:
    """So that one that transformers adds is not overlooked."""
    source = FAMILIES[family]
    written = source.extractor_class(**source.tiny_extractor).to_dict()
    known = {*SHARED_KEYS, *source.extractor_keys, "feature_extractor_type"}
    assert set(json.loads(json.dumps(written, default=str))) <= known


def test_features_inside_a_processor_count(tmp_path: Path) -> None:
    """transformers 5 writes what an extractor says into processor_config.json."""
    folder = checkpoint(tmp_path, "clap")
    inside = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    inside["frequency_min"] = 50
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": inside}))
    assert backbones.create({"name": folder}).spec(50).frequency_min == 50


def test_what_laion_says_of_clap_is_obeyed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "clap", truncation="rand_trunc", frequency_min=50)
    wave = (0.1 * np.random.default_rng(0).standard_normal(14_000)).astype(np.float32)
    features, expected = found(folder, "clap", wave), stock(folder, "clap", wave)
    assert np.abs(features - expected).max() < 1e-3
