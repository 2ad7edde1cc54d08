"""Keeping padding out of stock encoders that mask it only in part."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.padding import real


class MaskedBackbone(Backbone):
    """A backbone whose attention masks padding; its masks are extended where prompts are added."""

    def __init__(self, model: nn.Module, **parts: Any) -> None:
        super().__init__(model, **parts)
        for number in range(self.depth):
            block = self.site(number, "block").module
            block.register_forward_pre_hook(self._extend_masks, with_kwargs=True)

    @property
    def needed(self) -> Tensor | None:
        """The real tokens, with those in front of them."""
        return self.context.mask

    def _extend_masks(
        self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Let every token see the prompts, which are missing from the stock encoder's masks.

        Where the encoder joins frames to tokens, its mask would count a half token as real, which
        the same clip without padding does not have.
        """
        more = {}
        for key, value in options.items():
            if key.endswith("attention_mask") and value is not None:
                if self.context.rate > 1:
                    more[key] = rearrange(self.context.mask, "b t -> b 1 1 t")
                elif self.prompt_tokens:
                    more[key] = with_prompts(value, self.prompt_tokens)
        return args, {**options, **more}


def with_prompts(mask: Tensor, count: int) -> Tensor:
    """A mask [B, T] or [B, 1, T, T] with `count` visible tokens in front, which see the same.

    Args:
        mask: boolean or integer (True is visible), or additive (0 is visible); the last axis is
            what is seen.
        count: prompts.
    """
    wider = functional.pad(mask, (count, 0), value=0 if mask.is_floating_point() else 1)
    if mask.ndim == 2:
        return wider
    return torch.cat([wider[..., :1, :].expand(-1, -1, count, -1), wider], dim=-2)


class MaskedGroupNorm(nn.Module):
    """A stock group norm with one channel per group, over the real frames of each clip only.

    Args:
        wrapped: the stock norm.

    Attributes:
        counts: real frames of each clip [B]; None: all are.
    """

    def __init__(self, wrapped: nn.GroupNorm) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.counts: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, T]."""
        if self.counts is None:
            normed: Tensor = self.wrapped(x)
            return normed
        x = x.float()
        mask, counts = real(self.counts, x.shape[-1])[:, None], self.counts[:, None, None]
        centred = x - (x * mask).sum(dim=-1, keepdim=True) / counts
        variance = (centred.square() * mask).sum(dim=-1, keepdim=True) / counts
        scale = self.wrapped.weight[:, None] * (variance + self.wrapped.eps).rsqrt()
        return torch.addcmul(self.wrapped.bias[:, None], centred, scale)
