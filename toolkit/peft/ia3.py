"""IA3: learned scales of keys, values and hidden units (Liu et al., arXiv:2205.05638)."""

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod, insertion
from toolkit.registry import PEFT


@PEFT.register("ia3", paper="arXiv:2205.05638")
class IA3(PeftMethod):
    """Keys, values and the feed-forward's hidden units multiplied by learned vectors."""

    def insert(self, backbone: Backbone) -> None:
        """Vectors behind k and v, and in front of the feed-forward's second projection."""
        for site in self.sites(backbone, "attn.k", "attn.v"):
            insertion.after(site, "ia3", ScaleOutput(site.out_dim))
        for site in self.sites(backbone, "ffn.down"):
            insertion.before(site, "ia3", ScaleInput(site.in_dim))


class ScaleOutput(nn.Module):
    """`l * y` behind a projection; l starts at one.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.scale * x

    def merge_into(self, linear: nn.Linear) -> None:
        """Scale the rows of a projection, and its bias."""
        linear.weight.mul_(self.scale[:, None])
        if linear.bias is not None:
            linear.bias.mul_(self.scale)


class ScaleInput(ScaleOutput):
    """`l * x` in front of a projection."""

    def merge_into(self, linear: nn.Linear) -> None:
        """Scale the columns of a projection."""
        linear.weight.mul_(self.scale)
