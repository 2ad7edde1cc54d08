"""Audio fingerprints: is a passage of an evaluation recording among the sources?

A copy of a recording shares many landmarks with it at one time shift, whatever its level or coding.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from tqdm import tqdm

from .sources import AUDIO, UNREADABLE, decode, recordings

RATE = 8000


def matches(folder: Path, evaluation: Path, least: int = 12) -> Iterator[tuple[Path, Path, int]]:
    """Recordings of the sources that contain a passage of an evaluation recording.

    Yields (source file, evaluation file, number of landmarks that agree on one time shift); at
    least `least` landmarks agree.
    """
    index: dict[int, list[tuple[int, int]]] = {}
    known = [p for p in sorted(evaluation.rglob("*")) if p.suffix.lower() in AUDIO]
    for number, path in enumerate(tqdm(known, desc="evaluation")):
        for key, time in zip(*landmarks(*decode(path)), strict=True):
            index.setdefault(int(key), []).append((number, int(time)))
    for item in tqdm(recordings(folder), desc="sources"):
        try:
            hashes, times = landmarks(*decode(item.path, seconds=120))
        except UNREADABLE:
            continue
        votes: dict[tuple[int, int], int] = {}
        for key, time in zip(hashes.tolist(), times.tolist(), strict=True):
            for number, at in index.get(key, ())[:50]:
                shift = (number, (time - at) // 2)
                votes[shift] = votes.get(shift, 0) + 1
        if votes:
            (number, _), count = max(votes.items(), key=lambda vote: vote[1])
            if count >= least:
                yield item.path, known[number], count


def landmarks(audio: NDArray[Any], rate: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hashes [n] of a recording's landmarks and the frame of each [n].

    A landmark is a pair of spectral peaks: (bin of the first, bin of the second, frames between).
    """
    if rate != RATE:
        audio = soxr.resample(audio, rate, RATE)
    if len(audio) < 2048:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(audio, 512)[::128] * np.hanning(512)
    level = np.log(np.abs(np.fft.rfft(frames)) + 1e-4)  # [t, 257]
    level = level - level.mean(axis=0, keepdims=True)
    peaks = _local_maxima(level)
    t, f = np.nonzero(peaks)
    hashes, times = [], []
    for step in range(1, 6):  # each peak with the next five
        dt, df = t[step:] - t[:-step], f[step:]
        near = (dt > 0) & (dt < 64)
        hashes.append(((f[:-step] << 15) | (df << 6) | dt)[near])
        times.append(t[:-step][near])
    return np.concatenate(hashes).astype(np.int64), np.concatenate(times).astype(np.int64)


def _local_maxima(level: NDArray[Any], half: int = 7) -> NDArray[np.bool]:
    """Where `level` [t, f] is the largest of its neighbourhood and well above its mean."""
    largest = maximum_filter(level, size=(2 * half + 1, 2 * half + 1))
    found: NDArray[np.bool] = (level == largest) & (level > level.mean() + level.std())
    return found
