"""SSF: scale and shift every operation's output (Lian et al., arXiv:2210.08823, eq. 2)."""

import torch
from torch import Tensor, nn

from toolkit.backbones.base import LINEAR_ROLES, Backbone
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.registry import PEFT


@PEFT.register("ssf", paper="arXiv:2210.08823")
class ScaleShift(PeftMethod):
    """SSF: y = gamma * x + beta after each linear and each layer norm of every block."""

    init_std: float = setting(
        0.0, "spread of the initial gamma around 1 and beta around 0 (paper: 0.02)", minimum=0
    )

    def insert(self, backbone: Backbone) -> None:
        """One affine map behind every projection and every norm."""
        for site in self.sites(backbone, *LINEAR_ROLES, "norm.mhsa", "norm.ffn"):
            shift = site.module.bias is not None
            insertion.after(site, "ssf", Affine(site.out_dim, self.init_std, shift))


class Affine(nn.Module):
    """`gamma * x + beta`, elementwise over the width d; an identity if `std` is 0.

    Without `shift` there is no beta: behind a projection without a bias (Whisper's keys) it would
    change nothing, since the softmax does not see it, and it could not be merged.
    """

    def __init__(self, dim: int, std: float, shift: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1 + std * torch.randn(dim))
        self.beta = nn.Parameter(std * torch.randn(dim)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        if self.beta is None:
            return self.gamma * x
        return torch.addcmul(self.beta, self.gamma, x)

    def merge_into(self, stock: nn.Linear | nn.LayerNorm) -> None:
        """Absorb the map into the weight and bias in front of it (section 3.3 of the paper)."""
        rows = self.gamma[:, None] if stock.weight.ndim == 2 else self.gamma
        stock.weight.mul_(rows)
        if self.beta is not None:
            stock.bias.mul_(self.gamma).add_(self.beta)
