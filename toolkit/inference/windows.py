"""Long clips in windows: cut to what a backbone reads, computed in batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.features.batch import padded
from toolkit.features.spec import FeatureSpec

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Rows [W, T, F] and the real rows per window [W] (None: all) -> a result per window [W, ...]."""


def split_windows(rows: Tensor, length: int) -> list[Tensor]:
    """Rows [T, F] -> windows [length, F], and a last shorter one if it is not a sliver.

    A rest shorter than a tenth of a window is left out, unless it is all there is: it would weigh
    as much as a full window and is mostly padding.
    """
    windows = list(rows.split(length))
    if len(windows) > 1 and len(windows[-1]) < length / 10:
        windows.pop()
    return windows


@contextmanager
def evaluating(model: nn.Module, device: str) -> Iterator[None]:
    """Put a model on a device and in eval mode; afterwards it has the mode that it had."""
    training = model.training
    model.to(device).eval()
    try:
        yield
    finally:
        model.train(training)


def in_windows(
    rows: Tensor, spec: FeatureSpec, compute: Compute, device: str, batch_size: int
) -> Tensor:
    """What `compute` finds of each window of a clip, on the CPU.

    Args:
        rows: [T, F] of the whole clip, not normalised.
        spec: what the backbone reads.
        compute: is given batches of windows on `device`.
        device: where to compute.
        batch_size: windows per batch.

    Returns:
        [W, ...].
    """
    windows = split_windows(rows, spec.rows)
    found = []
    for begin in range(0, len(windows), batch_size):
        batch, lengths = padded([w.numpy() for w in windows[begin : begin + batch_size]], spec)
        lengths = None if lengths is None else lengths.to(device)
        found.append(compute(batch.to(device), lengths).cpu())
    return torch.cat(found)
