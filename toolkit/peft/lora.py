"""LoRA: a low-rank update beside frozen projections (Hu et al., arXiv:2106.09685, section 4.1)."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, insertion, setting
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


@PEFT.register("lora", paper="arXiv:2106.09685")
class LoRA(PeftMethod):
    """Low-rank updates of the attention's projections: W + (alpha / rank) B A."""

    rank: int = setting(6, "rank r of each update", minimum=1)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", minimum=0)
    targets: list[Target] = setting(["q", "v"], "projections to update: q, k, v, o, up, down")
    dropout: float = setting(0.0, "dropout on the update's input", minimum=0, maximum=1)

    def check(self) -> None:
        """A target must be named, and none twice."""
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"'targets' must name projections, each once, not {self.targets}")

    def insert(self, backbone: Backbone) -> None:
        """One update in parallel to each target."""
        for site in backbone.sites(*(ROLE_OF[target] for target in self.targets)):
            if self.rank > min(site.in_dim, site.out_dim):
                raise ConfigError(
                    f"rank {self.rank} is larger than the projection {site.name} "
                    f"({site.in_dim} -> {site.out_dim}); choose a smaller rank"
                )
            scale = self.alpha / self.rank
            update = LowRank(site.in_dim, site.out_dim, self.rank, scale, self.dropout)
            insertion.parallel(site, "lora", update)


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
