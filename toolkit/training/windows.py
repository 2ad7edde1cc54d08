"""Training on clips that are longer than the backbone reads: a window of each per epoch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from toolkit.data.sampling import TrainingBatches, derive_seed


class DrawnWindows(Sampler[list[int]]):
    """The batches of an epoch, with a window of each clip in the place of the clip.

    Which window it is depends on the seed, the epoch and the clip alone.

    Args:
        batches: of clips.
        counts: how many windows each clip has; those of a clip follow each other.
    """

    def __init__(self, batches: TrainingBatches, counts: Sequence[int]) -> None:
        self.batches, self.counts = batches, counts
        self.first = np.cumsum([0, *counts]).tolist()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [self.first[clip] + self._drawn(clip) for clip in batch]

    def _drawn(self, clip: int) -> int:
        return derive_seed(self.batches.seed, self.batches.epoch, clip) % self.counts[clip]
