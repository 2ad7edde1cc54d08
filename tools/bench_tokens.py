#!/usr/bin/env python
"""Measure what fewer tokens save and what they cost: patchout and token merging.

    python tools/bench_tokens.py speed [--methods adapter,lora,soft_moa] [--rounds 3] [--batch 2]
    python tools/bench_tokens.py accuracy --data ../shared/data/ESC-50 [--folds 1,3] [--seeds 1,2]
                                 [--settings 'all,50 %'] [--epochs 5] [--per_class 8]
                                 [--seconds 240]

`speed` times training steps on the architecture of AST-base (500 frames, 50 classes, random
weights). All settings take turns on the same model, and the ratios are medians over the rounds.
`--backbone ast_tiny` times the embedded one instead, as `accuracy` trains it.

`accuracy` trains the embedded small AST with each method and setting on `--per_class` clips per
class of the three training folds, with SpecAugment and everything else equal, and scores the whole
validation fold after the last epoch; test folds are not read. Every finished training is a line of
`runs.csv`, so the same command continues where `--seconds` or an interruption ended it.

Both leave their numbers in `--output` (docs/results/fewer_tokens) and write the page beside it.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from validation import FRAMES, Validation, add_arguments, schedule, train_missing

import toolkit
from toolkit.backbones.ast import AST, ASTTiny
from toolkit.backbones.base import Backbone
from toolkit.data.augment import SpecAugment
from toolkit.fewer_tokens.patchout import Patchout
from toolkit.model import AudioClassifier
from toolkit.registry import CORPORA
from toolkit.study.report.statistics import FEWEST, t_interval
from toolkit.training.experiment import main

SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "25 %": {"patchout": {"share": 0.25}},
    "50 %": {"patchout": {"share": 0.5}},
    "70 %": {"patchout": {"share": 0.7}},
    "25 % in rows": {"patchout": {"time": 0.1, "frequency": 0.125}},
    "50 % in rows": {"patchout": {"time": 0.33, "frequency": 0.25}},
    "70 % in rows": {"patchout": {"time": 0.4, "frequency": 0.5}},
    "50 % merged": {"merge": 0.5},
    "70 % merged": {"merge": 0.7},
}
"""What is compared: patches dropped one by one, or in rows and columns of the grid, in training;
or a share of the patches merged into others behind the last block, equally many in every block."""

KINDS = {"": "o-", "in rows": "s--", "merged": "^:"}
"""What a setting says behind its share -> how its curve is drawn."""

METHODS = {"adapter": "adapter", "lora": "lora", "soft_moa": "softmoa"}
"""Registered name -> the file that holds its learning rate."""

LENGTHS = {"ast_base": 500, "ast_tiny": FRAMES}
"""Backbone -> frames that it reads."""

CLASSES = 50


def build(backbone: Backbone, method: str, setting: str) -> AudioClassifier:
    """A classifier with one of the settings."""
    wanted = SETTINGS[setting]
    assert backbone.grid is not None
    per_block = backbone.grid[0] * backbone.grid[1] / backbone.depth
    merged = round(wanted["merge"] * per_block) if "merge" in wanted else None
    model = toolkit.adapt(backbone, method, CLASSES, pooling="all", merge_tokens=merged)
    model.drop_patches(patchout(setting))
    return model


def patchout(setting: str) -> Patchout | None:
    """What a setting drops."""
    values = SETTINGS[setting].get("patchout")
    return None if values is None else Patchout(**values)


# Speed


def base_backbone(name: str) -> Backbone:
    """AST-base with random weights, or the embedded one."""
    torch.manual_seed(0)
    if name == "ast_tiny":
        return ASTTiny().load(LENGTHS[name])
    return AST().wrap(ASTModel(ASTConfig()), ASTFeatureExtractor(), LENGTHS[name])


class Stopwatch:
    """Training steps of one method on one backbone, whose settings take turns."""

    def __init__(self, method: str, settings: Sequence[str], options: argparse.Namespace) -> None:
        self.settings = settings
        dropping = [s for s in settings if "merge" not in SETTINGS[s]]
        shared = build(base_backbone(options.backbone), method, "all") if dropping else None
        self.models = {
            s: shared if s in dropping else build(base_backbone(options.backbone), method, s)
            for s in settings
        }
        model = next(iter(self.models.values()))
        assert model is not None
        generator = torch.Generator().manual_seed(0)
        spec = model.backbone.features
        shape = (options.batch, spec.rows, spec.width)
        self.features = torch.randn(shape, generator=generator)
        self.labels = torch.arange(options.batch) % CLASSES

    def seconds(self, setting: str) -> float:
        """The time of one step."""
        model = self.models[setting]
        assert model is not None
        model.drop_patches(patchout(setting))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        model.train()
        began = time.perf_counter()
        logits = model(self.features)
        torch.nn.functional.cross_entropy(logits, self.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began


def measure_speed(options: argparse.Namespace) -> None:
    """Time the steps of all methods and settings."""
    found = speeds(options.output, options.backbone)
    settings = list(dict.fromkeys(("all", *options.settings)))
    for method in options.methods:
        watch = Stopwatch(method, settings, options)
        times: dict[str, list[float]] = defaultdict(list)
        for number in range(options.rounds + 1):
            for setting in settings:
                seconds = watch.seconds(setting)
                if number:  # the first round warms up
                    times[setting].append(seconds)
        found[method] = {
            setting: round(
                statistics.median(a / b for a, b in zip(times["all"], taken, strict=True)), 3
            )
            for setting, taken in times.items()
        }
        print(method, found[method], flush=True)
    file = speed_file(options.output, options.backbone)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def speed_file(output: Path, backbone: str) -> Path:
    """Where the ratios of a backbone are kept."""
    return output / f"speed_{backbone}.json"


def speeds(output: Path, backbone: str) -> dict[str, dict[str, float]]:
    """Method -> setting -> how many times faster than with all tokens; empty if not measured."""
    file = speed_file(output, backbone)
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    return found


# Accuracy


def measure_accuracy(options: argparse.Namespace) -> None:
    """Train what is missing."""
    manifest = CORPORA.create("esc50").manifest(options.data)
    validation = Validation(manifest, options.epochs, options.per_class)
    rates = {method: schedule(METHODS[method])["lr"] for method in options.methods}
    augment = SpecAugment(value=validation.spec.mean)  # 0 after normalisation

    def accuracy_and_loss(method: str, setting: str, fold: int, seed: int) -> tuple[float, float]:
        train, valid = validation.clips(fold, seed)
        torch.manual_seed(seed)
        model = build(validation.backbone(), method, setting)
        validation.fit(model, train, seed, rates[method], augment)
        return validation.score(model, valid)

    folds = options.folds or manifest.folds
    train_missing(
        options.output / "runs.csv",
        ("method", "setting", "fold", "seed"),
        [
            (method, setting, fold, seed)
            for seed in options.seeds
            for fold in folds
            for method in options.methods
            for setting in options.settings
        ],
        accuracy_and_loss,
        options.seconds,
    )


# The page


def page(output: Path) -> list[str]:
    """All numbers that there are so far."""
    lines = ["# Fewer tokens", ""]
    for backbone, frames in LENGTHS.items():
        found = speeds(output, backbone)
        if found:
            lines += [f"## Time per training step, {backbone}", ""]
            lines += [f"| setting | {' | '.join(found)} |", f"|---|{'--:|' * len(found)}"]
            for setting in SETTINGS:
                cells = [f"{of[setting]:.2f}" if setting in of else "" for of in found.values()]
                if any(cells):
                    lines.append(f"| {setting} | {' | '.join(cells)} |")
            lines += [
                "",
                "How many times faster a step is than with all tokens: medians of steps that took "
                f"turns on the same cores, on {frames} frames.",
                "",
            ]
    if (output / "runs.csv").is_file():
        lines += accuracies(pd.read_csv(output / "runs.csv"), speeds(output, "ast_tiny"))
        draw(pd.read_csv(output / "runs.csv"), speeds(output, "ast_tiny"), output / "curves.svg")
        lines += [f"![Accuracy against speed]({output.name}/curves.svg)", ""]
    lines.append("Generated by `tools/bench_tokens.py`: do not edit.")
    return lines


def accuracies(runs: pd.DataFrame, faster: dict[str, dict[str, float]]) -> list[str]:
    """Mean accuracies beside the speed of a step, and their differences from all tokens."""
    lines = ["## Accuracy on validation folds of ESC-50, embedded small AST", ""]
    lines += [
        "| method | setting | times faster | trainings | accuracy % | difference from all | "
        "95 % interval |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for method, part in runs.groupby("method", sort=False):
        table = 100 * part.pivot(index=["fold", "seed"], columns="setting", values="accuracy")
        for setting in [s for s in SETTINGS if s in table]:
            speed = faster.get(str(method), {}).get(setting)
            cells = [str(method), setting, "" if speed is None else f"{speed:.2f}"]
            cells += [str(table[setting].count()), f"{table[setting].mean():.1f}"]
            pairs = (table[setting] - table["all"]).dropna() if "all" in table else table[setting]
            if setting == "all" or "all" not in table or len(pairs) < FEWEST:
                cells += ["", ""]
            else:
                found = t_interval(pairs.to_numpy())
                cells += [f"{found.mean:+.1f}", f"{found.low:+.1f} to {found.high:+.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Per cent: patches dropped in training, one by one or in whole rows and columns of the "
        "grid; prediction reads all. Merged: the share of the patches that have merged into others "
        "behind the last block, equally many in every block, in training and in prediction. Pairs "
        "of fold and seed; test folds were not read.",
        "",
    ]
    return lines


def draw(runs: pd.DataFrame, faster: dict[str, dict[str, float]], file: Path) -> None:
    """Accuracy against the speed of a step: a curve per method and kind of setting."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    means = 100 * runs.groupby(["method", "setting"])["accuracy"].mean()
    for method, of in faster.items():
        for kind, marker in KINDS.items():
            settings = [s for s in SETTINGS if s == "all" or s.partition("% ")[2] == kind]
            points = [
                (of[s], means[method, s]) for s in settings if s in of and (method, s) in means
            ]
            if len(points) > 1:
                axes.plot(
                    *zip(*points, strict=True), marker, label=f"{method}, {kind or 'one by one'}"
                )
    axes.set(xlabel="times faster per training step", ylabel="accuracy on validation folds, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file)


def run(arguments: Sequence[str]) -> None:
    """Measure one of both, then write the page."""
    options = parser().parse_args(arguments)
    options.measure(options)
    text = "\n".join(page(options.output)) + "\n"
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = made.add_subparsers(required=True)
    speed = parts.add_parser("speed", help="time training steps")
    speed.add_argument("--rounds", type=int, default=3)
    speed.add_argument("--batch", type=int, default=2)
    speed.add_argument("--backbone", default="ast_base", choices=list(LENGTHS))
    speed.set_defaults(measure=measure_speed)
    accuracy = parts.add_parser("accuracy", help="train on ESC-50")
    add_arguments(accuracy)
    accuracy.set_defaults(measure=measure_accuracy)
    for part in (speed, accuracy):
        part.add_argument("--methods", type=_some_of(METHODS), default=list(METHODS))
        part.add_argument("--settings", type=_some_of(SETTINGS), default=list(SETTINGS))
        part.add_argument("--output", type=Path, default=Path("docs/results/fewer_tokens"))
    return made


def _some_of(known: dict[str, Any]) -> Any:
    """The type of an option: some of these names, with commas between."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        wrong = [name for name in found if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return found

    return names


if __name__ == "__main__":
    main(run)
