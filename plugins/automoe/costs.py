"""Costs of an architecture: parameters and operations in closed form, latency as measured.

A budget bounds any of `COSTS`; every estimator takes a genome and returns a number.
"""

import copy
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.backbones.base import Backbone
from toolkit.errors import RunError
from toolkit.model import AudioClassifier

from .automoe import AutoMoE
from .genome import Gene, Genome, Space

COSTS = {
    "trainable": "parameters trained outside the head",
    "active": "the most of these that one token uses: its experts, routers, norms",
    "flops": "operations that the mixtures add to the forward pass of one clip",
    "latency_ms": "milliseconds of a forward pass of the whole model on one clip",
}
CLOSED = ("trainable", "active", "flops")
TRIMMED = 0.1
WARM_UP = 5
FINAL = 3
"""A final measurement has this multiple of the forward passes of others."""


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Costs that follow from the sizes alone.

    Attributes:
        dim: token width d.
        tokens: tokens per clip, special ones included.
        norms: whether the norms in front of sublayers with a mixture train.
        final_norm: whether the final norm trains.
    """

    dim: int
    tokens: int
    norms: bool
    final_norm: bool

    def trainable(self, genome: Genome) -> int:
        """Parameters trained outside the head."""
        return self._sum(genome, lambda gene: sum(map(self._expert, gene.ranks)))

    def active(self, genome: Genome) -> int:
        """`trainable` with only the `topk` largest experts per mixture: what a token can use."""
        return self._sum(
            genome,
            lambda gene: sum(sorted(map(self._expert, gene.ranks), reverse=True)[: gene.topk]),
        )

    def flops(self, genome: Genome) -> int:
        """Multiplications and additions of the mixtures' matrix products on one clip.

        All experts count, used or not, since they are computed as one product over all channels.
        """
        return sum(
            len(gene.roles) * self.tokens * 4 * self.dim * (gene.experts + sum(gene.ranks))
            for gene in genome
        )

    def _expert(self, rank: int) -> int:
        return 2 * self.dim * rank + rank + self.dim

    def _sum(self, genome: Genome, experts: Callable[[Gene], int]) -> int:
        norm = 2 * self.dim
        own = sum(
            len(gene.roles) * (gene.experts * self.dim + experts(gene) + self.norms * norm)
            for gene in genome
        )
        return own + self.final_norm * norm


class Stopwatch:
    """Measures the latency of architectures on one clip, in eval mode.

    Args:
        backbone: a frozen backbone without inserted modules; copied for every measurement.
        method: the method of the supernet.
        features: normalised features of one clip [1, T, F], on the device to measure on.
        passes: number of forward passes; the mean leaves out a tenth at either end.
    """

    def __init__(self, backbone: Backbone, method: AutoMoE, features: Tensor, passes: int) -> None:
        self.backbone, self.method = backbone, method
        self.features, self.passes = features, passes

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens per clip, special ones included."""
        with torch.inference_mode():
            device = next(self.backbone.parameters()).device
            return self.backbone(self.features.to(device)).shape[1]

    @torch.inference_mode()
    def measure(self, genome: Genome, times: int = 1) -> float:
        """Milliseconds per forward pass of a model with only this architecture.

        Args:
            genome: the architecture.
            times: multiplies the number of passes.
        """
        backbone = copy.deepcopy(self.backbone)
        model = AudioClassifier(backbone, self.method.fixed(genome), 1, "all")
        model.to(self.features.device).eval()
        for _ in range(WARM_UP):
            model(self.features)
        return 1000 * trimmed_mean([self._seconds(model) for _ in range(times * self.passes)])

    def _seconds(self, model: AudioClassifier) -> float:
        on_gpu = self.features.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(self.features)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean without the smallest and the largest tenth."""
    cut = int(TRIMMED * len(values))
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Latency as a linear function of an architecture's sizes, fitted to measurements.

    Attributes:
        weights: coefficients of `sizes`.
        error_ms: mean absolute error on measurements to which it was not fitted.
        samples: number of measurements.
    """

    weights: list[float]
    error_ms: float
    samples: int

    @classmethod
    def fit(cls, genomes: Sequence[Genome], milliseconds: Sequence[float]) -> "Predictor":
        """Fit by least squares; the error is that of five-fold cross-validation."""
        x, y = np.array([sizes(genome) for genome in genomes]), np.array(milliseconds)
        errors: list[float] = []
        for part in range(5):
            out = np.arange(len(y)) % 5 == part
            if out.any() and not out.all():
                errors += np.abs(x[out] @ _least_squares(x[~out], y[~out]) - y[out]).tolist()
        error = float(np.mean(errors)) if errors else 0.0
        return cls(_least_squares(x, y).tolist(), error, len(y))

    @classmethod
    def sample(
        cls, space: Space, count: int, seed: int, measure: Callable[[Genome], float]
    ) -> "Predictor":
        """Fit to random architectures of a space, among them the smallest and the largest."""
        rng = Random(seed)
        drawn = [space.random(rng) for _ in range(count - 2)]
        genomes = [space.smallest, space.largest, *drawn]
        return cls.fit(genomes, [measure(genome) for genome in genomes])

    def __call__(self, genome: Genome) -> float:
        """Milliseconds."""
        return float(np.dot(self.weights, sizes(genome)))

    def as_dict(self) -> dict[str, Any]:
        """The predictor as plain values."""
        return dataclasses.asdict(self)


class Costs:
    """Every cost of an architecture, and whether a budget admits it.

    Args:
        closed: costs in closed form.
        budget: the largest allowed value by cost.
        latency: milliseconds of a genome; called once for each, and only if the budget bounds
            latency.
    """

    def __init__(
        self,
        closed: ClosedForm,
        budget: Mapping[str, float],
        latency: Callable[[Genome], float],
    ) -> None:
        self.closed, self.budget = closed, budget
        self._latency = functools.cache(latency)

    def of(self, genome: Genome) -> dict[str, float]:
        """The costs in closed form, and the latency if the budget bounds it."""
        costs = {name: getattr(self.closed, name)(genome) for name in CLOSED}
        if "latency_ms" in self.budget:
            costs["latency_ms"] = self._latency(genome)
        return costs

    def cost(self, name: str, genome: Genome) -> float:
        """One cost of an architecture."""
        return getattr(self.closed, name)(genome) if name in CLOSED else self._latency(genome)

    def admits(self, genome: Genome) -> bool:
        """Whether every bound holds; latency is checked last."""
        names = sorted(self.budget, key=list(COSTS).index)
        return all(self.cost(name, genome) <= self.budget[name] for name in names)

    def refuse_less_than(self, smallest: Genome) -> None:
        """Refuse a budget that even the smallest architecture exceeds.

        Raises:
            RunError: the smallest architecture exceeds the budget.
        """
        for name, bound in self.budget.items():
            least = self.cost(name, smallest)
            if least > bound:
                raise RunError(
                    f"no architecture is within {name}={bound:g}: the smallest has {least:g}; "
                    "raise the budget, or allow smaller ones with `--peft.ranks` and "
                    "`--peft.places`"
                )


def sizes(genome: Genome) -> list[float]:
    """What latency is predicted from: 1, and the numbers of mixtures, experts and channels."""
    mixtures = sum(len(gene.roles) for gene in genome)
    experts = sum(len(gene.roles) * gene.experts for gene in genome)
    channels = sum(len(gene.roles) * sum(gene.ranks) for gene in genome)
    return [1.0, mixtures, experts, channels / 100]


def _least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y, rcond=None)[0]
