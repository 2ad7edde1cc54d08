"""ODP, online dynamic pruning: a token keeps only the experts with enough weight.

MC (arXiv:2410.06270, section 3.3), for any number of experts: an expert is dropped if its gate is
less than mu times the token's largest. Tokens that receive much attention keep all their experts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, reduce
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone, unwrapped
from toolkit.peft.mixture import RoutedMixture
from toolkit.routing import dense
from toolkit.routing.router import WrappedRouter

OBSERVED = "mc_moe_observed_"
"""Prefix of the name of an attention function that is observed."""


def received(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention that each token receives: the mean of its column over heads and queries.

    AST attends in both directions, so every query counts for every token (in a causal model, only
    for earlier ones).

    Args:
        attention: [B, heads, queries, keys], rows sum to 1.
        mask: [B, queries], True for the queries that count; None: all of them.

    Returns:
        [B, keys].
    """
    maps = reduce(attention, "b h q k -> b q k", "mean")
    if mask is None:
        return maps.mean(dim=1)
    return (maps * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def protected(
    tokens: Tensor,
    attention: Tensor | None,
    share: float,
    special: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Which tokens keep all their experts.

    Args:
        tokens: [B, T, d].
        attention: received by each token, [B, T]; not needed if the share is 0 or 1.
        share: share of a clip's real tokens to protect, rounded up: those with the largest
            I = |t|_1 times attention received. 0 protects nothing.
        special: number of tokens in front (CLS, distillation) that are always protected.
        mask: [B, T], True where a token is real; None: all are.

    Returns:
        [B, T], True for protected.
    """
    marks = torch.zeros_like(tokens[..., 0], dtype=torch.bool)
    if share == 0:
        return marks
    marks[:, :special] = True
    if share == 1:
        return torch.ones_like(marks)
    if attention is None:
        raise RuntimeError("call `observe` on the backbone before tokens are protected by share")
    importance = tokens.abs().sum(dim=-1) * attention
    if mask is None:
        mask = torch.ones_like(marks)
    importance = importance.masked_fill(~mask, -math.inf)
    ranks = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return marks | (ranks < torch.ceil(share * mask.sum(dim=1, keepdim=True)))


def prune(gates: Tensor, mu: float | Tensor, protect: Tensor) -> Tensor:
    """Drop the experts whose gate is below mu times the token's largest.

    The remaining gates are scaled up to the same sum: of two experts, the survivor has weight 1.

    Args:
        gates: [B, T, E].
        mu: 0 drops nothing, infinity drops all but one expert.
        protect: [B, T], tokens that keep all their experts.
    """
    first = functional.one_hot(gates.argmax(dim=-1), gates.shape[-1]).bool()
    heavy = gates >= mu * gates.amax(dim=-1, keepdim=True)
    return dense.kept(gates, heavy | first | protect[..., None])


class PruningRouter(WrappedRouter):
    """A mixture's router, whose gates are pruned.

    Args:
        mixture: its `router` makes gates [B, T, E] of tokens [B, T, d].
        share: share of protected tokens.
        special: number of special tokens in front.
        attention: the attention of the same block, which keeps what each token received.

    Attributes:
        mu: the threshold.
        counts: numbers of tokens, of protected tokens, of gates that were not zero, and of those
            left, since the start; padding is not counted.
    """

    mu: Tensor
    counts: Tensor

    def __init__(
        self, mixture: RoutedMixture, share: float, special: int, attention: nn.Module
    ) -> None:
        super().__init__(mixture.router)
        self.share, self.special = share, special
        self.mixture, self.attention = (mixture,), (attention,)  # references, not children
        self.register_buffer("mu", torch.zeros((), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(4, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and a mask [B, T] of the real ones -> [B, T, E]."""
        [mixture] = self.mixture
        gates = self.router(x, mask)
        attention = getattr(self.attention[0], "received", None)
        protect = protected(x, attention, self.share, self.special, mixture.mask)
        pruned = prune(gates, self.mu.to(gates.dtype), protect)
        numbers = (torch.ones_like(protect), protect, gates > 0, pruned > 0)
        self.counts += torch.stack([mixture.real(number).sum() for number in numbers])
        return pruned


def observe(backbone: Backbone) -> None:
    """Make every attention of a backbone keep what its tokens received, as `received` [B, T].

    The attention itself is computed as before. For this its map is computed once more: T^2 numbers
    per head.
    """
    from transformers import AttentionInterface, AttentionMaskInterface  # slow to import
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    config: Any = backbone.model.config
    stock: str = config._attn_implementation
    if stock.startswith(OBSERVED):
        return
    attend = AttentionInterface().get_interface(stock, sdpa_attention_forward)
    AttentionInterface.register(OBSERVED + stock, observing(attend))
    AttentionMaskInterface.register(OBSERVED + stock, sdpa_mask)
    config._attn_implementation = OBSERVED + stock


def observing(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an attention function so that it keeps the attention received."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Any:
        scores = einsum(query, key, "b h q d, b h k d -> b h q k") * options["scaling"]
        seen = None
        if mask is not None:  # True where there is something to see
            scores, seen = scores.masked_fill(~mask, -math.inf), mask.any(dim=(1, 2))
        module.received = received(scores.softmax(dim=-1), seen)
        return attend(module, query, key, value, mask, **options)

    return attention


def attention_of(backbone: Backbone, block: int) -> nn.Module:
    """The stock attention of a block, inside anything wrapped around it."""
    return unwrapped(backbone.site(block, "mhsa").module)
