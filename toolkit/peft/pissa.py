"""PiSSA: LoRA started from the principal components (Meng et al., arXiv:2404.02948)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Site
from toolkit.backbones.quantised import plain
from toolkit.errors import ConfigError
from toolkit.peft.lora import LoRA, LowRank
from toolkit.registry import PEFT


@PEFT.register("pissa", paper="arXiv:2404.02948")
class PiSSA(LoRA):
    """LoRA that trains the r largest singular components of a weight; the rest is frozen."""

    def check(self) -> None:
        """Refuse dropout, which would change the frozen weight's own components."""
        super().check()
        if self.dropout:
            raise ConfigError("PiSSA trains part of the weight itself: leave 'dropout' at 0")

    def update(self, site: Site, rank: int, scale: float) -> "Principal":
        """The largest singular components of the projection at a site."""
        return Principal(site.linear, rank, scale)


class Principal(LowRank):
    """`s (B A - B0 A0) x`, B0 A0 being the weight's principal components at the start.

    The frozen weight stays whole and the start is subtracted, which is the same as freezing the
    residual; the start is kept, since another machine's singular vectors need not be the same.

    Args:
        linear: the projection.
        rank: r.
        scale: s.
    """

    start_down: Tensor
    start_up: Tensor

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, rank, scale)
        if not linear.weight.is_meta:
            weight = plain(linear.weight.detach())
            u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
            root = (s[:rank] / scale).sqrt()
            with torch.no_grad():
                self.down.weight.copy_(root[:, None] * v[:rank])
                self.up.weight.copy_(u[:, :rank] * root)
        self.register_buffer("start_down", self.down.weight.detach().clone())
        self.register_buffer("start_up", self.up.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        down = torch.cat([self.down.weight, self.start_down])
        up = torch.cat([self.up.weight, -self.start_up], dim=1)
        return functional.linear(self.scale * functional.linear(x, down), up)

    def delta(self) -> Tensor:
        """What has been learned since the start, [out, in]."""
        return super().delta() - self.scale * self.start_up @ self.start_down
