"""The table of clips that every corpus is turned into, and the base class of corpora."""

import dataclasses
import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from toolkit.data.splits import FIXED, PARTS, Split, cross_validation
from toolkit.errors import DataError, listing
from toolkit.features.audio_file import AudioFile
from toolkit.settings import Settings

COLUMNS = ["id", "path", "label", "fold"]
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
RATE_TOLERANCE = 0.01  # seconds by which a segment may exceed the duration in the header


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Clips and their classes.

    Attributes:
        corpus: name in messages and results.
        clips: one row per clip: `id` (unique), `path`, `label` (index into `classes`; of a
            multi-label corpus an array [C] of 0 and 1), `fold`, and optionally `group`
            (clips that must stay together: one speaker, one recording), `start` and `stop`
            (seconds in the file; NaN: its beginning and its end).
        classes: class names in the order of their labels.
        rounds: which folds train, validate and test; None: cross-validation over the folds.
        multi_label: whether a clip may have several classes, or none.
        official: whether the split is the corpus's own. With copies of a recording in two parts,
            a user's split is refused, and an official one is used with a warning.

    Raises:
        DataError: no clips, missing columns, repeated ids or clips, labels out of range, one class
            alone, two of one name, a file or a group in two folds, names that are not text.
    """

    corpus: str
    clips: pd.DataFrame
    classes: list[str]
    rounds: Sequence[Split] | None = None
    multi_label: bool = False
    official: bool = True

    def __post_init__(self) -> None:
        problems = [f"no column '{c}'" for c in COLUMNS if c not in self.clips.columns]
        if not problems:
            repeated = self.clips["id"][self.clips["id"].duplicated()].unique()
            problems += [f"the id {name} occurs twice" for name in repeated]
            wrong = self._without_class()
            problems += [f"{name} has a label without a class" for name in self.clips["id"][wrong]]
            problems += twice(self.clips) + leaks(self.clips) + self._unwritable()
        if not len(self.clips):
            problems.append("there are no clips")
        elif len(self.classes) == 1 and not self.multi_label:
            problems.append(
                f"there is one class alone, {self.classes[0]!r}: a classifier needs at least two"
            )
        named = pd.Series([normalize("NFC", name) for name in self.classes], dtype=object)
        problems += [f"two classes are called {c!r}" for c in named[named.duplicated()].unique()]
        refuse(self.corpus, problems)

    def _without_class(self) -> pd.Series:
        count = len(self.classes)
        if self.multi_label:
            return self.clips["label"].map(lambda label: np.shape(label) != (count,))
        return ~self.clips["label"].between(0, count - 1)

    def _unwritable(self) -> list[str]:
        """Names that results could not be written with: of ids, groups and classes."""
        columns = [c for c in ("id", "group") if c in self.clips]
        names = dict.fromkeys(str(n) for c in columns for n in self.clips[c].dropna())
        names |= dict.fromkeys(self.classes)
        return [
            f"the name {name!r} is not UTF-8 or has control characters: rename it"
            for name in names
            if UNWRITABLE.search(name)
        ]

    @property
    def folds(self) -> list[int]:
        """The numbers of the folds, sorted."""
        return sorted(int(fold) for fold in self.clips["fold"].unique())

    @property
    def splits(self) -> list[Split]:
        """The rounds of the evaluation: which folds train, validate and test.

        Raises:
            ConfigError: cross-validation is not possible with so few folds.
        """
        return cross_validation(self.folds) if self.rounds is None else list(self.rounds)

    @property
    def fixed(self) -> bool:
        """Whether there is one round, of a training, a validation and a test part."""
        return self.rounds is not None and tuple(self.rounds) == FIXED

    def name_of(self, fold: int) -> str:
        """What a fold is called: `fold 3`, or in a fixed split `training part` and the like."""
        return f"{PARTS[fold]} part" if self.fixed else f"fold {fold}"

    @property
    def parts(self) -> str:
        """What its folds are called together."""
        if self.fixed:
            return "training, validation and test part"
        return f"folds {', '.join(map(str, self.folds))}"

    def of_folds(self, folds: Iterable[int]) -> pd.DataFrame:
        """The clips of some folds."""
        return self.clips[self.clips["fold"].isin(list(folds))]


def class_matrix(labels: pd.Series, count: int) -> NDArray[np.int64]:
    """The column `label` of a manifest as an array [N, C] of 0 and 1."""
    matrix: NDArray[np.int64]
    if labels.dtype == object:
        matrix = np.stack(list(labels)).astype(np.int64)
    else:
        matrix = np.eye(count, dtype=np.int64)[labels.to_numpy(dtype=np.int64)]
    return matrix


def class_labels(names: Iterable[Sequence[str]], classes: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Turn the names of each clip's classes into labels [C] of a multi-label manifest."""
    places = {name: place for place, name in enumerate(classes)}
    labels = []
    for of_clip in names:
        label = np.zeros(len(classes), dtype=np.uint8)
        label[[places[name] for name in of_clip]] = 1
        labels.append(label)
    return labels


def leaks(clips: pd.DataFrame) -> list[str]:
    """Files and groups that are in more than one fold, one message each."""
    found = []
    clips = clips.assign(file=same_files(clips["path"]))
    for column, what in (("file", "the file"), ("group", "the group")):
        if column not in clips:
            continue
        known = clips[[column, "fold"]].dropna().drop_duplicates()
        torn = known[known[column].duplicated(keep=False)].groupby(column, sort=True)["fold"]
        found += [
            f"{what} {name} is in folds {', '.join(str(f) for f in sorted(folds))}: put all of "
            "it into one"
            for name, folds in torn
        ]
    return found


