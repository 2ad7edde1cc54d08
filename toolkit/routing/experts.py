"""Batched experts: N adapters evaluated as a few large matrix products, never a Python loop.

An expert maps tokens of width d to r channels, transforms these, and maps them back to d. What
differs between kinds is the middle; a single adapter is one expert. Shapes: B clips, E experts,
S slots an expert, T tokens.
"""

import math
from abc import ABC, abstractmethod

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


class Experts(nn.Module, ABC):
    """E adapters `up(middle(down(x)))`.

    Initialised so that every expert returns zero and still learns: `down` is Kaiming-uniform (as
    nn.Linear), `up` and all biases are zero.

    Args:
        num_experts: E.
        dim: token width d.
        width: channels r before `up`.
        widening: channels after `down`, in multiples of r.
    """

    def __init__(self, num_experts: int, dim: int, width: int, widening: int = 1) -> None:
        super().__init__()
        self.num_experts, self.dim, self.width = num_experts, dim, width
        self.down = nn.Parameter(torch.empty(num_experts, widening * width, dim))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, widening * width))
        self.up = nn.Parameter(torch.zeros(num_experts, dim, width))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, dim))
        bound = 1 / math.sqrt(dim)  # Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down, -bound, bound)

    @abstractmethod
    def middle(self, hidden: Tensor) -> Tensor:
        """Channels after `down` [B, T, E, w] -> channels before `up` [B, T, E, r]."""

    def projection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `down` reads, and its weight [E, w, d] and bias [E, w]; for kinds with a norm."""
        return x, self.down, self.down_bias

    def forward(self, slots: Tensor) -> Tensor:
        """[B, E, S, d] -> [B, E, S, d], group e through expert e."""
        batch = len(slots)
        x, down, bias = self.projection(rearrange(slots, "b e s d -> e (b s) d"))
        hidden = torch.baddbmm(bias[:, None], x, down.mT)
        hidden = self.middle(rearrange(hidden, "e (b s) w -> b s e w", b=batch))
        out = torch.baddbmm(
            self.up_bias[:, None], rearrange(hidden, "b s e r -> e (b s) r"), self.up.mT
        )
        return rearrange(out, "e (b s) d -> b e s d", b=batch)

    def mix(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Every expert on every token, summed with gates: sum_e g_e E_e(x).

        Both projections are one product over all experts and the gates act in the bottleneck, so
        that no tensor of E widths exists.

        Args:
            x: tokens [B, T, d].
            gates: [B, T, E]; None stands for ones.

        Returns:
            [B, T, d].
        """
        x, down, bias = self.projection(x)
        hidden = functional.linear(x, down.flatten(0, 1), bias.flatten())
        hidden = self.middle(rearrange(hidden, "b t (e w) -> b t e w", e=self.num_experts))
        up = rearrange(self.up, "e d r -> d (e r)")
        if gates is None:
            return functional.linear(hidden.flatten(2), up, self.up_bias.sum(dim=0))
        hidden = hidden * gates[..., None]
        return functional.linear(hidden.flatten(2), up) + gates @ self.up_bias


class Bottleneck(Experts):
    """Bottleneck adapters: `up(GELU(down(x)))` (Houlsby et al., arXiv:1902.00751)."""

    def middle(self, hidden: Tensor) -> Tensor:
        """See `Experts.middle`."""
        return functional.gelu(hidden)
