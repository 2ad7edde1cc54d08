#!/usr/bin/env python
"""Measure what pretraining is worth: the embedded small AST against random weights.

    python tools/bench_transfer.py --data ../shared/data [--methods linear,softmoa] [--seeds 1,2]
                                   [--backbones pretrained,random] [--epochs N] [--precision bf16]
                                   [--output DIR]

There are two corpora of real recordings below `--data`: ESC-10 (`ESC-10`, in ESC-50's layout, five
official folds), and spoken digits with an unseen speaker (`spoken-digits`, in Speech Commands'
layout: takes 10 to 49 of george and jackson for training, their takes 0 to 9 for validation, lucas
for testing). Every method runs through the ESC-50 recipe with the schedule of
`hparams/embedded.yaml`, and the epoch is chosen on validation clips only. The baseline is logistic
regression on the mean and standard deviation of the log-mel frames. Runs are kept in the output
folder, so that an interrupted comparison continues and a finished one is printed again from its
`result.json` files. Writes `table.md` and `table.csv`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from transformers import ASTConfig, ASTModel
from validation import RECIPE, schedule

from toolkit.backbones.ast import TINY
from toolkit.config import parse_spec
from toolkit.data.manifest import Corpus, Manifest
from toolkit.data.splits import cross_validation, selected
from toolkit.errors import DataError
from toolkit.features.audio import read_audio
from toolkit.features.log_mel import log_mel
from toolkit.registry import CORPORA
from toolkit.results import RunResult
from toolkit.training.experiment import Experiment, main
from toolkit.training.folds import cross_validate

METHODS = ["linear", "bitfit", "lora", "adapter", "softmoa", "densemoa", "full"]
BASELINE = "log-mel statistics"
RATE = 16000


@CORPORA.register("unseen_speaker")
class UnseenSpeaker(Corpus):
    """Spoken digits; the speaker of the test fold (1) is not in the training folds (2 and 3)."""

    def manifest(self, folder: Path) -> Manifest:
        """The clips of a folder whose files are `<word>/<speaker>_nohash_<take>.wav`."""
        rows = []
        for path in sorted(folder.glob("*/*_nohash_*.wav")):
            speaker, take = path.stem.split("_nohash_")
            if speaker in ("george", "jackson"):
                fold = 2 if int(take) < 10 else 3
            elif speaker == "lucas":
                fold = 1
            else:
                continue
            rows.append((f"{path.parent.name}/{path.name}", str(path), path.parent.name, fold))
        if not rows:
            raise DataError(f"{folder} holds no spoken digits: give its parent folder as `--data`")
        clips = pd.DataFrame(rows, columns=["id", "path", "label", "fold"])
        words = sorted(clips["label"].unique())
        return Manifest("spoken digits", clips.assign(label=clips["label"].map(words.index)), words)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A corpus that the methods are compared on.

    Attributes:
        name: its column in the table.
        folder: its folder below `--data`.
        corpus: a registered corpus and its settings.
        max_length: input length in frames of 10 ms.
        folds: the folds to test.
        overrides: changes to the recipe's configuration.
    """

    name: str
    folder: str
    corpus: str
    max_length: int
    folds: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


# SpecAugment's usual mask of 0.8 s would hide a word of half a second completely.
SHORT_MASKS = {"augment.0.time_mask": 10}
BENCHMARKS = [
    Benchmark("ESC-10", "ESC-10", "esc50:esc10=true", 500, "all"),
    Benchmark("digits, unseen speaker", "spoken-digits", "unseen_speaker", 96, "1", SHORT_MASKS),
]


def result_of(
    benchmark: Benchmark, method: str, backbone: str, seed: int, options: argparse.Namespace
) -> RunResult:
    """Run a method through the recipe, or read the result of an earlier run."""
    data, corpus = options.data / benchmark.folder, parse_spec(benchmark.corpus, CORPORA)
    command = [f"hparams/{method}.yaml", "--noprogressbar", "true", "--seed", str(seed)]
    command += ["--data_folder", str(data), "--corpus", str(corpus)]
    command += ["--max_length", str(benchmark.max_length), "--folds", benchmark.folds]
    command += ["--backbone", "ast_tiny" if backbone == "pretrained" else str(options.random)]
    folder = options.output / benchmark.folder / backbone / method / str(seed)
    command += ["--output_folder", str(folder)]
    for key, value in {**schedule(method), **benchmark.overrides, **options.schedule}.items():
        command += [f"--{key}", str(value)]
    return cross_validate(Experiment.from_command_line(str(RECIPE / "train.py"), command))


def baseline(benchmark: Benchmark, data: Path) -> list[float]:
    """Test accuracies of logistic regression on log-mel statistics, one per fold.

    It is fitted to the training clips only and has no setting that is tuned.
    """
    corpus = CORPORA.create(parse_spec(benchmark.corpus, CORPORA))
    manifest = corpus.manifest(data / benchmark.folder)
    statistics = torch.stack([log_mel_statistics(path) for path in manifest.clips["path"]])
    labels = torch.tensor(manifest.clips["label"].to_numpy())
    accuracies = []
    for split in selected(cross_validation(manifest.folds), benchmark.folds):
        train, test = (
            torch.tensor(manifest.clips["fold"].isin(folds).tolist())
            for folds in (split.train, [split.test])
        )
        mean = statistics[train].mean(dim=0)
        std = statistics[train].std(dim=0).clamp(min=1e-6)  # some low bands are always empty
        x = ((statistics - mean) / std).double()
        predicted = logistic_regression(x[train], labels[train], len(manifest.classes), x[test])
        accuracies.append(float((predicted == labels[test]).float().mean()))
    return accuracies