def same_files(paths: pd.Series) -> pd.Series:
    """For each path, the first one that leads to the same file, however written or linked."""
    real_folder = functools.cache(os.path.realpath)

    def real(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        return os.path.join(real_folder(folder), name)

    first: dict[str, str] = {}
    return paths.map({path: first.setdefault(real(str(path)), path) for path in paths.unique()})


def twice(clips: pd.DataFrame) -> list[str]:
    """Clips that are listed more than once, one message each: the same part of the same file."""
    parts = clips.reindex(columns=["start", "stop"]).assign(file=same_files(clips["path"]))
    again = parts.duplicated(keep=False)
    listed = clips["path"][again].groupby(parts["file"][again], sort=False).unique()
    return [
        f"{' and '.join(map(str, paths))} {'is' if len(paths) == 1 else 'are one file, which is'} "
        "listed twice: keep one line, with one label"
        for paths in listed
    ]


def untrained(manifest: Manifest) -> list[str]:
    """Classes without a training clip in some round, one message each.

    A model of such a round can never be right about them. One's own sounds are then refused; of a
    published corpus it is said, since its parts are not the user's.
    """
    held = class_matrix(manifest.clips["label"], len(manifest.classes)) == 1
    folds = manifest.clips["fold"].to_numpy()
    found: dict[int, list[str]] = {}
    for split in manifest.splits:
        for label in np.flatnonzero(~held[np.isin(folds, split.train)].any(axis=0)):
            found.setdefault(int(label), []).append(str(split.test))
    return [
        f"the class '{manifest.classes[label]}' has no training clip"
        + (f" when fold {', '.join(tests)} is tested" if len(manifest.splits) > 1 else "")
        + ": add clips of other groups, or leave it out"
        for label, tests in sorted(found.items())
    ]


def copied(clips: pd.DataFrame, contents: Mapping[str, str]) -> list[str]:
    """Files of different names and the same content in more than one fold, one message each.

    Args:
        clips: of a manifest.
        contents: path -> hash of the content.
    """
    table = clips[["path", "fold"]].drop_duplicates()
    table = table.assign(content=table["path"].map(contents))
    table = table[table["content"].duplicated(keep=False)]
    return [
        f"{', '.join(part['path'])} hold the same sound in folds "
        f"{', '.join(str(f) for f in sorted(part['fold'].unique()))}: keep one of them"
        for _, part in table.groupby("content", sort=True)
        if part["fold"].nunique() > 1
    ]


class Corpus(Settings, ABC):
    """Settings of a corpus; one subclass per corpus."""

    @abstractmethod
    def manifest(self, folder: Path) -> Manifest:
        """Check the corpus on disk and return its table of clips.

        Raises:
            DataError: everything that is wrong with the folder, in one message.
        """

    def download(self, folder: Path) -> None:
        """Fetch the official archive into `folder`.

        Raises:
            DataError: this corpus cannot be fetched by a program.
        """
        raise DataError(
            f"the corpus {self.registered_name} cannot be downloaded automatically: fetch it "
            "yourself and name its folder with `--data_folder`"
        )

    def published_clips(self, manifest: Manifest) -> int | None:
        """The number of clips in the published corpus with these settings; None: not known."""
        return None

    def embed(self, folder: Path) -> None:
        """Write a miniature of the corpus, in its exact layout, for a run without a data folder.

        Raises:
            DataError: this corpus has none.
        """
        raise DataError(
            f"the corpus {self.registered_name} has no embedded miniature: name its folder with "
            "`--data_folder`"
        )


def refuse(corpus: str, problems: Sequence[str]) -> None:
    """Raise a `DataError` that lists the problems, if there are any."""
    if problems:
        raise DataError(f"{corpus}: {len(problems)} problems:\n{listing(problems)}")


def unreadable(paths: Sequence[Path]) -> list[str]:
    """What is wrong with files that are missing, not audio, or empty; only headers are read."""
    return [header for header in headers(paths).values() if isinstance(header, str)]


def headers(paths: Iterable[str | Path]) -> dict[str, "Header | str"]:
    """The header of every file, or what is wrong with it; each file is opened once."""
    distinct = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor() as pool:
        return dict(zip(distinct, pool.map(_header, distinct), strict=True))


def segment_problems(clips: pd.DataFrame) -> list[str]:
    """What is wrong with the files of clips, and with the segments that are cut from them.

    Args:
        clips: `id`, `path`, and in seconds `start` and `stop`.
    """
    found = headers(clips["path"])
    problems = [header for header in found.values() if isinstance(header, str)]
    seconds = {path: h.seconds for path, h in found.items() if isinstance(h, Header)}
    length = clips["path"].astype(str).map(seconds)
    start, stop = clips["start"].fillna(0.0), clips["stop"].fillna(length)
    wrong = (start < 0) | (stop <= start) | (stop > length + RATE_TOLERANCE)
    return problems + [
        f"{row.id}: {row.start} to {row.stop} s is not a part of {row.path} "
        f"({seconds[str(row.path)]:.2f} s)"
        for row in clips[wrong & length.notna()].itertuples()
    ]


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of an audio file: duration (s), sample rate (Hz), number of channels."""

    seconds: float
    sample_rate: int
    channels: int


def _header(path: str) -> Header | str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which is missing"
    if not os.path.exists(path):
        return f"{path} is missing"
    if not os.path.isfile(path):
        return f"{path} is not a file"
    try:
        with AudioFile(path) as file:
            frames = file.count_frames()
            header = Header(frames / file.sample_rate, file.sample_rate, file.channels)
    except DataError as error:
        return str(error)
    return header if frames else f"{path} contains no samples"
