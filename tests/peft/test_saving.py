"""A model saved in any state loads to the same model: merged, unmerged, compiled, in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toolkit
from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft import insertion
from toolkit.registry import PEFT
from toolkit.testing import CLASSES, tiny_classifier, tiny_rows

plugins.load()
FAMILIES = ["ast", "clap", "wav2vec2", "wavlm", "whisper"]


def mergeable() -> list[str]:
    """The methods that can be merged."""
    found = []
    for name in PEFT.names():
        modules = list(insertion.inserted(tiny_classifier(PEFT.create(name)).backbone))
        if modules and all(isinstance(module, insertion.Mergeable) for module in modules):
            found.append(name)
    return found


MERGEABLE = mergeable()


def logits_of(model: AudioClassifier) -> Tensor:
    """Of a padded batch, in evaluation."""
    rows, lengths = tiny_rows(model.backbone, 3)
    with torch.no_grad():
        return model.eval().logits(rows, lengths)


def copied(model: AudioClassifier) -> dict[str, Tensor]:
    """The state as it would be on disk."""
    return {name: tensor.clone() for name, tensor in model.state().items()}


def test_which_methods_merge() -> None:
    assert {"lora", "dora", "pissa", "vera", "adalora", "fact", "ia3", "ssf"} <= set(MERGEABLE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MERGEABLE)
def test_saved_while_merged(name: str, family: str) -> None:
    try:
        model = tiny_classifier(PEFT.create(name), family=family, noise=0.2, pooling="mean")
    except ConfigError as refused:
        pytest.skip(str(refused))
    want, state = logits_of(model), copied(model)
    model.method.merge(model.backbone)
    merged = copied(model)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[key], state[key]) for key in state)
    fresh = tiny_classifier(PEFT.create(name), 3, family, pooling="mean")
    fresh.load_state(merged)
    assert torch.equal(logits_of(fresh), want)
    fresh.method.merge(fresh.backbone)
    torch.testing.assert_close(logits_of(fresh), logits_of(model), rtol=1e-4, atol=1e-4)
    fresh.method.unmerge(fresh.backbone)
    assert torch.equal(logits_of(fresh), want)


@pytest.mark.parametrize("name", ["lora", "ssf", "dora"])
def test_loaded_into_a_merged_model(name: str) -> None:
    """It stays merged, and computes what was loaded."""
    model = tiny_classifier(PEFT.create(name), family="wav2vec2", noise=0.2, pooling="mean")
    other = tiny_classifier(PEFT.create(name), 3, "wav2vec2", noise=0.2, pooling="mean")
    other.method.merge(other.backbone)
    other.load_state(copied(model))
    assert insertion.is_merged(other.backbone)
    torch.testing.assert_close(logits_of(other), logits_of(model), rtol=1e-3, atol=1e-3)
    other.method.unmerge(other.backbone)
    assert torch.equal(logits_of(other), logits_of(model))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["ssf", "soft_moa", "adapter", "bitfit", "full"])
def test_bundles_of_any_state(name: str, compiled: bool, training: bool, tmp_path: Path) -> None:
    model = toolkit.adapt(toolkit.load_backbone("ast_tiny", max_length=100), name, CLASSES)
    noise(model)
    want = logits_of(model)
    if compiled:
        model.compile(backend="eager")
        assert torch.allclose(logits_of(model), want, atol=1e-5)
    if name in MERGEABLE:
        model.method.merge(model.backbone)
    model.train(training)
    folder = tmp_path / "bundle"
    names = [f"class {number}" for number in range(CLASSES)]
    toolkit.save_bundle(folder, model, names, "one_class")
    loaded: Any = toolkit.load_bundle(folder)
    assert torch.equal(logits_of(loaded.model), want)


def noise(model: AudioClassifier) -> None:
    """Move every trainable tensor."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
