"""Experts of unequal widths, packed: the channels of all experts lie side by side.

E adapters of widths r_1, ..., r_E are two matrix products over R = r_1 + ... + r_E channels,
without padding or a loop. The front of a batch of equal experts (the first experts, the first
channels of each) is such a pack too, which is how parts of a supernet are trained.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit.experts.bottleneck import Bottleneck


@dataclasses.dataclass(frozen=True)
class Pack:
    """Weights of adapters `up(GELU(down(x)))`.

    Attributes:
        down: [R, d].
        down_bias: [R].
        up: [R, d].
        up_bias: [E, d].
        owner: [R], the number of the expert that each channel belongs to.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    owner: Tensor

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.up_bias)

    def mix(self, x: Tensor, gates: Tensor) -> Tensor:
        """Apply every expert to every token and sum with gates: sum_e g_e E_e(x).

        Args:
            x: tokens [B, T, d].
            gates: [B, T, E].

        Returns:
            [B, T, d].
        """
        hidden = functional.gelu(functional.linear(x, self.down, self.down_bias))
        hidden = hidden * gates.index_select(-1, self.owner)
        return hidden @ self.up + gates @ self.up_bias


class RaggedExperts(nn.Module):
    """E bottleneck adapters, each with its own width; they are initialised like `Experts`.

    Args:
        dim: token width d.
        widths: r_1, ..., r_E.
    """

    owner: Tensor

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.widths = dim, tuple(widths)
        channels = sum(widths)
        self.down = nn.Parameter(torch.empty(channels, dim))
        self.down_bias = nn.Parameter(torch.zeros(channels))
        self.up = nn.Parameter(torch.zeros(channels, dim))
        self.up_bias = nn.Parameter(torch.zeros(len(widths), dim))
        self.register_buffer("owner", owners(widths), persistent=False)
        bound = 1 / math.sqrt(dim)
        nn.init.uniform_(self.down, -bound, bound)

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.widths)

    def pack(self) -> Pack:
        """All weights, without a copy."""
        return Pack(self.down, self.down_bias, self.up, self.up_bias, self.owner)

    def mix(self, x: Tensor, gates: Tensor) -> Tensor:
        """Apply every expert to every token and sum with gates."""
        return self.pack().mix(x, gates)

    @torch.no_grad()
    def load(self, pack: Pack) -> None:
        """Copy the weights of a pack of the same widths."""
        for name in ("down", "down_bias", "up", "up_bias"):
            getattr(self, name).copy_(getattr(pack, name))


def owners(widths: Sequence[int]) -> Tensor:
    """The expert of each channel: widths 2, 1 -> 0, 0, 1."""
    return torch.arange(len(widths)).repeat_interleave(
        torch.tensor(widths), output_size=sum(widths)
    )


def front(experts: Bottleneck, widths: Sequence[int]) -> Pack:
    """The first experts of a batch, and of each its first channels.

    The weights stay tied: the gradient of a pack goes to its part of the batch and is exactly zero
    elsewhere.

    Args:
        experts: a batch with at least as many experts, at least as wide.
        widths: r_1, ..., r_n.
    """
    device = experts.down.device
    owner = owners(widths).to(device)
    places = torch.cat([torch.arange(width) for width in widths]).to(device)
    return Pack(
        down=experts.down[owner, places],
        down_bias=experts.down_bias[owner, places],
        up=rearrange(experts.up, "e d r -> e r d")[owner, places],
        up_bias=experts.up_bias[: len(widths)],
        owner=owner,
    )
