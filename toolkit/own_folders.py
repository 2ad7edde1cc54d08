"""Folders that the toolkit may replace or remove: those that carry its mark.

Whatever the toolkit replaces or removes goes through this module, so that files of others are never
lost: not with a wrong `--output_folder`, and not with `-o .`. A folder that the toolkit makes holds
a file, the mark, that says which program made it and what it is.
"""

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from toolkit import __version__
from toolkit.errors import PlaceError

MARK = ".audio-peft-toolkit.json"
PROGRAM = "audio-peft-toolkit"
TEMPORARY = re.compile(r"(?<![^/])\.([^/]+)\.\d+\.\d+$")
"""Names that `temporary` gives."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that the toolkit makes.

    Attributes:
        name: what its mark says, such as "bundle".
        holds: patterns of the files that the toolkit writes there, relative to the folder; `*` also
            matches a slash. Only a folder without any other file is removed as a whole.
        known_by: patterns of paths by which a folder is recognised that was made before there were
            marks: it has one of each pattern of one of these groups.
        marked: whether it keeps the mark once it is whole. A bundle does not: its description says
            what it is, and which version wrote it.
        remedy: what the user can do if the folder is not one of ours.
    """

    name: str
    holds: tuple[str, ...] = ("*",)
    known_by: tuple[tuple[str, ...], ...] = ()
    marked: bool = True
    remedy: str = "name another folder"


ANY = Kind("folder")
"""A folder that only the toolkit looks into, such as a corpus that it makes."""


def require_ours(folder: Path, kind: Kind) -> None:
    """Refuse a folder that is neither absent, nor empty, nor one of ours of this kind.

    Raises:
        PlaceError: it is a file, or holds files of others.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise PlaceError(f"{folder} is a file, not a folder: {kind.remedy}")
    marked = _marked_as(folder)
    if marked is None:
        known = any(all(any(folder.glob(p)) for p in group) for group in kind.known_by)
        if not known and (found := sorted(entry.name for entry in folder.iterdir())):
            raise PlaceError(
                f"{folder} is not a {kind.name} that this toolkit made: it holds {_some(found)}, "
                f"which might be replaced; {kind.remedy}"
            )
    elif marked != kind.name:
        raise PlaceError(f"{folder} is a {marked}, not a {kind.name}: {kind.remedy}")


def require_replaceable(folder: Path, kind: Kind) -> None:
    """Refuse a folder that is not one of ours, or that also holds a file of others.

    Raises:
        PlaceError: removing it would lose that file.
    """
    require_ours(folder, kind)
    names = (path.relative_to(folder).as_posix() for path in _files(folder))
    wanted = (MARK, f"*/{MARK}", *kind.holds)
    others = sorted(name for name in names if not any(fnmatch(_final(name), p) for p in wanted))
    if others:
        raise PlaceError(
            f"{folder} is a {kind.name} that also holds {_some(others)}, which would be removed "
            f"with it: move that away, or {kind.remedy}"
        )


def mark(folder: Path, kind: Kind) -> None:
    """Write the mark into a folder, whole or not at all: half a mark would be one of others."""
    content = {"made by": PROGRAM, "version": __version__, "what": kind.name}
    try:
        (folder / MARK).write_text(json.dumps(content) + "\n", encoding="utf-8")
    except BaseException:
        with contextlib.suppress(OSError):
            (folder / MARK).unlink(missing_ok=True)
        raise


def temporary(file: Path) -> Path:
    """What a file is called until it is whole; a killed process may leave it behind."""
    return file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")


def _final(name: str) -> str:
    """What a file is called once it is whole."""
    return TEMPORARY.sub(r"\1", name)


@contextmanager
def claimed(folder: Path, kind: Kind) -> Iterator[None]:
    """Write into a folder of ours, which is made and marked if it is absent or empty.

    If the block fails before anything is written, what was made for it is removed again.

    Raises:
        PlaceError: see `require_ours`.
    """
    require_ours(folder, kind)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    before = {entry.name for entry in folder.iterdir()}
    try:
        if MARK not in before:
            mark(folder, kind)
        yield
    except BaseException:
        if MARK not in before and {entry.name for entry in folder.iterdir()} == {*before, MARK}:
            (folder / MARK).unlink()
        for path in missing:
            if any(path.iterdir()):
                break
            path.rmdir()
        raise


def remove(folder: Path, kind: Kind) -> None:
    """Remove a folder of ours; one that does not exist is no error.

    Raises:
        PlaceError: see `require_replaceable`.
        OSError: something in it cannot be removed.
    """
    require_replaceable(folder, kind)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def empty(folder: Path, kind: Kind, keep: tuple[str, ...] = ()) -> None:
    """Remove everything in a folder of ours, but for its mark and some names.

    Raises:
        PlaceError: see `require_replaceable`.
    """
    require_replaceable(folder, kind)
    for entry in folder.iterdir():
        if entry.name == MARK or entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_files(folder: Path, pattern: str) -> None:
    """Remove those files of a folder of ours whose name matches; what else is there stays."""
    for file in folder.glob(pattern):
        file.unlink(missing_ok=True)


def require_new(path: Path) -> None:
    """Refuse to replace what cannot carry our mark: a single file, or what the user will edit.

    Raises:
        PlaceError: there is something of that name.
    """
    if os.path.lexists(path):
        raise PlaceError(f"{path} is already there; choose another place or delete it")


def _marked_as(folder: Path) -> str | None:
    """What the mark of a folder says; None: it has no mark of this program."""
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("made by") != PROGRAM:
        return None
    return str(content.get("what"))


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder itself; links are not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in (*files, *links))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
