"""Cache folders that are none, or that hold what the toolkit did not make."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import Hostile, check_refused
from places import own, precious, prepared
from programs import ROOT

TRAIN = ["toolkit", "train", "ESC50", "linear", "--data_folder", "corpus", "--backbone", "ast_tiny",
         "--max_length", "64", "--debug", "--augment", "[]", "--noprogressbar", "true",
         "--output_folder", "out"]  # fmt: skip
FOREIGN = {
    "states": "states/0123456789abcdef01234567",
    "features": "features/0123456789abcdef01234567",
}


def folders() -> Iterator[Hostile]:
    """Folders that `toolkit cache` cannot look into, and files of others among the caches."""
    for verb in ("list", "clear"):
        words = ["toolkit", "cache", verb, "--cache_folder"]
        yield Hostile(f"{verb}: no such folder", [*words, "none"], ["none is not a folder"])
        yield Hostile(f"{verb}: a file", [*words, "mine"], ["mine is not a folder"], own("mine"))
        yield Hostile(f"{verb}: no name", words, ["expected one argument"])
    for kind, place in FOREIGN.items():
        yield Hostile(
            f"clear: {kind} of others",
            ["toolkit", "cache", "clear", "--cache_folder", "cache"],
            ["precious.txt", "--cache_folder"],
            precious(f"cache/{place}"),
            leaves=["cache/*.lock"],
        )


def loop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(name)


def training() -> Iterator[Hostile]:
    """Cache folders that a training cannot use."""
    for name, prepare in {
        "a file": own("cache"),
        "a link to itself": loop("cache"),
        "states that are a file": own("cache/states"),
    }.items():
        yield Hostile(
            f"train: {name}",
            [*TRAIN, "--cache_folder", "cache"],
            ["--cache_folder|cache"],
            prepared(prepare),
            leaves=["out*", "cache*"],
        )


ROWS = [*folders(), *training()]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
