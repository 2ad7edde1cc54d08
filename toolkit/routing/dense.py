"""Dense routing: every token goes to every expert, weighted by a softmax."""

import math

import torch
from torch import Tensor, nn


class DenseRouter(nn.Module):
    """Gates g = softmax(W x + b) over experts (2402.00828, Dense-MoA).

    Args:
        dim: token width d.
        num_experts: E.
    """

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, E], sums to 1 over experts."""
        return self.linear(x).softmax(dim=-1)


def kept(gates: Tensor, keep: Tensor) -> Tensor:
    """Only some of a token's experts, their gates enlarged in proportion to the same sum.

    Args:
        gates: [..., E], not negative.
        keep: [..., E], True for an expert of each token that has any.
    """
    some = gates * keep
    total = some.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(gates.dtype).tiny)
    return some * (gates.sum(dim=-1, keepdim=True) / total)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p in nats, [..., E] -> [...]; its gradient, unlike `entr`'s, is finite at 0."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=tiny).log()).sum(dim=-1)


def metrics(gates: Tensor) -> dict[str, Tensor]:
    """What a gate does, averaged over clips and tokens; detached.

    Returns:
        load: [E], mean gate of each expert; sums to 1.
        gate_entropy: of a token's gates, divided by its maximum: 1 is uniform, 0 is one expert.
    """
    gates = gates.detach()
    experts = gates.shape[-1]
    entropy = torch.special.entr(gates).sum(dim=-1) / math.log(max(experts, 2))
    return {"load": gates.flatten(0, -2).mean(dim=0), "gate_entropy": entropy.mean()}
