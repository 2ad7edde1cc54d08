"""The files that a study keeps: one record per run, and the timings of its configurations."""

import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from toolkit.errors import RunError
from toolkit.own_folders import remove_files
from toolkit.results import RunFacts, with_scores
from toolkit.study.budget import Fit
from toolkit.study.plan import Cell
from toolkit.task import ONE_CLASS, SEVERAL_CLASSES
from toolkit.typed_json import read_if_there, write_json

RECORD = "record.json"
OLD_RECORD = "result.json"
"""What the record was called while the recipe's own file had the same name."""


DONE, FAILED = "done", "failed"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Curves:
    """What changed from epoch to epoch, one number per epoch."""

    train_loss: list[float]
    valid_loss: list[float]
    valid_score: list[float]
    train_seconds: list[float]


@dataclasses.dataclass(frozen=True)
class FoldOutcome:
    """What a run found on one test fold.

    Attributes:
        fold: the test fold.
        score: the metric on it, a share from 0 to 1.
        uar: unweighted average recall; None where a clip may have several classes.
        valid_score: of the best epoch.
        best_epoch: its number, from 1.
        epoch_to_95: the first epoch that reaches 95 % of the last epoch's validation score.
        training_clips: how many there were.
        confusion: [C, C] counts, rows are true classes; None where a clip may have several.
        curves: one number per epoch.
        entropy: of a token's weights over experts or slots, divided by its maximum; None for a
            method without them.
        busiest: share of all weights that the busiest expert has, mean over the layers; None for a
            method without experts.
    """

    fold: int
    score: float
    uar: float | None
    valid_score: float
    best_epoch: int
    epoch_to_95: int
    training_clips: int
    confusion: list[list[int]] | None
    curves: Curves
    entropy: float | None
    busiest: float | None


@dataclasses.dataclass(frozen=True)
class OutcomeParameters:
    """Parameters of a run's classifier.

    Attributes:
        method: trained ones outside the head.
        head: those of the head.
        total: all, frozen and trained.
        stored: those in the bundle.
        active: trained ones outside the head that take part in the output of one token.
    """

    method: int
    head: int
    total: int
    stored: int
    active: int

    @property
    def share(self) -> float:
        """Parameters trained outside the head, in % of all outside the head."""
        return 100 * self.method / (self.total - self.head)


@dataclasses.dataclass(frozen=True)
class Outcome(RunFacts):
    """What a run that ended well found.

    Attributes:
        folds: one for each test fold.
        parameters: of the classifier.
        bundle_bytes: size of the bundle on disk.
    """

    folds: list[FoldOutcome]
    parameters: OutcomeParameters
    bundle_bytes: int


@dataclasses.dataclass(frozen=True)
class Record:
    """How a run ended. It is written last: a run without a record is not finished.

    Attributes:
        cell: which run.
        digest: hash of its configuration.
        step: hash of what decides the cost of a training step.
        status: `done` or `failed`.
        reason: why it failed.
        log: the last lines of its output, if it failed.
        command: the command line.
        attempts: how often it was executed.
        seconds: from start to end, of the last attempt.
        started: when, in UTC.
        host, engine, threads: where it ran; threads None: as many as there are.
        fit: the size that a budget of parameters chose.
        outcome: what it found; None if it failed.
    """

    cell: Cell
    digest: str
    step: str
    status: str
    reason: str | None
    log: str
    command: list[str]
    attempts: int
    seconds: float
    started: str
    host: str
    engine: str
    threads: int | None
    fit: Fit | None
    outcome: Outcome | None

    @property
    def done(self) -> bool:
        """Whether the run ended well."""
        return self.status == DONE

    def found(self) -> Outcome:
        """The outcome of a run that ended well.

        Raises:
            RunError: it did not.
        """
        if self.outcome is None:
            raise RunError(f"the run {self.cell.name} has failed and found nothing: {self.reason}")
        return self.outcome

    def write(self, folder: Path) -> None:
        """Write the record into the folder of the run."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, self, indent=1)
        remove_files(folder, OLD_RECORD)


def remove_record(folder: Path) -> None:
    """Remove the record of a run whose results are about to be replaced."""
    for name in (RECORD, OLD_RECORD):
        remove_files(folder, name)


def read_record(folder: Path) -> Record | None:
    """Read the record in the folder of a run; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    new, old = folder / RECORD, folder / OLD_RECORD
    file = new if new.is_file() or not old.is_file() else old
    return read_if_there(file, Record, _with_scores, "delete it, and the study does this run again")


