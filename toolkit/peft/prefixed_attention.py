"""Scaled-dot-product attention with learned keys and values, as transformers' attention function.

Apart from `insertion` because it needs transformers, which is slow to import.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PREFIXED = "toolkit_prefixed"
"""Name of the attention function, for a model's `config._attn_implementation`."""


def prefixed_attention(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over [B, h, T, d / h] and, where there are any, the attention's further keys.

    `attention.extra_keys_values` holds a module that returns keys and values [N, d].
    """
    extra: Any = getattr(attention, "extra_keys_values", None)
    if extra is not None:
        keys, values = extra[0]()
        key, value = _prepend(keys, key), _prepend(values, value)
        if mask is not None:  # everybody may look at them; masks are boolean or additive
            shown = mask.new_zeros(()) if mask.is_floating_point() else mask.new_ones(())
            mask = torch.cat([shown.expand(*mask.shape[:-1], len(keys)), mask], dim=-1)
        if options.get("position_bias") is not None:  # they have no place in the sequence
            options["position_bias"] = functional.pad(options["position_bias"], (len(keys), 0))
    options["is_causal"] = False
    return sdpa_attention_forward(attention, query, key, value, mask, **options)


def _prepend(rows: Tensor, old: Tensor) -> Tensor:
    """Rows [N, d] in front of [B, h, T, d / h]."""
    batch, heads = old.shape[:2]
    split = rearrange(rows.to(old.dtype), "n (h c) -> h n c", h=heads)
    return torch.cat([split.expand(batch, -1, -1, -1), old], dim=2)


AttentionInterface.register(PREFIXED, prefixed_attention)
AttentionMaskInterface.register(PREFIXED, sdpa_mask)
