"""Reads the results of a study: its plan, records and predictions, as tables."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from toolkit.errors import ConfigError, RunError
from toolkit.study.plan import Cell, Method, Plan, read_plan
from toolkit.study.records import (
    RECORD,
    Curves,
    Record,
    Timing,
    read_records,
    read_timing,
)
from toolkit.study.spec import Study
from toolkit.task import ONE_CLASS

GROUP = ["corpus", "backbone", "shots"]
"""The columns in which runs must agree for their methods to be compared."""

METHOD = [*GROUP, "method"]
ALL_SHOTS = "all"
TOLERANCE = 1e-6  # of a score that is computed again
OPTIONAL = ("uar", "entropy", "busiest")
"""Columns of folds that are empty for some runs."""


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
        study: the study.
        folder: of its results.
        cells: all planned runs.
        methods: its methods by name.
        records: the runs that have ended, whether they succeeded or failed.
    """

    study: Study
    folder: Path
    cells: list[Cell]
    methods: dict[str, Method]
    records: dict[Cell, Record]

    @classmethod
    def read(cls, place: Path, plugins: Sequence[str] = ()) -> "Results":
        """Read the results of a study.

        Args:
            place: the folder of the results, or the study's file if they are in the default folder.
            plugins: further plugin folders, for results without a `plan.json`.

        Raises:
            ConfigError: there is no study, or none of its runs has ended.
            RunError: a file of the results is damaged.
        """
        study = Study.read(place)
        folder = study.folder(place).resolve()
        plan = read_plan(folder) or _planned_again(study, folder, plugins)
        study.check_baseline(plan.methods)
        cells = list(plan.digests)
        records = read_records(folder, cells)
        if not records:
            raise ConfigError(
                f"no run of '{study.study}' has ended in {folder}; start them with "
                f"`toolkit study run {place}`"
            )
        return cls(study, folder, cells, plan.methods, records)

    @property
    def done(self) -> list[Record]:
        """The runs that succeeded."""
        return [record for record in self.records.values() if record.done]

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [record for record in self.records.values() if not record.done]

    @functools.cached_property
    def folds(self) -> pd.DataFrame:
        """A row for each tested fold of each run that is done; scores are in %, and
        `metric` names what they are."""
        rows = []
        for record in self.done:
            cell, outcome = record.cell, record.found()
            for fold in outcome.folds:
                rows.append(
                    {
                        **identity(cell),
                        "series": self.methods[cell.method].series,
                        "seed": cell.seed,
                        "fold": fold.fold,
                        "metric": outcome.metric,
                        "score": 100 * fold.score,
                        "uar": None if fold.uar is None else 100 * fold.uar,
                        "entropy": fold.entropy,
                        "busiest": fold.busiest,
                        "valid_score": 100 * fold.valid_score,
                        "epochs": len(fold.curves.train_loss),
                        "best_epoch": fold.best_epoch,
                        "epoch_to_95": fold.epoch_to_95,
                        "epoch_seconds": _mean(fold.curves.train_seconds),
                        "peak_memory": outcome.peak_memory_bytes,
                        "bundle_bytes": outcome.bundle_bytes,
                        "trained": outcome.parameters.method,
                        "share": outcome.parameters.share,
                        "stored": outcome.parameters.stored,
                        "active": outcome.parameters.active,
                        "target": record.fit.target if record.fit else None,
                    }
                )
        if not rows:
            return pd.DataFrame(columns=[*METHOD, "metric", "score"])
        return pd.DataFrame(rows).astype(dict.fromkeys(OPTIONAL, float))

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for each tested clip of each run that is done: its truth, the prediction, and
        whether that is right. Runs whose score is not the share of right clips are left out.

        Raises:
            RunError: the predictions of a run are not those that its record was made of.
        """
        tables = []
        for record in self.done:
            cell = record.cell
            file = self.folder / "runs" / cell.name / "train" / "predictions.csv"
            if record.found().metric == ONE_CLASS.metric and file.is_file():
                table = _predictions(file, record)
                tables.append(table.assign(**identity(cell), seed=cell.seed))
        if not tables:
            return pd.DataFrame(columns=[*METHOD, "seed", "id", "right"])
        return pd.concat(tables, ignore_index=True)

    @functools.cached_property
    def curves(self) -> dict[tuple[str, ...], list[Curves]]:
        """(corpus, backbone, shots, method) -> the curves of its folds."""
        found: dict[tuple[str, ...], list[Curves]] = {}
        for record in self.done:
            curves = [fold.curves for fold in record.found().folds]
            found.setdefault(tuple(identity(record.cell).values()), []).extend(curves)
        return found

    @property
    def metric(self) -> str:
        """What all scores of the study are, or "score" if corpora have different metrics."""
        return metric_name(record.found().metric for record in self.done)

    def timing(self, record: Record) -> Timing | None:
        """The timing of the configuration of a run."""
        return read_timing(self.folder, record.step)

    def confusions(self) -> dict[tuple[str, ...], tuple[list[str], list[list[int]]]]:
        """(corpus, backbone, shots, method) -> classes, and counts over all folds and seeds."""
        found: dict[tuple[str, ...], tuple[list[str], list[list[int]]]] = {}
        for record in self.done:
            key = tuple(identity(record.cell).values())
            for fold in record.found().folds:
                counts = fold.confusion
                if counts is None:  # clips may have several classes
                    continue
                if key in found:
                    counts = _sum(found[key][1], counts)
                found[key] = (record.found().classes, counts)
        return found


def _predictions(file: Path, record: Record) -> pd.DataFrame:
    """The predictions of a run; each fold must have the score that the record says."""
    remedy = f"delete {RECORD} and train/ in {file.parents[1]}, and the study does this run again"
    try:
        table = pd.read_csv(
            file,
            usecols=["id", "fold", "truth", "prediction"],
            dtype={"id": str, "fold": int, "truth": str, "prediction": str},
            keep_default_na=False,
        )
    except (ValueError, OSError) as error:
        raise RunError(f"{file} is damaged ({error}); {remedy}") from None
    table["right"] = table["truth"] == table["prediction"]
    shares = table.groupby("fold")["right"].mean()
    for fold in record.found().folds:
        if abs(shares.get(fold.fold, math.nan) - fold.score) < TOLERANCE:
            continue
        raise RunError(f"{file} does not give the score of fold {fold.fold} in {RECORD}; {remedy}")
    return table


def _planned_again(study: Study, folder: Path, plugins: Sequence[str]) -> Plan:
    """The plan of results from a version that wrote none."""
    from toolkit.study.planner import Planner  # loads all that training needs

    return Planner(study, folder, plugins=plugins).plan()


def grouped(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The parts of a table that agree in some columns of text, in order of appearance."""
    for key, part in table.groupby(by, sort=False):
        yield tuple(map(str, key)), part


def metric_name(metrics: Iterable[str]) -> str:
    """The metric if it is always the same one, else "score"."""
    found = set(metrics)
    return found.pop() if len(found) == 1 else "score"


def identity(cell: Cell) -> dict[str, str]:
    """The values of the columns `METHOD` for a run."""
    shots = ALL_SHOTS if cell.shots is None else str(cell.shots)
    return {
        "corpus": cell.corpus, "backbone": cell.backbone, "shots": shots, "method": cell.method
    }  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sum(one: list[list[int]], other: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]
