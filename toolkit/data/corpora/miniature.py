"""Miniatures of corpora: the exact layout of the real one over a few short tones.

Recipes run on them without a data folder, and tests read them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

SECONDS = 0.4


def write_tones(clips: Mapping[Path, int], seconds: float = SECONDS, rate: int = 16000) -> None:
    """Write sounds whose pitch depends on their class.

    Args:
        clips: file -> number of its class; missing folders are made.
        seconds: duration.
        rate: sample rate, Hz.
    """
    for number, (path, label) in enumerate(clips.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, _tone(number, label, seconds, rate), rate)


def _tone(number: int, label: int, seconds: float, rate: int) -> NDArray[np.float64]:
    """A decaying tone with two overtones in noise, [samples]."""
    rng = np.random.default_rng([number, label])
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 * 2 ** (label / 7) * rng.uniform(0.98, 1.02)
    phases = rng.uniform(0, 2 * np.pi, 3)
    tone = sum(np.sin(2 * np.pi * pitch * (k + 1) * time + phases[k]) / (k + 1) for k in range(3))
    decaying: NDArray[np.float64] = 0.2 * tone * np.exp(-2 * time)
    return decaying + 0.02 * rng.standard_normal(len(time))
