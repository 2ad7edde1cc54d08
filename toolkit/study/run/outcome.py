"""What a finished run found, read from the files that its recipe left."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from toolkit.bundle import WEIGHTS
from toolkit.errors import RunError

CURVES = ("train_loss", "valid_loss", "valid_accuracy", "train_seconds")
KEPT = (
    "recipe", "method", "corpus", "classes", "device", "seconds_per_epoch", "peak_memory_bytes",
    "peft", "backbone", "configuration", "toolkit", "commit", "python", "packages",
)  # fmt: skip


def read_outcome(output: Path) -> dict[str, Any]:
    """The numbers of a run that a study compares.

    Args:
        output: the output folder of the recipe.

    Returns:
        the keys `KEPT` of its `result.json`; `folds`, one mapping a fold with its accuracies, its
        unweighted average recall and confusion matrix (None where clips may have several classes),
        its curves and best epoch; `parameters`, with
        those `stored` in the bundle and those `active` for one clip; `bundle_bytes`.

    Raises:
        RunError: there is no result, or numbers in it are not finite.
    """
    try:
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("the recipe ended well but left no result.json") from None
    names = sorted(result["accuracy"]["folds"], key=int)
    folds = [json.loads((output / f"fold-{n}" / "fold.json").read_text()) for n in names]
    bundle = output / "bundle"
    shapes = _shapes(bundle / WEIGHTS)
    stored = sum(math.prod(shape) for shape in shapes.values())
    return {
        **{key: result[key] for key in KEPT},
        "folds": [_fold(fold) for fold in folds],
        "parameters": {
            **result["parameters"],
            "stored": stored,
            "active": _active(result["parameters"]["method"], shapes, folds[0]["history"][-1]),
        },
        "bundle_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
    }


def _fold(fold: dict[str, Any]) -> dict[str, Any]:
    curves = {key: [record[key] for record in fold["history"]] for key in CURVES}
    for key in ("train_loss", "valid_loss"):
        for epoch, value in enumerate(curves[key], 1):
            if value is None or not math.isfinite(value):
                raise RunError(f"the {key.replace('_', ' ')} became {value} in epoch {epoch}")
    return {
        "fold": fold["test_fold"],
        "accuracy": fold["test_accuracy"],
        "uar": fold["metrics"].get("uar"),
        "valid_accuracy": fold["valid_accuracy"],
        "best_epoch": fold["best_epoch"],
        "epoch_to_95": epoch_to(0.95, curves["valid_accuracy"]),
        "training_clips": fold["training_clips"],
        "confusion": fold["confusion"],
        "curves": curves,
        **_routing(fold["history"][fold["best_epoch"] - 1]["statistics"]),
    }


def _routing(statistics: dict[str, float | list[float]]) -> dict[str, float | None]:
    """How a mixture used its experts in a validation; None where a method has none.

    `entropy`: of a token's weights over experts, or over slots, divided by its maximum; `busiest`:
    the share of all weights that the busiest expert has, mean over layers.
    """
    names = [name for name in ("gate_entropy", "combine_entropy") if name in statistics]
    load = statistics.get("load")
    return {
        "entropy": statistics[names[0]] if names else None,
        "busiest": max(load) / sum(load) if load else None,
    }


def epoch_to(share: float, accuracies: list[float]) -> int:
    """The first epoch (from 1) whose validation accuracy reaches a share of the last epoch's."""
    goal = share * accuracies[-1]
    return next(epoch for epoch, value in enumerate(accuracies, 1) if value >= goal)


def _shapes(weights: Path) -> dict[str, list[int]]:
    with safe_open(weights, framework="numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _active(trained: int, shapes: dict[str, list[int]], last_epoch: dict[str, Any]) -> int:
    """Trained parameters outside the head that take part in one token's output.

    All of them, unless the method says (as `active_mean` in its statistics) that a token uses only
    some of the experts; a tensor of experts has them as its first axis.
    """
    used = last_epoch["statistics"].get("active_mean")
    if used is None:
        return trained
    used = float(np.mean(used))
    experts = [shape for name, shape in shapes.items() if ".experts." in name]
    idle = sum(math.prod(shape) * max(0.0, 1 - used / shape[0]) for shape in experts if shape)
    return round(trained - idle)
