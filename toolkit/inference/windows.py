"""Long clips in windows: cut to what a backbone reads, computed in batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.features.batch import padded
from toolkit.features.spec import FeatureSpec
from toolkit.features.windows import Windows, window_bounds

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""Rows [W, T, F] and the real rows per window [W] (None: all) -> a result per window [W, ...]."""


def split_windows(rows: Tensor, length: int, windows: Windows = "average") -> list[Tensor]:
    """The windows [length, F] of a clip [T, F]; see `window_bounds`."""
    return [rows[begin:end] for begin, end in window_bounds(len(rows), length, windows)]


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
    rows: Tensor,
    spec: FeatureSpec,
    compute: Compute,
    device: str,
    batch_size: int,
    windows: Windows = "average",
) -> Tensor:
    """What `compute` finds of each window of a clip, on the CPU.

    Args:
        rows: [T, F] of the whole clip, not normalised.
        spec: what the backbone reads.
        compute: is given batches of windows on `device`.
        device: where to compute.
        batch_size: windows per batch.
        windows: all of them, or only the first.

    Returns:
        [W, ...].
    """
    parts = split_windows(rows, spec.rows, windows)
    found = []
    for begin in range(0, len(parts), batch_size):
        batch, lengths = padded([part.numpy() for part in parts[begin : begin + batch_size]], spec)
        lengths = None if lengths is None else lengths.to(device)
        found.append(compute(batch.to(device), lengths).cpu())
    return torch.cat(found)
