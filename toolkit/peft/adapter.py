"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751; for AST: arXiv:2312.03694, section 2)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.peft.base import (
    PeftMethod,
    Placement,
    bottleneck_width,
    insertion,
    setting,
    unfreeze_norms,
)
from toolkit.registry import PEFT


@PEFT.register("adapter", paper="arXiv:2312.03694")
class Adapter(PeftMethod):
    """Bottleneck adapter beside (parallel) or behind (sequential) a sublayer."""

    placement: Placement = setting("ffn", "which sublayers get one: mhsa, ffn or both")
    mode: Literal["parallel", "sequential"] = setting(
        "parallel", "beside the sublayer, reading its input, or behind it, reading its output"
    )
    reduction: int = setting(64, "inner width is the token width divided by this", minimum=1)
    residual: bool | None = setting(
        None, "add the adapter's input to its output; none: only if sequential"
    )
    norms: bool = setting(True, "train the layer norms in front of those sublayers")

    def insert(self, backbone: Backbone) -> None:
        """One adapter a site."""
        sequential = self.mode == "sequential"
        residual = sequential if self.residual is None else self.residual
        place = insertion.after if sequential else insertion.parallel
        for site in backbone.sites(self.placement):
            width = bottleneck_width(site.out_dim, self.reduction)
            place(site, "adapter", Bottleneck(site.out_dim, width, residual))
        if self.norms:
            unfreeze_norms(backbone, self.placement)


class Bottleneck(nn.Module):
    """`up(GELU(down(x)))`, plus x if `residual`; `up` starts at zero.

    Args:
        dim: token width d.
        bottleneck: inner width r.
        residual: add the input to the output.
    """

    def __init__(self, dim: int, bottleneck: int, residual: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.residual = residual
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        out = self.up(functional.gelu(self.down(x)))
        return x + out if self.residual else out
