"""What training found: one record per epoch, one result per fold, one result per run.

This is the only module that writes and reads `fold.json` and `result.json`. Scores are shares from
0 to 1 of the corpus's official metric, which `metric` names: accuracy, or the mean average
precision (mAP) where a clip may have several classes.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from toolkit.errors import RunError
from toolkit.files import write_atomically
from toolkit.metrics import Spread
from toolkit.parameters import ParameterCount
from toolkit.settings import NamedSettings
from toolkit.typed_json import Scalar, read_json, to_json, write_json

RUN_FILE, FOLD_FILE = "result.json", "fold.json"
Statistics = dict[str, float | list[float]]
"""What a method records of itself: a number, or a list with one number per expert."""

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch of training, and the validation after it.

    Attributes:
        epoch: its number, from 1.
        lr: the largest learning rate of the parameter groups in the last step.
        train_loss: mean over the batches, with the losses that the method adds.
        valid_loss: mean over the validation clips, of the task alone.
        valid_score: the metric on the validation clips.
        metric: name of the metric.
        train_seconds, valid_seconds: how long each part took.
        auxiliary: the losses that the method adds, by name; mean over the batches.
        statistics: what the method recorded during validation.
    """

    epoch: int
    lr: float
    train_loss: float
    valid_loss: float
    valid_score: float
    metric: str
    train_seconds: float
    valid_seconds: float
    auxiliary: dict[str, float]
    statistics: Statistics


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """One round of cross-validation, as `fold.json` keeps it.

    Attributes:
        test_fold, valid_fold, train_folds: which folds did what.
        metric: name of the metric that `score` and `valid_score` hold.
        score: on the test fold, with the weights of the best epoch.
        valid_score: of the best epoch.
        best_epoch: the epoch that validation preferred, from 1.
        metrics: all metrics that the task computes, by name.
        per_class: the score of each class; None for a class without clips.
        confusion: [C, C] counts, rows are true classes; None where a clip may have several.
        parameters: of the classifier.
        peak_memory_bytes: of the process, or of the GPU.
        training_clips: how many there were.
        history: one record per epoch.
        predictions: hash of the fold's `predictions.csv`; None: not known.
        identity: hash of the clips, the backbone and the source that it was made with; None: not
            known.
        processes: how many trained it; None: not known.
    """

    test_fold: int
    valid_fold: int
    train_folds: list[int]
    metric: str
    score: float
    valid_score: float
    best_epoch: int
    metrics: dict[str, float]
    per_class: list[float | None]
    confusion: list[list[int]] | None
    parameters: ParameterCount
    peak_memory_bytes: int
    training_clips: int
    history: list[EpochRecord]
    predictions: str | None = None
    identity: str | None = None
    processes: int | None = None

    @property
    def best(self) -> EpochRecord:
        """The record of the best epoch."""
        return self.history[self.best_epoch - 1]


@dataclasses.dataclass(frozen=True)
class RunScore:
    """The test score of a run.

    Attributes:
        folds: test fold -> score.
        mean, std: over the folds; `std` is None for a single fold.
        per_class: the score of each class over all folds; None for a class without clips.
    """

    folds: dict[int, float]
    mean: float
    std: float | None
    per_class: list[float | None]

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation over the folds."""
        return Spread(self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What was run, where, and what it cost: what a run and a study keep alike.

    Attributes:
        recipe, method, corpus: names.
        classes: class names in the order of the logits.
        metric: name of the metric that all scores hold.
        seconds_per_epoch: mean time of training an epoch.
        peak_memory_bytes: the largest of all folds.
        device: on which it ran.
        peft, backbone: what was adapted, and how.
        configuration: every key, flattened.
        toolkit, commit, python, packages: versions.
    """

    recipe: str
    method: str
    corpus: str
    classes: list[str]
    metric: str
    seconds_per_epoch: float
    peak_memory_bytes: int
    device: str
    peft: NamedSettings
    backbone: NamedSettings
    configuration: dict[str, Scalar]
    toolkit: str
    commit: str | None
    python: str
    packages: dict[str, str]


