"""Tables and folders of one's own sounds that must be refused."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hostile import Hostile, check_refused
from programs import ROOT

CHECK = ("toolkit", "corpus", "check", "mine", "--as", "folder")
Cells = dict[str, Any]


def write_sounds(folder: Path, names: Sequence[str]) -> None:
    """Write short sounds, each with another content."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(os.fsencode(path), np.full(400, number / 1000, np.float32), 16000)


def rows(**change: Any) -> list[Cells]:
    """Twelve clips of two classes, the first of them changed; `...` leaves a cell out."""
    made = [{"path": f"{n}.wav", "label": "dog" if n % 2 else "cat"} for n in range(12)]
    made[0] = {key: value for key, value in {**made[0], **change}.items() if value is not ...}
    return made


def jsonl(lines: Sequence[Cells] | str) -> Callable[[Path], None]:
    """Writes a folder `mine` with sounds and a table of one object per line."""

    def prepare(here: Path) -> None:
        write_sounds(here / "mine", [f"{n}.wav" for n in range(12)])
        text = lines if isinstance(lines, str) else "\n".join(map(json.dumps, lines))
        (here / "mine" / "clips.jsonl").write_text(text, encoding="utf-8")

    return prepare


def comma(content: str | bytes, *names: str) -> Callable[[Path], None]:
    """Writes a folder `mine` with sounds and a CSV table."""

    def prepare(here: Path) -> None:
        write_sounds(here / "mine", [*(f"{n}.wav" for n in range(12)), *names])
        text = content if isinstance(content, bytes) else content.encode()
        (here / "mine" / "clips.csv").write_bytes(text)

    return prepare


def of_cells(*lines: str) -> Callable[[Path], None]:
    """A CSV table of `path,label` with twelve good lines and some more."""
    good = [f"{n}.wav,{'dog' if n % 2 else 'cat'}" for n in range(12)]
    return comma("\n".join(["path,label", *good, *lines]) + "\n")


def in_parts(column: str, *values: object) -> Callable[[Path], None]:
    """Clips of which the first ones have a value of a column, and all others the last value."""
    given = [*values, *[values[-1]] * (12 - len(values))]
    return jsonl([{**row, column: value} for row, value in zip(rows(), given, strict=True)])


def two_names(first: str, second: str) -> Callable[[Path], None]:
    """Two parts of one file under two names, in two folds."""

    def prepare(here: Path) -> None:
        clips = [*rows(), *rows(), *rows()]
        clips = [{**c, "path": f"{n}.wav", "fold": n % 3} for n, c in enumerate(clips)]
        names = [str(name).replace("HERE", str(here / "mine")) for name in (first, second)]
        clips += [
            {"path": name, "label": "dog", "fold": fold, "start": fold / 100, "stop": 0.02}
            for fold, name in enumerate(names)
        ]
        write_sounds(here / "mine", [f"{n}.wav" for n in range(36)] + ["a.wav", "sub/b.wav"])
        (here / "mine" / "link.wav").symlink_to("a.wav")
        (here / "mine" / "clips.jsonl").write_text("\n".join(map(json.dumps, clips)))

    return prepare


def folder_of(*names: str, beside: str = "") -> Callable[[Path], None]:
    """Writes a folder `mine` with sounds in it, and perhaps another file."""

    def prepare(here: Path) -> None:
        write_sounds(here / "mine", names)
        if beside:
            (here / "mine" / beside).write_text("path,label\n")

    return prepare


def dangling(here: Path) -> None:
    """Two classes, and a link to nothing."""
    write_sounds(here / "mine", [f"{c}/{n}.wav" for c in "ab" for n in range(6)])
    (here / "mine" / "a" / "lost.wav").symlink_to("/nowhere/lost.wav")


def dangling_class(here: Path) -> None:
    """Two classes, and a third one that is a link to nothing."""
    write_sounds(here / "mine", [f"{c}/{n}.wav" for c in "ab" for n in range(6)])
    (here / "mine" / "c").symlink_to("/nowhere/c")


def of_bytes(here: Path) -> None:
    """Two classes, one of them with a name that is not UTF-8."""
    write_sounds(here / "mine", [f"{c}/{n}.wav" for c in ("a", "caf\udce9") for n in range(6)])


def esc50(line: str) -> Callable[[Path], None]:
    """A folder `mine` in ESC-50's layout, with one more line in its table."""

    def prepare(here: Path) -> None:
        lines = [f"{n}.wav,{n % 5 + 1},{n // 5},{'ab'[n // 5]},False" for n in range(10)]
        write_sounds(here / "mine" / "audio", [f"{n}.wav" for n in range(11)])
        (here / "mine" / "meta").mkdir()
        text = "\n".join(["filename,fold,target,category,esc10", *lines, line]) + "\n"
        (here / "mine" / "meta" / "esc50.csv").write_text(text)

    return prepare


def table(name: str, prepare: Callable[[Path], Any], *says: str, of: str = "folder") -> Hostile:
    """A row whose folder `mine` is checked."""
    return Hostile(name, [*CHECK[:-1], of], says, prepare)


