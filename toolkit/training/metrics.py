"""Metrics of classification, from a table of predictions."""

import dataclasses

import numpy as np
import pandas as pd


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, C] counts; rows are true classes, columns predicted ones."""
    cells = np.bincount(truth * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def accuracy(predictions: pd.DataFrame) -> float:
    """Share of clips whose `prediction` is their `truth`; NaN without clips."""
    return float((predictions["prediction"] == predictions["truth"]).mean())


def per_class_accuracy(matrix: np.ndarray) -> list[float | None]:
    """Share of each true class that was found; None for a class without clips."""
    counts = matrix.sum(axis=1)
    hits = matrix.diagonal()
    return [float(h / n) if n else None for h, n in zip(hits, counts, strict=True)]


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
