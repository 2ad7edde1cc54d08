"""Task-specific expert pruning: a sparse mixture that is a single adapter when training ends.

Chen et al., Task-Specific Expert Pruning for Sparse Mixture-of-Experts (arXiv:2206.00277), with
adapters as experts.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from toolkit.backbones.base import Backbone
from toolkit.experts.base import Experts
from toolkit.peft.base import insertion, setting
from toolkit.peft.topk import TopKMethod, TopKMixture, forget
from toolkit.registry import PEFT
from toolkit.routing.topk import TopKRouter


@PEFT.register("expert_pruning", paper="arXiv:2206.00277")
class ExpertPruning(TopKMethod):
    """Task-specific expert pruning: experts are dropped while training until one is left."""

    criterion: Literal["alpha", "hit"] = setting(
        "alpha", "an expert's score: its share of tokens' gates (alpha), or of their choices (hit)"
    )
    windows: int = setting(
        10, "windows W before `force_at`; at a window's end experts go", minimum=1
    )
    beta: float = setting(
        1.0, "after window t an expert goes whose score is below beta t/W of the mean", minimum=0
    )
    force_at: float = setting(
        0.5, "share of the training after which but the best expert is left", minimum=0, maximum=1
    )
    w_balance: float = setting(
        0.0, "weight of the loss that balances experts; it works against pruning", minimum=0
    )

    def mixture_of(self, experts: Experts, router: TopKRouter) -> "PrunedMixture":
        """See `TopKMethod.mixture_of`."""
        return PrunedMixture(experts, router, self.criterion)

    @torch.no_grad()
    def on_step(
        self, backbone: Backbone, optimizer: Optimizer, step: int, total_steps: int
    ) -> None:
        """Score the experts; at the end of a window, drop those that score too little."""
        mixtures = [m for m in insertion.inserted(backbone) if isinstance(m, PrunedMixture)]
        seen = torch.stack([mixture.take_seen() for mixture in mixtures])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
        threshold = self._threshold(step, total_steps)
        for mixture, row in zip(mixtures, seen, strict=True):
            mixture.add(row)
            if threshold is not None:
                mixture.drop_below(threshold, optimizer, step)

    def _threshold(self, step: int, total_steps: int) -> float | None:
        """In multiples of the mean score; infinite: all but the best; None: no window ends."""
        force = max(1, int(self.force_at * total_steps))
        if step >= force:
            return math.inf
        window = step * self.windows // force
        ended = window > (step - 1) * self.windows // force
        return self.beta * window / self.windows if ended else None


class PrunedMixture(TopKMixture):
    """A sparse mixture that keeps its experts' scores and can drop experts for good.

    Args:
        experts, router: see `TopKMixture`.
        criterion: see `ExpertPruning`.

    Attributes:
        score: [E], sum over steps of the expert's share of the training tokens; of a dropped
            expert, what it was.
        dropped_at: [E], the step in which an expert was dropped; 0: it is alive.
    """

    def __init__(
        self, experts: Experts, router: TopKRouter, criterion: Literal["alpha", "hit"]
    ) -> None:
        super().__init__(experts, router)
        self.criterion = criterion
        self.register_buffer("score", torch.zeros(experts.num_experts))
        self.register_buffer("dropped_at", torch.zeros(experts.num_experts, dtype=torch.long))
        # Of the passes since the last step; a buffer would be overwritten by the first process's.
        self._seen: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `TopKMixture.forward`."""
        out = super().forward(x, mask)
        if self.training:
            self._observe()
        if self.recording:
            self.records[-1] |= {
                "score": self.score / self.score.sum().clamp(min=1e-12),
                "dropped_at": self.dropped_at.float(),
            }
        return out

    def _observe(self) -> None:
        gates = self.router.routing.gates.detach()
        if self.criterion == "hit":
            gates = (gates > 0).to(gates.dtype)
        shares = functional.normalize(gates, p=1, dim=-1).sum(dim=(0, 1)).to(self.score.dtype)
        now = torch.cat([shares, shares.sum()[None]])
        self._seen = now if self._seen is None else self._seen + now

    def take_seen(self) -> Tensor:
        """Of the passes since the last call: the experts' shares of the tokens, and their sum."""
        seen, self._seen = self._seen, None
        return self.score.new_zeros(len(self.score) + 1) if seen is None else seen

    def add(self, seen: Tensor) -> None:
        """Add to the scores what `take_seen` gave, [E + 1]."""
        self.score += seen[:-1] / seen[-1].clamp(min=1)

    def drop_below(self, threshold: float, optimizer: Optimizer, step: int) -> None:
        """Drop experts for good, but never the best one.

        Args:
            threshold: in multiples of the mean score of those that are alive.
            optimizer: forgets those that go.
            step: is remembered.
        """
        alive = self.router.alive
        best = self.score.masked_fill(~alive, -1).argmax()
        gone = alive & (self.score < threshold * self.score[alive].mean())
        if threshold == math.inf:  # infinity times a mean of 0 would drop nothing
            gone = alive.clone()
        gone[best] = False
        alive &= ~gone
        self.dropped_at[gone] = step
        forget(optimizer, [*self.experts.parameters(), self.router.linear.weight], gone)
