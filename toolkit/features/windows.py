"""Which parts of a clip a backbone reads that is longer than it can."""

from typing import Literal

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
    if len(bounds) > 1 and end - begin < length / 10:
        bounds.pop()
    return bounds[:1] if windows == "first" else bounds
