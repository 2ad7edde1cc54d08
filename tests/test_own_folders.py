"""Folders that may be replaced: those that carry our mark, and no file of others is ever lost."""

import ast
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.errors import PlaceError
from toolkit.files import handed_over, make_once, new_folder
from toolkit.own_folders import (
    ANY,
    MARK,
    Kind,
    claimed,
    empty,
    mark,
    remove,
    require_ours,
    temporary,
)

ROOT = Path(__file__).parents[1]
BOX = Kind("box", holds=("a", "b/*.txt"), known_by=(("old.json", "*.npy"),), remedy="take another")


def replaced(folder: Path) -> None:
    with new_folder(folder, BOX) as made:
        (made / "a").touch()


def claimed_box(folder: Path) -> None:
    with claimed(folder, BOX):
        (folder / "a").touch()


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": replaced,
    "claimed": claimed_box,
    "removed": lambda folder: remove(folder, BOX),
    "emptied": lambda folder: empty(folder, BOX),
    "made once": lambda folder: make_once(folder, lambda made: None, lambda there: False, BOX),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_files_of_others_are_never_lost(change: Callable[[Path], None], tmp_path: Path) -> None:
    precious = tmp_path / "here" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    for place in (precious, precious.parent):
        with pytest.raises(PlaceError, match="take another"):
            change(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "precious.txt"]
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["a", "b/c.txt"])
def test_a_file_that_a_killed_process_left_half_written_is_ours(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "box"
    replaced(folder)
    left_over = temporary(folder / name)
    left_over.parent.mkdir(exist_ok=True)
    left_over.touch()
    remove(folder, BOX)
    assert not folder.exists()


@pytest.mark.parametrize("change", ["replaced", "removed", "emptied", "made once"])
@pytest.mark.parametrize(
    "name", ["precious.txt", "b/precious", "b/c/precious", "d/a", ".precious.1.2"]
)
def test_a_file_of_others_in_a_folder_of_ours_is_not_lost(
    change: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "box"
    replaced(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(PlaceError, match=f"box that also holds {name}"):
        CHANGES[change](folder)
    assert (folder / name).read_text() == "mine" and (folder / "a").is_file()
    claimed_box(folder)  # which replaces single files
    assert (folder / name).read_text() == "mine"


def test_a_folder_of_ours_is_replaced_emptied_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    claimed_box(folder)
    (folder / "b").mkdir()
    (folder / "b" / "x.txt").touch()
    empty(folder, BOX, keep=("a",))
    assert sorted(path.name for path in folder.iterdir()) == [MARK, "a"]
    replaced(folder)
    remove(folder, BOX)
    remove(folder, BOX)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_before_there_were_marks_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()
    with pytest.raises(PlaceError, match="not a box"):
        require_ours(tmp_path, BOX)
    (tmp_path / "x.npy").touch()
    require_ours(tmp_path, BOX)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"made by": "us", "what": "box"}'])
def test_a_mark_of_others_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(content)
    with pytest.raises(PlaceError, match="not a box"):
        require_ours(tmp_path, BOX)


@pytest.mark.parametrize("change", ["replaced", "claimed"])
def test_a_full_disk_leaves_no_half_mark(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", write_half)
        with pytest.raises(OSError, match="No space left"):
            CHANGES[change](tmp_path / "box")
    assert list(tmp_path.iterdir()) == []
    CHANGES[change](tmp_path / "box")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    mark(tmp_path, ANY)
    with pytest.raises(PlaceError, match="is a folder, not a box: take another"):
        require_ours(tmp_path, BOX)


def test_a_claim_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "b", BOX):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "b", BOX):
        (tmp_path / "a" / "b" / "a").touch()
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.rglob("*")) == [MARK, "a", "a", "b"]


def test_what_is_handed_over_has_no_mark_and_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), handed_over(tmp_path / "mine") as made:
        (made / "half").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with handed_over(tmp_path / "mine") as made:
        (made / "whole").touch()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["whole"]
    with pytest.raises(PlaceError, match="already there"), handed_over(tmp_path / "mine"):
        pytest.fail("it is filled")


REMOVES = {"rmtree", "unlink", "rmdir", "removedirs", "remove", "rename", "replace", "move"}
MODULES = {"os", "shutil"}
OURS = ("toolkit/own_folders.py", "toolkit/files.py")
ELSEWHERE = {
    ("toolkit/training/checkpoints.py", "rename"): "a checkpoint becomes complete",
    ("toolkit/study/run/process.py", "rename"): "a run of another configuration is moved aside",
    ("toolkit/data/corpora/esc50.py", "rename"): "an archive is unpacked where nothing is",
    ("tools/pretrain/loop.py", "replace"): "the checkpoint of a claimed folder",
    ("tools/pretrain/train.py", "replace"): "the weights in a claimed folder",
    ("tools/pretrain/sources.py", "rename"): "a package is unpacked where nothing is",
    ("tools/pretrain/sources.py", "move"): "within a temporary folder",
}
"""Modules that move what they have just made -> what."""


def removals(file: Path) -> set[str]:
    """The names of calls that remove or replace files or folders.

    `remove`, `replace`, `rename` and `move` are also methods of lists, texts, tables and sites:
    of these only calls of a module, and of a path with a single argument that is a path, count.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        if (owner in MODULES and name in REMOVES) or name in ("unlink", "rmdir"):
            found.add(name)
        elif name in ("rename", "replace") and len(node.args) == 1 and not node.keywords:
            argument = ast.unparse(node.args[0])
            if " / " in argument or argument in ("final", "path", "folder", "self.checkpoint"):
                found.add(name)
    return found


def test_nothing_is_removed_or_replaced_elsewhere() -> None:
    """One place decides what may go; all others ask it."""
    found = {}
    for part in ("toolkit", "plugins", "recipes", "tools"):
        for file in (ROOT / part).rglob("*.py"):
            if not file.name.startswith("test_"):
                name = file.relative_to(ROOT).as_posix()
                found.update({(name, call): "" for call in removals(file) if name not in OURS})
    assert found.keys() == ELSEWHERE.keys()


CATCHES_ALL = {
    "toolkit/plugins.py": "a plugin may raise anything while it is imported",
    "toolkit/registry.py": "a plugin may raise anything while it is imported",
    "toolkit/config/trust.py": "a constructed callable may raise anything",
    "toolkit/foreign.py": "the code of a plugin may raise anything",
    "toolkit/model.py": "a plugin's `insert` may raise anything; the error names it",
    "toolkit/training/trial.py": "an optimiser or augmentation of the user may raise anything",
    "toolkit/testing/checks.py": "a plugin's method may raise anything; it becomes a verdict",
    "toolkit/testing/matrix.py": "a plugin's method may raise anything; it becomes a verdict",
    "toolkit/testing/plugin.py": "a plugin may raise anything; it becomes a verdict",
}


def test_errors_of_ours_are_not_hidden() -> None:
    """`except Exception` only where the code of others runs."""
    found = set()
    for part in ("toolkit", "plugins", "recipes", "tools"):
        for file in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ExceptHandler):
                    caught = [] if node.type is None else list(ast.walk(node.type))
                    names = {name.id for name in caught if isinstance(name, ast.Name)}
                    if "Exception" in names or node.type is None:
                        found.add(file.relative_to(ROOT).as_posix())
    assert found <= CATCHES_ALL.keys()
