"""What becomes of tokens on their way through the blocks: patches are dropped, or tokens merge.

Shapes: B clips, M tokens before and K after, N patches among them, of which the special tokens and
prompts in front are none.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Patches were dropped, the same ones in every clip.

    Attributes:
        kept: [N'], the numbers of the patches that are left, ascending.
        patches: N, how many there were.
        front: special tokens and prompts in front of them, none of which is dropped.
        grid: patches (f, t) that are left, if they still form a grid.
        sizes: of the tokens; None: each is one patch or less.
    """

    kept: Tensor
    patches: int
    front: int
    grid: tuple[int, int] | None
    sizes: ClassVar[None] = None

    @property
    def before(self) -> int:
        """M."""
        return self.front + self.patches

    @property
    def after(self) -> int:
        """K."""
        return self.front + len(self.kept)

    def __call__(self, tokens: Tensor) -> Tensor:
        """[B, M, d] -> [B, K, d]."""
        return torch.cat([tokens[:, : self.front], tokens[:, self.front :][:, self.kept]], dim=1)

    def spread(self, channels: Tensor) -> Tensor:
        """Channels [B, C, N'] of the patches that are left -> [B, C, N], zero where one was."""
        whole = channels.new_zeros(*channels.shape[:2], self.patches)
        return whole.index_copy(2, self.kept, channels)


@dataclasses.dataclass(frozen=True)
class Merged:
    """Tokens were merged into their mean, weighted by how many patches each stood for.

    Attributes:
        destinations: [B, M], the number of the token that each became part of.
        weights: [B, M], the patches that each stood for; a special token or prompt counts as one.
        sizes: [B, K], the patches that each of the new tokens stands for.
    """

    destinations: Tensor
    weights: Tensor
    sizes: Tensor

    @property
    def before(self) -> int:
        """M."""
        return self.destinations.shape[1]

    @property
    def after(self) -> int:
        """K."""
        return self.sizes.shape[1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """[B, M, d] -> [B, K, d]."""
        weighted = tokens * self.weights[..., None]
        sums = weighted.new_zeros(len(tokens), self.after, tokens.shape[-1])
        sums = sums.scatter_add(1, self.destinations[..., None].expand_as(weighted), weighted)
        return (sums / self.sizes[..., None]).to(tokens.dtype)


@torch.no_grad()
def matched(keys: Tensor, count: int, front: int, sizes: Tensor | None) -> Merged:
    """Bipartite soft matching (Bolya et al., arXiv:2210.09461, section 3).

    Patches are divided into two sets by turns. Each of the first set is linked to the most similar
    one of the second, and along the `count` strongest links the first merges into the second.

    Args:
        keys: [B, M, c], by whose cosine tokens are compared.
        count: tokens that merge into others; half of the patches at most.
        front: special tokens and prompts, which stay as they are.
        sizes: [B, M], the patches that each token stands for; None: one each.

    Returns:
        the merge; tokens that are left stay in their order.
    """
    batch, tokens = keys.shape[:2]
    weights = keys.new_ones(batch, tokens, dtype=torch.float32) if sizes is None else sizes
    directions = functional.normalize(keys[:, front:].float(), dim=-1)
    strength, partner = (directions[:, ::2] @ directions[:, 1::2].mT).max(dim=-1)  # [B, N / 2]
    merging = strength.topk(count, dim=-1).indices
    stays = torch.ones_like(weights, dtype=torch.bool)
    stays = stays.scatter(1, front + 2 * merging, False)
    places = stays.cumsum(dim=1) - 1
    target = places.gather(1, front + 2 * partner + 1)
    first = slice(front, None, 2)
    destinations = places.clone()
    destinations[:, first] = torch.where(stays[:, first], places[:, first], target)
    merged_sizes = weights.new_zeros(batch, tokens - count)
    merged_sizes = merged_sizes.scatter_add(1, destinations, weights)
    return Merged(destinations, weights, merged_sizes)
