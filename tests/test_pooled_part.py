"""Pooled vectors stand for a linear probe's frozen part, and for no other model's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import plugins, testing
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier, Pooling
from toolkit.registry import PEFT

plugins.load()
ENDS_OTHERWISE = {"sew": "upsamples its tokens after the norm"}
"""Families whose output is not that of the final norm -> why; they keep tokens."""


def made(
    name: str = "linear_probe", family: str = "ast", pooling: Pooling = "all", **settings: Any
) -> AudioClassifier:
    """A small classifier, as if trained."""
    method = PEFT.create({"name": name, **settings})
    return testing.tiny_classifier(method, family=family, noise=0.05, pooling=pooling).eval()


def step(model: AudioClassifier, features: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    """Logits, and the gradients of a step."""
    logits = model(features, lengths)
    functional.cross_entropy(logits, torch.arange(len(logits)) % testing.CLASSES).backward()
    gradients = {n: p.grad for n, p in model.trainable().items() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("pooling", ["all", "mean", "cls", "first"])
@pytest.mark.parametrize("final_norm", [True, False])
def test_a_step_is_the_same(pooling: Pooling, final_norm: bool) -> None:
    whole, short = (made(pooling=pooling, final_norm=final_norm) for _ in range(2))
    features, _ = testing.tiny_batch(whole.backbone)
    part = short.pooled_part()
    states = part.collate(part.states(features))
    assert states.shape == (6, 1, short.backbone.dim)
    short.reuse(part)
    found, expected = step(short, states, None), step(whole, features, None)
    assert found.keys() == expected.keys() and len(found) == (5 if final_norm else 3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", testing.matrix.families())
def test_every_family_agrees_or_is_refused(family: str) -> None:
    model = made(family=family)
    features, _ = testing.tiny_batch(model.backbone)
    lengths = testing.tiny.tiny_lengths(model.backbone)
    part = model.pooled_part()
    if family in ENDS_OTHERWISE:
        with pytest.raises(ConfigError, match="follows the final norm"):
            part.verify(features, lengths)
        return
    part.verify(features, lengths)
    expected = model(features, lengths)
    model.reuse(part)
    found = model(part.collate(part.states(features, lengths)), lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adapter", {"layers": "last 1"}),
        ("bitfit", {"layers": "last 1"}),
        ("lst", {}),
        ("prompt_shallow", {}),
        ("full", {}),
    ],
)
def test_a_method_that_trains_more_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="more than the final"):
        made(name, **settings).pooled_part()


def test_a_learned_mean_of_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers"):
        made(pooling="weighted").pooled_part()


def test_poolings_and_weights_are_told_apart() -> None:
    models = [made(), made(pooling="cls"), made(zero_positions=True)]
    assert len({model.pooled_part().fingerprint for model in models}) == 3
    assert made().pooled_part().fingerprint == models[0].pooled_part().fingerprint
    assert models[0].frozen_part().fingerprint != models[0].pooled_part().fingerprint


def test_features_are_refused() -> None:
    model = made()
    features, _ = testing.tiny_batch(model.backbone)
    model.reuse(model.pooled_part())
    with pytest.raises(ConfigError, match=r"reuse\(None\)"):
        model(features)
    model.reuse(None)
    model(features)
