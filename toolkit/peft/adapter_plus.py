"""Adapter+: a well-placed plain adapter (Steitz and Roth, arXiv:2406.06820)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.registry import PEFT

HOULSBY_STD = 0.01


@PEFT.register("adapter_plus", paper="arXiv:2406.06820")
class AdapterPlus(PeftMethod):
    """Adapter behind each block, residual included, with a learned scale of every channel."""

    bottleneck: int = setting(8, "inner width", minimum=1)
    drop_path: float = setting(0.1, "share of clips that skip an adapter", minimum=0, below=1)
    init: Literal["identity", "houlsby"] = setting(
        "identity", "up starts at zero, or (as the paper) as a truncated normal of std 0.01"
    )

    def insert(self, backbone: Backbone) -> None:
        """One adapter per block."""
        for site in self.sites(backbone, "block"):
            adapter = ChannelScaledAdapter(site.out_dim, self.bottleneck, self.drop_path)
            if self.init == "houlsby":
                nn.init.trunc_normal_(adapter.up.weight, std=HOULSBY_STD)
            insertion.after(site, "adapter_plus", adapter)


class ChannelScaledAdapter(nn.Module):
    """`x + scale * up(GELU(down(x)))`, left out for a random share of clips while training.

    Args:
        dim: token width d.
        bottleneck: inner width.
        drop_path: that share; what is kept is divided by 1 - drop_path.
    """

    def __init__(self, dim: int, bottleneck: int, drop_path: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale = nn.Parameter(torch.ones(dim))
        self.drop_path = drop_path
        nn.init.trunc_normal_(self.down.weight, std=HOULSBY_STD)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        branch = self.scale * self.up(functional.gelu(self.down(x)))
        keep = torch.ones(len(x), 1, 1, device=x.device, dtype=x.dtype)
        return x + branch * functional.dropout(keep, self.drop_path, self.training)
