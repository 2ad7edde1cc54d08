"""Adaptive gating: a token leaves out its last experts where that can hardly change the loss.

AdapMoE (arXiv:2408.10284). With two experts of weights alpha and 1 - alpha, leaving out the second
moves the output by (1 - alpha)(E_1 - E_2), so to second order the loss by (1 - alpha)^2 S, S being
the sensitivity of the mixture's place; the second is left out where that is below T. With more
experts, the longest tail is left out whose mass, squared, times S is below T.
"""

import math

import torch
from torch import Tensor

from toolkit.peft.mixture import RoutedMixture
from toolkit.routing import dense
from toolkit.routing.router import WrappedRouter


def strongest(gates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest gates of a token and their experts, largest first, [..., K].

    Args:
        gates: [..., E].
        count: K; all, if there are not so many.

    Returns:
        weights that sum to 1, and numbers of experts.
    """
    values, experts = gates.topk(min(count, gates.shape[-1]), dim=-1)
    total = values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(gates.dtype).tiny)
    return values / total, experts


def tails(weights: Tensor) -> Tensor:
    """Weights [..., K], largest first -> masses [..., K - 1] of the tails that begin with the
    second, the third, ... expert; they do not increase."""
    return weights.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]


def adapt(gates: Tensor, count: int, threshold: float | Tensor) -> Tensor:
    """Gates of the K strongest experts without the longest tail that is below the threshold.

    Args:
        gates: [..., E].
        count: K.
        threshold: of the mass of a tail; 0 leaves K experts, infinity one.

    Returns:
        [..., E], of the same sum.
    """
    weights, experts = strongest(gates, count)
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[..., 1:] = tails(weights) >= threshold
    return dense.kept(gates, torch.zeros_like(gates, dtype=torch.bool).scatter(-1, experts, keep))


def threshold_of(budget: float, sensitivity: float) -> float:
    """The mass sqrt(T / S) below which a tail is left out.

    Args:
        budget: T, what leaving out may cost, 0 to infinity.
        sensitivity: S; where it is 0, nothing that is left out costs anything.
    """
    if budget == 0:
        return 0.0
    return math.sqrt(budget / sensitivity) if sensitivity > 0 else math.inf


def budget_for(costs: Tensor, tokens: int, target: float) -> float:
    """The least T with which a token has no more than so many experts on average.

    Args:
        costs: [any], mass^2 S of every tail of every token of every mixture.
        tokens: how many tokens these are of, counted once a mixture.
        target: experts a token.
    """
    left = int((target - 1) * tokens)  # tails that need not go
    if left >= costs.numel():
        return 0.0
    cheapest_to_go = costs.double().sort(descending=True).values[left].item()
    return math.nextafter(cheapest_to_go * (1 + 1e-6), math.inf)


class AdaptiveRouter(WrappedRouter):
    """A mixture's router, with gates that are cut to the K strongest and adapted.

    Args:
        mixture: its `router` makes gates [B, T, E] of tokens [B, T, d].
        count: K.

    Attributes:
        threshold: see `adapt`.
        active: [E + 1], how many tokens had 0, 1, ... experts since the start.
    """

    def __init__(self, mixture: RoutedMixture, count: int) -> None:
        super().__init__(mixture.router)
        self.count = count
        self.mixture = (mixture,)  # in a tuple: a reference, not a child
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        active = torch.zeros(mixture.num_experts + 1, dtype=torch.long)
        self.register_buffer("active", active, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and a mask [B, T] of the real ones -> [B, T, E]."""
        gates = self.router(x, mask)
        adapted = adapt(gates, self.count, self.threshold.to(gates.dtype))
        numbers = self.mixture[0].real((adapted > 0).sum(dim=-1))
        self.active += torch.bincount(numbers, minlength=len(self.active))
        return adapted

    def guess(self, x: Tensor) -> Tensor:
        """Which experts each token would use if `x` were to come here: the K strongest [B, T, K].

        Asked with the tokens of an earlier mixture: the residual stream changes slowly, so the
        answer is often right (gate reuse). The trained router answers, since what another tool put
        around it may ask for more than tokens; an expert with no gate is not guessed.
        """
        weights, experts = strongest(self.trained(x), self.count)
        return experts.where(weights > 0, experts[..., :1])
