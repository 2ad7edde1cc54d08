"""Augmentation on the fly, on batches of normalised features and one-hot targets."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Generator, Tensor

from toolkit.errors import ConfigError


class Augmentation(Protocol):
    """A random change of a training batch."""

    def __call__(
        self, features: Tensor, targets: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Change features [B, T, F] and targets [B, C] (probabilities), and return both."""


def augmented(
    augmentations: Iterable[Augmentation], features: Tensor, targets: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Apply augmentations one after the other.

    Args:
        augmentations: in their order.
        features: [B, T, F], normalised.
        targets: [B, C].
        generator: of all that they draw.

    Raises:
        ConfigError: one of them returns something else than features and targets of their shapes.
    """
    for augmentation in augmentations:
        changed = augmentation(features, targets, generator)
        pair = changed if isinstance(changed, tuple | list) else (changed,)
        shapes = [list(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in pair]
        wanted = [list(features.shape), list(targets.shape)]
        if shapes != wanted:
            raise ConfigError(
                f"the augmentation {type(augmentation).__name__} must return features and targets "
                f"of the shapes {wanted[0]} and {wanted[1]}, and returns "
                f"{' and '.join(map(str, shapes)) or 'nothing'}"
            )
        features, targets = changed
    return features, targets


class SpecAugment:
    """Mask one band of mel bins and one span of frames in every clip (arXiv:1904.08779).

    Widths and starts are drawn as torchaudio's masks draw them: width uniform in [0, param),
    start uniform in [0, size - width).

    Args:
        freq_mask: largest width in mel bins; 0 masks none.
        time_mask: largest width in frames; 0 masks none.
        value: what replaces the masked features (0 after normalisation in the papers' code).
    """

    def __init__(self, freq_mask: int = 24, time_mask: int = 80, value: float = 0.0) -> None:
        if min(freq_mask, time_mask) < 0:
            raise ConfigError(f"SpecAugment's masks are widths, not {freq_mask} and {time_mask}")
        self.freq_mask, self.time_mask, self.value = freq_mask, time_mask, value

    def __call__(
        self, features: Tensor, targets: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Mask features [B, T, F]; targets stay as they are."""
        batch, frames, bins = features.shape
        masked = _spans(batch, bins, self.freq_mask, generator)[:, None, :]
        masked = masked | _spans(batch, frames, self.time_mask, generator)[:, :, None]
        return features.masked_fill(masked.to(features.device), self.value), targets


class Mixup:
    """Mix each clip with another one of the batch (arXiv:1710.09412).

    Lengths do not change: a clip that is mixed with a longer one keeps its own length.

    Args:
        alpha: the weight of the first clip is drawn from Beta(alpha, alpha).
        probability: share of the batches that are mixed.
    """

    def __init__(self, alpha: float = 0.5, probability: float = 1.0) -> None:
        if not alpha > 0 or not 0 <= probability <= 1:  # refuses NaN too
            raise ConfigError(
                f"Mixup needs alpha above 0 and a probability, not {alpha} and {probability}"
            )
        self.alpha, self.probability = alpha, probability

    def __call__(
        self, features: Tensor, targets: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix features [B, T, F] and targets [B, C] with the same weights."""
        if torch.rand((), generator=generator) >= self.probability:
            return features, targets
        partner = torch.randperm(len(features), generator=generator).to(features.device)
        shape = torch.full((2, len(features)), self.alpha)
        first, second = torch._standard_gamma(shape, generator=generator)
        weight = (first / (first + second)).to(features)
        mixed = torch.lerp(features[partner], features, weight[:, None, None])
        return mixed, torch.lerp(targets[partner], targets, weight[:, None])


def _spans(batch: int, size: int, limit: int, generator: Generator) -> Tensor:
    """[batch, size] bool: one random span of fewer than `limit` places in each row."""
    limit = min(limit, size)
    width = (torch.rand(batch, 1, generator=generator) * limit).floor()
    start = (torch.rand(batch, 1, generator=generator) * (size - width)).floor()
    places = torch.arange(size)
    return (places >= start) & (places < start + width)
