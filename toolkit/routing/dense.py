"""Dense routing: every token goes to every expert, weighted by a softmax."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.routing.precision import wide, without_autocast
from toolkit.routing.router import Router


class DenseRouter(Router):
    """Gates g = softmax(W x + b) over experts in float32 (2402.00828, Dense-MoA).

    Args:
        dim: token width d.
        num_experts: E.
    """

    weighs_experts: ClassVar[bool] = True

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_experts)
        self.register_buffer("alive", torch.ones(num_experts, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, d] -> [B, T, E], sums to 1 over experts; for padding too."""
        with without_autocast(x):
            logits = functional.linear(wide(x), wide(self.linear.weight), wide(self.linear.bias))
            return logits.softmax(dim=-1).to(x.dtype)

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave only some experts, in this order."""
        keep_rows(self.linear, numbers)
        self.alive = self.alive[list(numbers)].clone()


@torch.no_grad()
def keep_rows(linear: nn.Linear, numbers: Sequence[int]) -> None:
    """Leave only some outputs of a linear layer, in this order."""
    rows = list(numbers)
    linear.weight = nn.Parameter(linear.weight[rows].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone())
    linear.out_features = len(rows)


def kept(gates: Tensor, keep: Tensor) -> Tensor:
    """Keep some of a token's experts and scale their gates up to the same sum.

    Args:
        gates: [..., E], not negative.
        keep: [..., E], True for the experts to keep; at least one per token that has any.
    """
    some = gates * keep
    total = some.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(gates.dtype).tiny)
    return some * (gates.sum(dim=-1, keepdim=True) / total)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p in nats, [..., E] -> [...]; unlike `entr`, with a finite gradient at 0."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=tiny).log()).sum(dim=-1)


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of values [N, ...] over N, with weights [N] or without."""
    if weights is None:
        return values.mean(dim=0)
    return torch.einsum("n, n ... -> ...", weights.to(values.dtype) / weights.sum(), values)


def metrics(gates: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Statistics of a gate, averaged over clips and tokens; detached.

    Args:
        gates: [..., E].
        weights: [...], what each token counts; None: all the same.

    Returns:
        load: [E], mean gate of each expert; sums to 1.
        gate_entropy: entropy of a token's gates over its maximum: 1 is uniform, 0 is one expert.
    """
    gates = gates.detach()
    experts = gates.shape[-1]
    entropy = torch.special.entr(gates).sum(dim=-1) / math.log(max(experts, 2))
    flat = None if weights is None else weights.flatten()
    return {
        "load": mean(gates.flatten(0, -2), flat),
        "gate_entropy": mean(entropy.flatten(), flat),
    }
