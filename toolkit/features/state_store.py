"""States of clips on disk: rows that are added clip by clip, and read memory-mapped.

A store is a folder `states/<key>/` with `rows.f32`, the rows of every clip one after another, and
`index.jsonl`, a line per clip. The key is a hash of all that the states depend on besides the clip.
A clip counts once its line is complete, which is written after its rows: whatever a killed process
leaves behind it is passed over. A clip that fails its checksum is computed and added again, and its
later line counts.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.features.cache_folder import FOLDER_OF, STATES, Use, disk_errors
from toolkit.features.mapped_rows import MappedRows, Rows, checksum
from toolkit.files import errors_name, locked
from toolkit.own_folders import claimed

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 256  # clips that are verified before their memory is given back
ROWS, INDEX = "rows.f32", "index.jsonl"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the rows of a clip lie, and their checksum."""

    offset: int
    rows: int
    crc32: int


class StateStore:
    """The states of clips, by key; several processes may read and add to one store.

    Args:
        root: folder of all caches.
        settings: all that states depend on besides the clip.
        width: d of their rows [R, d].

    Attributes:
        folder: where they lie; it is not removed as long as this object lives.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], width: int) -> None:
        digest = hashlib.blake2b(digest_size=12)
        digest.update(json.dumps([FORMAT, width, settings], sort_keys=True).encode())
        self.folder = root / FOLDER_OF[STATES] / digest.hexdigest()
        self._width, self._use = width, Use(self.folder)
        self._rows: MappedRows | None = None
        self._places: dict[str, Place] = {}
        self._verified: set[str] = set()
        self._seen = 0  # bytes of the index that were read
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Rows:
        """The state [R, d] of a clip, read-only."""
        place = self._places[key]
        assert self._rows is not None  # there is a place in them
        return self._rows.read(place.offset, place.rows)

    def missing(self, keys: Collection[str]) -> list[str]:
        """Which of these clips are not stored, or damaged; the others can be read."""
        self.refresh()
        unchecked = [key for key in dict.fromkeys(keys) if key not in self._verified]
        stored = [key for key in unchecked if key in self._places]
        damaged = [key for key in stored if not self._is_inside(self._places[key])]
        whole = [key for key in stored if self._is_inside(self._places[key])]
        with ThreadPoolExecutor() as pool:
            for begin in range(0, len(whole), CHUNK):
                chunk = whole[begin : begin + CHUNK]
                intact = list(pool.map(self._is_intact, chunk))
                damaged += [key for key, good in zip(chunk, intact, strict=True) if not good]
                if self._rows is not None:
                    self._rows.release()
        if damaged:
            logger.warning(
                "%d of %d clips in the cache of states %s are damaged; they are computed again",
                len(damaged), len(stored), self.folder,
            )  # fmt: skip
        for key in damaged:
            del self._places[key]
        self._verified.update(key for key in stored if key in self._places)
        return [key for key in unchecked if key not in self._places]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Be the only job that computes for this store; others wait, and then find what it did."""
        with disk_errors(self.folder), locked(self.folder.with_suffix(".computing.lock")):
            yield

    def add(self, states: Mapping[str, Rows]) -> None:
        """Append the states of some clips.

        Raises:
            DataError: the disk is full, or the place is not the user's.
        """
        lock = self.folder.with_suffix(".lock")
        with disk_errors(self.folder), locked(lock), claimed(self.folder, STATES):
            lines = self._append_rows(states)
            self._append_lines(lines)
        self.refresh()
        self._verified.update(states)

    def refresh(self) -> None:
        """See what other processes have added."""
        try:
            with open(self.folder / INDEX, "rb") as file:
                file.seek(self._seen)
                added = file.read()
        except FileNotFoundError:
            return
        complete = added[: added.rfind(b"\n") + 1]
        if not complete:
            return
        for line in complete.splitlines():
            found = _entry(line)
            if found is not None:
                key, self._places[key] = found
                self._verified.discard(key)
        self._seen += len(complete)
        try:
            self._rows = MappedRows(self.folder / ROWS, self._width)
        except (OSError, ValueError):  # lost; every place is outside now
            self._rows = None

    def _append_rows(self, states: Mapping[str, Rows]) -> list[str]:
        """Write rows behind the last whole one; the lines of the index that say where they are."""
        lines, row = [], self._width * np.dtype(np.float32).itemsize
        with errors_name(self.folder / ROWS), open(self.folder / ROWS, "ab") as file:
            file.write(bytes(-file.tell() % row))
            offset = file.tell() // row
            for key, state in states.items():
                rows = np.ascontiguousarray(state, dtype=np.float32)
                if rows.ndim != 2 or rows.shape[1] != self._width:
                    raise ValueError(f"a state is [R, {self._width}], not {list(rows.shape)}")
                file.write(rows.data)
                place = Place(offset, len(rows), checksum(rows))
                lines.append(json.dumps({"key": key, **dataclasses.asdict(place)}))
                offset += len(rows)
        return lines

    def _append_lines(self, lines: list[str]) -> None:
        with errors_name(self.folder / INDEX), open(self.folder / INDEX, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # what a killed process has left
                    lines = ["", *lines]
            file.write("".join(f"{line}\n" for line in lines).encode())

    def _is_inside(self, place: Place) -> bool:
        rows = 0 if self._rows is None else len(self._rows)
        return place.offset >= 0 and 0 < place.rows <= rows - place.offset

    def _is_intact(self, key: str) -> bool:
        place = self._places[key]
        assert self._rows is not None  # see `_is_inside`
        return self._rows.are_intact(place.offset, place.rows, place.crc32)


def _entry(line: bytes) -> tuple[str, Place] | None:
    """A line of the index; None if it is damaged, or a killed process left a part of one."""
    try:
        entry = json.loads(line)
        place = Place(int(entry["offset"]), int(entry["rows"]), int(entry["crc32"]))
        return str(entry["key"]), place
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
