"""What a run found: `result.json`, the table of predictions, a picture, a few lines of text."""

import dataclasses
import json
import shutil
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toolkit.data.manifest import Manifest
from toolkit.files import write_atomically
from toolkit.metrics import Spread, per_class_accuracy
from toolkit.task import task_of
from toolkit.training.experiment import Experiment
from toolkit.training.output import VOLATILE, OutputFolder, description

matplotlib.use("Agg")


def describe_result(
    experiment: Experiment, manifest: Manifest, output: OutputFolder
) -> dict[str, Any]:
    """Sum up the finished folds of a run; scores are shares from 0 to 1.

    `accuracy` and `valid_accuracy` hold the corpus's official metric, which `metric` names (mAP of
    multi-label corpora); `metrics` holds all that were computed.
    """
    candidates = {str(s.test): output.finished_fold(s.test) for s in manifest.splits}
    folds = {number: fold for number, fold in candidates.items() if fold is not None}
    accuracies = {number: fold["test_accuracy"] for number, fold in folds.items()}
    spread = Spread.of(list(accuracies.values()))
    confusion, per_class = _classes(list(folds.values()))
    epochs = [record for fold in folds.values() for record in fold["history"]]
    configuration = experiment.configuration
    return {
        "recipe": experiment.options.recipe,
        "hparams": configuration.name,
        "method": experiment.method.registered_name,
        "corpus": manifest.corpus,
        "embedded": experiment.embedded,
        "classes": manifest.classes,
        "folds_of_corpus": [split.test for split in manifest.splits],
        "metric": task_of(manifest).metric,
        "metrics": _metrics(list(folds.values())),
        "accuracy": {
            "folds": accuracies,
            "mean": spread.mean,
            "std": spread.std,
            "per_class": per_class,
        },
        "valid_accuracy": {number: fold["valid_accuracy"] for number, fold in folds.items()},
        "best_epoch": {number: fold["best_epoch"] for number, fold in folds.items()},
        "confusion": confusion,
        "parameters": next(iter(folds.values()))["parameters"],
        "seconds_per_epoch": float(np.mean([record["train_seconds"] for record in epochs])),
        "peak_memory_bytes": max(fold["peak_memory_bytes"] for fold in folds.values()),
        "seed": experiment.options.seed,
        "device": experiment.device,
        "peft": {"name": experiment.method.registered_name, **experiment.method.as_dict()},
        "backbone": {"name": experiment.source.registered_name, **experiment.source.as_dict()},
        "configuration": configuration.flat,
        "configuration_hash": configuration.digest(ignore=VOLATILE),
        **description(),
    }


def _metrics(folds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over the folds of every metric of the task."""
    return {
        name: dataclasses.asdict(Spread.of([fold["metrics"][name] for fold in folds]))
        for name in folds[0]["metrics"]
    }


def _classes(folds: list[dict[str, Any]]) -> tuple[list[list[int]] | None, list[float | None]]:
    """The confusion matrix over all folds, and the score of each class over all or the mean one."""
    if folds[0]["confusion"] is not None:
        confusion = np.sum([fold["confusion"] for fold in folds], axis=0)
        return confusion.tolist(), per_class_accuracy(confusion)
    scores = np.array([fold["per_class"] for fold in folds], dtype=float)
    counts = np.isfinite(scores).sum(axis=0)
    means = np.nansum(scores, axis=0) / np.maximum(counts, 1)
    return None, [float(mean) if n else None for mean, n in zip(means, counts, strict=True)]


def write_result(output: OutputFolder, result: dict[str, Any], classes: list[str]) -> None:
    """Write the run's table, picture and bundle, and `result.json` at the end.

    The bundle is that of the fold with the best validation accuracy: the test folds choose nothing.
    """
    numbers = list(result["accuracy"]["folds"])
    tables = [pd.read_csv(output.fold(int(n)) / "predictions.csv", dtype=str) for n in numbers]
    write_atomically(output.path / "predictions.csv", pd.concat(tables).to_csv(index=False))
    if result["confusion"] is not None:
        picture = draw_confusion(np.array(result["confusion"]), classes)
        picture.savefig(output.path / "confusion.png")
    best = max(numbers, key=result["valid_accuracy"].__getitem__)
    shutil.rmtree(output.path / "bundle", ignore_errors=True)
    shutil.copytree(output.fold(int(best)) / "bundle", output.path / "bundle")
    write_atomically(output.path / "result.json", json.dumps(result, indent=2))


def draw_confusion(matrix: np.ndarray, classes: list[str]) -> Figure:
    """The confusion matrix [C, C] as a picture, each row in shares of its true class."""
    size = 3 + 0.28 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class")
    names = [name.replace("_", " ") for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    return figure


def summary(result: dict[str, Any]) -> str:
    """A result in a few lines."""
    accuracy = result["accuracy"]
    folds = ", ".join(f"{100 * value:.1f}" for value in accuracy["folds"].values())
    spread = Spread(accuracy["mean"], accuracy["std"]).percent()
    worst = sorted(
        (value, name)
        for name, value in zip(result["classes"], accuracy["per_class"], strict=True)
        if value is not None
    )[:3]
    return (
        f"{result['method']} on {result['corpus']}: {spread} test {result['metric']} over "
        f"{len(accuracy['folds'])} folds ({folds}); the epoch of each was chosen on its "
        "validation fold\n"
        f"hardest classes: {', '.join(f'{name} {100 * value:.0f} %' for value, name in worst)}\n"
        f"{result['seconds_per_epoch']:.1f} s an epoch, "
        f"{result['peak_memory_bytes'] / 2**20:.0f} MiB at most"
    )
