"""Reading sounds as mono waveforms at one rate: soundfile decodes, soxr resamples."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.features.audio_file import RATES, AudioFile

LOUDEST = 2.0**31
"""Larger samples (full scale is 1, or 2^31 in files that keep integers as floats) are refused:
their power would leave the range of float32."""


def read_audio(
    path: str | Path, sample_rate: int, start: float | None = None, stop: float | None = None
) -> NDArray[np.float32]:
    """Decode a file or a part of it, mix its channels to mono, and resample.

    Args:
        path: a file in any format that libsndfile reads.
        sample_rate: rate of the returned waveform, Hz.
        start, stop: the part, in seconds; None: the beginning and the end of the file.

    Returns:
        float32 [samples] in [-1, 1].

    Raises:
        DataError: as `AudioFile` does; nothing is left after resampling; or there are samples that
            are not finite or far too large.
    """
    return np.concatenate(list(waveform_blocks(path, sample_rate, start, stop)))


def waveform_blocks(
    path: str | Path, sample_rate: int, start: float | None = None, stop: float | None = None
) -> Iterator[NDArray[np.float32]]:
    """What `read_audio` returns, in pieces: a file of any length in little memory."""
    with AudioFile(path) as file:
        convert = Converter(file.sample_rate, sample_rate, str(path))
        yield from (convert(block) for block in file.blocks(start, stop))
        yield convert.rest()


def resampled(
    samples: NDArray[np.float32], rate: int, sample_rate: int, name: str
) -> NDArray[np.float32]:
    """Mix channels to mono and resample.

    Args:
        samples: [samples, channels].
        rate: their rate, Hz.
        sample_rate: rate of the returned waveform, Hz.
        name: what messages call the clip.

    Returns:
        [samples].

    Raises:
        DataError: the rate is out of range, nothing is left after resampling, or there are samples
            that are not finite or far too large.
    """
    low, high = RATES
    if not low <= rate <= high:
        raise DataError(
            f"{name}: a sample rate of {rate} Hz is not read, only {low:,} to {high:,} Hz"
        )
    convert = Converter(rate, sample_rate, name)
    return np.concatenate([convert(samples), convert.rest()])


class Converter:
    """Mixes the blocks of a sound to mono and resamples them, as if they were one.

    Args:
        rate: of the blocks, Hz.
        sample_rate: of what is returned, Hz.
        name: what messages call the sound.
    """

    def __init__(self, rate: int, sample_rate: int, name: str) -> None:
        self._name, self._sample_rate = name, sample_rate
        self._given = self._made = 0
        self._stream: soxr.ResampleStream | None = None
        if rate != sample_rate:
            self._stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")

    def __call__(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next block [samples, channels] -> mono at the other rate; it may come later.

        Raises:
            DataError: there are samples that are not finite or far too large.
        """
        mono: NDArray[np.float32] = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        largest = np.abs(mono).max(initial=0.0)
        if not np.isfinite(largest):
            raise DataError(f"{self._name}: contains samples that are not finite numbers")
        if largest > LOUDEST:
            raise DataError(
                f"{self._name}: contains samples of {largest:.1e}, and full scale is 1: scale the "
                "sound to [-1, 1]"
            )
        if self._stream is not None:
            mono = self._stream.resample_chunk(np.ascontiguousarray(mono))
        self._given += len(block)
        self._made += len(mono)
        return mono

    def rest(self) -> NDArray[np.float32]:
        """What is still to come after the last block.

        Raises:
            DataError: the sound was empty, or is empty at the other rate.
        """
        left = np.zeros(0, np.float32)
        if self._stream is not None:
            left = self._stream.resample_chunk(left, last=True)
        if not self._given:
            raise DataError(f"{self._name}: contains no samples")
        if not self._made + len(left):
            raise DataError(
                f"{self._name}: contains no samples at {self._sample_rate} Hz: its {self._given} "
                "samples are too short"
            )
        return left
