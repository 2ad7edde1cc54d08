"""Rows of float32 numbers in a file, mapped into memory: what all caches of rows read."""

import mmap
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RELEASE_BYTES = 256 << 20  # mapped memory that reading may keep resident

Rows = NDArray[np.float32]
"""[N, F], contiguous."""


class MappedRows:
    """The rows [N, F] of a file as it is now; bytes behind the last whole row do not count.

    Args:
        file: holds the rows one after another.
        width: F.

    Raises:
        ValueError: the file holds no row.
    """

    def __init__(self, file: Path, width: int) -> None:
        count = file.stat().st_size // (width * np.dtype(np.float32).itemsize)
        if not count:
            raise ValueError(f"{file} holds no rows")
        rows = np.memmap(file, dtype=np.float32, mode="r", shape=(count, width))
        self._rows: Rows = rows
        self._mapped: mmap.mmap = rows._mmap  # type: ignore[attr-defined]
        self._read = 0

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, offset: int, count: int) -> Rows:
        """Some rows, read-only."""
        rows = self._rows[offset : offset + count]
        self._read += rows.nbytes
        if self._read > RELEASE_BYTES:
            self.release()
        return rows

    def are_intact(self, offset: int, count: int, crc32: int) -> bool:
        """Whether some rows have this checksum."""
        return checksum(self._rows[offset : offset + count]) == crc32

    def release(self) -> None:
        """Let the pages that were read leave this process, where the system can be told so.

        They stay in the system's cache.
        """
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def checksum(rows: Rows) -> int:
    """The checksum that is kept beside rows."""
    return zlib.crc32(rows.data)
