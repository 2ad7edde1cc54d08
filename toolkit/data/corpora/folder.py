"""A user's own sounds: a folder with one subfolder per class, or a CSV or JSONL table.

The table has `path` (relative to the table), `label`, or `labels` where a clip may have several
(separated by semicolons in CSV), and optionally `split` (train, valid, test), `fold`, `group`
(clips that must stay together: one speaker, one recording), `start` and `stop` or `end` (seconds).
Parts that are not given are made: stratified, without splitting a group or a file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regex
from numpy.typing import NDArray

from toolkit.data.corpora.miniature import write_tones
from toolkit.data.manifest import (
    Corpus,
    Manifest,
    class_labels,
    class_matrix,
    refuse,
    segment_problems,
)
from toolkit.data.splits import FIXED, TEST, TRAIN, VALID, Split, stratified_parts
from toolkit.errors import ConfigError, DataError, did_you_mean
from toolkit.files import make_once
from toolkit.registry import CORPORA
from toolkit.settings import setting

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au", ".w64")
TABLES = ("clips.csv", "clips.jsonl")
COLUMNS = ("path", "label", "labels", "split", "fold", "group", "start", "stop", "end")
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
        names = clips.pop("names")
        classes = sorted({name for row in names for name in row})
        many = bool(clips.pop("many").any())
        if many:
            clips["label"] = pd.Series(class_labels(names, classes), dtype=object)
        else:
            places = {name: place for place, name in enumerate(classes)}
            clips["label"] = [places[row[0]] for row in names]
        problems = segment_problems(clips)
        refuse(self.name, problems)
        clips, rounds = self._parts(clips, len(classes))
        self._require_training_clips(clips, classes, rounds is not None)
        return Manifest(self.name, clips, classes, rounds, many, official=False)

    def _groups(self, paths: pd.Series) -> pd.Series:
        pattern = regex.compile(self.group_pattern or "")
        found = {}
        for path in paths:
            try:
                found[path] = pattern.search(Path(path).name, timeout=LONGEST_SEARCH)
            except TimeoutError:
                raise ConfigError(
                    f"'group_pattern' takes more than {LONGEST_SEARCH} seconds for "
                    f"{Path(path).name!r}; a repetition within a repetition, as in '(a+)+', may "
                    "never end"
                ) from None
        refuse(
            self.name,
            [f"{p}: its name does not match 'group_pattern'" for p, m in found.items() if not m],
        )
        return paths.map({path: match[1] for path, match in found.items() if match})

    def _parts(self, clips: pd.DataFrame, count: int) -> tuple[pd.DataFrame, Rounds]:
        """The clips with their `fold`, and the rounds of the evaluation."""
        given = [column for column in ("fold", "split") if column in clips]
        if len(given) == 2:
            raise DataError(f"{self.name}: give a 'split' or a 'fold', not both")
        if given == ["fold"]:
            return clips, None
        held = class_matrix(clips["label"], count)
        groups = _together(clips)
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

    def _require_training_clips(self, clips: pd.DataFrame, classes: list[str], fixed: bool) -> None:
        """Refuse classes without a training clip; with folds, those that occur in only one."""
        held = class_matrix(clips["label"], len(classes)) == 1
        folds = clips["fold"].to_numpy()
        if fixed:
            poor = ~held[folds == TRAIN].any(axis=0)
            where = "has no training clip"
        else:
            poor = np.array([len(np.unique(folds[column])) < 2 for column in held.T])
            where = "occurs in one fold only"
        refuse(
            self.name,
            [
                f"the class '{classes[i]}' {where}: add clips of other groups, or leave it out"
                for i in np.flatnonzero(poor)
            ],
        )

    def embed(self, folder: Path) -> None:
        """Write a miniature: four classes with twelve clips each."""
        make_once(folder, write_miniature)


def _together(clips: pd.DataFrame) -> NDArray[np.object_]:
    """[N] names of what must stay together: groups and files, joined where they overlap."""
    if "group" not in clips:
        return clips["path"].to_numpy()
    groups = clips["group"].where(clips["group"].notna(), clips["path"])
    first = groups.groupby(clips["path"]).transform("first")
    torn = clips["path"][first != groups].unique()
    refuse(
        "your sounds",
        [f"{path} is in more than one group: give all of its clips the same one" for path in torn],
    )
    return groups.to_numpy()


def _of_folders(folder: Path) -> pd.DataFrame:
    """The clips of a folder with one subfolder per class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor a table: check `--data_folder`")
    files = sorted(
        file
        for file in folder.glob("*/**/*")
        if file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )
    sounds = [file for file in files if file.suffix.lower() in AUDIO]
    if not sounds:
        raise DataError(
            f"{folder} holds neither one folder per class with audio files ({', '.join(AUDIO)}) "
            f"nor {' nor '.join(TABLES)}: check `--data_folder`"
        )
    names = [file.relative_to(folder) for file in sounds]
    return pd.DataFrame(
        {
            "id": [name.as_posix() for name in names],
            "path": list(map(str, sounds)),
            "names": [(name.parts[0],) for name in names],
            "many": False,
            "start": np.nan,
            "stop": np.nan,
        }
    )


