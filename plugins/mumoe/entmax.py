"""Entmax with alpha 1.5: a softmax that gives exact zeros (Peters et al., arXiv:1905.05702)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def entmax15(scores: Tensor) -> Tensor:
    """The distribution `max(scores / 2 - tau, 0)^2` over the last dimension, exactly.

    tau is the number that makes it sum to 1; it follows from the sorted scores (Peters et al.,
    appendix D) without iterations. Half precision is computed in float32.

    Args:
        scores: [..., N].

    Returns:
        [..., N], of the same type as the scores.
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    return _Entmax15.apply(exact).to(scores.dtype)


class _Entmax15(torch.autograd.Function):
    """`entmax15` with its exact Jacobian."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        """[..., N] -> [..., N]."""
        shifted = (scores - scores.amax(dim=-1, keepdim=True)) / 2
        # tau is now at least -1: lower scores get no gate, and would only cost precision.
        shifted = shifted.clamp(min=-2)
        gates = (shifted - _threshold(shifted)).clamp(min=0).square()
        ctx.save_for_backward(gates)
        return gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient times the Jacobian `diag(s) - s s^T / sum(s)`, where s^2 are the gates."""
        (gates,) = ctx.saved_tensors
        roots = gates.sqrt()
        mean = (roots * grad).sum(dim=-1, keepdim=True) / roots.sum(dim=-1, keepdim=True)
        return roots * (grad - mean)


def _threshold(scores: Tensor) -> Tensor:
    """tau of halved scores [..., N] whose maximum is 0: [..., 1].

    If the k largest scores are the support, `sum_i (z_i - tau)^2 = 1` over them is a quadratic
    equation with the smaller root `mean - sqrt((1 - k variance) / k)`; the support is the largest
    k whose root is not above its smallest score.
    """
    ordered = scores.sort(dim=-1, descending=True).values
    count = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    mean = ordered.cumsum(dim=-1) / count
    squares = ordered.square().cumsum(dim=-1) - count * mean.square()
    roots = mean - ((1 - squares) / count).clamp(min=0).sqrt()
    support = (roots <= ordered).sum(dim=-1, keepdim=True)
    return roots.gather(-1, support - 1)
