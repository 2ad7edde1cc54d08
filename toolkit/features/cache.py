"""Features on disk: computed once, memory-mapped, shared by folds, methods, seeds and ranks.

A cache is a folder `features/<key>/` with `rows.f32`, the rows of every clip one after another, and
`index.json`. The key is a hash of the pipeline's settings and of the content of every clip, so that
the same audio under another path or in another order finds the same cache, and changed audio does
not. A cache is written under another name and renamed when it is complete; damage is detected by a
checksum for every clip, and the cache is then computed again.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit import system
from toolkit.errors import DataError, listing
from toolkit.features.cache_folder import FEATURES, FOLDER_OF, Use, disk_errors
from toolkit.features.mapped_rows import MappedRows, Rows, checksum
from toolkit.files import errors_name, locked, new_folder, write_atomically
from toolkit.own_folders import remove

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 256  # clips computed before they are written: bounds the memory
ROWS, INDEX = "rows.f32", "index.json"


class Segment(NamedTuple):
    """A clip: a file, or the part of it from `start` to `stop` seconds."""

    path: str
    start: float | None = None
    stop: float | None = None


def segments_of(clips: "pd.DataFrame") -> list[Segment]:
    """The segments of a manifest's clips (columns `path` and, if given, `start` and `stop`)."""
    if "start" not in clips:
        return [Segment(path) for path in clips["path"]]
    bounds = clips[["start", "stop"]].astype(object).where(clips[["start", "stop"]].notna(), None)
    return [
        Segment(*row) for row in zip(clips["path"], bounds["start"], bounds["stop"], strict=True)
    ]


Compute = Callable[[Segment], Rows]
"""Features [T, F] of one clip; raises `DataError`."""


def default_cache_folder() -> Path:
    """`$TOOLKIT_CACHE`, else `toolkit` in the user's cache folder (`$XDG_CACHE_HOME`)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("TOOLKIT_CACHE", base / "toolkit"))


class FeatureCache:
    """Memory-mapped features of a sequence of clips; `cache[i]` is [T_i, F], read-only float32.

    Attributes:
        folder: where they lie; it is not removed as long as this object lives.
        keys: of each clip: its content, and its part of a file.
    """

    def __init__(self, folder: Path, width: int, keys: Sequence[str]) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.folder, self.keys, self._use = folder, keys, Use(folder)
        self._rows = MappedRows(folder / ROWS, width)
        places = {entry["key"]: (entry["offset"], entry["frames"]) for entry in index["clips"]}
        self._places = np.array([places[key] for key in keys], dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows of each clip [N]."""
        return self._places[:, 1]

    def __getitem__(self, index: int) -> Rows:
        offset, frames = self._places[index]
        return self._rows.read(offset, frames)


def feature_cache(
    root: Path,
    segments: Sequence[Segment],
    settings: dict[str, Any],
    width: int,
    compute: Compute,
    *,
    build: bool = True,
) -> FeatureCache:
    """The features of some clips, computed now if there is no complete cache of them.

    Args:
        root: folder of all caches.
        segments: the clips.
        settings: everything that `compute` depends on besides the audio.
        width: F.
        compute: computes the features of one clip; called from threads.
        build: verify the cache and compute it if needed; if False, it must exist (ranks above 0).

    Raises:
        DataError: some clips cannot be read (all of them are listed), or the disk is full.
    """
    keys = clip_keys(root, segments)
    clips: dict[str, list[Segment]] = {}
    for key, segment in zip(keys, segments, strict=True):
        clips.setdefault(key, []).append(segment)
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps([FORMAT, settings, sorted(clips)], sort_keys=True).encode())
    folder = root / FOLDER_OF[FEATURES] / digest.hexdigest()
    with Use(folder):
        if build:
            with disk_errors(folder), locked(folder.with_suffix(".lock")):
                if not _is_whole(folder, width, clips.keys()):
                    remove(folder, FEATURES)  # a damaged one needs room
                    _build(folder, clips, settings, compute)
        return FeatureCache(folder, width, keys)


def clip_keys(root: Path, segments: Sequence[Segment]) -> list[str]:
    """The key of each clip: the hash of its file's content, and its part of it."""
    contents = content_hashes(root, sorted({segment.path for segment in segments}))
    return [f"{contents[s.path]}:{s.start}:{s.stop}" for s in segments]


