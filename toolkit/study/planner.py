"""Makes the plan of a study: every run with its command line, checked before anything is run."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from toolkit import backbones, config, counting
from toolkit.config import Configuration
from toolkit.data.manifest import Manifest
from toolkit.errors import BackboneError, ConfigError, DataError, ToolkitError
from toolkit.own_folders import Kind, claimed
from toolkit.registry import BACKBONES, PEFT
from toolkit.study import budget
from toolkit.study.budget import Fit
from toolkit.study.methods import ConfiguredMethod, methods_of
from toolkit.study.plan import Cell, Method, Plan, Problem, Run
from toolkit.study.records import read_timing
from toolkit.study.spec import COPY, CorpusSpec, Study, recipe_folder, resolve
from toolkit.training.experiment import Experiment, Options, configured
from toolkit.training.identity import (
    Identity,
    clips_of,
    fingerprint,
    identity_of,
    recorded,
)
from toolkit.training.volatile import VOLATILE

ANYWHERE = (*VOLATILE, "data_folder", "seed")
"""Keys that do not make a configuration another one: where it runs, and the seed, which is part of
the cell."""

SAME_STEP = (*ANYWHERE, "epochs", "few_shot", "label")
"""Keys that do not change the cost of one training step."""

RESULTS = Kind(
    "folder of a study's results",
    known_by=((COPY, "plan.json"), (COPY, "runs/*")),
    remedy="choose another folder with `--output`",
)


class Planner:
    """Makes the runs of a study.

    Args:
        study: the study.
        folder: of its results.
        data: the folder that holds the corpora.
        plugins: further plugin folders.
        recipes: folders of recipes that may run, besides the toolkit's own.
        to_time: plan runs that will be timed; a budget of seconds, which needs the timings, is
            ignored.

    Raises:
        ConfigError: a glob, a name or the baseline matches no method.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        data: Path = Path("data"),
        plugins: Sequence[str] = (),
        to_time: bool = False,
        recipes: Sequence[Path] = (),
    ) -> None:
        self.to_time = to_time
        self.study, self.folder, self.data = study, folder.resolve(), data.resolve()
        self.recipes = [place.resolve() for place in recipes]
        self.plugins = [str(Path(place).resolve()) for place in plugins]
        self.methods = {method.name: method for method in methods_of(study, plugins)}
        study.check_baseline(self.methods)
        self._configurations: dict[str, Planned | str] = {}
        self._surroundings = Surroundings()

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """All runs of the study, in the order of execution: each fold with all methods, so that a
        study that is stopped early can still compare them.

        Args:
            only: shell-style patterns of names such as `ESC-10/lora*`; none: all.
        """
        found = []
        for name, corpus in self.study.corpora.items():
            folds: Sequence[int | None] = corpus.folds or [None]
            methods = [method for method in self.methods.values() if method.runs_on(name)]
            for backbone in self.study.backbones:
                for shots in corpus.shots or self.study.shots:
                    for method in methods:
                        for seed in method.seeds or corpus.seeds or self.study.seeds:
                            for fold in folds:
                                cell = (name, method.name, backbone, shots, seed, fold)
                                found.append(Cell(*cell))
        seeds = {seed: place for place, seed in enumerate(self.study.seeds)}
        found.sort(key=lambda cell: (seeds.get(cell.seed, math.inf), cell.fold or 0))
        return [cell for cell in found if not only or _matches(cell, only)]

    def runs(self, only: Sequence[str] = ()) -> Iterator[Run | Problem]:
        """Plan the runs, in the order of `cells`; a run that cannot be planned is a `Problem`."""
        for cell in self.cells(only):
            folder = self.folder / "runs" / cell.name
            try:
                yield self._run(cell, folder)
            except ToolkitError as error:
                yield Problem(cell, folder, str(error))

    def changes(self, run: Run) -> list[str]:
        """What has changed since a run was executed: clips, backbone or source, one line each.

        Empty if nothing has, or if that cannot be known: the run was made before this was kept, or
        the clips or the backbone are not here.

        Raises:
            RunError: what the run keeps of it is damaged.
        """
        kept, planned = recorded(run.output), self._planned(run.cell)
        if kept is None or not kept.content:
            return []
        other = kept.changed_configuration(planned.configuration, ignored=ANYWHERE)
        if other:  # it is moved aside
            return []
        now = self._surroundings.identity(planned.experiment)
        return [] if now is None else kept.changed_content(now)

    def plan(self, runs: Iterable[Run | Problem] = ()) -> Plan:
        """All methods and runs of the study.

        Args:
            runs: planned runs, of which the plan keeps the digests.
        """
        digests = {run.cell: run.digest for run in runs if isinstance(run, Run)}
        methods: dict[str, Method] = dict(self.methods)
        return Plan(methods, {cell: digests.get(cell) for cell in self.cells()})

    def save(self, runs: Iterable[Run | Problem] = ()) -> None:
        """Write the study and its plan to the folder of its results; see `plan`.

        Raises:
            PlaceError: the folder holds something else.
        """
        with claimed(self.folder, RESULTS):
            self.study.write(self.folder)
            self.plan(runs).write(self.folder)

    def _run(self, cell: Cell, folder: Path) -> Run:
        planned = self._planned(cell)
        arguments = [*planned.arguments, "--seed", str(cell.seed)]
        if cell.fold is not None:
            self._check_fold(cell, planned)
            arguments += ["--folds", str(cell.fold)]
        minutes = self.study.timeout_minutes
        return Run(
            cell=cell,
            folder=folder,
            train=planned.train,
            arguments=tuple(arguments),
            digest=planned.digest(),
            step=planned.step,
            epochs=planned.options.epochs,
            fit=planned.fit,
            timeout=None if minutes is None else 60 * minutes,
        )

    def _check_fold(self, cell: Cell, planned: "Planned") -> None:
        """Refuse a fold that the corpus does not test; if its clips are not here, none is."""
        manifest = self._surroundings.manifest(planned.experiment)
        tested = [] if manifest is None else [split.test for split in manifest.splits]
        if tested and cell.fold not in tested:
            raise ConfigError(
                f"'corpora.{cell.corpus}.folds': the corpus has no test fold {cell.fold} (it has "
                f"{', '.join(map(str, tested))})"
            )

    def _planned(self, cell: Cell) -> "Planned":
        """The configuration that all seeds and folds of a cell share, loaded once."""
        key = dataclasses.replace(cell, seed=0, fold=None).name
        if key not in self._configurations:
            try:
                self._configurations[key] = self._configure(cell)
            except ToolkitError as error:
                self._configurations[key] = str(error)
        planned = self._configurations[key]
        if isinstance(planned, str):
            raise ConfigError(planned)
        return planned

    def _configure(self, cell: Cell) -> "Planned":
        corpus, method = self.study.corpora[cell.corpus], self.methods[cell.method]
        train = self._train(corpus)
        planned = self._load(train, corpus, method, cell, {})
        spending = self.study.budget
        if spending is None or (self.to_time and spending.seconds is not None):
            return planned
        if spending.seconds is not None:
            epochs = self._epochs(planned, spending.seconds, cell.shots)
            return self._load(train, corpus, method, cell, {"epochs": epochs})
        assert spending.parameters is not None, "Budget.check requires one of the two"
        target = self._target(cell, spending.parameters)
        fit = self._fit(planned, target, spending.within, method.size)
        loaded = self._load(train, corpus, method, cell, fit.overrides)
        return dataclasses.replace(loaded, fit=fit)

    def _train(self, corpus: CorpusSpec) -> Path:
        """The program that runs a corpus."""
        return recipe_folder(corpus.recipe, self.recipes) / "train.py"

    def _load(
        self,
        train: Path,
        corpus: CorpusSpec,
        method: ConfiguredMethod,
        cell: Cell,
        extra: dict[str, Any],
    ) -> "Planned":
        hparams, own = method.arguments(train.parent)
        values = {**self.study.overrides, **corpus.overrides, **own, **extra}
        if corpus.data_folder is not None:
            values["data_folder"] = str(self.data / corpus.data_folder)
        values["backbone"] = _place(cell.backbone)
        if cell.shots is not None:
            values["few_shot"] = cell.shots
        values["noprogressbar"] = True
        arguments = [hparams]
        for key in sorted(values, key=lambda key: key.count(".")):  # `peft` before `peft.slots`
            arguments += [f"--{key}", config.typed(values[key])]
        for place in self.plugins:
            arguments += ["--plugins", place]
        command = config.parse_command_line(arguments)
        configuration, options = configured(command, train.parent)
        PEFT.create(configuration.values["peft"])  # raises if a setting is wrong
        return Planned(train, tuple(arguments), configuration, options)

    def _target(self, cell: Cell, parameters: int | str) -> int:
        """The number of parameters that a budget gives, directly or by the name of a method."""
        if isinstance(parameters, int):
            return parameters
        if parameters not in self.methods:
            raise ConfigError(f"'budget.parameters': the study has no method {parameters!r}")
        corpus, method = self.study.corpora[cell.corpus], self.methods[parameters]
        train = self._train(corpus)
        return self._load(train, corpus, method, cell, {}).count()

    def _fit(self, planned: "Planned", target: int, within: float, size: str | None) -> Fit:
        digest = planned.digest()
        key = hashlib.blake2b(f"{digest} {target} {within} {size}".encode(), digest_size=8)
        with claimed(self.folder, RESULTS):
            return budget.remembered(
                self.folder / "budget" / f"{key.hexdigest()}.json",
                lambda: budget.fit(planned.peft, target, within, planned.count, size),
            )

    def _epochs(self, planned: "Planned", seconds: float, shots: int | None) -> int:
        timing = read_timing(self.folder, planned.step)
        if timing is None:
            raise ConfigError(
                "a budget of seconds needs the time of a step: run `toolkit study time` first"
            )
        return max(1, round(seconds / timing.epoch_seconds(shots)))


