"""THOR: experts drawn at random, trained to agree; there is no router.

Zuo et al., Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260), with
adapters as experts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from toolkit import processes
from toolkit.backbones.base import Backbone, Placement
from toolkit.experts.base import Experts, by_expert
from toolkit.padding import TokenContext
from toolkit.peft.adapter import SingleAdapter
from toolkit.peft.base import Objective, insertion, setting
from toolkit.peft.blocks import BlockMethod
from toolkit.peft.mixture import Mixture
from toolkit.registry import PEFT
from toolkit.routing import dense

from . import stochastic

Draw = Literal["batch", "sample", "token"]
Infer = Literal["token", "sample", "mean", "merge"]
PASSES = 2


@PEFT.register("thor", paper="arXiv:2110.04260")
class THOR(BlockMethod):
    """Stochastic experts: two passes through randomly drawn adapters are trained to agree."""

    placement: Placement = setting("mhsa", "which sublayers get experts: mhsa, ffn or both")
    reduction: int = setting(128, "inner width is the token width divided by this", minimum=1)
    num_experts: int = setting(2, "adapters per site, E", minimum=1)
    every: int = setting(
        1, "experts at every n-th site, one adapter at the others (paper: 2)", minimum=1
    )
    alpha: float = setting(1.0, "weight of the consistency of the two passes", minimum=0)
    draw: Draw = setting(
        "batch", "what gets its own draw in training: batch, sample (clip) or token"
    )
    infer: Infer = setting(
        "token",
        "in evaluation: a fixed random expert per token or per sample (clip), the mean of all "
        "experts, or one expert with averaged weights (merge)",
    )
    seed: int = setting(0, "seed of the draws in evaluation", minimum=0, maximum=2**31)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Self:
        """Leave out `multi_label`, which bundles have from before the corpus decided it."""
        return super().from_mapping({k: v for k, v in values.items() if k != "multi_label"}, where)

    def insert(self, backbone: Backbone) -> None:
        """Insert experts or an adapter beside each sublayer, and the ledger in front of them."""
        ledger = Ledger(backbone.context)
        insertion.before(backbone.tokens, "thor", ledger)
        for number, site in enumerate(self.sites(backbone, self.placement)):
            insertion.parallel(site, "thor", self._module(backbone, number, ledger))
        if self.norms:
            self.train_norms(backbone, self.placement)

    def _module(self, backbone: Backbone, number: int, ledger: "Ledger") -> nn.Module:
        single = self.experts(backbone, 1)
        if number % self.every:
            return SingleAdapter(single, scale=1.0, learn_scale=False, residual=False)
        experts = self.experts(backbone, self.num_experts)
        table = stochastic.fixed_draws(self.num_experts, (self.seed << 16) + number)
        return StochasticMixture(experts, single, ledger, table, self.draw, self.infer)

    def training_losses(
        self,
        backbone: Backbone,
        forward: Callable[[Tensor], Tensor],
        features: Tensor,
        objective: Objective,
    ) -> dict[str, Tensor]:
        """The task's losses of two passes, and how far their predictions differ.

        Both passes are one larger batch, in which each half draws experts of its own.
        """
        if self.num_experts == 1 and not self.dropout:
            first = second = forward(features)  # nothing is random: the passes would be the same
        else:
            first, second = forward(torch.cat([features] * PASSES)).chunk(PASSES)
        consistency = objective.divergence(first, second)
        with torch.no_grad():
            both = torch.stack([objective.probabilities(x.float()) for x in (first, second)])
        _ledger(backbone).note(consistency, both.var(dim=0).mean())
        task = objective.loss(first) + objective.loss(second)
        return {"task": task, "consistency": self.alpha * consistency}

    def statistics(self, backbone: Backbone) -> dict[str, float | list[float]]:
        """What mixtures recorded, and what training has counted so far.

        Counted are how often each expert was drawn, over all sites, and the consistency and the
        variance of the predictions, averaged over recent steps.
        """
        ledger = _ledger(backbone)
        mixtures = [m for m in insertion.inserted(backbone) if isinstance(m, StochasticMixture)]
        return {
            **super().statistics(backbone),
            "draws": torch.stack([m.draws for m in mixtures]).sum(dim=0).tolist(),
            "consistency": ledger.consistency.item(),
            "prediction_variance": ledger.variance.item(),
        }


def _ledger(backbone: Backbone) -> "Ledger":
    return next(m for m in insertion.inserted(backbone) if isinstance(m, Ledger))


class Ledger(nn.Module):
    """What all sites share: keys of the clips in a batch, and how far two passes disagreed.

    Args:
        context: which tokens of the batch are real.

    Attributes:
        keys: [B], an integer per clip of the batch being evaluated.
        consistency, variance: averages over recent training steps.
    """

    consistency: Tensor
    variance: Tensor

    def __init__(self, context: TokenContext) -> None:
        super().__init__()
        self.context = context
        self.register_buffer("consistency", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))
        self.keys: Tensor | None = None

    @property
    def clips(self) -> Tensor:
        """`keys`, which are known in evaluation only."""
        if self.keys is None:
            raise RuntimeError("call the model in eval mode before asking for gates by sample")
        return self.keys

    def forward(self, features: Tensor) -> Tensor:
        """Note the clips of a batch and return its features [B, T, F] unchanged."""
        self.keys = None if self.training else stochastic.clip_keys(features, self.context.mask)
        return features

    def note(self, consistency: Tensor, variance: Tensor) -> None:
        """Average a training step into the record."""
        self.consistency.lerp_(consistency.detach().to(self.consistency), 0.1)
        self.variance.lerp_(variance.detach().to(self.variance), 0.1)


class StochasticMixture(Mixture):
    """One expert per token, drawn at random in training and read from a table in evaluation.

    Args:
        experts: E experts of width d.
        single: one expert of the same kind, whose weights are not used.
        ledger: knows the clips of the batch.
        table: fixed draws, made by `stochastic.fixed_draws`.
        draw, infer: the settings of `THOR`.

    Attributes:
        draws: [E], how often each expert was drawn in training (by the first process).
    """

    experts: Experts
    table: Tensor
    draws: Tensor

    def __init__(
        self,
        experts: Experts,
        single: Experts,
        ledger: Ledger,
        table: Tensor,
        draw: Draw,
        infer: Infer,
    ) -> None:
        super().__init__()
        self.experts, self.draw, self.infer = experts, draw, infer
        self.single, self.ledger = (single.eval(),), (ledger,)  # in tuples: not children
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("draws", torch.zeros(experts.num_experts, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        if self.training:
            return self._through_drawn(x)
        gates = self.gates(x)
        self._record(x, gates)
        return self.merged(x) if self.infer == "merge" else self.experts.mix(x, gates)

    def _through_drawn(self, x: Tensor) -> Tensor:
        number, (clips, tokens) = self.experts.num_experts, x.shape[:2]
        passes = 1 if clips % PASSES else PASSES
        shape = {"batch": (passes,), "sample": (clips, 1), "token": (clips, tokens)}[self.draw]
        draws = stochastic.uniform_draws(shape, number, x.device)
        if self.draw == "batch":
            draws = processes.first(draws)  # the batch of the whole job
        counted = self.real(draws) if self.draw == "token" else draws.flatten()
        self.draws += functional.one_hot(counted, number).sum(dim=0)
        if self.draw == "batch":
            shares = rearrange(draws.repeat_interleave(clips // passes), "b -> b 1")
            self._record(x, stochastic.one_hot(shares, number, x))
            return self.experts.shared_out(x, draws)
        gates = stochastic.one_hot(draws, number, x)
        self._record(x, gates)
        return self.experts.mix(x, gates)

    def _record(self, x: Tensor, gates: Tensor) -> None:
        if self.recording:
            self.records.append(dense.metrics(self.real(gates), self.real_sizes(x)))

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gates [B, T, E] in evaluation; for `merge`, those of the mean of all experts."""
        number, (clips, tokens) = self.experts.num_experts, x.shape[:2]
        if self.infer == "token":
            places = torch.arange(tokens, device=x.device)
            draws = stochastic.look_up(self.table, rearrange(places, "t -> 1 t"))
        elif self.infer == "sample":
            keys = self.ledger[0].clips
            draws = stochastic.look_up(self.table, rearrange(keys, "b -> b 1"))
        else:
            return x.new_full((clips, tokens, number), 1 / number)
        return stochastic.one_hot(draws, number, x)

    def merged(self, x: Tensor) -> Tensor:
        """[B, T, d] through one expert whose weights are the mean of all experts' weights."""
        number = self.experts.num_experts
        tensors = self.experts.state_dict(keep_vars=True)
        mean = {n: by_expert(t, number).mean(dim=0) if t.ndim else t for n, t in tensors.items()}
        slots = rearrange(x, "b t d -> b 1 t d")
        merged = functional_call(self.single[0], mean, (slots, self.mask))
        return rearrange(merged, "b 1 t d -> b t d")
