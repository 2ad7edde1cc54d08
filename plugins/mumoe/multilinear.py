"""Experts as slices of one factorised tensor (Oldfield et al., Multilinear Mixture of Experts,
arXiv:2402.12550).

A layer of N experts is a weight tensor W [N, d + 1, o] (the last input is 1, which gives each
expert a bias), and `y_o = sum_{n, i} W[n, i, o] a_n x_i` with the gates a of a token. All experts
are evaluated for every token, but W is never formed: it is a sum of R outer products (CP) or a
ring of three cores (TR). A second mode of experts with its own gates makes N1 N2 experts
`W[n1, n2, i, o]` at the cost of N1 + N2.

Shapes: d and o widths of the layer's input and output, N_l experts of mode l, R rank.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import ConfigError

from .entmax import entmax15

GATES = {"entmax15": entmax15, "softmax": lambda scores: scores.softmax(dim=-1)}
RING = 4
"""Ranks of a tensor ring at its expert cores, r1 = r2 (as in the paper's experiments)."""
SPREAD = (1.0, 0.1)
"""Initial standard deviation of the experts' factors around 1, for the first and second mode.

The paper's code starts the second mode at exactly 1. Its experts are then all equal, their gates
have a gradient of zero, and only rounding errors can ever make them different.
"""


class MultilinearGates(nn.Module):
    """Gates of one mode of experts: `a = act(norm(x G))`; G starts at zero, so a starts at 1 / N.

    Args:
        dim: token width d.
        num_experts: N.
        act: `entmax15` or `softmax`.
        norm: over clips and tokens (`batch`, without gain and bias), over experts (`layer`), or
            `none`.
    """

    def __init__(self, dim: int, num_experts: int, act: str, norm: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, num_experts))
        self.act, self.kind = GATES[act], norm
        self.norm = nn.BatchNorm1d(num_experts, affine=False) if norm == "batch" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and a mask [B, T] of the real ones -> [B, T, N], sums to 1 over experts.

        Padding has no part in the statistics of the batch norm; its scores are 0.
        """
        scores = x @ self.weight
        if self.norm is not None:
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
            normed = self.norm(scores[real]).to(scores.dtype)
            scores = torch.zeros_like(scores).masked_scatter(real[..., None], normed)
        elif self.kind == "layer":
            scores = functional.layer_norm(scores, scores.shape[-1:])
        return self.act(scores)


class MultilinearLayer(nn.Module, ABC):
    """Base of the factorised layers `y_o = sum_{n, i} W[n, i, o] a_n x_i`.

    Args:
        modes: experts of each mode, (N1,) or (N1, N2).
        in_dim, out_dim: d and o.
        rank: R; in a ring, the rank between input and output.
    """

    def __init__(self, modes: Sequence[int], in_dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        shapes = self.shapes(modes, in_dim, out_dim, rank)
        self.experts = nn.ParameterList(torch.empty(shape) for shape in shapes[:-2])
        self.input, self.output = (nn.Parameter(torch.empty(shape)) for shape in shapes[-2:])
        self._reset(in_dim)

    @staticmethod
    @abstractmethod
    def shapes(modes: Sequence[int], in_dim: int, out_dim: int, rank: int) -> list[tuple[int, ...]]:
        """Shapes of all factors: of each expert mode, of the input, of the output."""

    @abstractmethod
    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Tokens [B, T, d] and the gates [B, T, N_l] of each mode -> [B, T, o]."""

    @abstractmethod
    def _reset(self, in_dim: int) -> None:
        """Initialise the factors as the paper's code does, except for `SPREAD`."""

    @classmethod
    def count(cls, modes: Sequence[int], in_dim: int, out_dim: int, rank: int) -> int:
        """Parameters of a layer, linear in the rank."""
        return sum(math.prod(shape) for shape in cls.shapes(modes, in_dim, out_dim, rank))


