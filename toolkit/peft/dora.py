"""DoRA: direction by LoRA, magnitude by itself (Liu et al., arXiv:2402.09353, equation 5)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Site
from toolkit.backbones.quantised import plain
from toolkit.peft.base import insertion
from toolkit.peft.lora import LoRA, LowRank, norm_of_rows
from toolkit.registry import PEFT


@PEFT.register("dora", paper="arXiv:2402.09353")
class DoRA(LoRA):
    """LoRA on the direction of each row of a weight, and a learned length of the row."""

    def update(self, site: Site, rank: int, scale: float) -> "Magnitude":
        """A low-rank update of the direction with a learned length per row."""
        return Magnitude(site.linear, rank, scale, self.dropout)

    def place(self, site: Site, update: LowRank) -> None:
        """Compute in place of the projection, whose weight the update needs."""
        insertion.reparametrise(site, self.registered_name, update)


class Magnitude(LowRank):
    """`m (W + s B A) x / |W + s B A| + b`, lengths by row and outside the graph.

    Args:
        linear: the projection, for the initial lengths m = |W|.
        rank: inner width r of the update B A.
        scale: factor s of the update.
        dropout: on its input.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(linear.in_features, linear.out_features, rank, scale, dropout)
        self.magnitude = nn.Parameter(norm_of_rows(plain(linear.weight.detach())).clone())

    def forward(self, x: Tensor, linear: nn.Linear) -> Tensor:  # type: ignore[override]
        """[..., in] -> [..., out], in place of `linear`."""
        direction = functional.linear(x, linear.weight) + super().forward(x)
        out = self.factor(linear) * direction
        return out if linear.bias is None else out + linear.bias

    def factor(self, linear: nn.Linear) -> Tensor:
        """Learned length over present length of each row, [out]."""
        with torch.no_grad():
            length = norm_of_rows(plain(linear.weight) + self.delta())
        # A row of zeros, as in pruned checkpoints, has no direction and stays zero.
        return self.magnitude / length.clamp(min=torch.finfo(length.dtype).tiny)

    def merge_into(self, linear: nn.Linear) -> None:
        """Add the update to the weight, then give each row its learned length."""
        factor = self.factor(linear)
        linear.weight.add_(self.delta()).mul_(factor[:, None])
