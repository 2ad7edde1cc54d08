"""Audio files -> mono waveforms at one rate: soundfile decodes, soxr resamples."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from toolkit.errors import DataError


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Decode a file, mix its channels down, resample.

    Args:
        path: any format that libsndfile reads.
        sample_rate: wanted rate, Hz.

    Returns:
        float32 [samples] in [-1, 1].

    Raises:
        DataError: the file is missing, unreadable, empty, or has samples that are not finite.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = "there is no such file" if not Path(path).is_file() else str(error)
        raise DataError(f"{path}: {reason}") from None
    if len(samples) == 0:
        raise DataError(f"{path}: holds no samples")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds samples that are not finite numbers")
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate, quality="HQ")
