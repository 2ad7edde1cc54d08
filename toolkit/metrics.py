"""Metrics of classification, from a table of predictions."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, C] counts; rows are true classes, columns predicted ones."""
    cells = np.bincount(truth * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def accuracy(predictions: "pd.DataFrame") -> float:
    """Share of clips whose `prediction` is their `truth`; NaN without clips."""
    return float((predictions["prediction"] == predictions["truth"]).mean())


def per_class_accuracy(matrix: np.ndarray) -> list[float | None]:
    """Share of each true class that was found; None for a class without clips."""
    counts = matrix.sum(axis=1)
    hits = matrix.diagonal()
    return [float(h / n) if n else None for h, n in zip(hits, counts, strict=True)]


def average_recall(matrix: np.ndarray) -> float:
    """Unweighted average recall (UAR) of a confusion matrix, over the classes that have clips."""
    recalls = [share for share in per_class_accuracy(matrix) if share is not None]
    return float(np.mean(recalls)) if recalls else float("nan")


def average_precision(truth: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """The average precision of each class: sum over thresholds of (R_n - R_{n-1}) P_n.

    Clips with equal scores are one threshold, so that their order does not matter. The mean over
    the classes is FSD50K's and AudioSet's mAP (Fonseca et al., arXiv:2010.00475, section V).

    Args:
        truth: [N, C] bool.
        scores: [N, C].

    Returns:
        C values; None for a class without clips.
    """
    return [
        _average_precision(t, s) if t.any() else None
        for t, s in zip(truth.T, scores.T, strict=True)
    ]


def _average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value)."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of some values."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std)

    def percent(self) -> str:
        """`"87.5 ± 1.2 %"`."""
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread} %"
