"""Free recordings that Debian packages ship: fetch, unpack, list, check against an evaluation set.

`sources.csv` names every package with its kind and licence. Nothing is installed: packages are
downloaded with `apt-get download` and their audio is copied out of them, game archives included.

    python recipes/Pretrain/sources.py fetch FOLDER
    python recipes/Pretrain/sources.py check FOLDER EVALUATION_FOLDER
"""

import argparse
import mmap
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
from tqdm import tqdm

TABLE = Path(__file__).with_name("sources.csv")
AUDIO = {".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3", ".aiff", ".aif", ".au"}
ZIPPED = {".zip", ".pk3", ".wz", ".pk4"}
SCANNED = {".cat", ".rcc"}
FINGERPRINT_RATE = 8000


@dataclass(frozen=True)
class Recording:
    """One file of a source: where it is, its package, and what it mostly holds."""

    path: Path
    package: str
    kind: str  # "speech", "sound" or "music"


def packages() -> pd.DataFrame:
    """The table of sources: package, kind, licence, note."""
    return pd.read_csv(TABLE, dtype=str, keep_default_na=False)


def fetch(folder: Path) -> None:
    """Download every package of the table and keep its audio and its copyright file."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise SystemExit(
            "sources.py fetch needs apt-get and dpkg: run it on Debian or a derivative"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(packages()["package"], desc="packages"):
        if not (folder / name).is_dir():
            _fetch_package(name, folder)


def _fetch_package(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        downloaded = subprocess.run(["apt-get", "download", "-qq", name], cwd=work)
        archives = list(Path(work).glob("*.deb"))
        if downloaded.returncode or not archives:
            print(f"{name}: not to be had here, left out (was `apt-get update` run?)")
            return
        root = Path(work) / "root"
        subprocess.run(["dpkg", "-x", str(archives[0]), str(root)], check=True)
        target = Path(work) / "kept"
        for path in [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()]:
            keep = target / path.relative_to(root)
            if path.suffix.lower() in AUDIO or path.name == "copyright":
                keep.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, keep)
            elif path.suffix.lower() in ZIPPED:
                _unzip(path, keep)
            elif path.suffix.lower() in SCANNED:
                _scan(path, keep)
        target.mkdir(exist_ok=True)
        target.rename(folder / name)


def _unzip(archive: Path, target: Path) -> None:
    """Copy the audio out of a zip archive (pk3 and wz are zip archives)."""
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            if Path(entry.filename).suffix.lower() in AUDIO and ".." not in entry.filename:
                content.extract(entry, target)


def _scan(container: Path, target: Path) -> None:
    """Copy whole RIFF and Ogg streams out of a container whose layout need not be known."""
    target.mkdir(parents=True, exist_ok=True)
    with container.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    for count, match in enumerate(re.finditer(rb"RIFF....WAVE", data, re.DOTALL)):
        size = 8 + int.from_bytes(data[match.start() + 4 : match.start() + 8], "little")
        (target / f"{count:04d}.wav").write_bytes(data[match.start() : match.start() + size])
    starts = [m.start() for m in re.finditer(rb"OggS\x00\x02", data)]
    for count, start in enumerate(starts):
        (target / f"{count:04d}.ogg").write_bytes(_ogg_stream(data, start))


def _ogg_stream(data: mmap.mmap, start: int) -> bytes:
    """One logical Ogg stream from its first page to the page that says it is the last."""
    at = start
    while data[at : at + 4] == b"OggS":
        segments = data[at + 26]
        last = data[at + 5] & 4
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if last:
            break
    return data[start:at]


def recordings(folder: Path) -> list[Recording]:
    """Every audio file of the fetched packages that the exclusion list does not name."""
    table = packages()
    found = []
    for row in table.itertuples():
        excluded = set(filter(None, row.exclude.split(" ")))
        for path in sorted((folder / row.package).rglob("*")):
            inside = path.relative_to(folder / row.package).as_posix()
            if path.suffix.lower() not in AUDIO or not path.is_file():
                continue
            if not any(inside.endswith(name) for name in excluded):
                found.append(Recording(path, row.package, _kind(inside, row.kind)))
    return found


def _kind(inside: str, kind: str) -> str:
    """A package's kind, but music where the file's own path says so."""
    return "music" if re.search(r"music|soundtrack|/songs?/", inside.lower()) else kind


def decode(path: Path, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """The first `seconds` of a file as mono float32 [n] and its sample rate."""
    with soundfile.SoundFile(path) as stream:
        frames = -1 if seconds is None else int(seconds * stream.samplerate)
        audio = stream.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        return np.ascontiguousarray(audio), stream.samplerate


def fingerprint(audio: np.ndarray, rate: int) -> set[int]:
    """Landmarks of a recording: pairs of spectral peaks, as one integer a pair.

    A pair is (bin of the first peak, bin of the second, frames between them); a copy of a
    recording shares many pairs with it at one time shift, whatever its level or coding.
    """
    return set(_landmarks(audio, rate)[0].tolist())


def _landmarks(audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [n] and the frame of each [n]."""
    if rate != FINGERPRINT_RATE:
        audio = soxr.resample(audio, rate, FINGERPRINT_RATE)
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


def _local_maxima(level: np.ndarray, half: int = 7) -> np.ndarray:
    """Where `level` [t, f] is the largest of its neighbourhood and well above its mean."""
    from scipy.ndimage import maximum_filter

    largest = maximum_filter(level, size=(2 * half + 1, 2 * half + 1))
    return (level == largest) & (level > level.mean() + level.std())


def matches(folder: Path, evaluation: Path, least: int = 12) -> Iterator[tuple[Path, Path, int]]:
    """Recordings of the sources that hold a passage of an evaluation recording.

    Yields (source file, evaluation file, number of landmarks that agree on one time shift).
    """
    index: dict[int, list[tuple[int, int]]] = {}
    known = [p for p in sorted(evaluation.rglob("*")) if p.suffix.lower() in AUDIO]
    for number, path in enumerate(tqdm(known, desc="evaluation")):
        for key, time in zip(*_landmarks(*decode(path)), strict=True):
            index.setdefault(int(key), []).append((number, int(time)))
    for item in tqdm(recordings(folder), desc="sources"):
        try:
            hashes, times = _landmarks(*decode(item.path, seconds=120))
        except (soundfile.LibsndfileError, ValueError):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["fetch", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("evaluation", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.action == "fetch":
        fetch(arguments.folder)
    elif arguments.evaluation is None:
        parser.error("check needs the folder of evaluation recordings")
    else:
        for source, evaluation, count in matches(arguments.folder, arguments.evaluation):
            print(f"{source}\t{evaluation}\t{count}", flush=True)


if __name__ == "__main__":
    main()
