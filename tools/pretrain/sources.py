"""Free recordings that Debian packages ship: download, unpack, list, decode.

`sources.csv` names every package with its kind and licence. Nothing is installed: packages are
downloaded with `apt-get download`, and their audio is copied out of them, game archives included.
"""

import mmap
import re
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit.errors import RunError

TABLE = Path(__file__).with_name("sources.csv")
AUDIO = {".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3", ".aiff", ".aif", ".au"}
ZIPPED = {".zip", ".pk3", ".wz", ".pk4"}
SCANNED = {".cat", ".rcc"}
UNREADABLE = (soundfile.LibsndfileError, ValueError)


@dataclass(frozen=True)
class Recording:
    """One file of a source: where it is, its package, and what it mostly holds."""

    path: Path
    package: str
    kind: str  # "speech", "sound" or "music"

    @property
    def spelled(self) -> bool:
        """Whether it is a word of the spelling alphabet ("alpha", "bravo", ...)."""
        return "phonetic" in self.path.parts


def packages() -> pd.DataFrame:
    """The table of sources: package, kind, licence, note."""
    return pd.read_csv(TABLE, dtype=str, keep_default_na=False)


def fetch(folder: Path) -> None:
    """Download every package of the table and keep its audio and its copyright file."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RunError("`fetch` needs apt-get and dpkg: run it on Debian or a derivative")
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm([name for (name,) in _rows("package")], desc="packages"):
        if not (folder / name).is_dir():
            _fetch_package(name, folder)


def _fetch_package(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        downloaded = subprocess.run(["apt-get", "download", "-qq", name], cwd=work)
        archives = list(Path(work).glob("*.deb"))
        if downloaded.returncode or not archives:
            print(f"{name}: not available, skipped; run `apt-get update` and fetch again")
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
    """Copy whole RIFF and Ogg streams out of a container of unknown layout."""
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
    """Every audio file of the downloaded packages, except those that the table excludes."""
    found = []
    for package, kind, exclude in _rows("package", "kind", "exclude"):
        for path in sorted((folder / package).rglob("*")):
            inside = path.relative_to(folder / package).as_posix()
            if path.suffix.lower() not in AUDIO or not path.is_file():
                continue
            if not any(inside.endswith(name) for name in exclude.split()):
                found.append(Recording(path, package, _kind(inside, kind)))
    return found


def _rows(*columns: str) -> list[list[str]]:
    return [list(map(str, row)) for row in packages()[list(columns)].to_numpy()]


def _kind(inside: str, kind: str) -> str:
    """A package's kind, but music where the file's own path says so."""
    return "music" if re.search(r"music|soundtrack|/songs?/", inside.lower()) else kind


def decode(path: Path, seconds: float | None = None) -> tuple[NDArray[np.float32], int]:
    """The first `seconds` of a file as mono float32 [n] and its sample rate."""
    with soundfile.SoundFile(path) as stream:
        frames = -1 if seconds is None else int(seconds * stream.samplerate)
        audio = stream.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        return np.ascontiguousarray(audio), stream.samplerate
