"""The one table that every corpus becomes."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import soundfile

from toolkit.data.audio import UNREADABLE
from toolkit.errors import DataError, listing
from toolkit.settings import Settings

COLUMNS = ["id", "path", "label", "fold"]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Clips and their classes.

    Attributes:
        corpus: name, for messages and results.
        clips: one row a clip: `id` (unique), `path`, `label` (index into `classes`), `fold`.
        classes: class names in the order of their labels.

    Raises:
        DataError: no clips, missing columns, repeated ids or labels out of range.
    """

    corpus: str
    clips: pd.DataFrame
    classes: list[str]

    def __post_init__(self) -> None:
        problems = [f"no column '{c}'" for c in COLUMNS if c not in self.clips.columns]
        if not problems:
            repeated = self.clips["id"][self.clips["id"].duplicated()].unique()
            problems += [f"the id {name} stands twice" for name in repeated]
            wrong = ~self.clips["label"].between(0, len(self.classes) - 1)
            problems += [f"{name} has a label without a class" for name in self.clips["id"][wrong]]
        if not len(self.clips):
            problems.append("there are no clips")
        refuse(self.corpus, problems)

    @property
    def folds(self) -> list[int]:
        """The folds there are, sorted."""
        return sorted(int(fold) for fold in self.clips["fold"].unique())

    def of_folds(self, folds: Iterable[int]) -> pd.DataFrame:
        """The clips of some folds."""
        return self.clips[self.clips["fold"].isin(list(folds))]


class Corpus(Settings, ABC):
    """Settings of a corpus; one subclass a corpus, one a synthetic or user-made kind."""

    @abstractmethod
    def manifest(self, folder: Path) -> Manifest:
        """Check a corpus on disk and return its table.

        Raises:
            DataError: everything that is wrong with the folder, in one message.
        """

    def download(self, folder: Path) -> None:
        """Fetch the official archive into `folder`.

        Raises:
            DataError: this corpus cannot be fetched by a program.
        """
        raise DataError(
            f"the corpus {self.registered_name} is not to be had by download: fetch it by hand "
            "and name its folder with `--data_folder`"
        )


def refuse(corpus: str, problems: Sequence[str]) -> None:
    """Raise a `DataError` that lists the problems, if there are any."""
    if problems:
        raise DataError(f"{corpus}: {len(problems)} problems:\n{listing(problems)}")


def unreadable(paths: Sequence[Path]) -> list[str]:
    """What is wrong with audio files that are missing, not audio, or empty (headers are read)."""
    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(_problem, paths) if problem]


def _problem(path: Path) -> str:
    if not path.is_file():
        return f"{path} is missing"
    try:
        frames = soundfile.info(path).frames
    except UNREADABLE as error:
        return f"{path} cannot be read: {getattr(error, 'error_string', error)}"
    return "" if frames else f"{path} holds no samples"