def content_hashes(root: Path, paths: list[str]) -> dict[str, str]:
    """Hash of each file's content; a file unchanged in size and time is not read again."""
    places = {path: os.path.abspath(path) for path in paths}
    folder = os.path.commonpath(places.values()) if places else "."
    remembered = root / "hashes" / f"{_hash_text(folder)}.json"
    try:
        known = dict(json.loads(remembered.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    stats = {place: _stat(place) for place in places.values()}
    stale = [place for place, stat in stats.items() if known.get(place, [None])[:-1] != stat]
    if stale:
        with ThreadPoolExecutor() as pool:
            for place, digest in zip(stale, pool.map(_hash_file, stale), strict=True):
                known[place] = [*stats[place], digest]
        with disk_errors(remembered):
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(remembered, json.dumps(known))
    return {path: known[place][-1] for path, place in places.items()}


def _stat(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1, -1]
    # ctime changes even if a copy of the same size keeps the modification time.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash_file(path: str) -> str:
    """Size of a file, checksum of all of it, and hash of its beginning.

    A hash of all of it would cost a fifth of computing its features; two recordings of the same
    length with the same beginning and the same checksum do not occur by accident.
    """
    try:
        with open(path, "rb") as file:
            block = file.read(1 << 20)
            beginning = hashlib.blake2b(block[: 1 << 16], digest_size=12).hexdigest()
            size = checksum = 0
            while block:
                size, checksum = size + len(block), zlib.crc32(block, checksum)
                block = file.read(1 << 20)
    except OSError:
        return f"unreadable {path}"  # computing its features will report the reason
    return f"{size}-{checksum:08x}-{beginning}"


def _hash_text(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _is_whole(folder: Path, width: int, keys: Collection[str]) -> bool:
    """Whether a cache of these clips exists and the checksum of every clip is right."""
    if not folder.is_dir():
        return False
    try:
        clips = json.loads((folder / INDEX).read_text(encoding="utf-8"))["clips"]
        rows = MappedRows(folder / ROWS, width)
        whole = {clip["key"] for clip in clips} == set(keys)
        whole = whole and len(rows) == sum(clip["frames"] for clip in clips)
        with ThreadPoolExecutor() as pool:
            for begin in range(0, len(clips) if whole else 0, CHUNK):
                whole = all(pool.map(lambda c: _is_intact(rows, c), clips[begin : begin + CHUNK]))
                rows.release()
                if not whole:
                    break
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        whole = False
    if not whole:
        logger.warning("the feature cache %s is damaged; it is computed again", folder)
    return whole


def _is_intact(rows: MappedRows, clip: dict[str, Any]) -> bool:
    return rows.are_intact(clip["offset"], clip["frames"], int(clip["crc32"]))


def _build(
    folder: Path, clips: dict[str, list[Segment]], settings: dict[str, Any], compute: Compute
) -> None:
    """Compute the features of distinct clips on all cores, and rename the finished cache."""
    index: list[dict[str, Any]] = []
    problems: list[str] = []
    offset = 0
    with new_folder(folder, FEATURES) as made:
        with (
            errors_name(made / ROWS),
            open(made / ROWS, "wb") as file,
            tqdm(total=len(clips), desc="features", unit="clip", disable=None) as bar,
        ):
            for key, result in _computed(clips, compute):
                bar.update()
                if isinstance(result, DataError):
                    problems.append(str(result))
                    first, *others = (segment.path for segment in clips[key])
                    problems += [f"{other}: the same content as {first}" for other in others]
                    continue
                rows, crc32 = result
                file.write(rows.data)
                index.append({"key": key, "offset": offset, "frames": len(rows), "crc32": crc32})
                offset += len(rows)
        if problems:
            count = sum(map(len, clips.values()))
            raise DataError(
                f"{len(problems)} of {count} clips cannot be used:\n{listing(problems)}"
            )
        write_atomically(made / INDEX, json.dumps({"settings": settings, "clips": index}))


def _computed(
    clips: dict[str, list[Segment]], compute: Compute
) -> Iterator[tuple[str, tuple[Rows, int] | DataError]]:
    """Features and their checksum, or the error, in order; computed by one thread per core."""

    def attempt(key: str) -> tuple[Rows, int] | DataError:
        try:
            rows = np.ascontiguousarray(compute(clips[key][0]), dtype=np.float32)
        except DataError as error:
            return error
        return rows, checksum(rows)

    keys = list(clips)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(system.cores()) as pool:
            for begin in range(0, len(keys), CHUNK):
                chunk = keys[begin : begin + CHUNK]
                yield from zip(chunk, pool.map(attempt, chunk), strict=True)
    finally:
        torch.set_num_threads(threads)
