"""Adaptive gating: a token skips its weakest experts where that can hardly change the loss.

AdapMoE (arXiv:2408.10284). With two experts of weights alpha and 1 - alpha, skipping the second
moves the output by (1 - alpha)(E_1 - E_2), and so, to second order, the loss by (1 - alpha)^2 S,
where S is the sensitivity at the mixture; the second expert is skipped where that is below T. With
more experts, the longest tail with mass^2 S below T is skipped.
"""

import math

import torch
from torch import Tensor

from toolkit.model import AudioClassifier
from toolkit.peft.mixture import RoutedMixture, routed_mixtures
from toolkit.routing import dense
from toolkit.routing.router import WrappedRouter


def strongest(gates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest gates of a token and their experts, largest first, [..., K].

    Args:
        gates: [..., E].
        count: K; all experts, if there are fewer.

    Returns:
        Weights that sum to 1, and the numbers of the experts.
    """
    values, experts = gates.topk(min(count, gates.shape[-1]), dim=-1)
    total = values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(gates.dtype).tiny)
    return values / total, experts


def tails(weights: Tensor) -> Tensor:
    """Masses [..., K - 1] of the tails that begin with the second, the third, ... expert.

    Args:
        weights: [..., K], largest first.
    """
    return weights.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]


def adapt(gates: Tensor, count: int, threshold: float | Tensor) -> Tensor:
    """The gates of the K strongest experts, without the longest tail below the threshold.

    Args:
        gates: [..., E].
        count: K.
        threshold: for the mass of a tail; 0 leaves K experts, infinity leaves one.

    Returns:
        [..., E], with the same sum.
    """
    weights, experts = strongest(gates, count)
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[..., 1:] = tails(weights) >= threshold
    return dense.kept(gates, torch.zeros_like(gates, dtype=torch.bool).scatter(-1, experts, keep))


def threshold_of(budget: float, sensitivity: float) -> float:
    """The mass sqrt(T / S) below which a tail is skipped.

    Args:
        budget: T, the largest cost of skipping experts, 0 to infinity.
        sensitivity: S; where it is 0, skipping costs nothing.
    """
    if budget == 0:
        return 0.0
    return math.sqrt(budget / sensitivity) if sensitivity > 0 else math.inf


def budget_for(costs: Tensor, tokens: int, target: float) -> float:
    """The smallest T with which a token has at most `target` experts on average.

    Args:
        costs: [any], mass^2 S of every tail of every token in every mixture.
        tokens: number of these tokens, counted once per mixture.
        target: experts per token.
    """
    left = int((target - 1) * tokens)  # tails that may stay
    if left >= costs.numel():
        return 0.0
    cheapest_to_go = costs.double().sort(descending=True).values[left].item()
    return math.nextafter(cheapest_to_go * (1 + 1e-6), math.inf)


class AdaptiveRouter(WrappedRouter):
    """A mixture's router, whose gates are cut to the K strongest and adapted.

    Args:
        mixture: its `router` makes gates [B, T, E] of tokens [B, T, d].
        count: K.

    Attributes:
        threshold: the threshold of `adapt`.
        active: [E + 1], how many tokens had 0, 1, ... experts since the start.
    """

    threshold: Tensor
    active: Tensor

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
        """Guess the K strongest experts [N, K] of the real tokens before they arrive here.

        `x` are tokens [B, T, d] at an earlier mixture: the residual stream changes slowly, so the
        guess is often right (gate reuse). The trained router guesses, since a router that another
        tool put around it may need more than tokens; an expert without a gate is not guessed.
        """
        weights, experts = strongest(self.trained(x), self.count)
        return self.mixture[0].real(experts.where(weights > 0, experts[..., :1]))


def adaptive_routers(model: AudioClassifier) -> dict[str, AdaptiveRouter]:
    """The routers that this tool has put around those of the mixtures, by site."""
    found = {site: m.router for site, m in routed_mixtures(model.backbone).items()}
    return {site: router for site, router in found.items() if isinstance(router, AdaptiveRouter)}
