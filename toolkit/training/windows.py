"""What training reads of each clip in an epoch: one of its windows, in one of their views."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from toolkit.data.sampling import TrainingBatches, derive_seed


class DrawnWindows(Sampler[list[int]]):
    """The batches of an epoch, with a window of each clip in the place of the clip.

    Which window and which view it is depends on the seed, the epoch and the clip alone.

    Args:
        batches: of clips.
        counts: how many windows each clip has; those of a clip follow each other.
        views: how many views each window has; those of a window follow each other.
    """

    def __init__(self, batches: TrainingBatches, counts: Sequence[int], views: int = 1) -> None:
        self.batches, self.counts, self.views = batches, counts, views
        self.first = np.cumsum([0, *counts]).tolist()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [self._drawn(clip) for clip in batch]

    def _drawn(self, clip: int) -> int:
        parts = self.batches.seed, self.batches.epoch, clip
        window = self.first[clip] + derive_seed(*parts) % self.counts[clip]
        return int(window * self.views + derive_seed(*parts, 1) % self.views)
