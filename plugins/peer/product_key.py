"""Product keys: find the best of n^2 keys without scoring all of them.

Every key is the concatenation of one of n first and one of n second halves (Lample et al., Large
Memory Layers with Product Keys, arXiv:1907.05242, section 3.1), so its score is a sum of two, and
the k best sums are among those of the k best first with the k best second halves.

Shapes: d_k query width, n sub-keys per half, k keys retrieved.
"""

import dataclasses
import math

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from toolkit.routing.precision import wide


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The keys that were retrieved for each query, best first.

    Attributes:
        scores: [..., k].
        indices: [..., k], numbers from 0 to n^2 - 1: first half times n plus second half.
    """

    scores: Tensor
    indices: Tensor


def best_sums(first: Tensor, second: Tensor, k: int) -> Retrieval:
    """The k largest of all n^2 sums `first[i] + second[j]`, exactly, in O(n + k^2) per query.

    Args:
        first, second: scores of the half keys [..., n].
        k: at most n^2.
    """
    size = first.shape[-1]
    kept = min(k, size)
    best_first, rows = first.topk(kept, dim=-1)
    best_second, columns = second.topk(kept, dim=-1)
    sums = rearrange(best_first, "... i -> ... i 1") + rearrange(best_second, "... j -> ... 1 j")
    scores, places = rearrange(sums, "... i j -> ... (i j)").topk(k, dim=-1)
    indices = rows.gather(-1, places // kept) * size + columns.gather(-1, places % kept)
    return Retrieval(scores, indices)


class ProductKeys(nn.Module):
    """n^2 keys of width d_k, stored as two tables of n halves.

    The halves start as a normal of variance 2 / d_k: with a query of unit variance (a normalised
    one), each half then gives scores of unit variance.

    Args:
        size: n.
        dim: d_k, an even number.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.halves = nn.Parameter(torch.empty(2, size, dim // 2))
        nn.init.normal_(self.halves, std=math.sqrt(2 / dim))

    def forward(self, query: Tensor, k: int) -> Retrieval:
        """Queries [..., d_k] -> the k keys with the largest scalar products."""
        query = rearrange(query, "... (half c) -> ... half c", half=2)
        first, second = einsum(query, wide(self.halves), "... half c, half n c -> half ... n")
        return best_sums(first, second, k)
