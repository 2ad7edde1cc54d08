"""LoRA: a low-rank update beside frozen projections (Hu et al., arXiv:2106.09685, section 4.1)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, insertion, quirk, setting
from toolkit.peft.blocks import REFERENCE_STD, bottleneck_width
from toolkit.registry import PEFT

Target = Literal["q", "k", "v", "o", "up", "down"]
ROLE_OF = {
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "o": "attn.o",
    "up": "ffn.up",
    "down": "ffn.down",
}


class LinearMethod(PeftMethod):
    """Base of the methods that change projections."""

    targets: list[Target] = setting(["q", "v"], "projections: q, k, v, o, up, down")

    def check(self) -> None:
        """A target must be named, and none twice."""
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"'targets' must name projections, each once, not {self.targets}")

    def target_sites(self, backbone: Backbone) -> list[Site]:
        """The projections to change."""
        return list(self.sites(backbone, *(ROLE_OF[target] for target in self.targets)))


@PEFT.register("lora", paper="arXiv:2106.09685")
class LoRA(LinearMethod):
    """Low-rank updates of projections: W + (alpha / rank) B A."""

    rank: int = setting(6, "rank r of each update", minimum=1)
    reduction: int | None = setting(
        None, "instead of `rank`: the rank is the input width divided by this", minimum=1
    )
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", above=0)
    dropout: float = setting(0.0, "dropout on the update's input", minimum=0, below=1)
    scale_by_reduction: bool | None = quirk("the update is scaled by alpha / reduction")
    reference_init: bool | None = quirk("A and B start as a truncated normal of std 0.02")

    def check(self) -> None:
        """Refuse the reference code's scale without the `reduction` that it divides by."""
        super().check()
        if self.is_on("scale_by_reduction") and self.reduction is None:
            raise ConfigError("the reference code scales by alpha / reduction: give 'reduction'")

    def insert(self, backbone: Backbone) -> None:
        """One update in parallel to each target."""
        for site in self.target_sites(backbone):
            rank = self.rank_at(site)
            update = self.update(site, rank, self.scale_at(rank))
            if self.is_on("reference_init"):
                nn.init.trunc_normal_(update.down.weight, std=REFERENCE_STD)
                nn.init.trunc_normal_(update.up.weight, std=REFERENCE_STD)
            self.place(site, update)

    def rank_at(self, site: Site) -> int:
        """The rank of one site's update.

        Raises:
            ConfigError: it is larger than the projection.
        """
        rank = self.rank
        if self.reduction is not None:
            rank = bottleneck_width(site.in_dim, self.reduction)
        if rank > min(site.in_dim, site.out_dim):
            raise ConfigError(
                f"rank {rank} is larger than the projection {site.name} "
                f"({site.in_dim} -> {site.out_dim}); choose a smaller rank"
            )
        return rank

    def scale_at(self, rank: int) -> float:
        """Factor of an update."""
        if self.is_on("scale_by_reduction") and self.reduction is not None:
            return self.alpha / self.reduction
        return self.alpha / rank

    def update(self, site: Site, rank: int, scale: float) -> "LowRank":
        """The update of one site."""
        return LowRank(site.in_dim, site.out_dim, rank, scale, self.dropout)

    def place(self, site: Site, update: "LowRank") -> None:
        """Put an update at its site."""
        insertion.parallel(site, self.registered_name, update)


class LowRank(nn.Module):
    """`scale * up(down(dropout(x)))`, without biases; `up` starts at zero.

    Args:
        in_dim, out_dim: of the projection beside it.
        rank: inner width r.
        scale: factor of the update.
        dropout: on its input.
    """

    def __init__(
        self, in_dim: int, out_dim: int, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=False)  # A [r, in]
        self.up = nn.Linear(rank, out_dim, bias=False)  # B [out, r]
        self.scale, self.dropout = scale, dropout
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        hidden = self.down(functional.dropout(x, self.dropout, self.training))
        return self.up(self.scale * hidden)

    def delta(self) -> Tensor:
        """The update of the weight, [out, in]."""
        return self.scale * self.up.weight @ self.down.weight

    def merge_into(self, linear: nn.Linear) -> None:
        """Add the update to a projection's weight."""
        linear.weight.add_(self.delta())


def norm_of_rows(weight: Tensor) -> Tensor:
    """Length of each row of a weight [out, in], [out]."""
    return torch.linalg.vector_norm(weight, dim=1)
