"""The store of states: clips are added one by one, whole or not at all, and shared by processes."""

import errno
import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.errors import DataError, PlaceError
from toolkit.features import state_store
from toolkit.features.cache_folder import caches
from toolkit.features.mapped_rows import Rows
from toolkit.features.state_store import StateStore

WIDTH = 6
SETTINGS = {"backbone": "b1", "block": 3}


def state(key: str) -> Rows:
    """The state [1 to 9, WIDTH] of a clip."""
    rng = np.random.default_rng(list(key.encode()))
    return rng.standard_normal((rng.integers(1, 10), WIDTH)).astype(np.float32)


def states(*keys: str) -> dict[str, Rows]:
    """States by key."""
    return {key: state(key) for key in keys}


def store(root: Path, **settings: Any) -> StateStore:
    """A store of these settings."""
    return StateStore(root, {**SETTINGS, **settings}, WIDTH)


def check(found: StateStore, *keys: str) -> None:
    """These clips can be read as they were written."""
    assert not found.missing(keys)
    for key in keys:
        np.testing.assert_array_equal(found[key], state(key))


@pytest.fixture
def filled(tmp_path: Path) -> StateStore:
    """A store of four clips."""
    made = store(tmp_path)
    made.add(states("a", "b"))
    made.add(states("c", "d"))
    return made


def test_what_is_added_can_be_read(filled: StateStore, tmp_path: Path) -> None:
    check(filled, "a", "b", "c", "d")
    again = store(tmp_path)
    check(again, "d", "a")
    assert again.missing(["x", "a", "y", "x"]) == ["x", "y"]
    assert "a" in again and "x" not in again
    with pytest.raises(ValueError, match="read-only"):
        again["a"][0, 0] = 1


def test_an_empty_store_misses_all(tmp_path: Path) -> None:
    assert store(tmp_path).missing(["a"]) == ["a"]
    assert not caches(tmp_path)


@pytest.mark.parametrize("change", [{"backbone": "b2"}, {"block": 4}, {"precision": "bf16"}])
def test_other_settings_are_another_store(
    change: dict[str, Any], filled: StateStore, tmp_path: Path
) -> None:
    other = store(tmp_path, **change)
    assert other.folder != filled.folder and other.missing(["a"]) == ["a"]


def test_others_see_what_was_added_after_they_began(tmp_path: Path) -> None:
    early, writer = store(tmp_path), store(tmp_path)
    writer.add(states("a"))
    check(early, "a")
    writer.add(states("b"))
    early.add(states("c"))
    for one in (early, writer):
        check(one, "a", "b", "c")


def test_a_state_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[R, 6\]"):
        store(tmp_path).add({"a": np.zeros((2, 5), np.float32)})


# Killed writers and damage


def _cut(name: str, by: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def _flip(folder: Path) -> None:
    body = bytearray((folder / "rows.f32").read_bytes())
    body[-1] ^= 1
    (folder / "rows.f32").write_bytes(body)


def _move(folder: Path) -> None:
    *lines, last = (folder / "index.jsonl").read_text().splitlines()
    entry = {**json.loads(last), "offset": 0}
    (folder / "index.jsonl").write_text("\n".join([*lines, json.dumps(entry)]) + "\n")


DAMAGE = {
    "rows without their lines": lambda f: (f / "rows.f32").open("ab").write(bytes(3 * 4 * WIDTH)),
    "half a row": lambda f: (f / "rows.f32").open("ab").write(b"abcde"),
    "half a line": lambda f: (f / "index.jsonl").open("ab").write(b'{"key": "e", "off'),
    "a line cut": _cut("index.jsonl", 5),
    "only the end of a line missing": _cut("index.jsonl", 1),
    "a row cut": _cut("rows.f32", 4 * WIDTH),
    "a byte cut": _cut("rows.f32", 1),
    "a bit flipped": _flip,
    "another offset": _move,
    "no rows": lambda f: (f / "rows.f32").unlink(),
    "empty rows": lambda f: (f / "rows.f32").write_bytes(b""),
    "no index": lambda f: (f / "index.jsonl").unlink(),
    "noise in the index": lambda f: (f / "index.jsonl").open("ab").write(b"\xff\x00[1]\nnull\n7\n"),
    "a place beyond all numbers": lambda f: (
        (f / "index.jsonl")
        .open("a")
        .write('{"key": "d", "offset": 1e999, "rows": 1, "crc32": 0}\n')
    ),
    "a line without an offset": lambda f: (f / "index.jsonl").open("a").write('{"key": "d"}\n'),
    "nothing inside": lambda f: [p.unlink() for p in f.iterdir() if p.suffix in (".f32", ".jsonl")],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_after_damage_only_whole_clips_count(
    damage: str, filled: StateStore, tmp_path: Path
) -> None:
    DAMAGE[damage](filled.folder)
    again = store(tmp_path)
    missing = again.missing("abcd")
    check(again, *(key for key in "abcd" if key not in missing))
    again.add(states("e", *missing))
    for one in (again, store(tmp_path)):
        check(one, *"abcde")


def test_damage_is_said(
    filled: StateStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _flip(filled.folder)
    with caplog.at_level(logging.WARNING):
        assert store(tmp_path).missing("abcd") == ["d"]
    assert "1 of 4 clips" in caplog.text and str(filled.folder) in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["rows.f32", "index.jsonl"])
def test_a_full_disk_is_said_and_the_store_stays_whole(
    name: str, code: int, filled: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115
        if path.name == name and "a" in mode:
            file.write(b"{half")
            file.close()
            raise OSError(code, os.strerror(code))
        return file

    with monkeypatch.context() as patch:
        patch.setattr(state_store, "open", full, raising=False)
        with pytest.raises(DataError, match="--cache_folder"):
            filled.add(states("e"))
    check(filled, *"abcd")
    assert store(tmp_path).missing("abcde") == ["e"]
    filled.add(states("e"))
    check(store(tmp_path), *"abcde")


def test_a_folder_of_others_is_not_written_to(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.folder.mkdir()
    (made.folder / "precious.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"precious\.txt"):
        made.add(states("a"))


def _add_many(root: Path, name: str) -> None:
    own = store(root)
    for number in range(20):
        own.add(states(f"{name}{number}", "shared"))


def test_processes_add_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_add_many, args=(tmp_path, name)) for name in "xyz"]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    check(store(tmp_path), "shared", *(f"{name}{number}" for name in "xyz" for number in range(20)))