TABLE = (
    # CSV
    table("csv of a header alone", comma("path,label\n"), "has no rows"),
    table("csv that is empty", comma(""), "not a CSV file", "without a header"),
    table("csv of blank lines", comma("\n\n\n"), "not a CSV file"),
    table("csv that is binary", comma(b"\xff\xfe\x00\x81"), "not a CSV file"),
    table("csv with a quote that stays open", of_cells('"9.wav,dog'), "not a CSV file"),
    table("csv with a zero byte", comma(b"path,label\n\x00,a\n1.wav,b\n"), "missing"),
    table("csv with an empty label", of_cells("3.wav,"), "line 14: the label is missing"),
    table("csv with a label of blanks", of_cells("3.wav,  "), "line 14: the label"),
    table("csv with an empty path", of_cells(",dog"), "line 14: the path is missing"),
    table("csv with a cell too many", of_cells("3.wav,dog,loud"), "line 14 has 3 cells"),
    table("csv with a cell too few", of_cells("3.wav"), "line 14 has 1 cells"),
    table("csv with a column twice", comma("path,label,label\n0.wav,a,b\n"), "'label' is there 2"),
    table("csv with an unknown column", comma("path,lable\n0.wav,a\n"), "did you mean 'label'"),
    table("csv without a path", comma("label\na\n"), "column 'path' is missing"),
    table("csv with two labels in one", of_cells("3.wav,dog;cat"), "more than one label"),
    table("csv with label and labels", comma("path,label,labels\n0.wav,a,b\n"), "and not both"),
    table("csv with stop and end", comma("path,label,stop,end\n0.wav,a,1,1\n"), "are the same"),
    table("csv that lists a clip twice", of_cells("3.wav,dog"), "3.wav is listed twice"),
    table("csv that gives a clip two labels", of_cells("3.wav,cat"), "3.wav is listed twice"),
    table("csv with another name for a file", of_cells("./3.wav,cat"), "listed twice"),
    table("csv with a missing file", of_cells("99.wav,cat"), r"99.wav is missing"),
    table("csv with a folder as file", of_cells(".,cat"), "is not a file"),
    table("csv of one class", comma("path,label\n0.wav,a\n1.wav,a\n"), "one class alone, 'a'"),
    table("csv with a label that is a control character", of_cells("3.wav,\x07"), "control|twice"),
    # JSON lines
    table("jsonl that is empty", jsonl(""), "has no rows"),
    table("jsonl that is no JSON", jsonl("path,label\n"), "line 1 is not JSON"),
    table("jsonl of lists", jsonl("[1, 2]\n"), "line 1 is not an object"),
    table("jsonl of numbers", jsonl("1\n2\n"), "line 2 is not an object"),
    table("jsonl that is one list", jsonl(json.dumps(rows())), "is not an object"),
    table("jsonl with a key twice", jsonl('{"path": "0.wav", "path": "1.wav"}'), "is there twice"),
    table("jsonl of 3,000 brackets", jsonl("[" * 3000 + "]" * 3000), "line 1 is not"),
    table("jsonl with NaN", jsonl('{"path": "0.wav", "label": NaN}'), "NaN is not a value"),
    table("jsonl with Infinity", jsonl('{"path": "0.wav", "label": -Infinity}'), "not a value"),
    table("jsonl without a label", jsonl(rows(label=...)), "line 1: the label is missing"),
    table("jsonl with a null label", jsonl(rows(label=None)), "line 1: the label is missing"),
    table("jsonl with a list as label", jsonl(rows(label=["a"])), "label .'a'. is not text"),
    table("jsonl with a mapping as label", jsonl(rows(label={"a": 1})), "is not text"),
    table("jsonl with a boolean label", jsonl(rows(label=True)), "label True is not text"),
    table("jsonl with half a label", jsonl(rows(label=0.5)), "label 0.5 is not text"),
    table("jsonl with an endless label", jsonl(rows(label=1e999)), "not a value"),
    table("jsonl without a path", jsonl(rows(path=...)), "line 1: the path is missing"),
    table("jsonl with a list as path", jsonl(rows(path=["0.wav"])), "the path .* is not text"),
    table(
        "jsonl with null labels", jsonl([{"path": "0.wav", "labels": None}]), "labels is missing"
    ),
    table("jsonl with labels in a label", jsonl([{"path": "0.wav", "labels": [["a"]]}]), "labels"),
    table("jsonl with null in labels", jsonl([{"path": "0.wav", "labels": [None]}]), "labels"),
    table("jsonl with a list as group", jsonl(rows(group=["a"])), "the group .* is not text"),
    table("jsonl with a mapping as group", jsonl(rows(group={})), "the group .* is not text"),
    table("jsonl with a list as split", jsonl(rows(split=["train"])), "the split .* is not one of"),
    table("jsonl with an unknown split", jsonl(rows(split="tset")), "'tset' is not one of"),
    table(
        "jsonl with a split left out", jsonl(rows(split="train")), "line 2: the split is missing"
    ),
    table("jsonl without a test part", in_parts("split", "train"), "has the split 'test'"),
    table("jsonl with a list as fold", jsonl(rows(fold=[1])), "the fold .1. is not a whole"),
    table("jsonl with a fold of 10^9", jsonl(rows(fold=10**9)), "from 0 to 9999"),
    table("jsonl with a fold of 1e30", jsonl(rows(fold=1e30)), "from 0 to 9999"),
    table("jsonl with a negative fold", jsonl(rows(fold=-1)), "from 0 to 9999"),
    table("jsonl with half a fold", jsonl(rows(fold=1.5)), "from 0 to 9999"),
    table("jsonl with a boolean fold", jsonl(rows(fold=True)), "from 0 to 9999"),
    table("jsonl with a fold that only Python reads", jsonl(rows(fold="1_0")), "from 0 to 9999"),
    table("jsonl with a fold in words", jsonl(rows(fold="one")), "from 0 to 9999"),
    table("jsonl with two folds", in_parts("fold", 1, 1, 2), "at least three folds"),
    table("jsonl with a start in words", jsonl(rows(start="now")), "not a number of seconds"),
    table("jsonl with an endless stop", jsonl(rows(stop="inf")), "not a number of seconds"),
    table("jsonl with a list as start", jsonl(rows(start=[0])), "not a number of seconds"),
    table("jsonl with a boolean stop", jsonl(rows(stop=True)), "not a number of seconds"),
    table("jsonl with a negative start", jsonl(rows(start=-1)), "is not a part of"),
    table(
        "jsonl with a stop before the start", jsonl(rows(start=0.02, stop=0.01)), "not a part of"
    ),
    table("jsonl with a stop behind the end", jsonl(rows(stop=9)), "is not a part of"),
    table(
        "a class that no round trains",
        jsonl(
            [
                {**r, "label": "rare" if n == 0 else r["label"], "fold": n // 4}
                for n, r in enumerate(rows())
            ]
        ),
        "'rare' has no training clip when fold 0",
    ),
    # One file under two names
    table("a file and ./ of it in two folds", two_names("a.wav", "./a.wav"), "0, 1"),
    table("a file and ../ of it in two folds", two_names("a.wav", "../mine/a.wav"), "0, 1"),
    table("a file and its absolute path in two folds", two_names("a.wav", "HERE/a.wav"), "0, 1"),
    table("a file and a link to it in two folds", two_names("a.wav", "link.wav"), "0, 1"),
    table("a file and sub/../ of it in two folds", two_names("a.wav", "sub/../a.wav"), "0, 1"),
    # Folders
    table("a folder of one class", folder_of("a/0.wav", "a/1.wav"), "one class alone, 'a'"),
    table(
        "a folder of one class beside a table",
        folder_of("audio/0.wav", beside="labels.csv"),
        "one class alone, 'audio'",
        "--data_folder mine/labels.csv",
    ),
    table("a folder without sounds", folder_of("a.wav"), "neither one folder per class"),
    table("a folder that is missing", lambda here: None, "check `--data_folder`"),
    table("a link to nothing", dangling, "lost.wav is a link to /nowhere/lost.wav"),
    table("a class that is a link to nothing", dangling_class, "c is a link to /nowhere/c"),
    table("a class whose name is not UTF-8", of_bytes, "is not UTF-8"),
    table(
        "a class with a bell",
        folder_of(*(f"{c}/{n}.wav" for c in ("a", "b\x07") for n in range(6))),
        "control characters",
    ),
    # Patterns
    Hostile(
        "a group pattern that never ends",
        [*CHECK[:-1], "folder:group_pattern='^((a|a)+)+#'"],
        ["takes more than", "repetition within a repetition"],
        folder_of(*(f"{c}/{'a' * 60}{n}.wav" for c in "ab" for n in range(6))),
    ),
    Hostile(
        "a group pattern without a group",
        [*CHECK[:-1], "folder:group_pattern=abc"],
        ["needs brackets"],
    ),
    Hostile(
        "a group pattern that is none",
        [*CHECK[:-1], "folder:group_pattern='('"],
        ["not a regular expression"],
    ),
    Hostile(
        "a group pattern that matches nothing",
        [*CHECK[:-1], "folder:group_pattern='^(x)'"],
        ["does not match 'group_pattern'"],
        folder_of(*(f"{c}/{n}.wav" for c in "ab" for n in range(6))),
    ),
    # ESC-50
    table(
        "esc50 with two categories", esc50("10.wav,1,0,b,False"), "target 0 has more", of="esc50"
    ),
    table("esc50 with two targets", esc50("10.wav,1,2,a,False"), "category a has", of="esc50"),
    table("esc50 with a fold of 1e30", esc50("10.wav,1e30,0,a,False"), "1 to 5", of="esc50"),
    table("esc50 with a target in words", esc50("10.wav,1,x,a,False"), "whole number", of="esc50"),
    table("esc50 with an empty cell", esc50("10.wav,1,0,,False"), "empty cell", of="esc50"),
    table("esc50 with a clip twice", esc50("9.wav,5,1,b,False"), "9.wav", "twice", of="esc50"),
)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_refused(row: Hostile, tmp_path: Path, programs: Path) -> None:
    check_refused(row, tmp_path / "here", programs, ROOT)
