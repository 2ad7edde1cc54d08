"""Batches that are too small for batch norm train, and do not spoil what it keeps."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from toolkit import plugins, testing
from toolkit.experts.batch_norm import batch_norm
from toolkit.registry import PEFT

plugins.load()
SETTINGS: list[dict[str, Any]] = [
    {"name": "soft_moa", "block": "conformer"},
    {"name": "soft_moa", "block": "conformer", "num_experts": 1},
    {"name": "dense_moa", "block": "conformer"},
    {"name": "adapter", "block": "conformer", "mode": "sequential"},
    {"name": "topk_moa", "block": "conformer"},
    {"name": "mumoe"},
    {"name": "mumoe", "hierarchy": 2},
    {"name": "peer"},
    {"name": "thor", "block": "conformer"},
]


@pytest.mark.parametrize("shape", [(1, 6), (0, 6), (1, 6, 1), (0, 6, 4)])
def test_too_few_values_are_normalised_as_in_evaluation(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(6)
    norm(torch.randn(50, 6) * 3 + 1)  # moves the running statistics
    before, values = copy.deepcopy(norm.state_dict()), torch.randn(shape)
    found = batch_norm(norm, values)
    torch.testing.assert_close(found, copy.deepcopy(norm).eval()(values))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize("shape", [(2, 6), (1, 6, 2), (5, 6, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_other_batches_are_left_to_the_norm(shape: tuple[int, ...], training: bool) -> None:
    norm, values = nn.BatchNorm1d(6).train(training), torch.randn(shape)
    assert torch.equal(batch_norm(copy.deepcopy(norm), values), norm(values))


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: ",".join(map(str, config.values())))
@pytest.mark.parametrize(("family", "rows"), [("ast", 64), ("wav2vec2", 3200), ("wav2vec2", 100)])
def test_one_clip_trains(config: dict[str, Any], family: str, rows: int) -> None:
    """The last of 33 clips at 32 per batch, also one of a few milliseconds: one token."""
    model = testing.tiny_classifier(PEFT.create(config), family=family, pooling="mean").train()
    spec, method = model.backbone.features, model.method
    clip = torch.randn(1, rows, spec.width)
    lengths = torch.tensor([rows]) if spec.variable else None
    losses = method.training_losses(
        model.backbone,
        lambda features: model(features, lengths),
        spec.normalise(clip, lengths),
        testing.tiny_objective(torch.tensor([1])),
    )
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    gradients = [p.grad for p in model.trainable().values() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(torch.isfinite(tensor).all() for tensor in model.state().values())
