"""A pool of experts that are used by number: products with, and sums of, some rows of a table.

Rows are never gathered: neither the forward nor the backward pass makes a tensor of queries x rows
x width or of queries x pool. The two operations are each other's derivative, and both use
PyTorch's `embedding_bag`, which reads the table in place.

Shapes: M queries (tokens), K rows per query, N rows of a table, d width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def weighted_sum(weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Sum over each query's rows: sum_k weights[m, k] table[indices[m, k]].

    Args:
        weights: [M, K].
        table: [N, d].
        indices: [M, K], numbers of rows; a row may occur several times.

    Returns:
        [M, d].
    """
    return functional.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)


def products(x: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Scalar products of each query with its rows: x[m] . table[indices[m, k]].

    Args:
        x: [M, d].
        table: [N, d].
        indices: [M, K], numbers of rows; a row may occur several times.

    Returns:
        [M, K].
    """
    return _Products.apply(x, table, indices)


class _Products(torch.autograd.Function):
    """`products` as the derivative of `weighted_sum` by its weights, in the direction x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        """[M, d], [N, d], [M, K] -> [M, K]."""
        ctx.save_for_backward(x, table, indices)
        with torch.inference_mode(False), torch.enable_grad():
            x, table, indices = (_differentiable(tensor) for tensor in (x, table, indices))
            weights = torch.zeros(indices.shape, dtype=x.dtype, device=x.device, requires_grad=True)
            rows = weighted_sum(weights, table, indices)
            return torch.autograd.grad(rows, weights, x)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x and of the table: a weighted sum, and its derivative by the table."""
        x, table, indices = ctx.saved_tensors
        table = table.detach().requires_grad_()
        with torch.enable_grad():
            rows = weighted_sum(grad, table, indices)
        return rows.detach(), torch.autograd.grad(rows, table, x)[0], None


def _differentiable(tensor: Tensor) -> Tensor:
    """Detach a tensor; copy it if it was made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


class NeuronPool(nn.Module):
    """N experts of r neurons each, without biases: `e_i(x) = sum_j GELU(u_ij . x) v_ij`.

    `up` (v) starts at zero, so every expert first returns zero; `down` (u) is Kaiming-uniform, as
    in nn.Linear.

    Args:
        num_experts: N.
        dim: token width d.
        rank: neurons per expert, r.
    """

    def __init__(self, num_experts: int, dim: int, rank: int = 1) -> None:
        super().__init__()
        self.num_experts, self.rank = num_experts, rank
        self.down = nn.Parameter(torch.empty(num_experts, rank, dim))
        self.up = nn.Parameter(torch.zeros(num_experts, rank, dim))
        bound = 1 / math.sqrt(dim)  # Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, x: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
        """Sum each token's experts, multiplied by their gates.

        This is computed in the precision of the pool, whatever that of the tokens.

        Args:
            x: [M, d].
            gates: [M, K].
            indices: [M, K], numbers of experts.

        Returns:
            [M, d].
        """
        neurons = (indices[..., None] * self.rank + self._within).flatten(1)  # [M, K r]
        down, up = self.down.flatten(0, 1), self.up.flatten(0, 1)
        hidden = functional.gelu(products(x.to(down.dtype), down, neurons))
        hidden = hidden * gates.to(up.dtype).repeat_interleave(self.rank, dim=1)
        return weighted_sum(hidden, up, neurons).to(x.dtype)

    @property
    def _within(self) -> Tensor:
        return torch.arange(self.rank, device=self.down.device)
