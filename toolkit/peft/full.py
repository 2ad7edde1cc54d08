"""Full fine-tuning: the upper reference of every comparison."""

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("full", paper="arXiv:2312.03694, section 3")
class FullFineTuning(PeftMethod):
    """Every parameter of the backbone is trained, or those of the blocks that `layers` names."""

    trains_backbone = True

    def insert(self, backbone: Backbone) -> None:
        """Unfreeze everything, or whole blocks (the paper's Wav2Vec 2.0: 'last 3')."""
        if self.layers == "all":
            backbone.requires_grad_(True)
        for site in self.sites(backbone, "block"):
            site.module.requires_grad_(True)
