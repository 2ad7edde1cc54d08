"""WavLM (Chen et al., arXiv:2110.13900), in transformers' own class."""

import types
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import AttentionInterface, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from toolkit.backbones.base import unwrapped
from toolkit.backbones.speech import SpeechBackbone, SpeechSource
from toolkit.registry import BACKBONES
from toolkit.settings import setting


class WavLMBackbone(SpeechBackbone):
    """WavLM behind roles; the first block makes the position bias of all of them."""

    def through_blocks(self, tokens: Tensor, block: int, **options: Any) -> Tensor:
        """Tokens through the blocks from `block` on, each of which gets the position bias."""
        bias = self._position_bias(tokens) if block < self.depth else None
        return super().through_blocks(tokens, block, **options, position_bias=bias)

    def _position_bias(self, tokens: Tensor) -> Tensor:
        """[B h, T, T], before the gates of each block."""
        first: Any = unwrapped(self.site(0, "mhsa").module)
        bias: Tensor = first.compute_bias(tokens.shape[1], tokens.shape[1])
        return bias.repeat(len(tokens), 1, 1)

    def _attention_mask(self, tokens: Tensor) -> Tensor | None:
        """[B, T], as `attend` takes it."""
        return self.context.frames


@BACKBONES.register("wavlm", paper="arXiv:2110.13900", model_type="wavlm")
class WavLM(SpeechSource):
    """WavLM, from the hub or from a local folder."""

    backbone_class = WavLMBackbone
    model_class, config_class = WavLMModel, WavLMConfig
    source: str = setting("microsoft/wavlm-base", "hub id, or a folder written by save_pretrained")

    def wrap(
        self, model: WavLMModel, extractor: Wav2Vec2FeatureExtractor, max_length: int
    ) -> SpeechBackbone:
        """Put WavLM behind roles, with an attention that calls its projections.

        The stock attention passes the weights of its projections to one function of torch and calls
        none of them, so that nothing could be inserted beside them.
        """
        for layer in model.encoder.layers:
            attention: Any = layer.attention
            attention.config = model.config
            attention.torch_multi_head_self_attention = types.MethodType(attend, attention)
        return super().wrap(model, extractor, max_length)


def attend(
    attention: Any, x: Tensor, mask: Tensor | None, position_bias: Tensor
) -> tuple[Tensor, None]:
    """Attention of WavLM through its projections and the attention function of its configuration.

    Args:
        attention: the stock module (`WavLMAttention`).
        x: tokens [B, T, d].
        mask: [B, T], one where a token is real; None: all are.
        position_bias: gated, [B h, T, T].

    Returns:
        [B, T, d], and None for the weights.
    """
    query, key, value = (
        rearrange(projection(x), "b t (h c) -> b h t c", h=attention.num_heads)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = rearrange(position_bias, "(b h) t s -> b h t s", h=attention.num_heads)
    if mask is not None:
        bias = bias.masked_fill(~rearrange(mask.bool(), "b s -> b 1 1 s"), -torch.inf)
    function = AttentionInterface().get_interface(
        attention.config._attn_implementation, sdpa_attention_forward
    )
    dropout = attention.dropout if attention.training else 0.0
    out, _ = function(
        attention, query, key, value, bias, dropout=dropout, scaling=attention.scaling
    )
    return attention.out_proj(out.flatten(2)), None
