"""`torch.compile` trains every method: the same losses and gradients as without it."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit import plugins
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.registry import PEFT
from toolkit.testing import tiny_batch, tiny_classifier, tiny_lengths, tiny_objective

plugins.load()
MIXTURES = [
    {"name": "automoe", "layers": "last 1"},
    {"name": "soft_moa", "layers": "last 1", "block": "conformer"},
    {"name": "topk_moa", "layers": "last 1"},
    {"name": "peer", "layers": "last 1"},
]


def steps(model: AudioClassifier, count: int = 3) -> list[Tensor]:
    """The losses and the last gradients of a few steps, each with its own random numbers."""
    (features, labels), lengths = tiny_batch(model.backbone), tiny_lengths(model.backbone)
    method, found = model.method, []
    optimizer = torch.optim.SGD(method.parameter_groups(model.trainable(), 0.01))
    forward = functools.partial(model.__call__, lengths=lengths)
    for step in range(1, count + 1):
        torch.manual_seed(step)
        losses = method.training_losses(model.backbone, forward, features, tiny_objective(labels))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.on_step(model.backbone, optimizer, step, count)
        found.append(total.detach())
    parameters = model.trainable().values()
    return [*found, *(p.grad for p in parameters if p.grad is not None)]


def compare(config: dict[str, Any], family: str, backend: str) -> None:
    """Train a model and a compiled twin."""
    method = PEFT.create(config)
    off = {key: 0.0 for key in method.as_dict() if key in ("dropout", "drop_path")}
    twins = []
    for _ in range(2):
        made = PEFT.create({**config, **off})
        try:
            model = tiny_classifier(made, family=family, noise=0.05, pooling="mean")
        except ConfigError as refused:
            pytest.skip(str(refused))
        twins.append(model.train(not made.trains_backbone))
    torch._dynamo.reset()
    twins[1].compile(backend=backend)
    expected, found = steps(twins[0]), steps(twins[1])
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=pytest.mark.wide) if c["name"] == "peer" else c for c in MIXTURES],
    ids=lambda config: config["name"],
)
def test_mixtures_train_compiled(config: dict[str, Any]) -> None:
    compare(config, "ast", "aot_eager")


@pytest.mark.wide
@pytest.mark.parametrize("family", ["ast", "wav2vec2"])
@pytest.mark.parametrize("name", PEFT.names())
def test_every_method_trains_compiled(name: str, family: str) -> None:
    compare({"name": name}, family, "aot_eager")


@pytest.mark.wide
@pytest.mark.parametrize("config", MIXTURES, ids=lambda config: config["name"])
def test_mixtures_train_with_the_default_compiler(config: dict[str, Any]) -> None:
    compare(config, "ast", "inductor")
