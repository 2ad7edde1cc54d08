"""Soft mixture routing: every slot is a weighted mean of tokens, every token a mean of slots.

Puigcerver et al., From Sparse to Soft Mixtures of Experts (arXiv:2308.00951), section 2;
adapters as experts: Cappellazzo et al. (arXiv:2402.00828).

Shapes: B clips, T tokens, d width, E experts, S slots per expert.
"""

import dataclasses
import math

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from toolkit.routing import dense
from toolkit.routing.precision import wide, without_autocast


@dataclasses.dataclass(frozen=True)
class SoftRouting:
    """The weights into slots and out of them.

    Attributes:
        dispatch: [B, T, E, S], sums to 1 over tokens.
        combine: [B, T, E, S], sums to 1 over all E S slots.
    """

    dispatch: Tensor
    combine: Tensor

    def slots(self, x: Tensor) -> Tensor:
        """Make the inputs of the slots: tokens [B, T, d] -> [B, E, S, d]."""
        return einsum(self.dispatch.to(x.dtype), x, "b t e s, b t d -> b e s d")

    def tokens(self, y: Tensor) -> Tensor:
        """Mix slot outputs [B, E, S, d] back to tokens [B, T, d]."""
        return einsum(self.combine.to(y.dtype), y, "b t e s, b e s d -> b t d")


def route(
    x: Tensor,
    phi: Tensor,
    *,
    scale: Tensor | None = None,
    mask: Tensor | None = None,
    sizes: Tensor | None = None,
    noise_std: float = 0.0,
) -> SoftRouting:
    """Compute dispatch and combine weights from the logits x phi, in float32.

    Args:
        x: tokens [B, T, d].
        phi: slot embeddings [d, E, S].
        scale: if given, tokens and slot embeddings are scaled to unit length along d and the
            logits multiplied by this scalar (2308.00951, section 2.3). Only the logits use the
            normalised tokens; slots are means of the tokens themselves.
        mask: [B, T], True where a token is real; padding is left out of every slot. The slots of
            a clip without real tokens are zero.
        sizes: [B, T], how many patches each token stands for; a token has so many times its share
            of every slot. None: one each.
        noise_std: standard deviation of Gaussian noise added to the logits.
    """
    with without_autocast(x):
        routed, phi = wide(x), wide(phi)
        if scale is not None:
            routed = functional.normalize(routed, dim=-1)
            phi = wide(scale) * functional.normalize(phi, dim=0)
        logits = einsum(routed, phi, "b t d, d e s -> b t e s")
        if noise_std > 0:
            logits = logits + noise_std * torch.randn_like(logits)
        combine = rearrange(logits, "b t e s -> b t (e s)").softmax(dim=-1).view_as(logits)
        if sizes is not None:
            logits = logits + rearrange(sizes.log(), "b t -> b t 1 1")
        if mask is None:
            return SoftRouting(dispatch=logits.softmax(dim=1), combine=combine)
        real = rearrange(mask, "b t -> b t 1 1")
        # The lowest number and not -inf, of which a softmax over padding alone would make NaN.
        logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)
        return SoftRouting(dispatch=logits.softmax(dim=1) * real, combine=combine)


def normalised_over_experts(x: Tensor, phi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise tokens and slot embeddings the way the papers' code does.

    It divides slot embeddings by their length over the experts (axis 1) instead of over d, and
    makes the slots of the normalised tokens.

    Args:
        x, phi, scale: as for `route`; pass the result to `route` without a scale.
    """
    with without_autocast(x):
        tokens, phi = wide(x), wide(phi)
        tokens = tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-6)
        phi = wide(scale) * phi / (phi.norm(dim=1, keepdim=True) + 1e-6)
        return tokens.to(x.dtype), phi


def metrics(
    routing: SoftRouting, mask: Tensor | None = None, sizes: Tensor | None = None
) -> dict[str, Tensor]:
    """Statistics of a routing, averaged over clips and tokens; detached.

    Args:
        routing: of tokens [B, T, d].
        mask: [B, T], True where a token is real; None: all are.
        sizes: [B, T], how many patches each token counts for; None: one each.

    Returns:
        load: [E], share of the output that each expert makes; sums to 1.
        combine_entropy, dispatch_entropy: entropy of a token's slots and of a slot's tokens, each
            over its maximum: 1 is uniform, 0 is one-hot.
        slot_similarity: mean cosine between the dispatch weights of two different slots of a
            clip: 1 means that all slots read the same (collapse). 0 with a single slot.
    """
    dispatch = rearrange(routing.dispatch.detach(), "b t e s -> b t (e s)")
    combine = rearrange(routing.combine.detach(), "b t e s -> b t (e s)")
    slots = combine.shape[-1]
    columns = functional.normalize(dispatch, dim=1)
    cosine = einsum(columns, columns, "b t i, b t j -> b i j")
    others = cosine.sum(dim=(1, 2)) - slots
    if mask is None:
        mask = torch.ones_like(dispatch[..., 0], dtype=torch.bool)
    tokens = mask.sum(dim=1, keepdim=True)
    weights = None if sizes is None else sizes[mask]
    used = routing.combine.detach()[mask].sum(dim=-1)
    return {
        "load": dense.mean(used, weights),
        "combine_entropy": dense.mean(_entropy(combine[mask]), weights) / math.log(max(slots, 2)),
        "dispatch_entropy": (_entropy(dispatch.mT) / tokens.clamp(min=2).log()).mean(),
        "slot_similarity": (others / max(slots * (slots - 1), 1)).mean(),
    }


def _entropy(p: Tensor) -> Tensor:
    """Entropy along the last axis."""
    entropies: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropies
