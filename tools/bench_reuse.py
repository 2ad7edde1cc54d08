#!/usr/bin/env python
"""Measure what reuse of frozen computation is worth on ESC-50: time, memory, accuracy.

    python tools/bench_reuse.py time  --data ../shared/data/ESC-50 [--backbones ast_tiny,ast_base]
                                      [--clips 2] [--classes 10] [--folds 1] [--seeds 1,2]
    python tools/bench_reuse.py study --data ../shared/data/ESC-50 [--epochs 20] [--folds all]
    python tools/bench_reuse.py views --data ../shared/data/ESC-50 [--seeds 1,2] [--folds 1,2]

`time` compares an epoch with and without reuse, once per seed: a linear probe, and adapters in the
last two and three blocks. `study` compares four learning rates x folds x two seeds of the linear
probe; without reuse one of these runs is measured, and counted as often as there are runs. `views`
compares training on 8 kept views of each clip with SpecAugment anew in every epoch.

`ast_base` is the architecture of AST-base with random weights. `--clips` and `--classes` take a
subset: so many clips per class and fold, and so many classes. Every run has its own process, with
and without reuse in turn, and its figures are a line of `runs.csv` in `--output`: the same command
continues where `--seconds` or an interruption ended it, and prints the table at the end.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from toolkit.features.cache_folder import STATES, caches
from toolkit.results import read_fold
from toolkit.study.report.statistics import t_interval
from toolkit.training.experiment import Experiment, main
from toolkit.training.folds import cross_validate
from toolkit.training.states import Reading, States

TRAIN = Path(__file__).parent.parent / "recipes" / "ESC50" / "train.py"
MODELS = {
    "linear": ["hparams/linear.yaml"],
    "adapter, last 2": ["hparams/adapter.yaml", "--peft.layers", "last 2"],
    "adapter, last 3": ["hparams/adapter.yaml", "--peft.layers", "last 3"],
}
BARS = {
    ("ast_tiny", "linear"): 30.0,
    ("ast_base", "linear"): 30.0,
    ("ast_base", "adapter, last 2"): 3.0,  # of 12 blocks; ast_tiny has 6
    ("ast_base", "adapter, last 3"): 2.3,
}
FIRST_EPOCH, STUDY = 1.1, 20.0
AUGMENTED = {
    "linear": ["hparams/linear.yaml"],
    **{
        f"{name}, last {count}": [f"hparams/{name}.yaml", "--peft.layers", f"last {count}"]
        for name in ("adapter", "lora", "softmoa")
        for count in (2, 3)
    },
}
RATES = (0.002, 0.005, 0.01, 0.02)
FRAMES = {"ast_tiny": 500, "ast_base": 500}
PLAIN = ["--augment", "[]"]


class Run(NamedTuple):
    """One run: what it is called, and the words of its command line."""

    mode: str
    backbone: str
    model: str
    reuse: str
    seed: int
    folds: str
    words: list[str]

    @property
    def key(self) -> tuple[str, str, str, str, int, str]:
        """What its line in `runs.csv` is found by."""
        return self[:-1]


KEY = list(Run._fields[:-1])
COLUMNS = [*KEY, "seconds", "first", "epoch", "peak_gib", "score"]


class Bench:
    """The runs of one command, and the folder that they share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, options.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.cache = self.output / "cache"
        self.data = subset(options.data, self.output / "data", options.clips, options.classes)

    def runs(self) -> Iterator[Run]:
        """All runs, those that are compared next to each other."""
        options = self.options
        if options.mode == "time":
            names = itertools.product(options.seeds, options.backbones, MODELS.items())
            for seed, backbone, (model, words) in names:
                for reuse in ("off", "auto"):
                    yield self.run(backbone, model, reuse, seed, [*words, *PLAIN])
        elif options.mode == "study":
            for backbone in options.backbones:
                for rate, seed in itertools.product(RATES, (1, 2)):
                    words = [*MODELS["linear"], *PLAIN, "--lr", str(rate)]
                    if (rate, seed) == (RATES[0], 1):
                        yield self.run(backbone, f"linear, lr {rate}", "off", seed, words)
                    yield self.run(backbone, f"linear, lr {rate}", "auto", seed, words)
        else:
            folds = "12345" if options.folds == "all" else options.folds.split(",")
            names = itertools.product(options.backbones, options.seeds, folds, AUGMENTED.items())
            for backbone, seed, fold, (model, words) in names:
                for reuse in ("off", "8"):
                    yield self.run(backbone, model, reuse, seed, words, fold)

    def run(
        self,
        backbone: str,
        model: str,
        reuse: str,
        seed: int,
        words: list[str],
        folds: str | None = None,
    ) -> Run:
        """A run of a model; by default on the folds of the command line."""
        options, folds = self.options, folds or self.options.folds
        others = {
            "backbone": self.backbone(backbone), "max_length": FRAMES[backbone], "reuse": reuse,
            "seed": seed, "epochs": options.epochs, "folds": folds, "noprogressbar": "true",
            "batch_size": options.batch, "data_folder": self.data, "cache_folder": self.cache,
        }  # fmt: skip
        more = [f"--{key}={value}" for key, value in others.items()]
        return Run(options.mode, backbone, model, reuse, seed, folds, [*words, *more])

    def backbone(self, name: str) -> str:
        """What the configuration calls a backbone; random weights of AST-base are made once."""
        folder: Path = self.output / name
        if name == "ast_base" and not folder.is_dir():
            ASTModel(ASTConfig()).save_pretrained(folder)
            ASTFeatureExtractor().save_pretrained(folder)
        return str(folder) if name == "ast_base" else name

    def measure(self, run: Run) -> dict[str, float]:
        """Do a run in a process of its own; one that is timed computes its states anew."""
        if run.mode == "time":
            for cache in caches(self.cache):
                if cache.kind == STATES:
                    cache.remove()
        command = [sys.executable, __file__, "--child", *run.words]
        with tempfile.TemporaryDirectory(dir=self.output) as place:
            command += ["--output_folder", str(Path(place, "run"))]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        return found


def child(words: Sequence[str]) -> None:
    """Run the recipe in this process, and print what it took.

    The first epoch is that of the first fold, with the states that are computed for it; the others
    are those from the second on.
    """
    computing: list[float] = []
    ensure = States.ensure

    def timed(self: States, table: pd.DataFrame, reading: Reading) -> None:
        start = time.perf_counter()
        ensure(self, table, reading)
        computing.append(time.perf_counter() - start)

    States.ensure = timed  # type: ignore[method-assign]
    experiment = Experiment.from_command_line(str(TRAIN), words)
    start = time.perf_counter()
    result = cross_validate(experiment)
    seconds = time.perf_counter() - start
    folds = [read_fold(folder) for folder in sorted(experiment.output_folder.glob("fold-*"))]
    took = [[e.train_seconds + e.valid_seconds for e in fold.history] for fold in folds]
    found = {
        "seconds": seconds,
        "first": took[0][0] + sum(computing[:2]),  # of training and of validation clips
        "epoch": min(itertools.chain(*(times[1:] or times for times in took))),
        "peak_gib": max(fold.peak_memory_bytes for fold in folds) / 2**30,
        "score": result.score.mean,
    }
    print(json.dumps(found))


def subset(data: Path, folder: Path, clips: int | None, classes: int | None) -> Path:
    """ESC-50, or a folder like it with some clips per class and fold of the first classes."""
    if clips is None and classes is None:
        return data
    table = pd.read_csv(data / "meta" / "esc50.csv")
    table = table[table["target"] < (classes or 50)]
    table = table.groupby(["target", "fold"]).head(clips or len(table))
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "meta" / "esc50.csv", index=False)
    if not (folder / "audio").exists():
        (folder / "audio").symlink_to((data / "audio").resolve())
    return folder


def report(mode: str, runs: pd.DataFrame) -> list[str]:
    """The table of a mode."""
    return {"time": times, "study": study, "views": views}[mode](runs)


def times(runs: pd.DataFrame) -> list[str]:
    """Epochs with and without reuse: medians over the seeds, of ratios of neighbouring runs."""
    lines = ["| backbone | model | s per epoch, off | reuse | times faster | bar | first epoch | "
             f"bar | peak GiB, off | reuse |\n|{'---|' * 10}"]  # fmt: skip
    for (backbone, model), table in runs.groupby(["backbone", "model"], sort=False):
        figures = ["epoch", "first", "peak_gib"]
        off, on = (
            table[table["reuse"] == reuse].set_index("seed")[figures] for reuse in ("off", "auto")
        )
        faster, first = (off / on)["epoch"].median(), (on / off)["first"].median()
        off, on = off.median(), on.median()
        bar = BARS.get((str(backbone), str(model)), "")
        lines.append(
            f"| {backbone} | {model} | {off['epoch']:.2f} | {on['epoch']:.3f} | {faster:.1f} | "
            f"{bar} | {first:.2f} | {FIRST_EPOCH} | {off['peak_gib']:.2f} | {on['peak_gib']:.2f} |"
        )
    return lines


def study(runs: pd.DataFrame) -> list[str]:
    """A whole study of the linear probe."""
    lines = [
        "| backbone | runs | s, off | s, reuse | times faster | bar |\n|---|---|---|---|---|---|"
    ]
    for backbone, table in runs.groupby("backbone", sort=False):
        on, off = table[table["reuse"] == "auto"], table[table["reuse"] == "off"]
        whole = off["seconds"].mean() * len(on)
        lines.append(
            f"| {backbone} | {len(on)} | {whole:.0f} | {on['seconds'].sum():.0f} | "
            f"{whole / on['seconds'].sum():.1f} | {STUDY:g} |"
        )
    return lines


def views(runs: pd.DataFrame) -> list[str]:
    """Accuracy with kept views, against augmentation anew in every epoch."""
    lines = ["| backbone | model | accuracy %, anew | 8 views | difference | 95 % interval |\n"
             f"|{'---|' * 6}"]  # fmt: skip
    for (backbone, model), table in runs.groupby(["backbone", "model"], sort=False):
        scores = 100 * table.pivot(index=["folds", "seed"], columns="reuse", values="score")
        interval = t_interval((scores["8"] - scores["off"]).to_numpy())
        lines.append(
            f"| {backbone} | {model} | {scores['off'].mean():.1f} | {scores['8'].mean():.1f} | "
            f"{interval.mean:+.1f} | {interval.low:+.1f} to {interval.high:+.1f} |"
        )
    return lines


def run(arguments: Sequence[str]) -> None:
    """Do the runs that are missing until the time is over; print the table when none is."""
    if arguments[:1] == ["--child"]:
        child(arguments[1:])
        return
    began, options = time.monotonic(), parser().parse_args(arguments)
    bench, file = Bench(options), options.output / "runs.csv"
    kinds = {"reuse": str, "folds": str}
    done = pd.read_csv(file, dtype=kinds) if file.is_file() else pd.DataFrame(columns=COLUMNS)
    keys = set(done[KEY].itertuples(index=False, name=None))
    planned = list(bench.runs())
    missing = [one for one in planned if one.key not in keys]
    for position, one in enumerate(missing):
        if options.seconds is not None and time.monotonic() - began > options.seconds:
            print(f"{len(missing) - position} runs are left: run the same command again")
            return
        found = bench.measure(one)
        line = pd.DataFrame([[*one.key, *(found[c] for c in COLUMNS[len(KEY) :])]], columns=COLUMNS)
        line.round(4).to_csv(file, mode="a", header=not file.is_file(), index=False)
        print(line.to_string(index=False, header=False), flush=True)
    wanted = [one.key for one in planned]
    table = pd.read_csv(file, dtype=kinds).set_index(KEY).loc[wanted].reset_index()
    print("\n".join(report(options.mode, table)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    made.add_argument("mode", choices=("time", "study", "views"))
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--backbones", type=lambda text: text.split(","), default=["ast_tiny"])
    made.add_argument("--clips", type=int, help="per class and fold; default: all")
    made.add_argument("--classes", type=int, help="how many of the 50; default: all")
    made.add_argument("--folds", default="all")
    made.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2]
    )
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--seconds", type=float, help="start no further run after this time")
    made.add_argument("--output", type=Path, default=Path("results/reuse"))
    return made


if __name__ == "__main__":
    main(run)
