"""Ragged dispatch: tokens sorted by expert into blocks that belong to one expert each.

A batched matrix product needs groups of equal size, but experts get unequal shares of the tokens.
Padding every expert to the largest share would compute E times that share; blocks waste less than
one block per expert, and no token is dropped (the idea of MegaBlocks, arXiv:2211.15841).
"""

import dataclasses

import torch
from torch import Tensor

BLOCK = 16
"""Rows per block: small, so that little is padded; large enough for an efficient matrix product."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The places of N choices in C blocks of `size` rows.

    Attributes:
        places: [N], the row of each choice among all C * size rows; no two are equal.
        owners: [C], the expert of each block.
        size: rows per block.
    """

    places: Tensor
    owners: Tensor
    size: int

    def fill(self, values: Tensor) -> Tensor:
        """One number per choice [N] -> blocks [C, size], zero in the rows without a choice."""
        empty = values.new_zeros(len(self.owners) * self.size)
        return empty.index_copy(0, self.places, values).view(-1, self.size)

    def read(self, blocks: Tensor) -> Tensor:
        """Blocks [C, size, d] -> choices [N, d]."""
        return blocks.flatten(0, 1).index_select(0, self.places)


def in_blocks(experts: Tensor, num_experts: int, size: int = BLOCK) -> Blocks:
    """Sort choices into blocks.

    Args:
        experts: the expert of each choice, [N].
        num_experts: E.
        size: rows per block.

    Returns:
        N // size + E blocks, which suffice for any shares (so their number is known beforehand).
    """
    counts = torch.zeros(num_experts, dtype=torch.long, device=experts.device)
    counts = counts.index_add(0, experts, torch.ones_like(experts))
    needed = (counts + size - 1) // size
    ends = needed.cumsum(dim=0)
    order = experts.argsort(stable=True)
    owner = experts[order]
    rank = torch.arange(len(experts), device=experts.device) - (counts.cumsum(0) - counts)[owner]
    places = torch.empty_like(experts)
    places[order] = (ends - needed)[owner] * size + rank
    numbers = torch.arange(len(experts) // size + num_experts, device=experts.device)
    owners = torch.searchsorted(ends, numbers, right=True).clamp(max=num_experts - 1)
    return Blocks(places, owners, size)
