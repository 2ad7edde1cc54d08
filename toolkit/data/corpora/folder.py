"""A user's own sounds: a folder with one subfolder per class, or a CSV or JSONL table.

The table has `path` (relative to the table), `label`, or `labels` where a clip may have several
(separated by semicolons in CSV), and optionally `split` (train, valid, test), `fold`, `group`
(clips that must stay together: one speaker, one recording), `start` and `stop` or `end` (seconds).
Parts that are not given are made: stratified, without splitting a group or a file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import regex
from numpy.typing import NDArray

from toolkit.data import tables
from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import (
    Corpus,
    Manifest,
    class_labels,
    class_matrix,
    refuse,
    same_files,
    segment_problems,
    twice,
    untrained,
)
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID, Split, stratified_parts
from toolkit.errors import ConfigError, DataError, did_you_mean
from toolkit.features.audio_file import SUFFIXES, sounds_below
from toolkit.files import make_once
from toolkit.registry import CORPORA
from toolkit.settings import setting

TABLES = ("clips.csv", "clips.jsonl")
COLUMNS = ("path", "label", "labels", "split", "fold", "group", "start", "stop", "end")
FOLDS = (0, 9999)
LONGEST_SEARCH = 2  # seconds of a regular expression on one name
Rounds = Sequence[Split] | None
PARTS = {"train": TRAIN, "valid": VALID, "val": VALID, "validation": VALID, "dev": VALID,
         "test": TEST}  # fmt: skip


@CORPORA.register("folder", paper="this toolkit")
class Folder(Corpus):
    """Your own sounds: one folder per class, or a table (clips.csv, clips.jsonl, or its path)."""

    name: str = setting("your sounds", "name of the corpus in messages and results")
    folds: int = setting(0, "make this many folds; 0: train, valid and test", minimum=0)
    valid_share: float = setting(0.1, "share of the clips, if not given", minimum=0.01, maximum=0.5)
    test_share: float = setting(0.2, "share of the clips, if not given", minimum=0.01, maximum=0.5)
    split_seed: int = setting(0, "seed of the parts that are made", minimum=0)
    group_pattern: str | None = setting(
        None,
        "regular expression; its first group in a file's name is the clip's group: '^([a-z]+)_'",
    )

    def check(self) -> None:
        """Refuse folds and patterns that cannot work."""
        if self.folds in (1, 2):
            raise ConfigError("'folds' must be 0 (train, valid and test) or at least 3")
        try:
            groups = 1 if self.group_pattern is None else regex.compile(self.group_pattern).groups
        except (regex.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"'group_pattern' is not a regular expression: {error}") from None
        if not groups:
            raise ConfigError("'group_pattern' needs brackets around the part that is the group")

    def manifest(self, folder: Path) -> Manifest:
        """Check the sounds and return their table; `folder` may be the table itself."""
        table = next((folder / name for name in TABLES if (folder / name).is_file()), folder)
        clips = _of_table(table) if table.is_file() else _of_folders(folder)
        if self.group_pattern is not None:
            clips["group"] = self._groups(clips["path"])
        listed = clips.pop("names")
        classes = sorted({label for row in listed for label in row})
        many = bool(clips.pop("many").any())
        if len(classes) < 2 and not many:
            raise DataError(self._one_class(folder, classes))
        if many:
            clips["label"] = pd.Series(class_labels(listed, classes), dtype=object)
        else:
            places = {label: place for place, label in enumerate(classes)}
            clips["label"] = [places[row[0]] for row in listed]
        refuse(self.name, segment_problems(clips) + twice(clips))
        clips, rounds = self._parts(clips, len(classes))
        manifest = Manifest(self.name, clips, classes, rounds, many, official=False)
        refuse(self.name, untrained(manifest))
        return manifest

    def _one_class(self, folder: Path, classes: list[str]) -> str:
        """Why one class alone is refused, with the table that may have been meant."""
        reason = (
            f"{self.name}: {folder} has one class alone, {classes[0]!r}, and a classifier needs at "
            "least two"
        )
        found = [path for ending in ("csv", "jsonl", "tsv") for path in folder.glob(f"*.{ending}")]
        if found:
            table = min(found)
            return f"{reason}: if {table.name} is its table, name it: `--data_folder {table}`"
        return f"{reason}: give every class a folder of its own, or write a table ({TABLES[0]})"

    def _groups(self, paths: pd.Series) -> pd.Series:
        pattern = regex.compile(self.group_pattern or "")
        found = {}
        for path in paths:
            try:
                match = pattern.search(Path(path).name, timeout=LONGEST_SEARCH)
                found[path] = match and match[1]
            except TimeoutError:
                raise ConfigError(
                    f"'group_pattern' takes more than {LONGEST_SEARCH} seconds for "
                    f"{Path(path).name!r}; a repetition within a repetition, as in '(a+)+', may "
                    "never end"
                ) from None
        refuse(
            self.name,
            [
                f"{p}: its name does not match 'group_pattern'"
                for p, g in found.items()
                if g is None
            ],
        )
        return paths.map(found)

    def _parts(self, clips: pd.DataFrame, count: int) -> tuple[pd.DataFrame, Rounds]:
        """The clips with their `fold`, and the rounds of the evaluation."""
        given = [column for column in ("fold", "split") if column in clips]
        if len(given) == 2:
            raise DataError(f"{self.name}: give a 'split' or a 'fold', not both")
        if given == ["fold"]:
            return clips, None
        held = class_matrix(clips["label"], count)
        groups = _together(clips, self.name)
        if given == ["split"]:
            clips = clips.rename(columns={"split": "fold"})
            missing = [n for n, part in PARTS.items() if n in ("train", "test")
                       and part not in set(clips["fold"])]  # fmt: skip
            refuse(self.name, [f"no clip has the split '{name}'" for name in missing])
            if VALID not in set(clips["fold"]):
                train = (clips["fold"] == TRAIN).to_numpy()
                two = (1 - self.valid_share, self.valid_share)
                made = stratified_parts(held[train], list(groups[train]), two, self.split_seed)
                clips.loc[train, "fold"] = np.where(made == 0, TRAIN, VALID)
            return clips, FIXED
        if self.folds:
            shares: tuple[float, ...] = (1 / self.folds,) * self.folds
        else:
            rest = 1 - self.valid_share - self.test_share
            shares = (rest, self.valid_share, self.test_share)
        made = stratified_parts(held, list(groups), shares, self.split_seed)
        empty = sorted(set(range(len(shares))) - set(made))
        if empty:
            raise DataError(
                f"{self.name}: {len(set(groups))} groups are too few for {len(shares)} parts; "
                "record more, or give the parts yourself (a column 'split' or 'fold')"
            )
        return clips.assign(fold=made + 1), None if self.folds else FIXED

    def embed(self, folder: Path) -> None:
        """Write a miniature: four classes with twelve clips each."""
        make_once(folder, write_miniature)


def _together(clips: pd.DataFrame, corpus: str) -> NDArray[np.object_]:
    """[N] names of what must stay together: groups and files, joined where they overlap."""
    files = same_files(clips["path"])
    if "group" not in clips:
        return files.to_numpy()
    groups = clips["group"].where(clips["group"].notna(), files)
    first = groups.groupby(files).transform("first")
    torn = clips["path"][first != groups].unique()
    refuse(
        corpus,
        [f"{path} is in more than one group: give all of its clips the same one" for path in torn],
    )
    return groups.to_numpy()


def _of_folders(folder: Path) -> pd.DataFrame:
    """The clips of a folder with one subfolder per class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor a table: check `--data_folder`")
    sounds = [f for f in sounds_below(folder) if f.parent != folder or not f.exists()]
    if not sounds:
        raise DataError(
            f"{folder} holds neither one folder per class with audio files ({', '.join(SUFFIXES)}) "
            f"nor {' nor '.join(TABLES)}: check `--data_folder`"
        )
    inner = [file.relative_to(folder) for file in sounds]
    return pd.DataFrame(
        {
            "id": [name.as_posix() for name in inner],
            "path": list(map(str, sounds)),
            "names": [(name.parts[0],) for name in inner],
            "many": False,
            "start": np.nan,
            "stop": np.nan,
        }
    )


