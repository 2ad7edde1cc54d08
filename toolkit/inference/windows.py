"""Long clips in windows: computed in batches, as they come."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError
from toolkit.features.batch import padded
from toolkit.features.spec import FeatureSpec

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Rows [W, T, F] and the real rows per window [W] (None: all) -> a result per window [W, ...]."""


def require_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    try:
        torch.zeros(1, device=name).cpu()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"the device {name!r} cannot be used ({reason}): use cpu, or cuda on a machine with a "
            "GPU that torch supports"
        ) from None


@contextmanager
def evaluating(model: nn.Module, device: str) -> Iterator[None]:
    """Put a model on a device and in eval mode; afterwards it has the mode that it had."""
    require_device(device)
    training = model.training
    model.to(device).eval()
    try:
        yield
    finally:
        model.train(training)


def in_windows(
    windows: Iterable[Tensor], spec: FeatureSpec, compute: Compute, device: str, batch_size: int
) -> Tensor:
    """What `compute` finds of each window of a clip, on the CPU.

    Args:
        windows: rows [T, F] each, not normalised; taken as they are needed.
        spec: what the backbone reads.
        compute: is given batches of windows on `device`.
        device: where to compute.
        batch_size: windows per batch.

    Returns:
        [W, ...].
    """
    found, left = [], iter(windows)
    while chosen := list(itertools.islice(left, batch_size)):
        batch, lengths = padded([window.numpy() for window in chosen], spec)
        lengths = None if lengths is None else lengths.to(device)
        found.append(compute(batch.to(device), lengths).cpu())
    return torch.cat(found)
