"""What a finished run found, read from the files that its recipe left."""

import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from toolkit.bundle import WEIGHTS
from toolkit.errors import RunError
from toolkit.results import (
    RUN_FILE,
    EpochRecord,
    FoldResult,
    RunResult,
    Statistics,
    read_fold,
    read_run,
)
from toolkit.study.records import Curves, FoldOutcome, Outcome, OutcomeParameters

Shapes = dict[str, list[int]]
"""Name of a stored tensor -> its shape."""

ENTROPIES = ("gate_entropy", "combine_entropy")
"""What methods call the entropy of a token's weights."""


def read_outcome(output: Path) -> Outcome:
    """The numbers of a run that a study compares.

    Args:
        output: the output folder of the recipe.

    Raises:
        RunError: there is no result, a damaged one, or one with numbers that are not finite.
    """
    if not (output / RUN_FILE).is_file():
        raise RunError(f"the recipe ended well but left no {RUN_FILE}")
    result = read_run(output)
    folds = [read_fold(output / f"fold-{number}") for number in sorted(result.score.folds)]
    if not folds or not all(fold.history for fold in folds):
        raise RunError(f"{output / RUN_FILE} names no fold with an epoch; run the recipe again")
    bundle = output / "bundle"
    return Outcome(
        recipe=result.recipe,
        method=result.method,
        corpus=result.corpus,
        metric=result.metric,
        classes=result.classes,
        device=result.device,
        seconds_per_epoch=result.seconds_per_epoch,
        peak_memory_bytes=result.peak_memory_bytes,
        peft=result.peft,
        backbone=result.backbone,
        configuration=result.configuration,
        toolkit=result.toolkit,
        commit=result.commit,
        python=result.python,
        packages=result.packages,
        folds=[_fold(fold) for fold in folds],
        parameters=_parameters(result, _shapes(bundle / WEIGHTS), folds[0].history[-1]),
        bundle_bytes=sum(file.stat().st_size for file in bundle.iterdir()),
    )


def _fold(fold: FoldResult) -> FoldOutcome:
    history = fold.history
    curves = Curves(
        train_loss=[record.train_loss for record in history],
        valid_loss=[record.valid_loss for record in history],
        valid_score=[record.valid_score for record in history],
        train_seconds=[record.train_seconds for record in history],
    )
    _refuse_not_finite("train loss", curves.train_loss)
    _refuse_not_finite("valid loss", curves.valid_loss)
    _refuse_not_finite("valid score", curves.valid_score)
    return FoldOutcome(
        fold=fold.test_fold,
        score=fold.score,
        uar=fold.metrics.get("uar"),
        valid_score=fold.valid_score,
        best_epoch=fold.best_epoch,
        epoch_to_95=epoch_to(0.95, curves.valid_score),
        training_clips=fold.training_clips,
        confusion=fold.confusion,
        curves=curves,
        entropy=_entropy(fold.best.statistics),
        busiest=_busiest(fold.best.statistics),
    )


def _refuse_not_finite(name: str, curve: list[float]) -> None:
    for epoch, value in enumerate(curve, 1):
        if not math.isfinite(value):
            raise RunError(f"the {name} became {value} in epoch {epoch}")


def _entropy(statistics: Statistics) -> float | None:
    """Entropy of a token's weights over experts, or over slots, divided by its maximum."""
    names = [name for name in ENTROPIES if name in statistics]
    return float(np.mean(statistics[names[0]])) if names else None


def _busiest(statistics: Statistics) -> float | None:
    """The share of all weights that the busiest expert has."""
    load = statistics.get("load")
    return max(load) / sum(load) if isinstance(load, list) else None


def epoch_to(share: float, scores: list[float]) -> int:
    """The first epoch (from 1) whose validation score reaches a share of the last epoch's."""
    goal = share * scores[-1]
    return next(epoch for epoch, value in enumerate(scores, 1) if value >= goal)


def _shapes(weights: Path) -> Shapes:
    try:
        with safe_open(weights, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{weights} cannot be read ({error}); run the recipe again") from None


def _parameters(result: RunResult, shapes: Shapes, last: EpochRecord) -> OutcomeParameters:
    counted = result.parameters
    return OutcomeParameters(
        method=counted.method,
        head=counted.head,
        total=counted.total,
        stored=sum(math.prod(shape) for shape in shapes.values()),
        active=_active(counted.method, shapes, last.statistics),
    )


def _active(trained: int, shapes: Shapes, statistics: Statistics) -> int:
    """Trained parameters outside the head that take part in the output of one token.

    All of them, unless the method records as `active_mean` how many experts a token uses; a tensor
    of experts has them as its first axis.
    """
    if "active_mean" not in statistics:
        return trained
    used = float(np.mean(statistics["active_mean"]))
    experts = [shape for name, shape in shapes.items() if ".experts." in name]
    idle = sum(math.prod(shape) * max(0.0, 1 - used / shape[0]) for shape in experts if shape)
    return round(trained - idle)
