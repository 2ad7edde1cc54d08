"""Batches by step number: what a step hears depends on the seed and the step alone.

One background process reads, crops and changes the clips, so that a resumed run continues with
exactly the batches that an uninterrupted one would have had.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from store import Batch, Store
from torch import Tensor
from torch.utils.data import IterableDataset
from views import augment

LONG = {
    "sound": 0.42,
    "mixture": 0.14,
    "scene": 0.14,
    "music": 0.06,
    "speech": 0.12,
    "sentence": 0.12,
}
SHORT = {"word": 0.40, "speech": 0.30, "sound": 0.18, "sentence": 0.12}
LENGTHS = {
    "long": ((256, 384, 512), (0.55, 0.15, 0.30)),
    "short": ((96, 128, 160), (0.25, 0.5, 0.25)),
}


class Feeder(IterableDataset):
    """Yields (step, batch, frames as the student hears them)."""

    def __init__(
        self,
        pool: Path,
        seed: int,
        first: int,
        last: int,
        frames: Callable[[int], int],
        short_share: float,
    ) -> None:
        self.pool, self.seed, self.first, self.last = pool, seed, first, last
        self.frames, self.short_share = frames, short_share
        self.store: Store | None = None

    def __iter__(self) -> Iterator[tuple[int, Batch, Tensor]]:
        torch.set_num_threads(1)
        self.store = self.store or Store(self.pool)
        for step in range(self.first, self.last):
            yield (step, *self.batch(step))

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        """The batch of that step: about `frames(step)` frames in crops of one length."""
        rng = np.random.default_rng([self.seed, step])
        form = "short" if rng.random() < self.short_share else "long"
        lengths, shares = LENGTHS[form]
        length = int(rng.choice(lengths, p=shares))
        indices = self._choose(SHORT if form == "short" else LONG, self.frames(step) // length, rng)
        batch = self.store.crop(indices, length, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        return batch, augment(batch, generator)

    def _choose(self, mix: Mapping[str, float], count: int, rng: np.random.Generator) -> np.ndarray:
        kinds = [k for k in mix if len(self.store.by_kind.get(k, ()))]
        shares = np.array([mix[k] for k in kinds])
        chosen = rng.choice(len(kinds), count, p=shares / shares.sum())
        return np.array([rng.choice(self.store.by_kind[kinds[k]]) for k in chosen])
