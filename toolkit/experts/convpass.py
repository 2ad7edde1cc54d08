"""Convpass experts (Jie and Deng, arXiv:2207.07039): a bottleneck with a convolution in it."""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit.experts.base import Experts, without_padding


class Convpass(Experts):
    """`up(dropout(q(conv(q(down(x))))))`, where q is QuickGELU.

    The convolution mixes the r channels of an expert over neighbouring tokens and starts as an
    identity. Without a grid it is one-dimensional, of width 3, over the sequence (what the papers'
    code intends). With a grid it is 3 x 3 over the patches, as in the original; the special tokens
    in front then pass through its centre only. Where patchout has dropped mel bands and times, the
    grid is that of the patches left; where it has dropped single patches, zeros stand in for them.

    Args:
        num_experts, dim, width: as for `Experts`.
        dropout: probability of dropping a channel before `up`.
        grid: patches (f, t) in frequency-major order, or None.
        prefix_tokens: special tokens in front of the patches.
        convolve: use the convolution (the reference code discards its result).
    """

    convolves: ClassVar[bool] = True

    def __init__(
        self,
        num_experts: int,
        dim: int,
        width: int,
        dropout: float = 0.0,
        grid: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        convolve: bool = True,
    ) -> None:
        super().__init__(num_experts, dim, width)
        channels = num_experts * width
        kind = nn.Conv1d if grid is None else nn.Conv2d
        self.conv = kind(channels, channels, 3, padding=1, groups=num_experts)
        self.dropout, self.grid, self.convolve = dropout, grid, convolve
        self.prefix_tokens = prefix_tokens
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)
        weight = self.conv.weight.detach()
        centre = weight[..., 1] if grid is None else weight[..., 1, 1]  # [E r, r]
        centre.copy_(torch.eye(width).repeat(num_experts, 1))

    def like(self, num_experts: int) -> "Convpass":
        """New convpass adapters of these widths."""
        return Convpass(
            num_experts,
            self.dim,
            self.width,
            self.dropout,
            self.grid,
            self.prefix_tokens,
            self.convolve,
        )

    def middle(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """QuickGELU, convolution, QuickGELU and dropout."""
        hidden = quick_gelu(without_padding(hidden, mask))
        if self.convolve:
            channels = rearrange(hidden, "b t e r -> b (e r) t")
            channels = self._over_grid(channels, self.grid) if self.grid else self.conv(channels)
            hidden = rearrange(channels, "b (e r) t -> b t e r", e=self.num_experts)
        return functional.dropout(quick_gelu(hidden), self.dropout, self.training)

    def _over_grid(self, channels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Convolve the patches of [B, C, prefix + f t] over their grid."""
        prefix, patches = channels.tensor_split([self.prefix_tokens], dim=2)
        dropped = None if self.context is None else self.context.dropped
        if dropped is not None:
            patches = patches if dropped.grid else dropped.spread(patches)
        f, t = (dropped and dropped.grid) or grid
        image = self.conv(rearrange(patches, "b c (f t) -> b c f t", f=f, t=t)).flatten(2)
        if dropped is not None and not dropped.grid:
            image = image[:, :, dropped.kept]
        points = rearrange(prefix, "b c p -> (b p) c 1 1")  # images of one pixel
        points = rearrange(self.conv(points), "(b p) c 1 1 -> b c p", b=len(channels))
        return torch.cat([points, image], dim=2)


def quick_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)
