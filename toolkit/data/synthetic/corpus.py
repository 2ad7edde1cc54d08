"""The synthetic corpus as files in ESC-50's layout, so that it is read as real recordings are."""

import csv
import json
import os
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toolkit.data.synthetic.scene import make_clip
from toolkit.data.synthetic.signals import Signal, sample_count
from toolkit.data.synthetic.sounds import CLASSES, TARGETS
from toolkit.errors import DataError
from toolkit.files import make_once
from toolkit.own_folders import Kind

GENERATOR_VERSION = 3  # raised by every change that alters a sample of any clip
FOLDS = 5
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
SETTINGS_FILE = "synthetic.json"
METADATA_FILE = "meta/esc50.csv"
WAV_HEADER_BYTES = 44
SYNTHETIC = Kind(
    "synthetic corpus",
    holds=(SETTINGS_FILE, METADATA_FILE, "audio/*.wav"),
    known_by=((SETTINGS_FILE,),),
)


@dataclass(frozen=True)
class _Settings:
    """What determines every byte of a corpus; written into its folder."""

    seed: int
    clips_per_class: int
    seconds: float
    sample_rate: int
    generator_version: int


@dataclass(frozen=True)
class _Clip:
    """One clip, and its row of the table."""

    name: str
    number: int

    @property
    def fold(self) -> int:
        return 1 + self.number % FOLDS

    @property
    def source(self) -> int:
        """Six digits as in ESC-50, different for every clip: no two come from one recording."""
        return 100_000 + 10_000 * TARGETS[self.name] + self.number

    @property
    def filename(self) -> str:
        return f"{self.fold}-{self.source}-A-{TARGETS[self.name]}.wav"

    @property
    def row(self) -> tuple[str, int, int, str, bool, int, str]:
        target = TARGETS[self.name]
        return (self.filename, self.fold, target, self.name, True, self.source, "A")


def write_corpus(
    folder: Path,
    *,
    seed: int = 0,
    clips_per_class: int = 40,
    seconds: float = 2.5,
    sample_rate: int = 22050,
    progress: bool = True,
) -> Path:
    """Write the corpus in ESC-50's layout, unless it is already there.

    The folder appears complete or not at all: it is made under another name and renamed.

    Args:
        folder: holds `audio/`, `meta/esc50.csv` and `synthetic.json` afterwards.
        seed: different seeds give different clips; not negative.
        clips_per_class: a multiple of 5, so that the folds are balanced.
        seconds: duration of each clip, at least 0.5.
        sample_rate: in Hz, at least 8000.
        progress: show a progress bar.

    Returns:
        `folder`.

    Raises:
        DataError: settings out of range.
        PlaceError: the folder holds something else.
    """
    folder = Path(folder).resolve()
    settings = _Settings(
        int(seed), int(clips_per_class), float(seconds), int(sample_rate), GENERATOR_VERSION
    )
    _check(settings)
    make_once(
        folder,
        lambda made: _fill(made, settings, progress),
        lambda there: _complete(there, settings),
        SYNTHETIC,
    )
    return folder


def _check(settings: _Settings) -> None:
    wrong = []
    if settings.seed < 0:
        wrong.append(f"seed is {settings.seed}, but must not be negative")
    if settings.clips_per_class < FOLDS or settings.clips_per_class % FOLDS:
        wrong.append(f"clips_per_class is {settings.clips_per_class}, but must be 5, 10, 15, ...")
    if not 0.5 <= settings.seconds <= 60:
        wrong.append(f"seconds is {settings.seconds}, but must be from 0.5 to 60")
    if not 8000 <= settings.sample_rate <= 192_000:
        wrong.append(f"sample_rate is {settings.sample_rate}, but must be from 8000 to 192000")
    if wrong:
        raise DataError("the synthetic corpus cannot be made: " + "; ".join(wrong))


def _clips(settings: _Settings) -> list[_Clip]:
    return [_Clip(name, number) for name in CLASSES for number in range(settings.clips_per_class)]


def _complete(folder: Path, settings: _Settings) -> bool:
    """Whether the folder holds every file of exactly this corpus, each of the right size."""
    try:
        recorded = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder / "audio")}
    except (OSError, ValueError):
        return False
    expected = WAV_HEADER_BYTES + 2 * sample_count(settings.seconds, settings.sample_rate)
    return (
        recorded == asdict(settings)
        and (folder / METADATA_FILE).is_file()
        and all(sizes.get(clip.filename) == expected for clip in _clips(settings))
    )


def _fill(folder: Path, settings: _Settings, progress: bool) -> None:
    """Write all files of a corpus into an empty folder, the table last."""
    (folder / "audio").mkdir()
    (folder / METADATA_FILE).parent.mkdir()
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    clips = _clips(settings)

    def write(clip: _Clip) -> None:
        signal = make_clip(
            clip.name,
            clip.number,
            seed=settings.seed,
            seconds=settings.seconds,
            sample_rate=settings.sample_rate,
        )
        _write_wav(folder / "audio" / clip.filename, signal, settings.sample_rate)

    # Threads, because numpy's transforms release the interpreter lock, and because new processes
    # would cost more to start than they save and would need a guarded main module.
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    bar = tqdm(total=len(clips), desc="synthetic corpus", unit="clip", disable=not progress)
    try:
        with bar:
            for _ in pool.map(write, clips):
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    _write_table(folder / METADATA_FILE, clips)


def _write_wav(path: Path, signal: Signal, sample_rate: int) -> None:
    """Write a mono 16-bit PCM file; amplitudes within -1 and 1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(signal * 32767).astype("<i2").tobytes())


def _write_table(path: Path, clips: Sequence[_Clip]) -> None:
    """Write the metadata table, sorted by filename as ESC-50's is."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(clip.row for clip in clips))
