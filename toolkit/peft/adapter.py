"""Adapters beside or behind a sublayer (Houlsby et al., 1902.00751; on AST: 2312.03694)."""

from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.experts.base import Experts
from toolkit.peft.base import insertion, quirk, setting
from toolkit.peft.blocks import BlockMethod
from toolkit.registry import PEFT


@PEFT.register("adapter", paper="arXiv:2312.03694")
class Adapter(BlockMethod):
    """Bottleneck, conformer or convpass adapter, parallel to a sublayer or in sequence with it."""

    mode: Literal["parallel", "sequential", "before"] = setting(
        "parallel",
        "beside the sublayer S: S(x) + A(x); behind it: A(S(x)); or before it: S(A(x))",
    )
    residual: bool | None = setting(
        None, "A(x) stands for x + A(x); none: not if parallel, else yes"
    )
    scale: float = setting(1.0, "factor of A", nonzero=True)
    learn_scale: bool = setting(False, "train the factor")
    add_before: bool | None = quirk("an adapter before S is added behind it too: S(A(x)) + A(x)")

    def insert(self, backbone: Backbone) -> None:
        """One adapter per site."""
        residual = self.mode != "parallel" if self.residual is None else self.residual
        place = {
            "parallel": insertion.parallel,
            "sequential": insertion.after,
            "before": insertion.before_and_beside if self.is_on("add_before") else insertion.before,
        }[self.mode]
        for site in self.block_sites(backbone):
            experts = self.experts(backbone, 1, site.out_dim)
            place(site, "adapter", SingleAdapter(experts, self.scale, self.learn_scale, residual))
        if self.norms:
            self.train_norms(backbone, self.placement)


class SingleAdapter(nn.Module):
    """`scale * A(x)`, plus x if `residual`.

    Args:
        experts: A, one expert.
        scale: the factor.
        learn_scale: whether the factor trains.
        residual: add the input.
    """

    def __init__(self, experts: Experts, scale: float, learn_scale: bool, residual: bool) -> None:
        super().__init__()
        self.experts = experts
        self.scale = nn.Parameter(torch.tensor(scale)) if learn_scale else scale
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        out = self.experts.mix(x)
        if isinstance(self.scale, nn.Parameter) or self.scale != 1:
            out = self.scale * out
        return x + out if self.residual else out
