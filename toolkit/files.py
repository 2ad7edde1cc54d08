"""Files and folders that are complete or absent, even if the process that writes them is killed."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, ReadWriteLock

from toolkit import own_folders
from toolkit.errors import ConfigError
from toolkit.own_folders import ANY, Kind


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see either the old or the new content, never a part.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = own_folders.temporary(path)
    try:
        with errors_name(path):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str:
    """The content of a text file that a user names, without a byte-order mark.

    Raises:
        ConfigError: it is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}):"
            " name another file, or save it as UTF-8"
        ) from None


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let an error of the operating system name the path that it is about.

    Python names none if a file that is already open cannot be written, and the temporary one if a
    file is written under another name.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def new_folder(folder: Path, kind: Kind = ANY) -> Iterator[Path]:
    """An empty folder to fill, which is marked and moved to its place when the block ends.

    A folder of the same kind that is already there is removed only then, and stays if filling
    fails. What a killed process left behind is removed by the next one. If several processes may
    make the same folder, hold a lock (`locked`).

    Args:
        folder: its final path; missing parents are created. If it is a link, that stays, and the
            folder that it leads to is replaced.
        kind: of the folder.

    Yields:
        the folder to fill, next to the final path.

    Raises:
        PlaceError: there is something else, see `own_folders.require_replaceable`.
    """
    folder = Path(os.path.realpath(folder))
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    if old.exists() and not folder.exists():
        own_folders.require_ours(old, kind)
        old.rename(folder)
    own_folders.require_replaceable(folder, kind)
    hidden = dataclasses.replace(kind, holds=("*",))  # nobody else looks for a place there
    for left_over in (partial, old):
        own_folders.remove(left_over, hidden)
    partial.mkdir(parents=True)
    try:
        with errors_name(partial):
            own_folders.mark(partial, kind)
        yield partial
    except BaseException:
        with contextlib.suppress(OSError):
            own_folders.remove(partial, hidden)
        raise
    if not kind.marked:
        own_folders.remove_files(partial, own_folders.MARK)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    own_folders.remove(old, hidden)


@contextmanager
def handed_over(folder: Path) -> Iterator[Path]:
    """An empty folder to fill with what the user will edit; it appears complete and has no mark.

    Args:
        folder: its final path, which must not exist; missing parents are created.

    Raises:
        PlaceError: there is something of that name.
    """
    own_folders.require_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made
        made.rename(folder)


def make_once(
    folder: Path,
    fill: Callable[[Path], None],
    whole: Callable[[Path], bool] = Path.exists,
    kind: Kind = ANY,
) -> None:
    """Make a folder unless it exists; of several processes one makes it and the others wait.

    Args:
        folder: its path.
        fill: writes the content into an empty folder.
        whole: whether an existing folder is what `fill` makes; if not, it is replaced.
        kind: of the folder.

    Raises:
        PlaceError: there is something else, see `own_folders.require_replaceable`.
    """
    if whole(folder):
        return
    own_folders.require_replaceable(folder, kind)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not whole(folder):
            with new_folder(folder, kind) as made:
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