def _of_table(path: Path) -> pd.DataFrame:
    """The clips of a CSV or JSONL table, in the columns of `_of_folders` and those it has."""
    table = _read(path)
    problems = [f"unknown column '{c}'{did_you_mean(c, COLUMNS)}" for c in table.columns
                if c not in COLUMNS]  # fmt: skip
    if "path" not in table:
        problems.append("column 'path' is missing")
    if ("label" in table) == ("labels" in table):
        problems.append("there must be a column 'label' or 'labels', and not both")
    refuse(str(path), problems)
    many = "labels" in table
    names = [_names(value) for value in table["labels" if many else "label"]]
    if not many:
        single = zip(table["path"], names, strict=True)
        problems += [f"{p}: {len(n)} labels instead of one" for p, n in single if len(n) != 1]
    clips = pd.DataFrame({"names": names, "many": many})
    clips["path"] = [str(path.parent / str(name)) for name in table["path"]]
    stop = "stop" if "stop" in table else "end"
    missing: pd.Series[Any] = pd.Series(np.nan, index=table.index, dtype=object)
    for column, source in (("start", "start"), ("stop", stop)):
        values = table.get(source, missing).mask(lambda cell: cell == "", np.nan)
        clips[column] = pd.to_numeric(values, errors="coerce")
        problems += [f"{source} {value!r} is not a number of seconds"
                     for value in values[clips[column].isna() & values.notna()]]  # fmt: skip
    if "group" in table:
        clips["group"] = table["group"].replace("", np.nan)
    if "split" in table:
        clips["split"] = table["split"].astype(str).str.lower().map(PARTS)
        problems += [f"the split {value!r} is not one of {', '.join(PARTS)}"
                     for value in table["split"][clips["split"].isna()].unique()]  # fmt: skip
    if "fold" in table:
        clips["fold"] = pd.to_numeric(table["fold"], errors="coerce")
        wrong = clips["fold"].isna() | (clips["fold"] % 1 != 0)
        problems += [f"the fold {value!r} is not a whole number" for value in table["fold"][wrong]]
    refuse(str(path), problems)
    for column in {"fold", "split"} & set(clips):
        clips[column] = clips[column].astype(int)
    clips["id"] = _ids(table["path"].astype(str), clips)
    return clips


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            return pd.DataFrame([json.loads(line) for line in lines if line.strip()])
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a table: {error}; write it as CSV or JSONL") from None


def _names(value: object) -> tuple[str, ...]:
    """The classes in a cell: a list, or text with semicolons."""
    parts = value if isinstance(value, list) else str(value).split(";")
    return tuple(dict.fromkeys(name for part in parts if (name := str(part).strip())))


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
