"""The windows of a clip that is longer than a backbone reads, and one answer from theirs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd

Windows = Literal["average", "first"]
"""Of a clip that is longer than the backbone reads: the mean over all of its windows counts, or its
beginning alone."""


def window_bounds(rows: int, length: int, windows: Windows = "average") -> list[tuple[int, int]]:
    """Begin and end of the windows of a clip.

    A rest shorter than a tenth of a window is left out, unless it is all there is: it would weigh
    as much as a full window and is mostly padding.

    Args:
        rows: length of the clip.
        length: length of a window; the last one may be shorter.
        windows: all of them, or only the first.
    """
    bounds = [(begin, min(begin + length, rows)) for begin in range(0, max(rows, 1), length)]
    begin, end = bounds[-1]
    if len(bounds) > 1 and is_sliver(end - begin, length):
        bounds.pop()
    return bounds[:1] if windows == "first" else bounds


def is_sliver(rows: int, length: int) -> bool:
    """Whether a last window is too short to count: less than a tenth of a whole one."""
    return rows < length / 10


def split_windows(rows: Tensor, length: int) -> list[Tensor]:
    """Rows [T, F] -> their windows [length, F], of which the last may be shorter."""
    return [rows[begin:end] for begin, end in window_bounds(len(rows), length)]


def with_windows(
    clips: "pd.DataFrame", rows: NDArray[np.int64], length: int, windows: Windows
) -> "pd.DataFrame":
    """A table of windows: the rows of the clips, each as often as it has windows.

    Args:
        clips: N clips, from a manifest.
        rows: length of each clip [N].
        length: the most that the backbone reads.
        windows: which windows count.

    Returns:
        the columns of `clips`, and `begin` and `end` of the window; windows of a clip follow each
        other.
    """
    bounds = [window_bounds(int(count), length, windows) for count in rows]
    repeated = clips.iloc[np.repeat(np.arange(len(clips)), [len(found) for found in bounds])]
    flat = np.array([bound for found in bounds for bound in found], dtype=np.int64).reshape(-1, 2)
    return repeated.assign(begin=flat[:, 0], end=flat[:, 1])


def over_clips(windows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer per clip from the answers to its windows, in any order.

    Args:
        windows: `id` of the clip, `probabilities`, perhaps `loss`, and what all windows of a clip
            share.

    Returns:
        the same for the clips, with the means of probabilities and loss; exact, so that the order
        of the windows does not matter.
    """
    clips: dict[str, list[dict[str, Any]]] = {}
    for window in windows:
        clips.setdefault(window["id"], []).append(window)
    found = []
    for own in clips.values():
        columns = zip(*(one["probabilities"] for one in own), strict=True)
        clip = {**own[0], "probabilities": [_mean(column) for column in columns]}
        if "loss" in clip:
            clip["loss"] = _mean([one["loss"] for one in own])
        found.append(clip)
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