def _of_table(path: Path) -> pd.DataFrame:
    """The clips of a CSV or JSONL table, in the columns of `_of_folders` and those it has."""
    rows = tables.read_rows(path)
    columns = dict.fromkeys(column for row in rows for column in row.cells)
    problems = [
        f"unknown column {c!r}{did_you_mean(c, COLUMNS)}" for c in columns if c not in COLUMNS
    ]
    if "path" not in columns:
        problems.append("column 'path' is missing")
    if ("label" in columns) == ("labels" in columns):
        problems.append("there must be a column 'label' or 'labels', and not both")
    if {"stop", "end"} <= columns.keys():
        problems.append("'stop' and 'end' are the same: give one of them")
    refuse(str(path), problems)
    many = "labels" in columns
    written = tables.parsed(rows, "path", tables.name, problems)
    clips = pd.DataFrame({"path": [str(path.parent / str(p)) for p in written], "many": many})
    if many:
        clips["names"] = tables.parsed(rows, "labels", tables.names, problems)
    else:
        clips["names"] = [(label,) for label in tables.parsed(rows, "label", _one_label, problems)]
    for column, source in (("start", "start"), ("stop", "end" if "end" in columns else "stop")):
        clips[column] = np.array(
            tables.parsed(rows, source, tables.seconds, problems), dtype=np.float64
        )
    if "group" in columns:
        clips["group"] = pd.Series(
            tables.parsed(rows, "group", tables.optional_name, problems), dtype=object
        )
    if "split" in columns:
        clips["split"] = tables.parsed(rows, "split", _part, problems)
    if "fold" in columns:
        clips["fold"] = tables.parsed(rows, "fold", tables.whole_number(*FOLDS), problems)
    refuse(str(path), problems)
    clips["id"] = _ids(pd.Series(written), clips)
    return clips


def _one_label(cell: object) -> str:
    label = tables.name(cell)
    if ";" in label:
        raise ValueError("is more than one label: call the column 'labels'")
    return label


def _part(cell: object) -> int:
    if not isinstance(cell, str) or cell.strip().lower() not in PARTS:
        raise ValueError(f"is not one of {', '.join(PARTS)}")
    return PARTS[cell.strip().lower()]


def _ids(paths: pd.Series, clips: pd.DataFrame) -> pd.Series:
    """The path as written, and the segment's bounds where a file has more than one clip."""
    bounds = clips["start"].map(str) + "-" + clips["stop"].map(str)
    return paths.where(~paths.duplicated(keep=False), paths + "@" + bounds)


def write_miniature(folder: Path) -> None:
    """Fill a folder with a miniature of the layout with one folder per class."""
    write_tones(
        {
            folder / name / f"{number:02d}.wav": label
            for label, name in enumerate(("bell", "knock", "voice", "water"))
            for number in range(12)
        }
    )
