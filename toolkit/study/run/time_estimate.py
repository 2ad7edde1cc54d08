"""How long runs will take, estimated from past runs of the study or from its timings."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from toolkit.study.plan import Cell, Run
from toolkit.study.records import Record, read_record, read_timing

START_SECONDS = 8.0
"""What a process needs before its first training step and after its last."""

Setup = tuple[str, str, int | None]
"""Corpus, backbone and shots of a run."""

Kind = tuple[str, str, int | None, str]
"""These and the method: runs of one kind differ in fold and seed."""

K = TypeVar("K")


class Estimate:
    """Estimates how many seconds a run will take.

    Args:
        folder: of the study's results.
        runs: all runs of the study, including those that are done.
    """

    def __init__(self, folder: Path, runs: Iterable[Run]) -> None:
        self.folder = folder
        exact: defaultdict[Kind, list[float]] = defaultdict(list)
        near: defaultdict[Setup, list[float]] = defaultdict(list)
        for run in runs:
            record = read_record(run.folder)
            if record is not None and record.done:
                seconds = _epoch_seconds(record)
                exact[_kind(run.cell)].append(seconds)
                near[_setup(run.cell)].append(seconds)
        self._exact, self._near = _medians(exact), _medians(near)

    def seconds(self, run: Run) -> float | None:
        """The estimate for a run; None if nothing is known.

        It uses past runs of the same method, else its timings, else past runs of other methods on
        the same corpus and backbone.
        """
        epoch = self._exact.get(_kind(run.cell))
        if epoch is None:
            timing = read_timing(self.folder, run.step)
            if timing is not None:
                epoch = timing.epoch_seconds(run.cell.shots)
        if epoch is None:
            epoch = self._near.get(_setup(run.cell))
        return None if epoch is None else START_SECONDS + epoch * run.epochs


def _setup(cell: Cell) -> Setup:
    return cell.corpus, cell.backbone, cell.shots


def _kind(cell: Cell) -> Kind:
    return *_setup(cell), cell.method


def _epoch_seconds(record: Record) -> float:
    epochs = sum(len(fold.curves.train_loss) for fold in record.found().folds)
    return max(0.0, record.seconds - START_SECONDS) / epochs


def _medians(groups: Mapping[K, list[float]]) -> dict[K, float]:
    return {key: statistics.median(values) for key, values in groups.items()}


def duration(seconds: float) -> str:
    """Seconds as text: `"45 s"`, `"12 min"`, `"3 h 05 min"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
