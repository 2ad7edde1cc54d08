"""Task-specific expert pruning: a sparse mixture that ends training as a single adapter.

Chen et al., Task-Specific Expert Pruning for Sparse Mixture-of-Experts (arXiv:2206.00277), with
adapters as experts.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from toolkit import processes
from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft.base import insertion, setting
from toolkit.peft.topk import TopKMethod, TopKMixture, forget
from toolkit.registry import PEFT
from toolkit.routing.topk import TopKRouter

Criterion = Literal["alpha", "hit"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the settings of a schedule are where they are none.

    Attributes:
        windows, beta, criterion: settings of `ExpertPruning`.
    """

    windows: int
    beta: float
    criterion: Criterion


SCHEDULES = {"mc_smoe": Schedule(4, 0.1, "hit"), "growing": Schedule(10, 1.0, "alpha")}


@PEFT.register("expert_pruning", paper="arXiv:2206.00277")
class ExpertPruning(TopKMethod):
    """Task-specific expert pruning: experts are dropped in training until one is left."""

    schedule: Literal["mc_smoe", "growing"] = setting(
        "mc_smoe",
        "how experts are scored and dropped: as in the reproduction by the authors of MC-SMoE "
        "(mc_smoe), or against a threshold that grows from window to window (growing; ours)",
    )
    criterion: Criterion | None = setting(
        None,
        "an expert's score: its share of tokens' gates (alpha), or of their choices (hit); none: "
        "hit (mc_smoe) or alpha (growing)",
    )
    windows: int | None = setting(
        None,
        "windows W before `force_at`, at whose ends experts are dropped; none: 4 (mc_smoe) or 10 "
        "(growing)",
        minimum=1,
    )
    beta: float | None = setting(
        None,
        "experts with a score below this multiple of the mean are dropped, growing: below t/W of "
        "it after window t; none: 0.1 (mc_smoe) or 1 (growing)",
        minimum=0,
    )
    momentum: float = setting(
        0.6, "mc_smoe: share of the old scores when new ones are averaged in", minimum=0, maximum=1
    )
    every: int = setting(4, "mc_smoe: steps between two updates of the scores", minimum=1)
    force_at: float = setting(
        0.5,
        "share of the training after which only the best experts are left",
        minimum=0,
        maximum=1,
    )
    keep: int = setting(1, "experts that are never dropped: the best", minimum=1)
    w_balance: float = setting(
        0.0, "weight of the loss that balances experts; it works against pruning", minimum=0
    )

    def check(self) -> None:
        """Check that there are as many experts as are to be kept."""
        super().check()
        if self.keep > self.num_experts:
            raise ConfigError(
                f"{self.keep} of {self.num_experts} experts cannot be kept: lower 'keep' or raise "
                "'num_experts'"
            )

    @property
    def defaults(self) -> Schedule:
        """What the settings that are none mean."""
        return SCHEDULES[self.schedule]

    def mixture_of(self, experts: Experts, router: TopKRouter) -> "PrunedMixture":
        """A mixture that keeps its experts' scores."""
        return PrunedMixture(experts, router, self.criterion or self.defaults.criterion)

    @torch.no_grad()
    def on_step(
        self, backbone: Backbone, optimizer: Optimizer, step: int, total_steps: int
    ) -> None:
        """Score the experts and, at the end of a window, drop those with too low a score."""
        mixtures = [m for m in insertion.inserted(backbone) if isinstance(m, PrunedMixture)]
        seen = processes.total(torch.stack([mixture.take_seen() for mixture in mixtures]))
        threshold = self._threshold(step, total_steps)
        for mixture, row in zip(mixtures, seen, strict=True):
            if self.schedule == "growing":
                mixture.add(row)
            elif step % self.every == 0:
                mixture.average(row, self.momentum)
            if threshold is not None:
                mixture.drop_below(threshold, self.keep, optimizer, step)

    def _threshold(self, step: int, total_steps: int) -> float | None:
        """The threshold in multiples of the mean score; infinity drops all but the best experts.

        None: no window ends at this step.
        """
        force = max(1, int(self.force_at * total_steps))
        if step >= force:
            return math.inf
        windows = self.windows or self.defaults.windows
        window = step * windows // force
        if window == (step - 1) * windows // force:
            return None
        beta = self.defaults.beta if self.beta is None else self.beta
        return beta * window / windows if self.schedule == "growing" else beta


class PrunedMixture(TopKMixture):
    """A sparse mixture that keeps its experts' scores and can drop experts for good.

    Args:
        experts, router: as for `TopKMixture`.
        criterion: the setting of `ExpertPruning`.

    Attributes:
        score: [E], the expert's share of the training tokens, summed over steps or averaged
            exponentially; zero until it is first known.
        dropped_at: [E], the step at which an expert was dropped; 0: it is alive.
    """

    score: Tensor
    dropped_at: Tensor

    def __init__(self, experts: Experts, router: TopKRouter, criterion: Criterion) -> None:
        super().__init__(experts, router)
        self.criterion = criterion
        self.register_buffer("score", torch.zeros(experts.num_experts))
        self.register_buffer("dropped_at", torch.zeros(experts.num_experts, dtype=torch.long))
        # Of the passes since the last step; a buffer would be overwritten by the first process's.
        self._seen: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] -> [B, T, d]; in training the experts' shares are added up."""
        out = super().forward(x, mask)
        if self.training:
            self._observe(self.trained_router.routing_of(x, mask).gates.detach())
        if self.recording:
            self.records[-1] |= {
                "score": self.score / self.score.sum().clamp(min=1e-12),
                "dropped_at": self.dropped_at.float(),
            }
        return out

    def _observe(self, gates: Tensor) -> None:
        if self.criterion == "hit":
            gates = (gates > 0).to(gates.dtype)
        shares = functional.normalize(gates, p=1, dim=-1).sum(dim=(0, 1)).to(self.score.dtype)
        now = torch.cat([shares, shares.sum()[None]])
        self._seen = now if self._seen is None else self._seen + now

    def take_seen(self) -> Tensor:
        """The experts' shares of the tokens and their sum [E + 1], since the last call."""
        seen, self._seen = self._seen, None
        return self.score.new_zeros(len(self.score) + 1) if seen is None else seen

    def add(self, seen: Tensor) -> None:
        """Add the result of `take_seen` [E + 1], perhaps summed over processes, to the scores."""
        self.score += seen[:-1] / seen[-1].clamp(min=1)

    def average(self, seen: Tensor, momentum: float) -> None:
        """Average the result of `take_seen` [E + 1] into the scores; the first replaces them."""
        now = seen[:-1] / seen[-1].clamp(min=1)
        kept = momentum * self.score.any()
        self.score.copy_(kept * self.score + (1 - kept) * now)

    def drop_below(self, threshold: float, keep: int, optimizer: Optimizer, step: int) -> None:
        """Drop experts for good, but never the best ones.

        Args:
            threshold: in multiples of the mean score of the experts that are alive.
            keep: number of the best experts.
            optimizer: its state for the dropped experts is cleared.
            step: the present step, which `dropped_at` keeps.
        """
        alive = self.router.alive
        best = self.score.masked_fill(~alive, -1).topk(keep).indices
        gone = alive & (self.score < threshold * self.score[alive].mean())
        if threshold == math.inf:  # infinity times a mean of 0 would drop nothing
            gone = alive.clone()
        gone[best] = False
        alive &= ~gone
        self.dropped_at[gone] = step
        forget(optimizer, [*self.experts.parameters(), self.router.linear.weight], gone)
