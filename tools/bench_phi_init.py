#!/usr/bin/env python
"""Measure which start of Soft-MoA's slot embeddings trains best, on validation folds of ESC-50.

    python tools/bench_phi_init.py --data data/ESC-50 [--folds 1,3] [--seeds 1,2]
                                   [--epochs 5] [--per_class 8] [--seconds 240] [--output DIR]

For every validation fold and seed, the embedded small AST is trained with each `phi_init` on
`--per_class` clips per class of the three training folds, with the schedule of
`recipes/ESC50/hparams/embedded.yaml` and everything else equal: clips, their order, and the start
of all other tensors. The accuracy is that on the whole validation fold after the last epoch; test
folds are not read. Every finished training is a line of `runs.csv`, so the same command continues
where `--seconds` or an interruption ended it. When all are done, a page is written beside the
output folder.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import toolkit
from toolkit.data.few_shot import few_shot
from toolkit.data.manifest import Manifest
from toolkit.features.batch import Batch, collate
from toolkit.features.cache import FeatureCache, default_cache_folder
from toolkit.features.pipeline import pipeline_for
from toolkit.model import AudioClassifier
from toolkit.peft.soft_moa import PhiInit
from toolkit.registry import CORPORA
from toolkit.study.report.statistics import t_interval
from toolkit.training.experiment import main

STARTS: tuple[str, ...] = get_args(PhiInit)
FRAMES, BATCH, LR = 248, 16, 0.015
COLUMNS = ["phi_init", "fold", "seed", "accuracy", "loss"]


class Bench:
    """One comparison: the features of all clips, and how to train on them."""

    def __init__(self, manifest: Manifest, epochs: int, per_class: int) -> None:
        self.manifest, self.epochs, self.per_class = manifest, epochs, per_class
        spec = self.backbone().features
        self.collate = collate(spec)
        pipeline = pipeline_for(spec)
        self.rows = {name: row for row, name in enumerate(manifest.clips["id"])}
        self.cache: FeatureCache = pipeline.cache(manifest.clips, spec, default_cache_folder())

    @staticmethod
    def backbone() -> Any:
        """A fresh copy of the embedded small AST."""
        return toolkit.load_backbone("ast_tiny", max_length=FRAMES)

    def accuracy_and_loss(self, start: str, fold: int, seed: int) -> tuple[float, float]:
        """Train once; the accuracy and the mean loss on the validation fold."""
        train, valid = self.clips(fold, seed)
        torch.manual_seed(seed)
        model = toolkit.adapt(
            self.backbone(), "soft_moa", len(self.manifest.classes), pooling="all", phi_init="lecun"
        )
        redraw(model, start, seed)
        self.fit(model, train, seed)
        model.eval()
        with torch.inference_mode():
            scored = [(model.logits(b.features), b.labels) for b in self.batches(valid)]
        logits, labels = (torch.cat(part) for part in zip(*scored, strict=True))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return (logits.argmax(dim=1) == labels).float().mean().item(), loss.item()

    def clips(self, fold: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The training clips, and those of the validation fold."""
        (split,) = [s for s in self.manifest.splits if s.valid == fold]
        train = self.manifest.of_folds(list(split.train))
        return (
            few_shot(train, self.per_class, seed, self.manifest.classes),
            self.manifest.of_folds([fold]),
        )

    def fit(self, model: AudioClassifier, train: pd.DataFrame, seed: int) -> None:
        """AdamW as in the recipe, with a cosine decay to zero."""
        optimizer = torch.optim.AdamW(
            model.method.parameter_groups(model.trainable(), LR),
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.1,
        )
        steps = self.epochs * -(-len(train) // BATCH)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = np.random.default_rng(seed)
        model.train()
        for _ in range(self.epochs):
            for batch in self.batches(train.iloc[order.permutation(len(train))]):
                loss = model.loss(batch.features, batch.labels, task="one_class")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()

    def batches(self, clips: pd.DataFrame) -> Iterator[Batch]:
        """The clips in their order."""
        examples = [
            {"id": clip.id, "features": self.cache[self.rows[clip.id]], "label": clip.label}
            for clip in clips.itertuples()
        ]
        for first in range(0, len(examples), BATCH):
            yield self.collate(examples[first : first + BATCH])


def redraw(model: AudioClassifier, start: str, seed: int) -> None:
    """Start the slot embeddings otherwise, and leave all other tensors as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = toolkit.adapt(
            Bench.backbone(), "soft_moa", model.num_classes, pooling="all", phi_init=start
        )
    drawn = {name: tensor for name, tensor in other.state().items() if name.endswith(".phi")}
    state: dict[str, Tensor] = model.state()
    model.load_state({**{name: tensor.clone() for name, tensor in state.items()}, **drawn})


def summary(runs: pd.DataFrame, options: argparse.Namespace) -> list[str]:
    """Mean accuracies, differences of pairs with their 95 % intervals, and what follows."""
    table = 100 * runs.pivot(index=["fold", "seed"], columns="phi_init", values="accuracy")
    lines = ["# How the slot embeddings of Soft-MoA start", ""]
    lines += ["| `phi_init` | validation accuracy % | sd | loss |", "|---|--:|--:|--:|"]
    losses = runs.groupby("phi_init")["loss"].mean()
    for start in STARTS:
        mean, std = table[start].mean(), table[start].std()
        lines.append(f"| {start} | {mean:.1f} | {std:.1f} | {losses[start]:.3f} |")
    lines += ["", "| pair | difference | 95 % interval |", "|---|--:|--:|"]
    apart = set()
    for first, second in combinations(STARTS, 2):
        interval = t_interval((table[first] - table[second]).to_numpy())
        lines.append(
            f"| {first} - {second} | {interval.mean:+.1f} | {interval.low:+.1f} to "
            f"{interval.high:+.1f} |"
        )
        apart |= {(first, second)} if interval.low > 0 or interval.high < 0 else set()
    best = str(table.mean().idxmax())
    against = [pair for pair in combinations(STARTS, 2) if best in pair]
    clear = all(pair in apart for pair in against)
    lines += ["", f"Best mean: {best}; its difference from the others is"
              f"{'' if clear else ' not'} distinguishable from chance."]  # fmt: skip
    lines += [
        "",
        f"ESC-50, embedded small AST, {options.per_class} training clips per class, "
        f"{options.epochs} epochs, {table.index.nunique()} pairs of validation fold and seed; test "
        "folds were not read. Generated by `tools/bench_phi_init.py`: do not edit.",
    ]
    return lines


def run(arguments: Sequence[str]) -> None:
    """Train what is missing until the time is over; sum up when nothing is."""
    began = time.monotonic()
    options = parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "runs.csv"
    runs = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=COLUMNS)
    done = set(runs[COLUMNS[:3]].itertuples(index=False, name=None))
    manifest = CORPORA.create("esc50").manifest(options.data)
    folds = manifest.folds if options.folds is None else options.folds
    planned = [(s, f, seed) for seed in options.seeds for f in folds for s in STARTS]
    missing = [key for key in planned if key not in done]
    bench = Bench(manifest, options.epochs, options.per_class)
    for position, key in enumerate(missing):
        if options.seconds is not None and time.monotonic() - began > options.seconds:
            print(f"{len(missing) - position} trainings are left: run the same command again")
            return
        found = bench.accuracy_and_loss(*key)
        line = pd.DataFrame([[*key, *found]], columns=COLUMNS).round(5)
        line.to_csv(file, mode="a", header=not file.is_file(), index=False)
        print(line.to_string(index=False, header=False), flush=True)
    runs = pd.read_csv(file).set_index(COLUMNS[:3]).loc[planned].reset_index()
    text = "\n".join(summary(runs, options)) + "\n"
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--folds", type=numbers, help="validation folds; default: all")
    made.add_argument("--seeds", type=numbers, default=[1, 2])
    made.add_argument("--epochs", type=int, default=5)
    made.add_argument("--per_class", type=int, default=8)
    made.add_argument("--seconds", type=float, help="start no further training after this time")
    made.add_argument("--output", type=Path, default=Path("docs/results/phi_init"))
    return made


if __name__ == "__main__":
    main(run)
