"""`backbone.weights: int8`: close to full precision, for every method, and refused where it is not.

Needs torchao (`pip install 'audio-peft-toolkit[int8]'`) but for the test of its absence.
"""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolkit import backbones, plugins, testing
from toolkit.backbones import quantised
from toolkit.backbones.ast import TINY
from toolkit.backbones.base import Backbone
from toolkit.backbones.quantised import is_quantised, plain
from toolkit.bundle import load_bundle, save_bundle
from toolkit.errors import BundleError, ConfigError
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.task import ONE_CLASS
from toolkit.testing import matrix

plugins.load()
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
CLOSE = 0.05
"""Relative error of tokens and gradients that int8 may have on a random backbone."""


def in_int8(backbone: Backbone) -> Backbone:
    """A copy of a small backbone, as `load` makes it."""
    copied = copy.deepcopy(backbone).requires_grad_(False)
    for site in copied.sites("block"):
        quantised.quantise(site.module)
    return copied


def classifier(backbone: Backbone, method: str) -> AudioClassifier:
    torch.manual_seed(0)
    model = AudioClassifier(copy.deepcopy(backbone), PEFT.create(method), testing.CLASSES, "all")
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.train(not model.method.trains_backbone)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs torchao.*pip install 'audio-peft-toolkit\[int8"):
        backbones.create({"name": "ast_tiny", "weights": "int8"})
    assert backbones.create({"name": "ast_tiny", "weights": "float32"})


@needs_torchao
@pytest.mark.parametrize("family", matrix.families())
def test_tokens_of_every_family_are_close(family: str) -> None:
    full = testing.tiny_backbone(family=family)
    small = in_int8(full)
    (features, _), lengths = testing.tiny_batch(full), testing.tiny_lengths(full)
    with torch.no_grad():
        found, expected = small(features, lengths), full(features, lengths)
    assert 0 < distance(found, expected) < CLOSE
    blocks = [module for site in small.sites("block") for module in site.module.modules()]
    linear = {id(module.weight) for module in blocks if isinstance(module, nn.Linear)}
    assert linear and linear == {id(p) for p in small.parameters() if is_quantised(p)}


@needs_torchao
@pytest.mark.parametrize("method", PEFT.names())
def test_gradients_of_every_method_are_close(method: str) -> None:
    """All trainable tensors together, against the backbone of the weights that int8 stands for
    (the mathematics) and against the original ones (the rounding)."""
    full = testing.tiny_backbone()
    small = in_int8(full)
    if method == "full":
        with pytest.raises(ConfigError, match=r"trains weights.*which int8 cannot"):
            classifier(small, method)
        return
    rounded = copy.deepcopy(full)
    rounded.load_state_dict({name: plain(t) for name, t in small.state_dict().items()})
    features, labels = testing.tiny_batch(full)
    found, same, expected = (
        _gradients(classifier(backbone, method), features, labels)
        for backbone in (small, rounded, full)
    )
    assert distance(found, same) < 1e-4
    assert distance(found, expected) < 3 * CLOSE


def _gradients(model: AudioClassifier, features: Tensor, labels: Tensor) -> Tensor:
    torch.manual_seed(0)
    losses = model.method.training_losses(
        model.backbone, model, features, testing.tiny_objective(labels)
    )
    torch.stack(list(losses.values())).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.trainable().values() if p.grad is not None])


@needs_torchao
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera", "fact", "adalora"])
def test_merging_would_round_again(method: str) -> None:
    model = classifier(in_int8(testing.tiny_backbone()), method)
    before = {name: plain(t).clone() for name, t in model.state_dict().items()}
    with pytest.raises(ConfigError, match="cannot be merged into weights in int8"):
        model.method.merge(model.backbone)
    after = {name: plain(t) for name, t in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@needs_torchao
@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_a_bundle_remembers_it(method: str, tmp_path: Path) -> None:
    backbone = backbones.load_backbone(str(TINY), max_length=64, weights="int8", depth=2)
    full = backbones.load_backbone(str(TINY), max_length=64, depth=2)
    assert backbone.fingerprint == backbone.fingerprint_now() != full.fingerprint
    model = classifier(backbone, method).eval()
    save_bundle(tmp_path / "bundle", model, list("abcde"), ONE_CLASS)
    rows, _ = testing.tiny_rows(backbone, clips=2)
    for place in (None, str(TINY)):
        found = load_bundle(tmp_path / "bundle", place).model
        with torch.no_grad():
            torch.testing.assert_close(found.logits(rows), model.logits(rows), rtol=0, atol=0)
    with pytest.raises(BundleError, match="trained on another backbone"):
        load_bundle(tmp_path / "bundle", full)


@needs_torchao
def test_the_blocks_take_a_quarter_of_the_memory() -> None:
    def size(weights: str) -> int:
        backbone = backbones.load_backbone("ast_tiny", max_length=64, weights=weights)
        return sum(_bytes(p) for site in backbone.sites("block") for p in site.module.parameters())

    assert size("int8") < 0.28 * size("float32")


def _bytes(tensor: Tensor) -> int:
    if not is_quantised(tensor):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(_bytes(getattr(tensor, name)) for name in names)
