"""What is kept of a study: a record a run, and the timings of its methods, as JSON files."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.files import write_atomically
from toolkit.study.plan import Cell

RECORD = "result.json"
DONE, FAILED = "done", "failed"


@dataclasses.dataclass(frozen=True)
class Record:
    """How a run ended; written last, so that a run without one is not finished.

    Attributes:
        cell: which run.
        digest: hash of its configuration.
        step: see `Run.step`.
        status: `done` or `failed`.
        reason: why it failed.
        log: the last lines of its output, if it failed.
        command: the command line.
        attempts: how often it was executed.
        seconds: from start to end, of the last attempt.
        started: when, in UTC.
        host, engine, threads: where it ran; threads None: as many as there are.
        fit: what a budget of parameters chose (see `budget.Fit`).
        outcome: see `outcome.read_outcome`; None if it failed.
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
    fit: dict[str, Any] | None
    outcome: dict[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether the run ended well."""
        return self.status == DONE

    def write(self, folder: Path) -> None:
        """Leave the record in the run's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD, json.dumps(dataclasses.asdict(self), indent=1))


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder, or None."""
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Record(**{**values, "cell": Cell(**values["cell"])})


def read_records(folder: Path, cells: Iterable[Cell]) -> dict[Cell, Record]:
    """The records of those runs of a study that have one."""
    found = {cell: read_record(folder / "runs" / cell.name) for cell in cells}
    return {cell: record for cell, record in found.items() if record is not None}


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one configuration costs, from the quiet phase; see `timing.measure` for the fields.

    Attributes:
        machine: where it was measured.
        rounds: one measurement a round.
    """

    machine: dict[str, Any]
    rounds: list[dict[str, Any]]

    def median(self, key: str) -> float | None:
        """The median over rounds of a measured number; None where it does not exist."""
        values = [values[key] for values in self.rounds]
        return None if None in values else statistics.median(values)

    def spread(self, key: str) -> float | None:
        """The range over rounds as a share of the median."""
        values = [values[key] for values in self.rounds]
        if None in values:
            return None
        return (max(values) - min(values)) / statistics.median(values)

    def epoch_seconds(self, shots: int | None) -> float:
        """Seconds that an epoch trains, with all training clips or with some of each class."""
        first = self.rounds[0]
        clips = first["training_clips"] if shots is None else shots * first["classes"]
        return clips / self.median("samples_per_second")

    def write(self, folder: Path, step: str) -> None:
        """Keep it with the study's results."""
        file = _timing_file(folder, step)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(dataclasses.asdict(self), indent=1))


def read_timing(folder: Path, step: str) -> Timing | None:
    """The timing of all runs with that `Run.step`, or None."""
    try:
        return Timing(**json.loads(_timing_file(folder, step).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _timing_file(folder: Path, step: str) -> Path:
    return folder / "timings" / f"{step}.json"
