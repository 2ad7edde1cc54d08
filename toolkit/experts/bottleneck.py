"""Bottleneck experts, the adapters of Houlsby et al., with a sparse path for many of them."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from toolkit.experts.base import Experts
from toolkit.routing.dispatch import in_blocks

SPARSE_FROM = 32
"""Number of experts from which skipping the unused ones pays off. A bottleneck is so narrow that
with fewer experts one large matrix product over all of them is faster than sorting the tokens
(measured in plugins/topk_moa)."""


class Bottleneck(Experts):
    """Bottleneck adapters: `up(GELU(down(x)))` (Houlsby et al., arXiv:1902.00751)."""

    def like(self, num_experts: int) -> "Bottleneck":
        """New bottlenecks of these widths."""
        return Bottleneck(num_experts, self.dim, self.width)

    def middle(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """GELU, channel by channel."""
        return functional.gelu(hidden)

    def mix_chosen(self, x: Tensor, gates: Tensor) -> Tensor:
        """`mix` for gates that are mostly zero.

        From `SPARSE_FROM` experts on, the time depends on the number of gates that are not zero and
        hardly on E.
        """
        if self.num_experts < SPARSE_FROM:
            return self.mix(x, gates)
        tokens, flat = x.flatten(0, 1), gates.flatten(0, 1)
        rows, chosen = flat.nonzero(as_tuple=True)
        blocks = in_blocks(chosen, self.num_experts)
        down, down_bias, up, up_bias = (
            tensor.index_select(0, blocks.owners)
            for tensor in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inputs = tokens.index_select(0, blocks.fill(rows).flatten()).view(-1, blocks.size, self.dim)
        hidden = self.middle(torch.baddbmm(down_bias[:, None], inputs, down.mT))
        gate = blocks.fill(flat[rows, chosen])[..., None].to(hidden.dtype)
        up = torch.cat([up, up_bias[..., None]], dim=-1)  # so that the gate scales the bias too
        out = blocks.read(torch.bmm(torch.cat([hidden * gate, gate], dim=-1), up.mT))
        return torch.zeros_like(tokens).index_add(0, rows, out.to(tokens.dtype)).view_as(x)

    def shared_out(self, x: Tensor, experts: Tensor) -> Tensor:
        """Pass each share of the clips through its expert alone; the time does not depend on E."""
        shares = rearrange(x, "(g b) t d -> g (b t) d", g=len(experts))
        down, down_bias, up, up_bias = (
            tensor[experts] for tensor in (self.down, self.down_bias, self.up, self.up_bias)
        )
        hidden = torch.baddbmm(down_bias[:, None], shares, down.mT)
        out = torch.baddbmm(up_bias[:, None], self.middle(hidden), up.mT)
        return rearrange(out, "g (b t) d -> (g b) t d", b=len(x) // len(experts))