@dataclasses.dataclass(frozen=True)
class Planned:
    """What all seeds and folds of a cell share: their command line and configuration."""

    train: Path
    arguments: tuple[str, ...]
    configuration: Configuration
    options: Options
    fit: Fit | None = None

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What the recipe makes of the configuration."""
        return Experiment.described(self.configuration, self.options, command=str(self.train))

    @property
    def peft(self) -> dict[str, Any]:
        """The method, `{"name": ..., setting: value}`."""
        return dict(self.configuration.values["peft"])

    @property
    def step(self) -> str:
        """Hash of everything that decides the cost of a training step."""
        return self.digest(SAME_STEP)

    def digest(self, ignore: Sequence[str] = ANYWHERE) -> str:
        """Hash of the configuration; options that version 0.1 did not have count only if they are
        not at their defaults, so that its runs are recognised."""
        return self.configuration.digest(ignore=(*ignore, *self.options.added_defaults()))

    def count(self, peft: Mapping[str, Any] | None = None) -> int:
        """The number of trainable parameters outside the head.

        Args:
            peft: of this method instead of the configured one.
        """
        source = backbones.create(self.configuration.values["backbone"])
        options = self.options
        return counting.count(
            source, peft or self.peft, options.max_length, 2, options.pooling
        ).method


class Surroundings:
    """What is outside the configurations of a study: clips and backbones, each looked at once."""

    def __init__(self) -> None:
        self._manifests: dict[str, Manifest | None] = {}
        self._clips: dict[str, dict[str, str]] = {}
        self._backbones: dict[str, str] = {}

    def manifest(self, experiment: Experiment) -> Manifest | None:
        """The clips of an experiment; None if they are not here, or are made by the run.

        Raises:
            DataError: they are here, and something is wrong with them.
        """
        key, folder = _corpus(experiment), experiment.data_folder
        if key not in self._manifests:
            made = experiment.embedded or experiment.options.download
            try:
                there = folder.exists()
                self._manifests[key] = experiment.corpus.manifest(folder) if there else None
            except DataError:
                if not made:
                    raise
                self._manifests[key] = None
        return self._manifests[key]

    def identity(self, experiment: Experiment) -> Identity | None:
        """The identity of an experiment; None if its clips or its backbone are not here."""
        manifest = self.manifest(experiment)
        if manifest is None:
            return None
        root, length = experiment.cache_folder, experiment.options.max_length
        corpus, backbone = _corpus(experiment), f"{experiment.source} {length}"
        if corpus not in self._clips:
            self._clips[corpus] = clips_of(manifest, root)
        try:
            if backbone not in self._backbones:
                self._backbones[backbone] = fingerprint(experiment.source, length, root)
            return identity_of(experiment, self._clips[corpus], self._backbones[backbone])
        except BackboneError:
            return None


def _corpus(experiment: Experiment) -> str:
    return f"{experiment.corpus} {experiment.data_folder}"


def _matches(cell: Cell, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch(cell.name, pattern) or fnmatch(cell.name, f"{pattern}/*") for pattern in patterns
    )


def _place(backbone: str) -> str:
    """The folder of a backbone as an absolute path; a registered name or a hub id unchanged."""
    known = backbone in BACKBONES.names() or not resolve(backbone).is_dir()
    return backbone if known else str(resolve(backbone))
