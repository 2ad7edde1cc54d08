"""Pretrain or continue any registered fbank backbone on a folder of sounds, without labels.

Two objectives, which need nothing from a backbone but its tokens:

- `views`: a crop's pooled tokens must identify, among all crops of the batch, the other crop of the
  same recording, which was augmented differently (NT-Xent, Chen et al., 2020);
- `masked`: patches are hidden, and predicted from the tokens at their places (for AST-like
  backbones, whose tokens are patches).

Without a folder, the sounds are procedural scenes, and nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError, DataError
from toolkit.features.audio import read_audio
from toolkit.features.log_mel import log_mel
from toolkit.features.spec import FbankSpec

from .scenes import scene
from .sources import AUDIO
from .steps import Steps
from .views import augment, normalise

HELD_OUT_EVERY = 20  # one recording in twenty is held out for the loss that is reported


class Sounds(Steps[Tensor]):
    """Batches of pairs of crops [2 B, T, F], normalised; rows i and i + B are of one recording.

    Args:
        folder: searched for sound files, also in its subfolders; None: procedural scenes.
        spec: what the backbone reads.
        batch: number of pairs B.
        seed: of everything random; a batch depends on it and on the step alone.
        first, last: the steps whose batches are iterated.

    Raises:
        DataError: the folder holds fewer than two sound files.
    """

    def __init__(
        self, folder: Path | None, spec: FbankSpec, batch: int, seed: int, first: int, last: int
    ) -> None:
        super().__init__(first, last)
        self.spec, self.size, self.seed = spec, batch, seed
        self.files = [] if folder is None else sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in AUDIO
        )  # fmt: skip
        if folder is not None and len(self.files) < 2:
            raise DataError(
                f"{folder}: holds fewer than two sound files; name a folder of recordings"
            )
        self.seconds = spec.max_length / 100 + 0.02

    def batch(self, step: int, held_out: bool = False) -> Tensor:
        """The batch of that step, from the training recordings or from those held out."""
        rng = np.random.default_rng([self.seed, step, held_out])
        pairs = [self._pair(rng, held_out) for _ in range(self.size)]
        frames = torch.stack([one for one, _ in pairs] + [other for _, other in pairs])
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        frames = augment(frames, torch.zeros(len(frames), dtype=torch.bool), generator)
        return normalise(frames, self.spec)

    def _pair(self, rng: np.random.Generator, held_out: bool) -> tuple[Tensor, Tensor]:
        audio = self._audio(rng, held_out)
        frames = log_mel(torch.from_numpy(audio)[None], self.spec.sample_rate, self.spec.mel_bins)[
            0
        ]
        return self._crop(frames, rng), self._crop(frames, rng)

    def _audio(self, rng: np.random.Generator, held_out: bool) -> NDArray[np.float32]:
        if not self.files:
            seed = int(rng.integers(1 << 40)) * 2 + held_out
            return scene(seed, max(1.0, 1.5 * self.seconds)).audio
        every = min(HELD_OUT_EVERY, len(self.files))
        chosen = [f for i, f in enumerate(self.files) if (i % every == 0) == held_out]
        return read_audio(chosen[rng.integers(len(chosen))], self.spec.sample_rate)

    def _crop(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """`max_length` frames [T, F] from a random place; NaN after the end of the recording."""
        length = self.spec.max_length
        start = int(rng.integers(0, max(1, len(frames) - length + 1)))
        piece = frames[start : start + length]
        return functional.pad(piece, (0, 0, 0, length - len(piece)), value=float("nan"))


class TwoViews(nn.Module):
    """Identify the other crop of the same recording by pooled, projected tokens (NT-Xent)."""

    def __init__(self, backbone: Backbone, temperature: float = 0.1) -> None:
        super().__init__()
        dim, self.prefix, self.temperature = backbone.dim, backbone.prefix_tokens, temperature
        self.project = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 128))

    def forward(self, backbone: Backbone, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Pairs of crops [2 B, T, F] -> loss."""
        pooled = backbone.encode(frames)[:, self.prefix :].float().mean(dim=1)
        z = functional.normalize(self.project(pooled), dim=1)
        likeness = z @ z.T / self.temperature
        likeness.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(z)).roll(len(z) // 2)
        return functional.cross_entropy(likeness, partner)


class MaskedPatches(nn.Module):
    """Hide patches, predict their pixels from the tokens at their places."""

    def __init__(self, backbone: Backbone, share: float = 0.5) -> None:
        super().__init__()
        config: Any = backbone.model.config
        size: int | None = getattr(config, "patch_size", None)
        if size is None or {config.frequency_stride, config.time_stride} != {size}:
            raise ConfigError(
                "the objective `masked` needs a backbone whose tokens are patches that do not "
                "overlap; use `--objective views`"
            )
        self.size, self.share, self.prefix = size, share, backbone.prefix_tokens
        self.predict = nn.Linear(backbone.dim, size * size)

    def forward(self, backbone: Backbone, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Crops [B, T, F] -> mean squared error over the hidden patches, each standardised."""
        size = self.size
        columns, bands = frames.shape[1] // size, frames.shape[2] // size
        patches = (
            frames[:, : columns * size].unflatten(2, (bands, size)).unflatten(1, (columns, size))
        )
        patches = patches.permute(0, 3, 1, 2, 4)  # [B, f, c, size, size]
        hidden = torch.rand(patches.shape[:3], generator=generator) < self.share
        shown = patches.masked_fill(hidden[..., None, None], 0.0).permute(0, 2, 3, 1, 4)
        covered = torch.cat([shown.flatten(3).flatten(1, 2), frames[:, columns * size :]], dim=1)
        tokens = backbone.encode(covered)[:, self.prefix :].float().unflatten(1, (bands, columns))
        pixels = patches.flatten(3)
        pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.std(-1, keepdim=True) + 0.02)
        error: Tensor = (self.predict(tokens) - pixels).square().mean(dim=-1)
        return error[hidden].mean()


OBJECTIVES = {"views": TwoViews, "masked": MaskedPatches}
