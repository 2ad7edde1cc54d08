"""Long clips in windows: computed in batches, as they come."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.device import require_device
from toolkit.features.batch import padded
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import Windows

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Rows [W, T, F] and the real rows per window [W] (None: all) -> a result per window [W, ...]."""


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
    windows: Iterable[Tensor],
    spec: FeatureSpec,
    compute: Compute,
    device: str,
    batch_size: int,
    counting: Windows = "average",
) -> Tensor:
    """What `compute` finds of each window of a clip, on the CPU.

    Args:
        windows: rows [T, F] each, not normalised; taken as they are needed.
        spec: what the backbone reads.
        compute: is given batches of windows on `device`.
        device: where to compute.
        batch_size: windows per batch.
        counting: all of them, or only the first.

    Returns:
        [W, ...].
    """
    chosen = itertools.islice(windows, 1) if counting == "first" else iter(windows)
    found = []
    while some := list(itertools.islice(chosen, batch_size)):
        batch, lengths = padded([window.numpy() for window in some], spec)
        lengths = None if lengths is None else lengths.to(device)
        found.append(compute(batch.to(device), lengths).cpu())
    return torch.cat(found)
