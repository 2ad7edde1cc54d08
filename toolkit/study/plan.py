"""The plan of a study: its methods and runs, kept as `plan.json` beside the results.

A report reads that file, so that results open without the plugins and recipes that made them.
`planner.py` makes plans.
"""

import dataclasses
from pathlib import Path
from typing import Any

from toolkit.study.budget import Fit
from toolkit.study.spec import short_name
from toolkit.typed_json import read_if_there, write_json

FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study, by what distinguishes it from the others.

    Attributes:
        corpus, method, backbone: names in the study.
        shots: training clips per class; None: all.
        seed: of the run.
        fold: the tested fold; None: all folds of the recipe.
    """

    corpus: str
    method: str
    backbone: str
    shots: int | None
    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """Such as `ESC-10/lora/ast_tiny/all/seed-1/fold-2`; also the run's folder."""
        shots = "all" if self.shots is None else f"{self.shots}-shot"
        fold = "folds" if self.fold is None else f"fold-{self.fold}"
        return "/".join(
            [self.corpus, self.method, short_name(self.backbone), shots, f"seed-{self.seed}", fold]
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a study, as its report knows it.

    Attributes:
        name: unique in the study.
        series: the entry of the study that it comes from; the methods of a sweep share it.
        peft: its registered name.
        factors: swept key -> value.
        published: its name in `published.csv`.
    """

    name: str
    series: str
    peft: str
    factors: dict[str, Any]
    published: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, ready to be executed.

    Attributes:
        cell: which run of the study.
        folder: where its files go.
        train: the recipe's train.py.
        arguments: what follows it on the command line, except for the output folder.
        digest: hash of the configuration; a run with another digest is another run.
        step: hash of what decides the cost of a step; runs that share it share their timings.
        epochs: passes over the training clips.
        fit: the size that a budget of parameters chose.
        timeout: seconds after which it counts as failed.
        again: whether it is executed although it is done, replacing what it found.
    """

    cell: Cell
    folder: Path
    train: Path
    arguments: tuple[str, ...]
    digest: str
    step: str
    epochs: int
    fit: Fit | None = None
    timeout: float | None = None
    again: bool = False

    @property
    def output(self) -> Path:
        """The output folder of the recipe."""
        return self.folder / "train"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A run that cannot be planned, and why."""

    cell: Cell
    folder: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class SavedRun(Cell):
    """A run in `plan.json`."""

    digest: str | None


@dataclasses.dataclass(frozen=True)
class SavedPlan:
    """The content of `plan.json`."""

    methods: list[Method]
    runs: list[SavedRun]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All methods and runs of a study.

    Attributes:
        methods: by name, in the order of the study.
        digests: every run of the study -> its digest when it was last planned; None: it never
            was, or it could not be.
    """

    methods: dict[str, Method]
    digests: dict[Cell, str | None]

    def write(self, folder: Path) -> None:
        """Write `plan.json`; runs without a digest keep the one that the file has.

        Args:
            folder: of the study's results.
        """
        before = read_plan(folder)
        known = {} if before is None else before.digests
        methods = [Method(**_fields_of(Method, method)) for method in self.methods.values()]
        runs = [
            SavedRun(**_fields_of(Cell, cell), digest=digest or known.get(cell))
            for cell, digest in self.digests.items()
        ]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, SavedPlan(methods, runs), indent=1)


def read_plan(folder: Path) -> Plan | None:
    """The plan in the folder of a study's results; None if there is none.

    Raises:
        RunError: the file is damaged.
    """
    remedy = "delete it and run the study again, which skips what is done"
    saved = read_if_there(folder / FILE, SavedPlan, lambda values: values, remedy)
    if saved is None:
        return None
    return Plan(
        {method.name: method for method in saved.methods},
        {Cell(**_fields_of(Cell, run)): run.digest for run in saved.runs},
    )


def _fields_of(kind: type[Cell | Method], value: Cell | Method) -> dict[str, Any]:
    """The fields that a class declares, also of an object of a subclass."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
