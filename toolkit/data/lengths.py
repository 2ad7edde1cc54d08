"""Batches of clips that are about equally long, so that little of a batch is padding.

Apart from `sampling`, which says how often and in what order clips come.
"""

from collections.abc import Sequence

import torch
from torch import Generator

POOL = 50  # batches that are sorted together: more of them pad less, and mix clips less


def grouped(
    order: Sequence[int],
    lengths: Sequence[int],
    bounds: Sequence[tuple[int, int]],
    generator: Generator,
) -> list[int]:
    """The clips of an epoch in another order: each batch holds clips of about one length.

    The clips of `POOL` batches are sorted by length and cut into batches, whose order is random.

    Args:
        order: positions of the clips, in the order in which they were drawn.
        lengths: rows of the clip at each position.
        bounds: begin and end of each batch in `order`; the sizes of all batches stay as they are.
        generator: draws the order of the batches.
    """
    size = bounds[0][1] - bounds[0][0]
    pooled: list[int] = []
    for begin in range(0, len(order), POOL * size):
        pooled += sorted(order[begin : begin + POOL * size], key=lengths.__getitem__)
    batches = [pooled[begin:end] for begin, end in bounds]
    full = [number for number, batch in enumerate(batches) if len(batch) == size]
    places = torch.randperm(len(full), generator=generator).tolist()
    mixed = dict(zip(full, (batches[full[place]] for place in places), strict=True))
    return [clip for number, batch in enumerate(batches) for clip in mixed.get(number, batch)]
