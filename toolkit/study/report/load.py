"""The results of a study as tables of runs and of single predictions."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from toolkit.errors import ConfigError
from toolkit.study.plan import Planner
from toolkit.study.records import Curves, Record, Timing, read_records, read_timing
from toolkit.study.run.queue import default_folder
from toolkit.study.spec import COPY, Cell, Study
from toolkit.study.variants import Variant

GROUP = ["corpus", "backbone", "shots"]
"""What must be the same for methods to be compared."""

METHOD = [*GROUP, "method"]
ALL_SHOTS = "all"
OPTIONAL = ("uar", "entropy", "busiest")
"""Numbers of folds that some runs lack."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What there is of a study.

    Attributes:
        study: the study.
        folder: of its results.
        cells: the runs that there should be.
        variants: its methods by name.
        records: those that ended, well or not.
    """

    study: Study
    folder: Path
    cells: list[Cell]
    variants: dict[str, Variant]
    records: dict[Cell, Record]

    @classmethod
    def read(cls, place: Path, plugins: Sequence[str] = ()) -> "Results":
        """Read a study's results.

        Args:
            place: the study's file, if its results are where they are by default; or their folder.
            plugins: further plugin folders.

        Raises:
            ConfigError: there is no study, or none of its runs has ended.
        """
        study = Study.read(place)
        folder = place if place.is_dir() else default_folder(study.study)
        planner = Planner(study, folder, plugins=plugins)
        cells = planner.cells()
        records = read_records(planner.folder, cells)
        if not records:
            raise ConfigError(
                f"{folder} holds no run of the study that has ended; start it with "
                f"`python tools/benchmark.py {place if place.is_file() else place / COPY}`"
            )
        return cls(study, planner.folder, cells, planner.variants, records)

    @property
    def done(self) -> list[Record]:
        """The runs that ended well."""
        return [record for record in self.records.values() if record.done]

    @property
    def failed(self) -> list[Record]:
        """Those that did not."""
        return [record for record in self.records.values() if not record.done]

    @functools.cached_property
    def folds(self) -> pd.DataFrame:
        """A row for each tested fold of each run that is done; accuracies are in %."""
        rows = []
        for record in self.done:
            cell, outcome = record.cell, record.found()
            for fold in outcome.folds:
                rows.append(
                    {
                        **identity(cell),
                        "series": self.variants[cell.method].series,
                        "seed": cell.seed,
                        "fold": fold.fold,
                        "accuracy": 100 * fold.score,
                        "uar": None if fold.uar is None else 100 * fold.uar,
                        "entropy": fold.entropy,
                        "busiest": fold.busiest,
                        "valid_accuracy": 100 * fold.valid_score,
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
                        "target": record.fit["target"] if record.fit else None,
                    }
                )
        if not rows:
            return pd.DataFrame(columns=[*METHOD, "accuracy"])
        return pd.DataFrame(rows).astype(dict.fromkeys(OPTIONAL, float))

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for each tested clip of each run that is done: its truth, the prediction, and
        whether that is right."""
        tables = []
        for cell, record in self.records.items():
            file = self.folder / "runs" / cell.name / "train" / "predictions.csv"
            if record.done and file.is_file():
                columns = ["id", "fold", "truth", "prediction"]
                table = pd.read_csv(file, usecols=columns, dtype={"id": str, "truth": str})
                tables.append(table.assign(**identity(cell), seed=cell.seed))
        if not tables:
            return pd.DataFrame(columns=[*METHOD, "seed", "id", "right"])
        found = pd.concat(tables, ignore_index=True)
        return found.assign(right=found["truth"] == found["prediction"].astype(str))

    @functools.cached_property
    def curves(self) -> dict[tuple[str, ...], list[Curves]]:
        """(corpus, backbone, shots, method) -> the curves of its folds."""
        found: dict[tuple[str, ...], list[Curves]] = {}
        for record in self.done:
            curves = [fold.curves for fold in record.found().folds]
            found.setdefault(tuple(identity(record.cell).values()), []).extend(curves)
        return found

    def timing(self, record: Record) -> Timing | None:
        """The quiet timing of a run's configuration."""
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


def identity(cell: Cell) -> dict[str, str]:
    """The columns `METHOD` of a run."""
    shots = ALL_SHOTS if cell.shots is None else str(cell.shots)
    return {
        "corpus": cell.corpus, "backbone": cell.backbone, "shots": shots, "method": cell.method
    }  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sum(one: list[list[int]], other: list[list[int]]) -> list[list[int]]:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]