@dataclasses.dataclass(frozen=True)
class RunResult(RunFacts):
    """Everything that a run found, as `result.json` keeps it.

    Attributes:
        hparams: name of the configuration.
        embedded: whether this was the demonstration without a data folder.
        folds_of_corpus: the test folds that the corpus has, also those that were not run.
        metrics: every metric of the task, over the folds.
        score: on the test folds.
        valid_score: test fold -> score of its best epoch on the validation fold.
        best_epoch: test fold -> number of its best epoch.
        confusion: [C, C] counts over all folds; None where a clip may have several classes.
        parameters: of the classifier.
        seed: that the run was started with.
        configuration_hash: of the keys that decide what is computed.
        processes: test fold -> how many processes trained it; None: not known.
    """

    hparams: str
    embedded: bool
    folds_of_corpus: list[int]
    metrics: dict[str, Spread]
    score: RunScore
    valid_score: dict[int, float]
    best_epoch: dict[int, int]
    confusion: list[list[int]] | None
    parameters: ParameterCount
    seed: int
    configuration_hash: str
    processes: dict[int, int | None] = dataclasses.field(default_factory=dict)


def write_run(folder: Path, result: RunResult) -> None:
    """Write `result.json` into the folder of a run."""
    write_json(folder / RUN_FILE, result, indent=2)


def read_run(folder: Path) -> RunResult:
    """Read `result.json` from the folder of a run, also one of the format before `score`.

    Raises:
        RunError: it is missing or damaged.
    """
    remedy = "delete it and start the run again, which keeps the folds that are finished"
    return _read(folder / RUN_FILE, RunResult, with_scores, remedy)


def write_fold(folder: Path, result: FoldResult) -> None:
    """Write `fold.json` into the folder of a fold."""
    write_json(folder / FOLD_FILE, result)


def read_fold(folder: Path) -> FoldResult:
    """Read `fold.json` from the folder of a fold, also one of the format before `score`.

    Raises:
        RunError: it is missing or damaged.
    """
    file = folder / FOLD_FILE
    remedy = (
        "delete it and start the run again, which tests this fold again if its checkpoint is "
        "still there, or else trains it again"
    )
    found = _read(file, FoldResult, with_scores, remedy)
    problem = _problem(found)
    if problem is not None:
        raise RunError(f"{file} is damaged ({problem}); {remedy}")
    return found


def _problem(fold: FoldResult) -> str | None:
    """What a fold says that cannot be."""
    for name in ("score", "valid_score"):
        if not 0 <= getattr(fold, name) <= 1:
            return f"'{name}' is {getattr(fold, name)}, not from 0 to 1"
    if not 1 <= fold.best_epoch <= len(fold.history):
        return f"'best_epoch' is {fold.best_epoch}, and there are {len(fold.history)} epochs"
    return None


def write_history(file: Path, history: list[EpochRecord]) -> None:
    """Write the records of some epochs, as a checkpoint keeps them."""
    write_atomically(file, to_json(history))


def read_history(file: Path) -> list[EpochRecord]:
    """Read what `write_history` wrote.

    Raises:
        RunError: it is missing or damaged.
    """
    remedy = "delete its checkpoint and start the run again"
    return _read(file, _History, lambda records: {"epochs": with_scores(records)}, remedy).epochs


@dataclasses.dataclass(frozen=True)
class _History:
    epochs: list[EpochRecord]


OLD_NAMES = {"accuracy": "score", "test_accuracy": "score", "valid_accuracy": "valid_score"}
"""Keys of the format in which "accuracy" held whatever metric the corpus had."""


def with_scores(values: Any) -> Any:
    """Parsed JSON with the old names replaced in its records.

    `metrics` is left alone, because its keys are the names of metrics: accuracy is one of them.
    """
    if isinstance(values, list):
        return [with_scores(item) for item in values]
    if not isinstance(values, dict):
        return values
    renamed = {OLD_NAMES.get(key, key): value for key, value in values.items()}
    for part in ("history", "curves"):
        if part in renamed:
            renamed[part] = with_scores(renamed[part])
    return renamed


def _read(file: Path, kind: type[R], upgrade: Callable[[Any], Any], remedy: str) -> R:
    try:
        return read_json(file, kind, upgrade, remedy)
    except OSError as error:
        raise RunError(
            f"{file} cannot be read ({error.strerror}); name the folder of a finished run"
        ) from None
