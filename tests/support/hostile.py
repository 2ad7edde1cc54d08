"""Hostile inputs: rows of a table, each a command that must be refused, and the check of all."""

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

SIGNS_OF_A_FAULT = ("Traceback (most recent call last)", "Segmentation fault", "Aborted")


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A command that must be refused with one clear message, leaving nothing behind.

    Attributes:
        name: of the row, unique in its table.
        words: the command: `toolkit ...` or `python FILE ...`. `{here}` stands for the folder that
            it is started in, `{root}` for the checkout.
        says: regular expressions, all of which the message must match.
        prepare: writes the hostile input into that folder.
        status: the exit status.
        leaves: patterns of files that the command may leave; everything else must be as before.
        variables: of the environment, added to those of the test.
    """

    name: str
    words: Sequence[str | bytes]
    says: Sequence[str]
    prepare: Callable[[Path], object] = lambda folder: None
    status: int = 2
    leaves: Sequence[str] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def check_refused(row: Hostile, folder: Path, programs: Path, root: Path) -> None:
    """Run the command of a row in a folder; assert all that `Hostile` promises.

    Args:
        row: what to try.
        folder: is made.
        programs: where `toolkit` and `python` are: see `programs.warm_programs`.
        root: the checkout.
    """
    folder.mkdir()
    row.prepare(folder)
    before = contents(folder)
    words = [_filled(word, folder, root) for word in row.words]
    variables = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        **{key: _filled(text, folder, root) for key, text in row.variables.items()},
    }
    ended = subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, stdin=subprocess.DEVNULL, timeout=240
    )
    told = (ended.stderr + ended.stdout).decode("utf-8", "backslashreplace")
    assert ended.returncode == row.status, f"exit status {ended.returncode}:\n{told}"
    assert not any(sign in told for sign in SIGNS_OF_A_FAULT), told
    messages = re.findall(r"^(?:[\w. -]+: )?error: ", told, flags=re.MULTILINE)
    assert len(messages) == 1, f"{len(messages)} messages:\n{told}"
    for pattern in row.says:
        assert re.search(pattern, told), f"{pattern!r} is not in:\n{told}"
    after = contents(folder)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    left = {name for name in changed if not any(fnmatch(name, p) for p in row.leaves)}
    assert not left, f"changed or left behind: {sorted(left)}"


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its content; folders, links and odd files with their kind."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file() and os.access(path, os.R_OK):
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def _filled(word: str | bytes, folder: Path, root: Path) -> str | bytes:
    if isinstance(word, bytes):
        return word
    return word.replace("{here}", str(folder)).replace("{root}", str(root))
