"""What is asked about a clip: exactly one class, or any number of classes.

A task turns labels into targets, logits into probabilities, and predictions into a score. The rest
of the library knows neither softmax nor sigmoid, and calls the official metric a "score".
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError, did_you_mean
from toolkit.metrics import (
    accuracy,
    average_precision,
    average_recall,
    confusion_matrix,
    per_class_accuracy,
)

if TYPE_CHECKING:  # pandas is slow to import
    import pandas as pd

    from toolkit.data.manifest import Manifest

PRESENT = 0.5
"""The probability from which a class counts as predicted where a clip may have several."""

TaskName = Literal["one_class", "several_classes"]
"""The names that bundles keep."""

Label = int | tuple[int, ...]
"""What a table of predictions holds: a class number, or those of all classes of a clip."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a table of predictions is worth.

    Attributes:
        score: the task's metric, 0 to 1.
        metrics: all metrics by name, `score` among them.
        per_class: the score of each class; None for a class without clips.
        confusion: [C, C] counts, rows are true classes; None where a clip may have several.
    """

    score: float
    metrics: dict[str, float]
    per_class: list[float | None]
    confusion: list[list[int]] | None


class Task(ABC):
    """How labels become targets, logits become probabilities, and predictions become a score."""

    name: ClassVar[TaskName]
    """The name that a bundle keeps."""

    metric: ClassVar[str]
    """Name of the score by which epochs are chosen and that results report."""

    @abstractmethod
    def targets(self, labels: Tensor, count: int) -> Tensor:
        """Turn the labels of a batch into targets [B, C] (float), C being `count`.

        Labels are [B] class numbers for one class, [B, C] of 0 and 1 for several.
        """

    @abstractmethod
    def check_labels(self, labels: Tensor, count: int) -> None:
        """Refuse labels of another form than `targets` takes, C being `count`.

        Raises:
            ConfigError: with the form that is expected.
        """

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
            targets: [B, C]; augmentation may have mixed them.
            smoothing: label smoothing, 0 to 1.
            weights: [C], the weight of each class in the loss; None: all equal.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> probabilities [B, C]."""

    @abstractmethod
    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """How far two predictions for the same clips differ: 1/2 [KL(p|q) + KL(q|p)].

        The gradient flows into both.

        Args:
            logits, other: [B, C].

        Returns:
            the mean over the clips, a scalar.
        """

    @abstractmethod
    def truths(self, labels: Tensor) -> Sequence[Label]:
        """The labels of a batch as plain values, for a table of predictions."""

    @abstractmethod
    def predictions(self, probabilities: list[list[float]]) -> Sequence[Label]:
        """What is predicted for each clip, in the form of `truths`."""

    def table(self, truths: Sequence[Label], probabilities: list[list[float]]) -> "pd.DataFrame":
        """A table of predictions, one row per clip, that `score` and `evaluate` read."""
        import pandas as pd

        predictions = self.predictions(probabilities)
        columns = {"truth": truths, "prediction": predictions, "probabilities": probabilities}
        return pd.DataFrame(columns)

    @abstractmethod
    def score(self, predictions: "pd.DataFrame") -> float:
        """The metric of a table with `truth`, `prediction` and `probabilities`, 0 to 1."""

    @abstractmethod
    def evaluate(self, predictions: "pd.DataFrame", count: int) -> Evaluation:
        """Everything that is said about a table of predictions with C = `count` classes."""


