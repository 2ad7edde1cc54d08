"""What a corpus asks for: one class a clip, or any number of them; targets, loss, official metric.

The rest of the training knows neither softmax nor sigmoid, and reads "score" where it says
accuracy: the share of right clips here, the mean average precision there.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.data.manifest import Manifest, class_matrix
from toolkit.metrics import (
    accuracy,
    average_precision,
    average_recall,
    confusion_matrix,
    per_class_accuracy,
)

PRESENT = 0.5
"""The probability from which a class counts as predicted where a clip may have several."""


class Task(ABC):
    """How labels become targets, logits become probabilities, and predictions a score."""

    metric: ClassVar[str]
    """Name of the score by which epochs are chosen and that results report."""

    @abstractmethod
    def targets(self, labels: Tensor, count: int) -> Tensor:
        """Labels of a batch -> [B, C] float."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each clip [B] in evaluation, without weights or smoothing."""

    @abstractmethod
    def training_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """The mean loss of a batch.

        Args:
            logits: [B, C].
            targets: [B, C], perhaps mixed.
            smoothing: label smoothing, 0 to 1.
            weights: [C], of each class's part of the loss; None: all alike.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> [B, C]."""

    @abstractmethod
    def truths(self, labels: Tensor) -> list[Any]:
        """The labels of a batch as plain values, for a table of predictions."""

    @abstractmethod
    def predictions(self, probabilities: list[list[float]]) -> list[Any]:
        """What is predicted of each clip, in the form of `truths`."""

    @abstractmethod
    def score(self, predictions: pd.DataFrame) -> float:
        """The metric of a table with `truth`, `prediction` and `probabilities`, 0 to 1."""

    @abstractmethod
    def details(self, predictions: pd.DataFrame, count: int) -> dict[str, Any]:
        """What a fold's report adds: `per_class`, `metrics` by name, `confusion` or None."""


class OneClass(Task):
    """Exactly one class a clip: softmax, cross-entropy, accuracy."""

    metric = "accuracy"

    def targets(self, labels: Tensor, count: int) -> Tensor:
        """See `Task.targets`; labels are [B] class numbers."""
        return functional.one_hot(labels, count).float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Task.losses`."""
        return functional.cross_entropy(logits, targets, reduction="none")

    def training_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """See `Task.training_loss`."""
        return functional.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Task.probabilities`."""
        return logits.softmax(dim=-1)

    def truths(self, labels: Tensor) -> list[int]:
        """See `Task.truths`."""
        return labels.tolist()

    def predictions(self, probabilities: list[list[float]]) -> list[int]:
        """See `Task.predictions`."""
        return [max(range(len(p)), key=p.__getitem__) for p in probabilities]

    def score(self, predictions: pd.DataFrame) -> float:
        """See `Task.score`."""
        return accuracy(predictions)

    def details(self, predictions: pd.DataFrame, count: int) -> dict[str, Any]:
        """See `Task.details`: accuracy and unweighted average recall (UAR)."""
        matrix = confusion_matrix(
            predictions["truth"].to_numpy(), predictions["prediction"].to_numpy(), count
        )
        metrics = {"accuracy": accuracy(predictions), "uar": average_recall(matrix)}
        return {
            "metrics": metrics,
            "per_class": per_class_accuracy(matrix),
            "confusion": matrix.tolist(),
        }


class ManyClasses(Task):
    """Any number of classes a clip: sigmoid, binary cross-entropy, mean average precision."""

    metric = "mAP"

    def targets(self, labels: Tensor, count: int) -> Tensor:
        """See `Task.targets`; labels are [B, C] of 0 and 1."""
        return labels.float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Task.losses`."""
        parts = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return parts.mean(dim=-1)

    def training_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """See `Task.training_loss`; smoothing draws each target towards one half."""
        smoothed = targets * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smoothed, weight=weights)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Task.probabilities`."""
        return logits.sigmoid()

    def truths(self, labels: Tensor) -> list[tuple[int, ...]]:
        """See `Task.truths`: class numbers."""
        return [tuple(label.nonzero().flatten().tolist()) for label in labels]

    def predictions(self, probabilities: list[list[float]]) -> list[tuple[int, ...]]:
        """See `Task.predictions`: the classes with a probability of at least `PRESENT`."""
        return [tuple(i for i, p in enumerate(row) if p >= PRESENT) for row in probabilities]

    def score(self, predictions: pd.DataFrame) -> float:
        """See `Task.score`: the mean of the average precision over classes that have clips."""
        scores = [score for score in self._precisions(predictions) if score is not None]
        return float(np.mean(scores)) if scores else float("nan")

    def details(self, predictions: pd.DataFrame, count: int) -> dict[str, Any]:
        """See `Task.details`."""
        metrics = {"mAP": self.score(predictions)}
        return {"metrics": metrics, "per_class": self._precisions(predictions), "confusion": None}

    def _precisions(self, predictions: pd.DataFrame) -> list[float | None]:
        scores = np.array(predictions["probabilities"].tolist())
        truth = np.zeros(scores.shape, dtype=bool)
        for row, classes in enumerate(predictions["truth"]):
            truth[row, list(classes)] = True
        return average_precision(truth, scores)


ONE_CLASS = OneClass()


def task_of(manifest: Manifest) -> Task:
    """The task of a corpus."""
    return ManyClasses() if manifest.multi_label else ONE_CLASS


def balanced_class_weights(labels: pd.Series, count: int) -> Tensor:
    """[C] weights N / (C n_c), N the labels and n_c those of class c; 0 for an absent class.

    As scikit-learn's `class_weight="balanced"` (King and Zeng, 2001).
    """
    counts = class_matrix(labels, count).sum(axis=0)
    weights = np.divide(counts.sum(), count * counts, out=np.zeros(count), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def balanced_clip_weights(labels: pd.Series, count: int) -> Tensor:
    """[N] chances to be drawn: the sum over a clip's classes of 1 / n_c (arXiv:2104.01778, 3.1).

    A clip without a class is drawn as one of the most frequent class.
    """
    held = class_matrix(labels, count)
    counts = held.sum(axis=0)
    weights = (held / np.maximum(counts, 1)).sum(axis=1)
    weights[weights == 0] = 1 / max(counts.max(), 1)
    return torch.from_numpy(weights)