def log_mel_statistics(path: str) -> torch.Tensor:
    """Mean and standard deviation over time of a file's 128 log-mel bins [256]."""
    waveform = torch.from_numpy(read_audio(path, RATE))
    frames = log_mel(waveform[None], RATE, 128)[0]
    return torch.cat([frames.mean(dim=0), frames.std(dim=0)])


def logistic_regression(
    x: torch.Tensor, labels: torch.Tensor, classes: int, tested: torch.Tensor
) -> torch.Tensor:
    """Classes of `tested` [M, d], predicted by a fit to x [N, d] with a unit Gaussian prior."""
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe")

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, weight[:, 1:], weight[:, 0])

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(scores(x), labels, reduction="sum")
        value = value + weight[:, 1:].square().sum() / 2
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return scores(tested).argmax(dim=1)


def save_random_backbone(folder: Path, seed: int = 0) -> Path:
    """The embedded AST's architecture with fresh weights, as a local checkpoint."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        ASTModel(ASTConfig.from_pretrained(TINY)).save_pretrained(folder)
    return folder


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in % as mean and standard deviation over folds and seeds, by method.

    Args:
        rows: one per fold: task, method, backbone, accuracy, trained (without the head), share.
    """
    keys = ["method", "task", "backbone"]
    texts = rows.groupby(keys, sort=False)["accuracy"].apply(spread)
    cells = texts.unstack(["task", "backbone"])
    cells.columns = [", ".join(column) for column in cells.columns]
    trained = rows.groupby("method")[["trained", "share"]].first()
    cells.insert(
        0, "trained", [f"{n:,.0f} ({s:.2%})" for n, s in trained.loc[cells.index].to_numpy()]
    )
    order = [m for m in [BASELINE, *METHODS] if m in cells.index]
    return cells.loc[order].fillna("")


def spread(accuracies: pd.Series) -> str:
    """Mean in %, and standard deviation if there is more than one value."""
    mean, std = 100 * accuracies.mean(), 100 * accuracies.std()
    return f"{mean:.1f} ± {std:.1f}" if len(accuracies) > 1 else f"{mean:.1f}"


def markdown(cells: pd.DataFrame) -> list[str]:
    """A table of strings in Markdown."""
    lines = [["method", *cells.columns], ["---"] * (1 + len(cells.columns))]
    lines += [[name, *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return [f"| {' | '.join(line)} |" for line in lines]


def verdict(rows: pd.DataFrame) -> list[str]:
    """Whether a method that trains less than 10 % of the parameters comes near full fine-tuning."""
    sentences = []
    for task, part in rows[rows["backbone"] == "pretrained"].groupby("task", sort=False):
        stats = part.groupby("method")["accuracy"].agg(["mean", "std"])
        shares = part.groupby("method")["share"].first()
        small = stats.loc[shares.index[shares.between(0.0001, 0.1, inclusive="left")]]
        if "full" in stats.index and len(small):
            full, best = stats.loc["full"], str(small["mean"].idxmax())
            gap = float(small["mean"].max()) - float(full["mean"])
            near = gap >= -np.nan_to_num(full["std"])
            sentences.append(
                f"{task}: of the methods with less than 10 % of the parameters, {best} is best, "
                f"{100 * gap:+.1f} points from full fine-tuning, "
                f"{'above or' if near else 'not'} within one standard deviation of it."
            )
    return sentences


def run(arguments: Sequence[str]) -> None:
    """Run what is missing, then write and print the table."""
    options = parser().parse_args(arguments)
    options.random = save_random_backbone(options.output / "random-backbone")
    options.schedule = {"precision": options.precision}
    if options.epochs is not None:
        options.schedule["epochs"] = options.epochs
    records = []
    for benchmark in BENCHMARKS:
        accuracies = baseline(benchmark, options.data)
        for backbone in options.backbones:  # the baseline has no backbone: same numbers in both
            records += [(benchmark.name, BASELINE, backbone, a, 0, 0.0) for a in accuracies]
    for seed in options.seeds:
        for benchmark in BENCHMARKS:
            for method in options.methods:
                for backbone in options.backbones:
                    result = result_of(benchmark, method, backbone, seed, options)
                    count = result.parameters
                    share = count.method / (count.total - count.head)
                    records += [
                        (benchmark.name, method, backbone, score, count.method, share)
                        for score in result.score.folds.values()
                    ]
    columns = ["task", "method", "backbone", "accuracy", "trained", "share"]
    rows = pd.DataFrame(records, columns=columns)
    text = [*markdown(table(rows)), "", *verdict(rows), "", *explanation(options)]
    (options.output / "table.md").write_text("\n".join(text) + "\n")
    rows.to_csv(options.output / "table.csv", index=False)
    print("\n" + "\n".join(text))


def explanation(options: argparse.Namespace) -> list[str]:
    """Sentences below the table that say what its numbers are."""
    seeds = ", ".join(map(str, options.seeds))
    return [
        f"Test accuracy in %, mean ± standard deviation over folds and seeds ({seeds}): ESC-10 has "
        "5 folds, the digits one speaker who does not occur in training. Trained: the number of "
        "trained parameters without the head, and their share of the backbone.",
        f"{BASELINE}: logistic regression on mean and standard deviation over time of 128 log-mel "
        "bins. Epochs are chosen on validation clips only; no setting was chosen on test clips.",
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--methods", type=names, default=METHODS)
    made.add_argument("--backbones", type=names, default=["pretrained", "random"])
    made.add_argument(
        "--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2]
    )
    made.add_argument("--epochs", type=int)
    made.add_argument("--precision", default="fp32", help="bf16 halves the time on some machines")
    made.add_argument("--output", type=Path, default=Path("results/transfer"))
    return made


if __name__ == "__main__":
    main(run)
