"""Quantise weights to codes of a few bits, by rounding to nearest or by GPTQ.

Shapes: items E (experts), vectors V of length d; groups of consecutive weights of a vector share a
scale and a zero.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

SHRINKS = torch.linspace(1.0, 0.3, 15)
"""Parts of a group's range that are tried as the range of its codes."""

DAMPING = 0.01
"""GPTQ adds this multiple of the mean of its Hessian's diagonal to that diagonal."""

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""The smallest and largest positive numbers of half precision, which every scale is within."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """Weights at one width.

    Attributes:
        bits: bits per code.
        codes: uint8 [..., d].
        scale: half precision [..., groups].
        zero: uint8 [..., groups], the code of the weight 0; None at one bit.
        size: weights per group.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    size: int

    def __getitem__(self, items: list[int]) -> "Quantised":
        """Some of the items."""
        zero = None if self.zero is None else self.zero[items]
        return Quantised(self.bits, self.codes[items], self.scale[items], zero, self.size)

    def weights(self) -> Tensor:
        """The weights [..., d] that the codes mean.

        They are `scale (code - zero)`, or at one bit the scale with the sign of the code, in single
        precision or in that of the scale if it is higher.
        """
        scale = self.scale.float() if self.scale.dtype == torch.float16 else self.scale
        length = self.codes.shape[-1]
        scale = scale.repeat_interleave(self.size, dim=-1)[..., :length]
        if self.zero is None:
            return scale * (2 * self.codes.to(scale.dtype) - 1)
        zero = self.zero.repeat_interleave(self.size, dim=-1)[..., :length]
        return scale * (self.codes.to(scale.dtype) - zero.to(scale.dtype))


@dataclasses.dataclass(frozen=True)
class Levels:
    """The numbers that a group's codes mean.

    Attributes:
        bits: bits per code.
        scale, zero: as in `Quantised`, in single precision [..., 1] or broadcastable to weights.
    """

    bits: int
    scale: Tensor
    zero: Tensor

    def code(self, weights: Tensor) -> Tensor:
        """The codes of the nearest levels, as floats."""
        if self.bits == 1:
            return (weights >= 0).to(weights.dtype)
        return (weights / self.scale + self.zero).round().clamp(0, 2**self.bits - 1)

    def level(self, codes: Tensor) -> Tensor:
        """The numbers that codes mean."""
        return self.scale * (2 * codes - 1 if self.bits == 1 else codes - self.zero)

    def error(self, weights: Tensor) -> Tensor:
        """Sum of squared errors over the last axis, which is kept with size 1."""
        difference = self.level(self.code(weights)) - weights
        return difference.square().sum(dim=-1, keepdim=True)


def group_shape(length: int, group_size: int) -> tuple[int, int]:
    """Number and size of a vector's groups: as few as `group_size` allows, of equal size."""
    groups = math.ceil(length / group_size)
    return groups, math.ceil(length / groups)


def grouped(weights: Tensor, size: int) -> Tensor:
    """[..., d] -> [..., groups, size]; the last group is filled up with its last weight."""
    short = -weights.shape[-1] % size
    if short:
        last = weights[..., -1:].expand(*weights.shape[:-1], short)
        weights = torch.cat([weights, last], dim=-1)
    return weights.unflatten(-1, (-1, size))


def fit(groups: Tensor, bits: int) -> Levels:
    """The levels of each group [..., size].

    At one bit they are `sign(w) mean|w|`, as in the paper. At more bits they are the best of
    several ranges around zero (each a part of the group's range) and of the levels of the next
    lower width, which this width can represent too; so more bits never give a larger error.
    """
    if bits == 1:
        scale = _half(groups.abs().mean(dim=-1, keepdim=True))
        return Levels(1, scale, torch.zeros_like(scale))
    narrower = fit(groups, bits - 1)
    zero = torch.ones_like(narrower.zero) if bits == 2 else narrower.zero
    best = Levels(bits, narrower.scale.clamp(min=SMALLEST), zero)
    error = best.error(groups)
    low = groups.amin(dim=-1, keepdim=True).clamp(max=0)
    high = groups.amax(dim=-1, keepdim=True).clamp(min=0)
    for shrink in SHRINKS.tolist():
        scale = _half(shrink * (high - low) / (2**bits - 1)).clamp(min=SMALLEST)
        zero = (-shrink * low / scale).round().clamp(0, 2**bits - 1)
        levels = Levels(bits, scale, zero)
        found = levels.error(groups)
        better = found < error
        error = torch.where(better, found, error)
        best = Levels(
            bits,
            torch.where(better, scale, best.scale),
            torch.where(better, zero, best.zero),
        )
    return best


def _half(scale: Tensor) -> Tensor:
    """Round a scale to half precision, as it will be stored."""
    return scale.clamp(max=LARGEST).to(torch.float16).to(scale.dtype)


def nearest(weights: Tensor, bits: int, group_size: int) -> Quantised:
    """Round every weight to its nearest level.

    Args:
        weights: [..., d].
        bits: 1 to 8.
        group_size: most weights of a vector that share a scale.
    """
    length = weights.shape[-1]
    _, size = group_shape(length, group_size)
    groups = grouped(weights, size)
    levels = fit(groups, bits)
    codes = levels.code(groups).flatten(-2)[..., :length]
    return _quantised(bits, codes, levels.scale.squeeze(-1), levels.zero.squeeze(-1), size)


def gptq(
    weights: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int,
    inputs: Literal["within", "across"],
) -> Quantised:
    """GPTQ (Frantar et al., arXiv:2210.17323): the columns that follow compensate for the rounding
    error of each column.

    Args:
        weights: vectors [E, V, d].
        hessian: 2 X X^T of the inputs that the weights multiply, [E, n, n].
        bits, group_size: as for `nearest`.
        inputs: whether inputs run `within` vectors (n = d; a vector is a row of the matrix) or
            `across` them (n = V; a vector is a column).
    """
    _, size = group_shape(weights.shape[-1], group_size)
    factor = _inverse_factor(hessian)
    left = (weights if inputs == "within" else weights.mT).to(factor.dtype).clone()  # [E, m, n]
    rows, columns = left.shape[1:]
    codes, scales, zeros = [], [], []
    for column in range(columns):
        now = left[..., column]
        groups = now[..., None] if inputs == "within" else grouped(now, size)
        if inputs == "across" or column % size == 0:
            levels = fit(groups if inputs == "across" else left[..., column : column + size], bits)
            scales.append(levels.scale.squeeze(-1))
            zeros.append(levels.zero.squeeze(-1))
        code = levels.code(groups)
        level = levels.level(code).flatten(1)[:, :rows]
        codes.append(code.flatten(1)[:, :rows])
        error = (now - level) / factor[:, column, column, None]
        left[..., column:] -= error[:, :, None] * factor[:, None, column, column:]
    axis = 2 if inputs == "within" else 1  # vectors are rows of the matrix, or its columns
    stacked = [torch.stack(tensors, dim=axis) for tensors in (codes, scales, zeros)]
    return _quantised(bits, stacked[0], stacked[1], stacked[2], size)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian [E, n, n], in double precision.

    An input that never occurred gets a one on the diagonal: its column is simply rounded.
    """
    hessian = hessian.double()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(dim=1, keepdim=True) + (diagonal == 0)
    damped = hessian + torch.diag_embed(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _quantised(bits: int, codes: Tensor, scale: Tensor, zero: Tensor, size: int) -> Quantised:
    kept = None if bits == 1 else zero.to(torch.uint8)
    return Quantised(bits, codes.to(torch.uint8), scale.to(torch.float16), kept, size)