class CPLayer(MultilinearLayer):
    """W as a sum of R outer products: `y = U_O ((U_1^T a_1) * (U_2^T a_2) * (U_I^T x))`.

    Factors: U_l [N_l, R], U_I [d + 1, R], U_O [o, R].
    """

    @staticmethod
    def shapes(modes: Sequence[int], in_dim: int, out_dim: int, rank: int) -> list[tuple[int, ...]]:
        """U_1 [N1, R], (U_2 [N2, R],) U_I [d + 1, R] and U_O [o, R]."""
        return [(size, rank) for size in (*modes, in_dim + 1, out_dim)]

    def _reset(self, in_dim: int) -> None:
        for mode, factor in enumerate(self.experts):
            nn.init.normal_(factor, mean=1.0, std=SPREAD[mode])
        _uniform(self.input, fan_in=in_dim)
        _uniform(self.output, fan_in=self.output.shape[1])

    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Multiply the projections of input and gates, and project to the output."""
        hidden = functional.linear(x, self.input[:-1].T, self.input[-1])
        for factor, gate in zip(self.experts, gates, strict=True):  # one or two modes
            hidden = hidden * (gate @ factor)
        return functional.linear(hidden, self.output)


class TensorRingLayer(MultilinearLayer):
    """W as a ring of cores: `y_o = trace(A_1 A_2 X C_o)`, with A_l = sum_n a_l[n] A_l[n] and
    X = sum_i x_i X[:, i].

    Cores: A_l [N_l, 4, 4] (the paper's with its axes swapped: experts first, as everywhere here),
    X [4, d + 1, R], C [R, o, 4].
    """

    @staticmethod
    def shapes(modes: Sequence[int], in_dim: int, out_dim: int, rank: int) -> list[tuple[int, ...]]:
        """A_1 [N1, 4, 4], (A_2 [N2, 4, 4],) X [4, d + 1, R] and C [R, o, 4]."""
        return [
            *((size, RING, RING) for size in modes),
            (RING, in_dim + 1, rank),
            (rank, out_dim, RING),
        ]

    def _reset(self, in_dim: int) -> None:
        for mode, core in enumerate(self.experts):
            nn.init.zeros_(core)
            diagonals = core.detach().diagonal(dim1=1, dim2=2)  # a view, [N, 4]
            nn.init.normal_(diagonals, mean=1.0, std=SPREAD[mode])
        _uniform(self.input, fan_in=in_dim)
        _uniform(self.output, fan_in=self.output.shape[0] * RING)

    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Multiply the cores around the ring."""
        ring = einsum(x, self.input[:, :-1], "b t i, p i r -> b t p r") + self.input[:, -1]
        for core, gate in reversed(list(zip(self.experts, gates, strict=True))):
            ring = einsum(gate, core, "b t n, n p q -> b t p q") @ ring
        return einsum(ring, self.output, "b t p r, r o p -> b t o")


LAYERS: dict[str, type[MultilinearLayer]] = {"cp": CPLayer, "tr": TensorRingLayer}


class MultilinearBlock(nn.Module):
    """Two layers d -> b -> d that share the gates, GELU between; or one layer d -> d.

    The last layer starts at zero.

    Args:
        kind: `cp` or `tr`.
        modes: experts of each mode.
        dim: token width d.
        width: bottleneck b; None: one layer.
        rank: R of each layer.
        act, norm: as for `MultilinearGates`.
        input_norm: a layer norm in front of the first layer; gates read the tokens before it.
    """

    def __init__(
        self,
        kind: str,
        modes: Sequence[int],
        dim: int,
        width: int | None,
        rank: int,
        act: str,
        norm: str,
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = math.prod(modes)
        self.gates = nn.ModuleList(MultilinearGates(dim, size, act, norm) for size in modes)
        self.input_norm = nn.LayerNorm(dim) if input_norm else nn.Identity()
        layer = LAYERS[kind]
        self.down = None if width is None else layer(modes, dim, width, rank)
        self.up = layer(modes, dim if width is None else width, dim, rank)
        nn.init.zeros_(self.up.output)

    def route(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Tokens [B, T, d] and a mask [B, T] of the real ones -> the gates [B, T, N_l] per mode."""
        return [gates(x, mask) for gates in self.gates]

    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Tokens [B, T, d] and the gates of each mode -> [B, T, d]."""
        hidden = self.input_norm(x)
        if self.down is not None:
            hidden = functional.gelu(self.down(hidden, gates))
        out: Tensor = self.up(hidden, gates)
        return out

    @torch.no_grad()
    def silence(self, numbers: Sequence[int], mode: int = 0) -> None:
        """Take experts out for good: their slices of W become zero, those of others stay.

        The paper edits trained models so, to see what an expert is responsible for.

        Args:
            numbers: of experts.
            mode: of experts, 0 or 1; with two modes, all experts (n1, n2) that have one of these
                numbers there.

        Raises:
            ConfigError: there is no such expert.
        """
        sizes = [len(gates.weight.T) for gates in self.gates]
        if mode not in range(len(sizes)) or not set(numbers) <= set(range(sizes[mode])):
            raise ConfigError(
                f"there are no experts {list(numbers)} in mode {mode}: the modes have "
                f"{' and '.join(map(str, sizes))} experts, numbered from 0"
            )
        for layer in (self.down, self.up):
            if layer is not None:
                layer.experts[mode][list(numbers)] = 0

    @staticmethod
    def count(
        kind: str,
        modes: Sequence[int],
        dim: int,
        width: int | None,
        rank: int,
        input_norm: bool = False,
    ) -> int:
        """Parameters of a block, linear in the rank."""
        widths = (dim, dim) if width is None else (dim, width, dim)
        layers = sum(LAYERS[kind].count(modes, *pair, rank) for pair in pairwise(widths))
        return dim * sum(modes) + layers + 2 * dim * input_norm


def matched_rank(budget: int, count: Callable[[int], int]) -> int:
    """The smallest rank with at least `budget` parameters; below 1 if rank 1 already has more.

    Args:
        budget: number of parameters.
        count: rank -> number of parameters, a linear function.
    """
    slope = count(2) - count(1)
    return math.ceil((budget - (count(1) - slope)) / slope)


def joint(gates: Sequence[Tensor]) -> Tensor:
    """Gates [B, T, N_l] of one or two modes -> those of all experts [B, T, N1 N2], the products."""
    if len(gates) == 1:
        return gates[0]
    first, second = gates
    return einsum(first, second, "b t n, b t m -> b t n m").flatten(2)


def metrics(gates: Sequence[Tensor]) -> dict[str, Tensor]:
    """Statistics of the gates, averaged over tokens; detached.

    The gate of one of N1 N2 experts is the product of its gates in both modes.

    Args:
        gates: [M, N_l] of M tokens, for one or two modes.

    Returns:
        load: [N1 N2], mean gate of each expert; sums to 1.
        gate_entropy: entropy of a token's gates over its maximum: 1 is uniform, 0 is one expert.
        active_mean: mean number of experts with a gate above zero per token.
    """
    flat = [gate.detach() for gate in gates]
    tokens, experts = len(flat[0]), math.prod(gate.shape[1] for gate in flat)
    load = flat[0].mean(dim=0) if len(flat) == 1 else (flat[0].T @ flat[1]).flatten() / tokens
    entropy = sum(torch.special.entr(gate).sum(dim=1) for gate in flat)
    active = torch.stack([(gate > 0).sum(dim=1) for gate in flat]).prod(dim=0)
    return {
        "load": load,
        "gate_entropy": entropy.mean() / math.log(max(experts, 2)),
        "active_mean": active.float().mean(),
    }


def _uniform(factor: Tensor, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(factor, -bound, bound)
