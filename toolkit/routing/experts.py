"""Batched experts: N adapters evaluated as two batched matrix products, never a Python loop."""

import math

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional


class BottleneckExperts(nn.Module):
    """E bottleneck adapters, each `up(GELU(down(x)))`, on E groups of slots.

    Initialised so that every expert returns zero and still learns: `down` is Kaiming-uniform (as
    nn.Linear), `up` and all biases are zero.

    Args:
        num_experts: E.
        dim: token width d.
        bottleneck: inner width r.
    """

    def __init__(self, num_experts: int, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_experts, bottleneck, dim))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, bottleneck))
        self.up = nn.Parameter(torch.zeros(num_experts, dim, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, dim))
        bound = 1 / math.sqrt(dim)  # Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, slots: Tensor) -> Tensor:
        """[B, E, S, d] -> [B, E, S, d], group e through expert e."""
        hidden = einsum(slots, self.down, "b e s d, e r d -> b e s r")
        hidden = functional.gelu(hidden + rearrange(self.down_bias, "e r -> e 1 r"))
        out = einsum(hidden, self.up, "b e s r, e d r -> b e s d")
        return out + rearrange(self.up_bias, "e d -> e 1 d")
