"""The limit of all caches: the oldest that nobody uses goes first."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toolkit.cli.cache import clear_caches
from toolkit.errors import PlaceError
from toolkit.features.cache import Segment, feature_cache
from toolkit.features.cache_folder import Use, caches, make_room
from toolkit.features.state_store import StateStore

WIDTH = 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of the caches."""
    return tmp_path / "root"


@pytest.fixture
def add(root: Path) -> Callable[[int], Path]:
    """Make a store that was last used at a time, about 4 kB; nobody uses it."""

    def made(time: int) -> Path:
        store = StateStore(root, {"time": time}, WIDTH)
        store.add({"clip": np.ones((100, WIDTH), np.float32)})
        folder = store.folder
        del store
        for path in (folder, folder.with_name(f"{folder.name}.use.lock")):
            os.utime(path, (time, time))
        return folder

    return made


def test_no_caches(root: Path) -> None:
    assert caches(root) == [] and make_room(root, 10, 100)
    assert not make_room(root, 101, 100)


def test_the_oldest_goes_first(root: Path, add: Callable[[int], Path]) -> None:
    middle, oldest, newest = add(2_000), add(1_000), add(3_000)
    assert [cache.folder for cache in caches(root)] == [oldest, middle, newest]
    total = sum(cache.size for cache in caches(root))
    assert make_room(root, 100, total + 100) and len(caches(root)) == 3
    assert make_room(root, 100, total)
    assert [cache.folder for cache in caches(root)] == [middle, newest]
    assert make_room(root, 9_000, total)
    assert caches(root) == []


def test_a_cache_in_use_stays(root: Path, add: Callable[[int], Path]) -> None:
    oldest, newest = add(1_000), add(2_000)
    use = Use(oldest)
    size = caches(root)[0].size
    assert make_room(root, size, 2 * size)
    assert [cache.folder for cache in caches(root)] == [oldest] and caches(root)[0].in_use()
    assert not make_room(root, size + 1, 2 * size)
    assert oldest.is_dir() and not newest.exists()
    del use
    assert make_room(root, size + 1, 2 * size) and caches(root) == []


def test_what_cannot_fit_removes_nothing(root: Path, add: Callable[[int], Path]) -> None:
    folder = add(1_000)
    assert not make_room(root, 10_000, 9_000)
    assert not make_room(root, 10**18, 10**19)  # more than the disk has
    assert folder.is_dir()


def test_use_is_what_counts(root: Path, add: Callable[[int], Path]) -> None:
    first, second = add(1_000), add(2_000)
    Use(first)
    assert [cache.folder for cache in caches(root)] == [second, first]


def test_feature_caches_count_too(root: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"sound")
    segments = [Segment(str(tmp_path / "clip"))]
    made = feature_cache(root, segments, {}, 4, lambda s: np.ones((5, 4), np.float32))
    (found,) = caches(root)
    assert found.folder == made.folder and found.kind.name == "feature cache"
    assert not found.remove() and len(made[0]) == 5
    del made
    assert found.remove() and caches(root) == []


def test_what_a_killed_process_left_goes_too(root: Path, add: Callable[[int], Path]) -> None:
    folder = add(1_000)
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    (partial / "half").write_bytes(b"1")
    (found,) = caches(root)
    assert found.unfinished and found.remove() and not partial.exists()


def test_files_of_others_stay(root: Path, add: Callable[[int], Path]) -> None:
    (add(1_000) / "precious.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"precious\.txt"):
        caches(root)[0].remove()


def test_a_cache_with_files_of_others_does_not_keep_the_next_from_going(
    root: Path, add: Callable[[int], Path]
) -> None:
    foreign, ours = add(1_000), add(2_000)
    (foreign / "precious.txt").write_text("mine")
    assert make_room(root, 2_000, 7_000)
    assert foreign.is_dir() and not ours.exists()


def test_clearing_goes_on_past_files_of_others(root: Path, add: Callable[[int], Path]) -> None:
    foreign, ours = add(1_000), add(2_000)
    (foreign / "precious.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"precious\.txt"):
        clear_caches(argparse.Namespace(cache_folder=root))
    assert foreign.is_dir() and not ours.exists()
