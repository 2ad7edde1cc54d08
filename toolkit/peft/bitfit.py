"""BitFit: only biases are trained (Ben Zaken et al., arXiv:2106.10199)."""

from torch import nn

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("bitfit", paper="arXiv:2106.10199")
class BitFit(PeftMethod):
    """The biases of every linear and layer norm in the blocks, and of the final norm."""

    def insert(self, backbone: Backbone) -> None:
        """Unfreeze the blocks' biases."""
        for site in self.sites(backbone, "block"):
            for module in site.module.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                    module.bias.requires_grad_(True)

    def train_final_norm(self, backbone: Backbone) -> None:
        """Unfreeze the bias of the final norm, if it has one."""
        bias = getattr(backbone.norm, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_(True)
