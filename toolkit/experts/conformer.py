"""Conformer experts: the convolution module of the Conformer, narrowed to a bottleneck."""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit.experts.base import Experts, without_padding
from toolkit.experts.batch_norm import batch_norm


class Conformer(Experts):
    """Norm, pointwise d -> 2r, GLU, depthwise convolution over tokens, batch norm, SiLU, r -> d.

    2312.03694, section 2.2. Padding is "same" with the surplus at the end: a kernel of 8 reads 3
    tokens before and 4 after. The experts' convolutions are one, grouped by channel.

    Args:
        num_experts, dim, width: as for `Experts`.
        kernel: width k of the depthwise convolution, in tokens.
        norm: apply the inner layer norm (the reference code for AST discards its result).
    """

    convolves: ClassVar[bool] = True

    def __init__(
        self, num_experts: int, dim: int, width: int, kernel: int, norm: bool = True
    ) -> None:
        super().__init__(num_experts, dim, width, widening=2)
        self.norm_weight = nn.Parameter(torch.ones(num_experts, dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_experts, dim))
        channels = num_experts * width
        self.depthwise = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.padding = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)
        self.kernel, self.normalise = kernel, norm

    def like(self, num_experts: int) -> "Conformer":
        """New conformers of these widths."""
        return Conformer(num_experts, self.dim, self.width, self.kernel, self.normalise)

    def projection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised input, with the norm's gain and bias folded into `down`."""
        if not self.normalise:
            return x, self.down, self.down_bias
        weight = self.down * self.norm_weight[:, None]
        bias = self.down_bias + (self.down @ self.norm_bias[..., None]).squeeze(-1)
        return functional.layer_norm(x, (self.dim,)), weight, bias

    def middle(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """GLU, depthwise convolution over tokens, batch norm and SiLU."""
        channels = rearrange(functional.glu(without_padding(hidden, mask)), "b t e r -> b (e r) t")
        channels = self.depthwise(functional.pad(channels, self.padding))
        channels = functional.silu(self._batch_norm(channels, mask))
        return rearrange(channels, "b (e r) t -> b t e r", e=self.num_experts)

    def _batch_norm(self, channels: Tensor, mask: Tensor | None) -> Tensor:
        """Normalise [B, C, T]; padding has no part in the statistics."""
        if mask is None:
            return batch_norm(self.batch_norm, channels)
        tokens = rearrange(channels, "b c t -> b t c")
        normed = torch.zeros_like(tokens)
        normed[mask] = batch_norm(self.batch_norm, tokens[mask]).to(normed.dtype)
        return rearrange(normed, "b t c -> b c t")
