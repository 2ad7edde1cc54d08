"""ODP, online dynamic pruning: a token keeps only the experts that weigh enough for it.

MC (arXiv:2410.06270, section 3.3), for any number of experts: an expert is dropped whose gate is
less than mu times the token's largest. Tokens to which much attention is paid keep all of theirs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, reduce
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import WRAPPED, Backbone
from toolkit.peft.mixture import RoutedMixture
from toolkit.routing import dense
from toolkit.routing.router import WrappedRouter

OBSERVED = "mc_moe_observed_"
"""With the name of an attention function behind it: that function, observed."""


def received(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much attention each token gets: its column's mean over heads and queries.

    AST attends in both directions, so every query counts for every token (a causal model's do only
    for earlier ones).

    Args:
        attention: [B, heads, queries, keys], rows sum to 1.
        mask: [B, queries], True for the queries that count; None: all do.

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
        attention: received by each of them, [B, T]; not needed where the share is 0 or 1.
        share: of a clip's real tokens, rounded up: those with the largest I = |t|_1 times
            attention received. 0 protects nothing.
        special: tokens in front (CLS, distillation) that are protected whatever their I.
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
    importance = tokens.abs().sum(dim=-1) * attention
    if mask is None:
        mask = torch.ones_like(marks)
    importance = importance.masked_fill(~mask, -math.inf)
    ranks = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return marks | (ranks < torch.ceil(share * mask.sum(dim=1, keepdim=True)))


def prune(gates: Tensor, mu: float | Tensor, protect: Tensor) -> Tensor:
    """Gates without the experts that weigh less than mu times the token's first.

    What is left is enlarged to the same sum: with two experts the survivor has weight 1.

    Args:
        gates: [B, T, E].
        mu: 0 drops nothing, infinity all but one expert.
        protect: [B, T], tokens that are left as they are.
    """
    first = functional.one_hot(gates.argmax(dim=-1), gates.shape[-1]).bool()
    heavy = gates >= mu * gates.amax(dim=-1, keepdim=True)
    return dense.kept(gates, heavy | first | protect[..., None])


class PruningRouter(WrappedRouter):
    """A mixture's router, with gates that are pruned.

    Args:
        mixture: its `router` makes gates [B, T, E] of tokens [B, T, d].
        share: of protected tokens.
        special: special tokens in front.
        attention: that of the same block, which keeps what each token received (`observe`).

    Attributes:
        mu: the threshold.
        counts: tokens, protected tokens, gates that were not zero, and those left, since the start;
            of real tokens, not of padding.
    """

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
    """Let every attention of a backbone keep what its tokens received, as `received` [B, T].

    The attention itself is computed as before. Its map is computed once more for this: T^2 numbers
    a head.
    """
    from transformers import AttentionInterface, AttentionMaskInterface  # slow to import
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    config = backbone.model.config
    stock = config._attn_implementation
    if stock.startswith(OBSERVED):
        return
    attend = AttentionInterface().get_interface(stock, sdpa_attention_forward)
    AttentionInterface.register(OBSERVED + stock, observing(attend))
    AttentionMaskInterface.register(OBSERVED + stock, sdpa_mask)
    config._attn_implementation = OBSERVED + stock


def observing(attend: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function that does as another one and keeps what was received."""

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
    """The stock attention of a block, whatever is wrapped around it."""
    module = backbone.site(block, "mhsa").module
    while hasattr(module, WRAPPED):
        module = getattr(module, WRAPPED)
    return module
