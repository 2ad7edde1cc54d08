"""Folders that are complete or do not exist."""

import multiprocessing
import time
from pathlib import Path

import pytest

from toolkit.files import locked, locked_with_others, make_once, new_folder
from toolkit.own_folders import ANY, MARK, mark


def listing(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.name != MARK)
    return sorted(map(str, found))


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with new_folder(folder) as made:
        (made / "new").write_text("new")
        assert not folder.exists()
    assert listing(tmp_path) == ["a", "a/b", "a/b/new"]


def test_the_old_one_goes_when_the_new_one_is_whole_and_not_before(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    with new_folder(folder) as made:
        (made / "old").touch()
    with pytest.raises(OSError, match="full"), new_folder(folder) as made:
        (made / "half").touch()
        raise OSError("disk full")
    assert listing(tmp_path) == ["b", "b/old"]
    with new_folder(folder) as made:
        (made / "new").touch()
        assert (folder / "old").exists()
    assert listing(tmp_path) == ["b", "b/new"]


def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("b")
    for name in ("old", "new"):
        with new_folder(link) as made:
            (made / name).touch()
    assert link.is_symlink()
    assert listing(tmp_path) == ["b", "b/new", "link"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_process_killed_between_the_two_renames_left_is_not_lost(
    tmp_path: Path, fails: bool
) -> None:
    for name, file in ((".b.old", "old"), (".b.partial", "half")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        mark(tmp_path / name, ANY)
    try:
        with new_folder(tmp_path / "b") as made:
            assert not listing(made)
            if fails:
                raise OSError("disk full")
    except OSError:
        assert fails
    assert listing(tmp_path) == (["b", "b/old"] if fails else ["b"])


def _make(folder: Path, log: Path) -> None:
    def fill(made: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        (made / "whole").touch()

    make_once(folder, fill)
    assert listing(folder) == ["whole"]


def test_of_several_processes_one_makes_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    place, log = tmp_path / "folder", tmp_path / "log"
    processes = [context.Process(target=_make, args=(place, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text().split() == ["made"]


def test_what_is_there_is_only_looked_at(tmp_path: Path) -> None:
    """So that a read-only folder works; an incomplete folder is created again."""
    (tmp_path / "folder").mkdir()
    make_once(tmp_path / "folder", lambda made: pytest.fail("made again"))
    assert listing(tmp_path) == ["folder"]
    make_once(tmp_path / "folder", lambda made: (made / "new").touch(), lambda there: False)
    assert listing(tmp_path / "folder") == ["new"]


def _hold(path: Path, log: Path, shared: bool | None) -> None:
    with locked(path) if shared is None else locked_with_others(path, shared):
        with log.open("a") as file:
            file.write("in\n")
        time.sleep(0.3)
        with log.open("a") as file:
            file.write("out\n")


@pytest.mark.parametrize("shared", [None, False, True])
def test_of_several_processes_one_goes_on_or_all_that_share(
    tmp_path: Path, shared: bool | None
) -> None:
    context = multiprocessing.get_context("fork")
    place, log = tmp_path / "folder" / "lock", tmp_path / "log"
    processes = [context.Process(target=_hold, args=(place, log, shared)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    alone = ["in", "out", "in", "out"]
    assert log.read_text().split() == (["in", "in", "out", "out"] if shared else alone)