def read_records(folder: Path, cells: Iterable[Cell]) -> dict[Cell, Record]:
    """Read the records of all runs of a study that have one."""
    found = {cell: read_record(folder / "runs" / cell.name) for cell in cells}
    return {cell: record for cell, record in found.items() if record is not None}


def _with_scores(values: Any) -> Any:
    """A parsed record; one of the format in which "accuracy" held any metric is renamed."""
    outcome = values.get("outcome") if isinstance(values, dict) else None
    if not outcome or "metric" in outcome:
        return values
    several = any(fold["confusion"] is None for fold in outcome["folds"])
    task = SEVERAL_CLASSES if several else ONE_CLASS
    upgraded = {"folds": with_scores(outcome["folds"]), "metric": task.metric}
    return values | {"outcome": outcome | upgraded}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where timings were taken; `load_before` is the load average when the first round began."""

    host: str
    processor: str
    cores: int
    load_before: float
    date: str


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one configuration costs, measured once.

    Attributes:
        samples_per_second: clips trained per second, from the median step.
        peak_memory_bytes: in training.
        latency_seconds: of the prediction of a single clip.
        throughput: clips predicted per second, in batches as large as in training.
        flops: operations per predicted clip; a multiplication and an addition are two.
        merged_latency_seconds, merged_throughput, merged_flops: after merging; None where the
            method cannot be merged.
        training_clips: of the first fold.
        classes, batch_size: of the configuration.
        device: `cpu`, or the name of the GPU.
    """

    samples_per_second: float
    peak_memory_bytes: int
    latency_seconds: float
    throughput: float
    flops: int
    merged_latency_seconds: float | None
    merged_throughput: float | None
    merged_flops: int | None
    training_clips: int
    classes: int
    batch_size: int
    device: str


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one configuration costs, measured in rounds while nothing else ran.

    Attributes:
        machine: where it was measured.
        rounds: one measurement per round.
    """

    machine: Machine
    rounds: list[Measurement]

    def median(self, key: str) -> float | None:
        """The median over the rounds of a field of `Measurement`; None where it is None."""
        values = [getattr(measured, key) for measured in self.rounds]
        return None if None in values else float(statistics.median(values))

    def spread(self, key: str) -> float:
        """The range over the rounds of a field of `Measurement`, as a share of the median."""
        values = [getattr(measured, key) for measured in self.rounds]
        return float((max(values) - min(values)) / statistics.median(values))

    def epoch_seconds(self, shots: int | None) -> float:
        """Training seconds per epoch, with all training clips or `shots` of each class."""
        first = self.rounds[0]
        clips = first.training_clips if shots is None else shots * first.classes
        return clips / statistics.median(one.samples_per_second for one in self.rounds)

    def write(self, folder: Path, step: str) -> None:
        """Write the timing into the folder of the study's results."""
        file = _timing_file(folder, step)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self, indent=1)


def read_timing(folder: Path, step: str) -> Timing | None:
    """Read the timing of all runs with this `Run.step`; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    remedy = "delete it and run `toolkit study time` again"
    return read_if_there(_timing_file(folder, step), Timing, lambda values: values, remedy)


def _timing_file(folder: Path, step: str) -> Path:
    return folder / "timings" / f"{step}.json"
