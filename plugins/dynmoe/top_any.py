"""Top-any gating: every expert decides for itself whether it takes a token.

Guo et al., Dynamic Mixture of Experts (arXiv:2405.14297). An expert's slot is alive or dead; dead
slots never fire, so experts can be added and removed in training.

Shapes: B clips, T tokens, d width, E slots (alive or dead).
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit import processes
from toolkit.routing import dense
from toolkit.routing.router import Router

MAX_TAU = 100.0
"""Largest learned factor of the cosines (as in the paper's code)."""

Gradient = Literal["deepspeed", "tutel"]
"""Whose gradient a gate has. Both gates are 1 / K for the K experts that fire on a token. In the
paper's code for DeepSpeed, K is a constant. In its code for Tutel, K has a gradient too, so only
differences between a token's experts matter."""


def firing(fired: Tensor) -> Tensor:
    """How many experts fire on each token, [B, T, E] -> [B, T, 1]; 0.5 where none does.

    It divides. A clamp at 1 would cut its gradient where one expert fires.
    """
    return fired.sum(dim=-1, keepdim=True).clamp(min=0.5)


@dataclasses.dataclass(frozen=True)
class TopAnyRouting:
    """Who takes which token.

    Attributes:
        scores: [B, T, E], sigmoid(tau cos(x, w_e)).
        fired: [B, T, E], 1 where an expert takes a token, else 0; where it is 1 its gradient is
            that of `scores - sigmoid(tau G_e)`, elsewhere it has none.
        uncovered: [B, T], True where no expert fired (before any fallback); never for padding.
        real: [B, T], bool, tokens that are not padding.
        kind: the gradient of `gates`.
    """

    scores: Tensor
    fired: Tensor
    uncovered: Tensor
    real: Tensor
    kind: Gradient = "deepspeed"

    @property
    def gates(self) -> Tensor:
        """[B, T, E], `fired` divided by the number of experts that fired (by 1 if none did)."""
        number = firing(self.fired)
        return self.fired / (number if self.kind == "tutel" else number.detach())


class TopAnyGate(Router):
    """Expert e fires on x if sigmoid(tau cos(x, w_e)) > sigmoid(tau G_e), i.e. cos > G_e.

    It decides in float32 whatever the precision around it, since a decision is not continuous.

    Args:
        dim: token width d.
        slots: E.
        alive: how many slots are alive at the start: the first ones.
        tau: factor of the cosines.
        learn_tau: train it, up to `MAX_TAU`.
        fallback: in evaluation, a token on which no expert fires goes to its best expert.
        gradient: see `Gradient`.

    Attributes:
        keys: w [E, d], orthogonal at the start.
        thresholds: G [E], 0 at the start.
        alive: [E], which slots can fire.
    """

    def __init__(
        self,
        dim: int,
        slots: int,
        alive: int,
        tau: float = 1.0,
        learn_tau: bool = False,
        fallback: bool = True,
        gradient: Gradient = "deepspeed",
    ) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(slots, dim))
        self.thresholds = nn.Parameter(torch.zeros(slots))
        log_tau = math.log(tau)
        self.log_tau = nn.Parameter(torch.tensor(log_tau)) if learn_tau else log_tau
        self.register_buffer("alive", torch.arange(slots) < alive)
        self.fallback, self.gradient = fallback, gradient
        nn.init.orthogonal_(self.keys)

    @property
    def tau(self) -> Tensor | float:
        """Factor of the cosines."""
        if isinstance(self.log_tau, nn.Parameter):
            return self.log_tau.clamp(max=math.log(MAX_TAU)).exp()
        return math.exp(self.log_tau)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and an optional mask [B, T] of real ones -> gates [B, T, E]."""
        return self.route(x, mask).gates

    def route(self, x: Tensor, mask: Tensor | None = None) -> TopAnyRouting:
        """Decide who takes which token; nothing fires on padding.

        Args:
            x: tokens [B, T, d].
            mask: [B, T], True where a token is real; None: all are.
        """
        with torch.autocast(x.device.type, enabled=False):
            unit = functional.normalize(x.to(self.keys.dtype), dim=-1)
            cosine = functional.linear(unit, functional.normalize(self.keys, dim=-1))
            tau = self.tau
            scores = torch.sigmoid(tau * cosine)
            margin = scores - torch.sigmoid(tau * self.thresholds)
            # Compared as cosines: both sigmoids round to 1 where tau is large.
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
            fires = (cosine > self.thresholds) & self.alive & real[..., None]
            hard = fires.to(scores.dtype)
            fired = hard + hard * (margin - margin.detach())  # straight through the sign alone
            uncovered = real & ~fires.any(dim=-1)
            if self.fallback and not self.training:
                best = scores.masked_fill(~self.alive, -1).argmax(dim=-1)
                one = functional.one_hot(best, len(self.keys)).to(fired.dtype)
                fired = torch.where(uncovered[..., None], one, fired)
        return TopAnyRouting(scores, fired, uncovered, real, self.gradient)


def diversity(keys: Tensor, alive: Tensor) -> Tensor:
    """|M * (W W^T - I)|_F of unit-length keys, where M masks all pairs but those that are alive.

    Args:
        keys: [E, d].
        alive: [E].
    """
    unit = functional.normalize(keys, dim=-1)
    excess = unit @ unit.T - torch.eye(len(keys), device=keys.device, dtype=keys.dtype)
    return torch.linalg.matrix_norm(excess * (alive[:, None] & alive))


def simplicity(keys: Tensor) -> Tensor:
    """Mean length of all keys [E, d], dead ones included."""
    return torch.linalg.vector_norm(keys, dim=-1).mean()


def balance(routing: TopAnyRouting, count: int | Tensor) -> Tensor:
    """A number of experts times sum_e (mean gate of e) (share of e), over the covered tokens.

    It is 1 if every token goes to one expert and `count` experts get equally many; the form in
    which the paper's later code writes the loss of GShard (arXiv:2006.16668). As there, the number
    of experts that fire on a token has a gradient in it, whichever gate is used.

    Args:
        routing: of the tokens.
        count: the number of experts: those alive, or all slots.
    """
    gates = (routing.fired / firing(routing.fired)).flatten(0, -2).sum(dim=0)
    shares = routing.fired.detach().flatten(0, -2).sum(dim=0)
    covered = (routing.real & ~routing.uncovered).sum()[None].to(gates.dtype)
    gates, shares, covered = processes.total(torch.cat([gates, shares, covered])).split(
        [len(gates), len(shares), 1]
    )
    covered = covered.clamp(min=1)
    return count * (gates / covered * shares / covered).sum()


def efficiency(routing: TopAnyRouting) -> Tensor:
    """Mean share of the slots that fire on a token, which the paper's later code penalises."""
    fired = routing.fired[routing.real]
    number = fired.new_tensor(fired.numel())
    total, number = processes.total(torch.stack([fired.sum(), number]))
    return total / number.clamp(min=1)


def metrics(routing: TopAnyRouting, alive: Tensor) -> dict[str, Tensor]:
    """Statistics of a gate, averaged over clips and tokens; detached.

    Returns:
        load, gate_entropy: those of `dense.metrics`, of the averaged gates.
        usage: [E], share of the tokens on which each expert fires.
        active_mean: mean number of experts that fire on a token.
        active_hist: [E + 1], share of the tokens on which 0, 1, ... E experts fire.
        uncovered: share of the tokens on which none fires, before the fallback.
        alive: number of alive slots.
        unused: share of these that fire on no token.
    """
    fired = (routing.fired.detach()[routing.real] > 0).float()
    active = fired.sum(dim=-1)
    counts = torch.arange(len(alive) + 1, device=active.device)
    usage = fired.flatten(0, -2).mean(dim=0)
    number = alive.sum().float()
    return {
        **dense.metrics(routing.gates[routing.real]),
        "usage": usage,
        "active_mean": active.mean(),
        "active_hist": (active.flatten()[:, None] == counts).float().mean(dim=0),
        "uncovered": routing.uncovered[routing.real].float().mean(),
        "alive": number,
        "unused": ((usage == 0) & alive).sum() / number,
    }
