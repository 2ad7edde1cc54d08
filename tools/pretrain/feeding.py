"""Batches by step number: what a step reads depends on the seed and the step alone.

A resumed run therefore continues with exactly the batches of an uninterrupted one. The loop runs
the feeder in a background process, which reads, crops and augments the clips.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .steps import Steps
from .store import Batch, Store
from .views import augment, normalise

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


class Feeder(Steps[tuple[Batch, Tensor]]):
    """Yields (batch, its frames augmented and normalised) for the steps `first` to `last - 1`.

    Args:
        store: the pool.
        seed: of the choice of clips and of the augmentation.
        first, last: steps.
        frames: how many frames the batch of a step holds.
        short_share: share of batches of short crops.
    """

    def __init__(
        self,
        store: Store,
        seed: int,
        first: int,
        last: int,
        frames: Callable[[int], int],
        short_share: float,
    ) -> None:
        super().__init__(first, last)
        self.store, self.seed = store, seed
        self.frames, self.short_share = frames, short_share

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        """The batch of a step: about `frames(step)` frames in crops of one length."""
        rng = np.random.default_rng([self.seed, step])
        form = "short" if rng.random() < self.short_share else "long"
        lengths, shares = LENGTHS[form]
        length = int(rng.choice(lengths, p=shares))
        indices = self._choose(SHORT if form == "short" else LONG, self.frames(step) // length, rng)
        batch = self.store.crop(indices, length, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        return batch, normalise(augment(batch.frames, batch.speech_like, generator))

    def _choose(
        self, mix: Mapping[str, float], count: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        kinds = [kind for kind in mix if len(self.store.by_kind.get(kind, ()))]
        shares = np.array([mix[kind] for kind in kinds])
        chosen = rng.choice(len(kinds), count, p=shares / shares.sum())
        return np.array([rng.choice(self.store.by_kind[kinds[k]]) for k in chosen])
