"""Optimisers and augmentations are tried before training, also what `--trust` lets through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from toolkit.data.augment import Mixup, SpecAugment
from toolkit.errors import ConfigError
from toolkit.features.spec import FbankSpec, WaveformSpec
from toolkit.training.trial import try_augmentations, try_optimizer

FRAMES = FbankSpec(16000, 64, 128, 0.0, 0.5)
SAMPLES = WaveformSpec(16000, 64)


class SetToInfinity(torch.optim.SGD):
    """Diverges in its first step."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(torch.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.LBFGS, "cannot be used"),  # wants to compute the loss several times
        (torch.optim.SparseAdam, "cannot be used"),
        (torch.optim.Muon, "cannot be used"),  # for matrices alone
        (lambda groups: None, "makes a NoneType, which is no optimiser"),
        (lambda groups: torch.nn.Linear(1, 1), "makes a Linear, which is no optimiser"),
        (lambda: None, "cannot be used"),
        (lambda groups: 1 / 0, "cannot be used: division by zero"),
        (SetToInfinity, "no finite numbers"),
    ],
)
def test_optimisers_that_cannot_train(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        try_optimizer(make, 0.1, "cpu")


def test_a_try_leaves_nothing_behind() -> None:
    """Neither random numbers are drawn from the run's generator, nor are settings changed."""
    state = torch.get_rng_state()
    try_optimizer(torch.optim.AdamW, 0.1, "cpu")
    try_augmentations([SpecAugment(), Mixup()], FRAMES)
    try_augmentations([Mixup()], SAMPLES)
    assert torch.equal(torch.get_rng_state(), state)


def _in_place(features: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    torch.rand(3)
    return features.add_(1), targets


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda features, targets, generator: features, "must give back two tensors"),
        (lambda features, targets, generator: (features, None), "must give back two tensors"),
        (lambda features, targets, generator: (targets, features), "of the shapes it was given"),
        (lambda features, targets, generator: (features / 0, targets), "finite"),
        (lambda features: features, "cannot be used"),
        (lambda *batch: 1 / 0, "cannot be used: division by zero"),
    ],
)
def test_augmentations_that_cannot_train(augment: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"'augment\.1' \(function\).*{message}"):
        try_augmentations([_in_place, augment], FRAMES)
