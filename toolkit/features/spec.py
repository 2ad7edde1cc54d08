"""What a backbone reads: a kind of rows that a pipeline caches, and how they are normalised.

A pipeline keeps rows [T, F] of whole clips (log-mel frames, or samples with F = 1) and cuts and
pads them to batches. The backbone's `FeatureSpec` makes its input of a batch, on any device.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from toolkit.features import mel

FRAMES_PER_SECOND = 100


@dataclasses.dataclass(frozen=True)
class FeatureSpec(ABC):
    """The features that a backbone was trained on.

    Attributes:
        sample_rate: Hz.
        max_length: frames of 10 ms that the backbone reads; longer clips are cut.
        kind: the pipeline that makes its rows.
        variable: batches are padded to their longest clip, and lengths tell what is real; else all
            clips are padded to `max_length`, which is part of what the backbone was trained on.
        spectral: normalised features are log-mel frames (so that SpecAugment can mask them).
    """

    sample_rate: int
    max_length: int

    kind: ClassVar[str]
    variable: ClassVar[bool] = True
    spectral: ClassVar[bool] = True

    @property
    @abstractmethod
    def rows(self) -> int:
        """Most rows of a clip."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width F of a row."""

    @abstractmethod
    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A batch of rows [B, T, F] -> the backbone's input [B, T', F'].

        Args:
            features: padded at the end with zeros.
            lengths: real rows of each clip [B]; None: no clip is padded.
        """


@dataclasses.dataclass(frozen=True)
class FbankSpec(FeatureSpec):
    """Log-mel frames, `(x - mean) / (2 std)`.

    Attributes:
        mel_bins: mel bands F.
        mean, std: of the data that the backbone was trained on.
    """

    mel_bins: int
    mean: float
    std: float

    kind = "fbank"
    variable = False

    @property
    def rows(self) -> int:
        """See `FeatureSpec.rows`."""
        return self.max_length

    @property
    def width(self) -> int:
        """See `FeatureSpec.width`."""
        return self.mel_bins

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `FeatureSpec.normalise`; padding is normalised as sound is."""
        return (features - self.mean) / (2 * self.std)


@dataclasses.dataclass(frozen=True)
class WaveformSpec(FeatureSpec):
    """Samples [B, S, 1], of each clip zero mean and unit variance.

    Attributes:
        unit_variance: False leaves the samples as they are.
    """

    unit_variance: bool = True

    kind = "waveform"
    spectral = False

    @property
    def rows(self) -> int:
        """See `FeatureSpec.rows`."""
        return self.max_length * self.sample_rate // FRAMES_PER_SECOND

    @property
    def width(self) -> int:
        """See `FeatureSpec.width`."""
        return 1

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `FeatureSpec.normalise`; padding stays zero."""
        if not self.unit_variance:
            return features
        return mel.unit_variance(features, lengths)
