"""What a backbone reads: a kind of rows that a pipeline makes, and how they are normalised.

Rows [T, F] of whole clips (log-mel frames, or samples with F = 1) are cached, then cut and padded
into batches. The backbone's `FeatureSpec` turns a batch into its input, on any device.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features import mel

FRAMES_PER_SECOND = 100
MOST_FRAMES = 60 * 60 * FRAMES_PER_SECOND
"""The largest `max_length`: one hour."""


@dataclasses.dataclass(frozen=True)
class FeatureSpec(ABC):
    """The features that a backbone was trained on.

    Attributes:
        sample_rate: Hz.
        max_length: frames of 10 ms that the backbone reads; longer clips are cut.
        kind: the kind of rows that it reads, and the name of the pipeline that makes them by
            default.
        variable: True if batches are padded to their longest clip and lengths tell what is real;
            False if all clips are padded to `max_length`, as the backbone was trained.
        spectral: True if normalised features are log-mel frames (so that SpecAugment can mask
            them).
    """

    sample_rate: int
    max_length: int

    kind: ClassVar[str]
    variable: ClassVar[bool] = True
    spectral: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.max_length <= MOST_FRAMES:
            raise ConfigError(
                f"'max_length' must be a number of frames of 10 ms up to {MOST_FRAMES} (one hour), "
                f"not {self.max_length}"
            )

    @property
    @abstractmethod
    def rows(self) -> int:
        """The largest number of rows of a clip; longer clips are cut."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The width F of a row."""

    @property
    def row_key(self) -> dict[str, Any]:
        """What cached rows depend on besides the audio and the pipeline."""
        return {"kind": self.kind, "sample_rate": self.sample_rate}

    @abstractmethod
    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn a batch of rows [B, T, F] into the backbone's input [B, T', F'].

        Args:
            features: padded at the end with zeros.
            lengths: real rows of each clip [B]; None: no clip is padded.
        """


@dataclasses.dataclass(frozen=True)
class FbankSpec(FeatureSpec):
    """Log-mel frames, normalised as `(x - mean) / (2 std)`.

    Attributes:
        mel_bins: number of mel bands F.
        mean, std: of the data that the backbone was trained on.
    """

    mel_bins: int
    mean: float
    std: float

    kind = "fbank"
    variable = False

    @property
    def rows(self) -> int:
        """The largest number of frames of a clip."""
        return self.max_length

    @property
    def width(self) -> int:
        """The number of mel bands."""
        return self.mel_bins

    @property
    def row_key(self) -> dict[str, Any]:
        """What cached frames depend on besides the audio and the pipeline."""
        return {**super().row_key, "mel_bins": self.mel_bins}

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise frames [B, T, F]; padding is treated as sound."""
        return (features - self.mean) / (2 * self.std)


@dataclasses.dataclass(frozen=True)
class WaveformSpec(FeatureSpec):
    """Samples [B, S, 1], each clip normalised to zero mean and unit variance.

    Attributes:
        unit_variance: False leaves the samples as they are.
    """

    unit_variance: bool = True

    kind = "waveform"
    spectral = False

    @property
    def rows(self) -> int:
        """The largest number of samples of a clip."""
        return self.max_length * self.sample_rate // FRAMES_PER_SECOND

    @property
    def width(self) -> int:
        """1: a row is one sample."""
        return 1

    def normalise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise samples [B, S, 1]; padding stays zero."""
        if not self.unit_variance:
            return features
        return mel.unit_variance(features, lengths)
