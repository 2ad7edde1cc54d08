"""The folder of all caches: what lies in it, what is in use, and how it stays within a limit.

A cache is one folder in the folder of its kind. Beside it lies a file that every process which uses
it holds as a shared lock, so that only a cache that nobody uses is removed, and whose time says
when it was last used.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from toolkit import own_folders
from toolkit.errors import DataError, PlaceError
from toolkit.os_errors import FULL
from toolkit.own_folders import Kind

GIGABYTE = 10**9
UNWRITABLE = {*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP}
REMEDY = "choose another place with `--cache_folder`"

FEATURES = Kind(
    "feature cache",
    holds=("rows.f32", "index.json"),
    known_by=(("rows.f32",),),
    remedy=REMEDY,
)
STATES = Kind("cache of states", holds=("rows.f32", "index.jsonl"), remedy=REMEDY)

FOLDER_OF = {FEATURES: "features", STATES: "states"}
"""Kind of cache -> the folder of its caches."""


class Use:
    """Keeps a cache from being removed as long as this object lives, or in a `with` block.

    Args:
        folder: of the cache, which need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        with disk_errors(folder):
            lock = _opened_lock(folder)
            self._close = weakref.finalize(self, os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


@dataclasses.dataclass(frozen=True)
class Cache:
    """One cache on disk.

    Attributes:
        kind: of its folder.
        folder: where it lies.
        size: of its files, in bytes.
        used: when it was last used, in seconds since 1970.
    """

    kind: Kind
    folder: Path
    size: int
    used: float

    def in_use(self) -> bool:
        """Whether a process uses it now."""
        with _alone(self.folder) as alone:
            return not alone

    def remove(self) -> bool:
        """Remove it unless a process uses it; whether it is gone."""
        with _alone(self.folder) as alone:
            if alone:
                kind = dataclasses.replace(self.kind, holds=("*",))
                own_folders.remove(self.folder, kind if self.unfinished else self.kind)
        return alone

    @property
    def unfinished(self) -> bool:
        """Whether a process was killed while it made the cache."""
        return self.folder.name.startswith(".")


def caches(root: Path) -> list[Cache]:
    """The caches in the folder of all caches; the one that was not used for longest comes first."""
    found = [
        Cache(kind, folder, _size(folder), _last_use(folder))
        for kind, name in FOLDER_OF.items()
        if (root / name).is_dir()
        for folder in (root / name).iterdir()
        if folder.is_dir() and not folder.is_symlink()
    ]
    return sorted(found, key=lambda cache: (cache.used, cache.folder))


def make_room(root: Path, size: int, limit: int) -> bool:
    """Remove caches that nobody uses, the oldest first, until something fits within the limit.

    Args:
        root: folder of all caches.
        size: bytes that will be written.
        limit: of all caches together, in bytes.

    Returns:
        whether it fits, into the limit and onto the disk. What cannot fit removes nothing.
    """
    present = caches(root)
    free = shutil.disk_usage(_existing(root)).free
    excess = max(sum(cache.size for cache in present) + size - limit, size - free)
    unused = [cache for cache in present if not cache.in_use()]
    if excess > sum(cache.size for cache in unused):
        return False
    for cache in unused:
        if excess <= 0:
            break
        with contextlib.suppress(PlaceError):  # it holds files of others: the next one must do
            excess -= cache.size if cache.remove() else 0
    return excess <= 0


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do if a cache cannot be written.

    Raises:
        DataError: the disk is full, or the place is not the user's.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"the cache {path} cannot be written ({error.strerror}): free some space (see `toolkit "
            f"cache list`), or {REMEDY}"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else uses a cache, and nobody begins to before the block ends."""
    lock = _opened_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _opened_lock(folder: Path) -> int:
    file = _lock_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def _lock_file(folder: Path) -> Path:
    """That of the cache, also for the folder in which it is being made."""
    name, _, _ = folder.name.removeprefix(".").partition(".")
    return folder.with_name(f"{name}.use.lock")


def _last_use(folder: Path) -> float:
    times = [0.0]
    for path in (folder, _lock_file(folder)):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            times.append(path.stat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    size = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # another process removes it
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
