"""Pretrain or continue any registered fbank backbone on a folder of sounds, without labels.

Two objectives, which need nothing of a backbone but its tokens:

- `views`: two crops of one recording, changed differently, shall be found among all crops of the
  batch by their pooled tokens (NT-Xent, Chen et al., 2020);
- `masked`: patches are hidden, and predicted from the token at their place (for AST-like
  backbones, whose tokens are patches).

Without a folder, procedural scenes are heard: nothing is downloaded.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scenes
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset
from views import augment_frames

from toolkit.backbones.base import Backbone, FeatureSpec
from toolkit.errors import ConfigError, DataError
from toolkit.features.audio import read_audio
from toolkit.features.log_mel import log_mel

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aiff", ".aif"}
HELD_OUT_EVERY = 20  # one recording of so many is kept for the loss that is reported


class Sounds(IterableDataset):
    """Endless batches of pairs of crops, [2 B, T, F] normalised; rows i and i + B are one sound."""

    def __init__(
        self, folder: Path | None, spec: FeatureSpec, batch: int, seed: int, first: int, last: int
    ) -> None:
        self.spec, self.size, self.seed, self.first, self.last = spec, batch, seed, first, last
        self.files = [] if folder is None else sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES
        )  # fmt: skip
        if folder is not None and len(self.files) < 2:
            raise DataError(
                f"{folder}: holds fewer than two sound files; name a folder of recordings"
            )
        self.seconds = spec.max_length / 100 + 0.02

    def __iter__(self) -> Iterator[Tensor]:
        torch.set_num_threads(1)
        for step in range(self.first, self.last):
            yield self.batch(step)

    def batch(self, step: int, held_out: bool = False) -> Tensor:
        """The batch of that step, from the training recordings or from those held out."""
        rng = np.random.default_rng([self.seed, step, held_out])
        pairs = [self._pair(rng, held_out) for _ in range(self.size)]
        frames = torch.stack([one for one, _ in pairs] + [other for _, other in pairs])
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        frames = augment_frames(frames, torch.zeros(len(frames), dtype=torch.bool), generator)
        return torch.nan_to_num(
            self.spec.normalise(frames), nan=float(-self.spec.mean / (2 * self.spec.std))
        )

    def _pair(self, rng: np.random.Generator, held_out: bool) -> tuple[Tensor, Tensor]:
        audio = self._audio(rng, held_out)
        frames = log_mel(torch.from_numpy(audio)[None], self.spec.sample_rate, self.spec.mel_bins)[
            0
        ]
        return self._crop(frames, rng), self._crop(frames, rng)

    def _audio(self, rng: np.random.Generator, held_out: bool) -> np.ndarray:
        if not self.files:
            seed = int(rng.integers(1 << 40)) * 2 + held_out
            return scenes.scene(seed, max(1.0, 1.5 * self.seconds)).audio
        every = min(HELD_OUT_EVERY, len(self.files))
        chosen = [f for i, f in enumerate(self.files) if (i % every == 0) == held_out]
        return read_audio(chosen[rng.integers(len(chosen))], self.spec.sample_rate)

    def _crop(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """`max_length` frames [T, F] from a random place; NaN where the recording is shorter."""
        length = self.spec.max_length
        start = int(rng.integers(0, max(1, len(frames) - length + 1)))
        piece = frames[start : start + length]
        return functional.pad(piece, (0, 0, 0, length - len(piece)), value=float("nan"))


class TwoViews(nn.Module):
    """Find the other crop of the same recording by pooled, projected tokens."""

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
        config = backbone.model.config
        size, strides = getattr(config, "patch_size", None), set()
        if size is not None:
            strides = {config.frequency_stride, config.time_stride}
        if strides != {size}:
            raise ConfigError(
                "objective masked needs a backbone whose tokens are patches that do not overlap; "
                "use `--objective views`"
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
        error = (self.predict(tokens) - pixels).square().mean(dim=-1)
        return error[hidden].mean()


OBJECTIVES = {"views": TwoViews, "masked": MaskedPatches}
