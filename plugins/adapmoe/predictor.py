"""Which experts of the first mixture a clip will use: a small predictor, fitted to clips.

There is no earlier mixture whose tokens could guess for it, so AdapMoE (arXiv:2408.10284) trains a
predictor for the first layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from toolkit.backbones.base import Backbone
from toolkit.model import masked_mean

RIDGE = 0.1
"""Penalty on the weights, as a share of the mean squared length of the inputs."""


class Predictor(nn.Module):
    """Predicts the share of a clip's tokens that use each expert; linear.

    Args:
        dim: width d of its input.
        num_experts: E.

    Attributes:
        weight, bias: [E, d] and [E].
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("weight", torch.zeros(num_experts, dim))
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean tokens of clips [B, d] -> shares [B, E]."""
        return nn.functional.linear(tokens, self.weight, self.bias)

    def ranking(self, tokens: Tensor) -> list[int]:
        """The experts by their predicted shares of clips [B, d], the largest first."""
        order: list[int] = self(tokens).mean(dim=0).argsort(descending=True, stable=True).tolist()
        return order

    @torch.no_grad()
    def fit(self, tokens: Tensor, shares: Tensor) -> None:
        """Ridge regression.

        Args:
            tokens: mean tokens of clips, [N, d].
            shares: of each clip's tokens that use each expert, [N, E].
        """
        x, y = tokens.double(), shares.double()
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        products = (x - x_mean) @ (x - x_mean).T  # [N, N]: clips are fewer than channels
        penalty = RIDGE * products.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
        penalised = products + penalty * torch.eye(len(x), dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(penalised, y - y_mean).T @ (x - x_mean)
        self.weight.copy_(weight)
        self.bias.copy_(y_mean - weight @ x_mean)


def at_entrance(backbone: Backbone, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function with each clip's mean token [B, d] whenever clips enter the first block."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        front = backbone.prefix_tokens + backbone.prompt_tokens
        see(masked_mean(tokens, backbone.context.weights(tokens), front))

    return backbone.tokens.module.register_forward_hook(hook)