class OneClass(Task):
    """Exactly one class per clip: softmax, cross-entropy, accuracy."""

    name = "one_class"
    metric = "accuracy"

    def targets(self, labels: Tensor, count: int) -> Tensor:
        """Class numbers [B] -> one-hot vectors [B, C]."""
        return functional.one_hot(labels, count).float()

    def check_labels(self, labels: Tensor, count: int) -> None:
        """Refuse anything but class numbers [B] from 0 to C - 1."""
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if labels.ndim != 1 or not whole or not bool(((labels >= 0) & (labels < count)).all()):
            raise ConfigError(
                f"for one class per clip, labels are class numbers [B] from 0 to {count - 1}, not "
                f"{tuple(labels.shape)} of {labels.dtype}"
            )

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each clip [B]."""
        return functional.cross_entropy(logits, targets, reduction="none")

    def training_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy, mean over the clips."""
        return functional.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax: the probabilities of a clip sum to 1."""
        return logits.softmax(dim=-1)

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """Of two softmaxes it is 1/2 sum (p - q)(log p - log q)."""
        log_p, log_q = (x.float().log_softmax(dim=-1) for x in (logits, other))
        return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean()

    def truths(self, labels: Tensor) -> list[int]:
        """The class numbers."""
        return [int(label) for label in labels]

    def predictions(self, probabilities: list[list[float]]) -> list[int]:
        """The most probable class of each clip."""
        return [max(range(len(p)), key=p.__getitem__) for p in probabilities]

    def score(self, predictions: "pd.DataFrame") -> float:
        """Accuracy."""
        return accuracy(predictions)

    def evaluate(self, predictions: "pd.DataFrame", count: int) -> Evaluation:
        """Accuracy, unweighted average recall (UAR), and the confusion matrix."""
        matrix = confusion_matrix(
            predictions["truth"].to_numpy(), predictions["prediction"].to_numpy(), count
        )
        score = self.score(predictions)
        return Evaluation(
            score=score,
            metrics={self.metric: score, "uar": average_recall(matrix)},
            per_class=per_class_accuracy(matrix),
            confusion=matrix.tolist(),
        )


class SeveralClasses(Task):
    """Any number of classes per clip: sigmoid, binary cross-entropy, mean average precision."""

    name = "several_classes"
    metric = "mAP"

    def targets(self, labels: Tensor, count: int) -> Tensor:
        """Labels [B, C] of 0 and 1 as they are."""
        return labels.float()

    def check_labels(self, labels: Tensor, count: int) -> None:
        """Refuse anything but [B, C] between 0 and 1."""
        if labels.ndim != 2 or labels.shape[1] != count:
            raise ConfigError(
                f"for several classes per clip, labels are [B, {count}] of 0 and 1, not "
                f"{tuple(labels.shape)}"
            )

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each clip [B], mean over the classes."""
        parts = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return parts.mean(dim=-1)

    def training_loss(
        self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Binary cross-entropy; smoothing draws each target towards one half."""
        smoothed = targets * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smoothed, weight=weights)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoid: each class has a probability of its own."""
        return logits.sigmoid()

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """Of one Bernoulli variable per class it is 1/2 (p - q)(a - b), p and q the sigmoids of a
        and b; the mean over the classes, as the loss is."""
        a, b = logits.float(), other.float()
        return 0.5 * ((a.sigmoid() - b.sigmoid()) * (a - b)).mean()

    def truths(self, labels: Tensor) -> list[tuple[int, ...]]:
        """The numbers of the classes that each clip has."""
        return [tuple(label.nonzero().flatten().tolist()) for label in labels]

    def predictions(self, probabilities: list[list[float]]) -> list[tuple[int, ...]]:
        """The classes with a probability of at least `PRESENT`."""
        return [tuple(i for i, p in enumerate(row) if p >= PRESENT) for row in probabilities]

    def score(self, predictions: "pd.DataFrame") -> float:
        """Average precision, mean over the classes that have clips; NaN if none has any."""
        scores = [score for score in _precisions(predictions) if score is not None]
        return float(np.mean(scores)) if scores else float("nan")

    def evaluate(self, predictions: "pd.DataFrame", count: int) -> Evaluation:
        """The average precision of each class, and its mean."""
        score = self.score(predictions)
        return Evaluation(score, {self.metric: score}, _precisions(predictions), None)


def _precisions(predictions: "pd.DataFrame") -> list[float | None]:
    """The average precision of each class; None for a class without clips."""
    scores = np.array(predictions["probabilities"].tolist())
    truth = np.zeros(scores.shape, dtype=bool)
    for row, classes in enumerate(predictions["truth"]):
        truth[row, list(classes)] = True
    return average_precision(truth, scores)


ONE_CLASS, SEVERAL_CLASSES = OneClass(), SeveralClasses()
TASKS: dict[str, Task] = {task.name: task for task in (ONE_CLASS, SEVERAL_CLASSES)}
"""The tasks by the names that bundles keep."""


def task_named(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"there is no task {name!r}{did_you_mean(name, TASKS)} (known: {', '.join(TASKS)})"
        )
    return TASKS[name]


def task_of(manifest: "Manifest") -> Task:
    """The task that a corpus asks for."""
    return SEVERAL_CLASSES if manifest.multi_label else ONE_CLASS


@dataclasses.dataclass(frozen=True)
class BatchObjective:
    """What the predictions for one training batch are judged by; methods are given it.

    Attributes:
        task: of the corpus.
        targets: [B, C].
        smoothing: label smoothing, 0 to 1.
        weights: [C], the weight of each class in the loss; None: all equal.
    """

    task: Task
    targets: Tensor
    smoothing: float = 0.0
    weights: Tensor | None = None

    def loss(self, logits: Tensor) -> Tensor:
        """The task's mean loss of logits [B, C]."""
        weights = None if self.weights is None else self.weights.to(logits.device)
        return self.task.training_loss(logits.float(), self.targets, self.smoothing, weights)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> probabilities [B, C]."""
        return self.task.probabilities(logits)

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """How far two predictions for the batch differ, a scalar (`Task.divergence`)."""
        return self.task.divergence(logits, other)
