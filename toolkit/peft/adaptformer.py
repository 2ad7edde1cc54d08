"""AdaptFormer: an adapter beside the feed-forward (Chen et al., arXiv:2205.13535, section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.registry import PEFT


@PEFT.register("adaptformer", paper="arXiv:2205.13535")
class AdaptFormer(PeftMethod):
    """Adapter beside the feed-forward that reads the residual stream in front of the norm."""

    bottleneck: int = setting(64, "inner width", minimum=1)
    scale: float = setting(0.1, "factor of the adapter", nonzero=True)
    dropout: float = setting(0.1, "of its inner units", minimum=0, below=1)

    def insert(self, backbone: Backbone) -> None:
        """One adapter per block."""
        for site in self.sites(backbone, "ffn"):
            adapter = ReluAdapter(site.out_dim, self.bottleneck, self.scale, self.dropout)
            if backbone.pre_norm:
                norm = backbone.site(site.block, "norm.ffn")
                insertion.parallel_to_input(norm, site, "adaptformer", adapter)
            else:  # no norm stands between the residual stream and the feed-forward
                insertion.parallel(site, "adaptformer", adapter)


class ReluAdapter(nn.Module):
    """`scale * up(dropout(ReLU(down(x))))`; `up` starts at zero.

    Args:
        dim: token width d.
        bottleneck: inner width.
        scale: factor.
        dropout: of the inner units.
    """

    def __init__(self, dim: int, bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale, self.dropout = scale, dropout
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        hidden = functional.dropout(functional.relu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(hidden)
