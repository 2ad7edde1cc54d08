"""What a search writes: Pareto front, picture, configuration and bundle of the winner, report."""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.tag import Tag

from toolkit.bundle import Origin, save_bundle
from toolkit.config import CommandLine, recipe_of, typed
from toolkit.config.tree import Tagged
from toolkit.files import errors_name, write_atomically
from toolkit.model import AudioClassifier
from toolkit.registry import REGISTRIES
from toolkit.training.experiment import Experiment, say
from toolkit.training.folds import Fold
from toolkit.training.search import SearchReport
from toolkit.training.volatile import VOLATILE

from .automoe import inherit, method_of
from .costs import COSTS, FINAL, Costs, Predictor, Stopwatch
from .evolution import State
from .genome import Genome, text, to_config

IN_A_LIST = re.compile(r"\.\d+(\.|$)")
"""Keys such as `augment.0.freq_mask`, which a configuration that extends another cannot set."""
UNITS = {
    "trainable": "trained parameters",
    "active": "active parameters",
    "flops": "FLOPs of the mixtures, one clip",
    "latency_ms": "latency of one clip, ms",
}


@dataclasses.dataclass(frozen=True)
class AutoMoEReport(SearchReport):
    """What the search found.

    Attributes:
        winner: the genome, as `peft.genome` takes it.
        generations: how many there were.
        front: number of architectures on the Pareto front.
        train_folds, valid_fold: which folds did what.
        measured_latency_ms: of the winner; None: the budget does not bound latency.
        predictor_error_ms: mean gap of the predictor on the samples that it was fitted to; None:
            there was no predictor.
        predictor_error_on_front_ms: its mean gap on the Pareto front.
    """

    winner: list[dict[str, Any]]
    generations: int
    front: int
    train_folds: list[int]
    valid_fold: int
    measured_latency_ms: float | None = None
    predictor_error_ms: float | None = None
    predictor_error_on_front_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        experiment, command: the configuration that was searched.
        fold: the fold whose clips were used.
        model: the trained supernet.
        costs: the costs and the budget.
        state: what was found.
        predictor: the predictor of latency, if there was one.
    """

    experiment: Experiment
    command: CommandLine
    fold: Fold
    model: AudioClassifier
    costs: Costs
    state: State
    predictor: Predictor | None

    @property
    def budget(self) -> Mapping[str, float]:
        """The largest allowed value by cost."""
        return self.costs.budget

    def write(self, folder: Path, stopwatch: Stopwatch) -> AutoMoEReport:
        """Write all files of the search, `report.json` last.

        Args:
            folder: the folder.
            stopwatch: measures the front again if the budget bounds latency.

        Returns:
            What `report.json` holds.
        """
        front = pareto_front(self.state, list(self.budget))
        measured = {}
        if "latency_ms" in self.budget:
            measured = {genome: stopwatch.measure(genome, FINAL) for genome in front}
        table = self.table(front, measured)
        write_atomically(folder / "candidates.csv", table.to_csv(index=False))
        on_front = table[table["on_front"]].drop(columns="on_front")
        write_atomically(
            folder / "pareto.csv", on_front.sort_values("valid_loss").to_csv(index=False)
        )
        figure = draw(table, self.budget)
        with errors_name(folder / "pareto.png"):
            FigureCanvasAgg(figure).print_png(folder / "pareto.png")
        winner = self.state.best
        write_atomically(folder / "winner.yaml", self.winner_yaml(folder))
        self.write_bundle(folder, winner)
        report = self._report(front, measured)
        write_atomically(folder / "report.json", json.dumps(report.as_dict(), indent=2))
        say(f"Train the winner from scratch: {self.train_command(folder)}")
        return report

    def _report(self, front: Sequence[Genome], measured: Mapping[Genome, float]) -> AutoMoEReport:
        winner = self.state.best
        found = self.state.found[winner]
        report = AutoMoEReport(
            valid_loss=found["valid_loss"],
            valid_score=found["valid_score"],
            costs={name: found[name] for name in COSTS if name in found},
            budget=dict(self.budget),
            evaluated=len(self.state.found),
            winner=to_config(winner),
            generations=len(self.state.generations),
            front=len(front),
            train_folds=list(self.fold.split.train),
            valid_fold=self.fold.split.valid,
            measured_latency_ms=measured.get(winner),
        )
        if self.predictor is None or not measured:
            return report
        gaps = [abs(self.state.found[g]["latency_ms"] - ms) for g, ms in measured.items()]
        return dataclasses.replace(
            report,
            predictor_error_ms=self.predictor.error_ms,
            predictor_error_on_front_ms=float(np.mean(gaps)),
        )

    def table(self, front: Sequence[Genome], measured: Mapping[Genome, float]) -> pd.DataFrame:
        """One row per evaluated architecture, in the order of evaluation."""
        members = set(front)
        first = {
            genome: number
            for number, row in reversed(list(enumerate(self.state.generations)))
            for genome in row
        }
        rows = []
        for genome, values in self.state.found.items():
            row = {"genome": text(genome), "generation": first[genome], **values}
            if measured:
                row["measured_latency_ms"] = measured.get(genome)
            rows.append(row | {"on_front": genome in members})
        return pd.DataFrame(rows)

    def winner_yaml(self, folder: Path) -> str:
        """A configuration that trains the winner as everything else was trained.

        Args:
            folder: where it will be written; `extends` is relative to it.
        """
        found = self.state.found[self.state.best]
        numbers = ", ".join(f"{name} {found[name]:,.6g}" for name in COSTS if name in found)
        bounds = ", ".join(f"{name} <= {bound:,.6g}" for name, bound in self.budget.items())
        values = {
            "extends": os.path.relpath(self.command.hparams, folder),
            "label": "automoe_winner",
            **_nested({k: v for k, v in self._overrides.items() if not IN_A_LIST.search(k)}),
        }
        values.setdefault("peft", {}).update(
            name="automoe", genome=[_in_one_line(gene) for gene in to_config(self.state.best)]
        )
        return (
            f"# Found by `toolkit search --method automoe` within {bounds}: {numbers};\n"
            f"# validation loss {found['valid_loss']:.4f} with the supernet's weights.\n"
            f"# {self.train_command(folder)}\n{_dump(values)}"
        )

    def train_command(self, folder: Path) -> str:
        """The command that trains the winner.

        It includes the options that the file cannot hold, and those that the values of the embedded
        demonstration would override there.

        Args:
            folder: the folder of `winner.yaml`.
        """
        words = [
            os.path.relpath(recipe_of(Path(self.command.hparams))),
            str(folder / "winner.yaml"),
        ]
        for key, value in self._overrides.items():
            shadowed = self.experiment.embedded and key.split(".")[0] != "peft"
            if shadowed or IN_A_LIST.search(key):
                words += [f"--{key}", typed(value)]
        return f"python {shlex.join(words)}"

    @property
    def _overrides(self) -> dict[str, Any]:
        """The options of the command line that affect what a run computes."""
        return {
            key: value
            for key, value in self.command.overrides.items()
            if key.split(".")[0] not in (*VOLATILE, "label")
        }

    def write_bundle(self, folder: Path, winner: Genome) -> None:
        """Write the winner with the weights that it inherits, ready to predict."""
        method = method_of(self.model).fixed(winner)
        experiment = dataclasses.replace(self.experiment, method=method)
        classes = self.fold.job.manifest.classes
        model = experiment.model(len(classes)).eval()
        inherit(self.model, model)
        origin = Origin(
            recipe=experiment.options.recipe,
            corpus=self.fold.job.manifest.corpus,
            seed=experiment.options.seed,
            test_fold=self.fold.split.test,
            metric=self.fold.task.metric,
            valid_score=self.state.found[winner]["valid_score"],
            search="automoe, inherited weights",
        )
        save_bundle(
            folder / "bundle",
            model,
            classes,
            self.fold.task,
            pipeline=experiment.pipeline,
            origin=origin,
            windows=experiment.options.windows,
        )


def pareto_front(state: State, costs: Sequence[str]) -> list[Genome]:
    """The architectures to which no other is better in one respect and at least equal in all.

    Args:
        state: what was found.
        costs: the costs that count besides the validation loss.
    """
    genomes = list(state.found)
    points = np.array([[state.found[g][n] for n in ("valid_loss", *costs)] for g in genomes])
    front = []
    for genome, point in zip(genomes, points, strict=True):
        beaten = (points <= point).all(axis=1) & (points < point).any(axis=1)
        if not beaten.any():
            front.append(genome)
    return front


def draw(table: pd.DataFrame, budget: Mapping[str, float]) -> Figure:
    """Plot validation loss over each bounded cost, with the front and the winner."""
    figure = Figure(figsize=(6.4 * len(budget), 4.6), layout="constrained")
    axes = figure.subplots(1, len(budget), squeeze=False)[0]
    front = table[table["on_front"]]
    winner = table.sort_values("valid_loss", kind="stable").iloc[0]
    for axis, (name, bound) in zip(axes, budget.items(), strict=True):
        dots = axis.scatter(
            table[name], table["valid_loss"], c=table["generation"], s=14, cmap="viridis", alpha=0.6
        )
        line = front.sort_values(name)
        style = "o-" if len(budget) == 1 else "o"  # of several costs, the front is no line
        axis.plot(
            line[name], line["valid_loss"], style, color="tab:red", drawstyle="steps-post",
            markersize=5, label="Pareto front",
        )  # fmt: skip
        axis.plot(
            winner[name], winner["valid_loss"], "*", color="black", markersize=14, label="winner"
        )
        axis.axvline(bound, color="grey", linestyle="--", label="budget")
        axis.set_xlabel(UNITS[name])
        axis.set_ylabel("validation loss, inherited weights")
        axis.legend()
    figure.colorbar(dots, ax=axes, label="generation")
    return figure


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"peft.balance": 0}` -> `{"peft": {"balance": 0}}`."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[last] = {"name": value} if key in REGISTRIES and isinstance(value, str) else value
    return tree


def _in_one_line(values: Mapping[str, Any]) -> CommentedMap:
    line = CommentedMap(values)
    line.fa.set_flow_style()
    return line


def _commented(value: Any) -> Any:
    """A value as ruamel.yaml writes it, with the tags that were typed."""
    if isinstance(value, Tagged):
        inner = _commented(value.value)
        if isinstance(inner, str):
            return TaggedScalar(inner, tag=Tag(suffix=value.tag))
        inner.yaml_set_ctag(Tag(suffix=value.tag))
        return inner
    if isinstance(value, dict) and not isinstance(value, CommentedMap):
        return CommentedMap({key: _commented(inner) for key, inner in value.items()})
    return CommentedSeq(map(_commented, value)) if isinstance(value, list) else value


def _dump(values: Mapping[str, Any]) -> str:
    yaml, stream = YAML(), StringIO()
    yaml.width = 1000
    yaml.dump(_commented(dict(values)), stream)
    return stream.getvalue()
