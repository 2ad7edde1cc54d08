"""Files and folders that are complete or absent, even if the process that writes them is killed."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, ReadWriteLock


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see either the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which is moved to its place when the block ends.

    A folder that is already there is removed only then, and stays if filling fails. What a killed
    process left behind is removed by the next one. If several processes may make the same folder,
    hold a lock (`locked`).

    Args:
        folder: its final path; missing parents are created.

    Yields:
        the folder to fill, next to the final path.
    """
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def make_once(
    folder: Path, fill: Callable[[Path], None], whole: Callable[[Path], bool] = Path.exists
) -> None:
    """Make a folder unless it exists; of several processes one makes it and the others wait.

    Args:
        folder: its path.
        fill: writes the content into an empty folder.
        whole: whether an existing folder is what `fill` makes; if not, it is replaced.
    """
    if whole(folder):
        return
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not whole(folder):
            with new_folder(folder) as made:
                fill(made)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file as a lock: of several processes one goes on, and the others wait.

    Args:
        path: the file; it and the folders above it are made, and it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


@contextmanager
def locked_with_others(path: Path, shared: bool) -> Iterator[None]:
    """Hold a file as a lock that is either shared by several processes or held by one alone.

    Args:
        path: the file, which nothing else may use; it and the folders above it are made.
        shared: go on together with others that hold it shared; else wait to be alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = ReadWriteLock(path, is_singleton=False)
    try:
        with lock.read_lock() if shared else lock.write_lock():
            yield
    finally:
        lock.close()
