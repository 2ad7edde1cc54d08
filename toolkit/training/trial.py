"""A try of what a configuration brings to training, before anything is trained."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.data.augment import Augmentation
from toolkit.errors import ConfigError, ToolkitError
from toolkit.features.spec import FeatureSpec

OptimizerOf = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

MOST_ROWS = 1024  # of the clips that an augmentation is tried on
DRAWS, SOME_ROWS = 64, 32  # to see whether it mixes clips, which it may do seldom


def try_optimizer(make: OptimizerOf, lr: float, device: str) -> None:
    """Take two steps with an optimiser on a matrix and a vector.

    Args:
        make: makes it from groups of parameters.
        lr: the learning rate.
        device: where it will train.

    Raises:
        ConfigError: it cannot be made, it is no optimiser, or it cannot step.
    """
    shapes = ((2, 3), (3,))
    parameters = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
    with _explained("'optimizer'"):
        optimizer = make([{"params": [parameter], "lr": lr} for parameter in parameters])
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(
                f"'optimizer' makes a {type(optimizer).__name__}, which is no optimiser; use e.g. "
                "!name:torch.optim.AdamW"
            )
        for _ in range(2):  # some settings have no part in the first one
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if not all(torch.isfinite(parameter).all() for parameter in parameters):
        raise ConfigError(
            f"'optimizer': two steps of {type(optimizer).__name__} with these settings give no "
            "finite numbers"
        )


def try_augmentations(augment: Sequence[Augmentation], spec: FeatureSpec) -> None:
    """Change a batch with each augmentation.

    Args:
        augment: in the order of use.
        spec: the features that the backbone reads.

    Raises:
        ConfigError: one of them fails, or does not give such a batch back.
    """
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.zeros(2, min(spec.rows, MOST_ROWS), spec.width), torch.eye(2)
    for index, augmentation in enumerate(augment):
        name = f"'augment.{index}' ({type(augmentation).__name__})"
        with _explained(name):
            changed = augmentation(features.clone(), targets.clone(), generator)
        is_pair = isinstance(changed, tuple) and len(changed) == 2
        if not is_pair or not all(isinstance(part, Tensor) for part in changed):
            raise ConfigError(f"{name} must give back two tensors: (features, targets)")
        for given, made in zip((features, targets), changed, strict=True):
            if made.shape != given.shape or not torch.isfinite(made).all():
                raise ConfigError(
                    f"{name} must give back finite features [B, T, F] and targets [B, C] of the "
                    f"shapes it was given; it made {list(made.shape)} of {list(given.shape)}"
                )


def try_views(augment: Sequence[Augmentation], spec: FeatureSpec) -> None:
    """Refuse augmentation of which no views of single clips can be kept.

    Args:
        augment: in the order of use, as `try_augmentations` has accepted it.
        spec: the features that the backbone reads.

    Raises:
        ConfigError: there is none, a clip depends on the others of its batch, or targets change.
    """
    if not augment:
        raise ConfigError("'reuse' asks for augmented views, and 'augment' is empty: use auto")
    for index, augmentation in enumerate(augment):
        if not all(_leaves_clips_alone(augmentation, spec, seed) for seed in range(DRAWS)):
            raise ConfigError(
                f"'augment.{index}' ({type(augmentation).__name__}) mixes clips or changes their "
                "classes, so that no views of a clip can be kept: leave it out, or use "
                "`--reuse off`"
            )


def _leaves_clips_alone(augmentation: Augmentation, spec: FeatureSpec, seed: int) -> bool:
    """Whether a clip comes out the same beside another one, and both keep their classes."""
    targets, made = torch.eye(2), []
    for other in (0.0, 1.0):
        features = torch.zeros(2, min(spec.rows, SOME_ROWS), spec.width)
        features[1] = other
        generator = torch.Generator().manual_seed(seed)
        changed, classes = augmentation(features, targets.clone(), generator)
        if not torch.equal(classes, targets):
            return False
        made.append(changed[0])
    return torch.equal(*made)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say whose fault it is if what the user configured raises something."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    except ToolkitError:
        raise
    except Exception as error:  # the callable and its settings are the user's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name} cannot be used: {reason}") from error
