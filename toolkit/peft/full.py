"""Full fine-tuning: the upper reference of every comparison."""

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("full", paper="arXiv:2312.03694, section 3")
class FullFineTuning(PeftMethod):
    """Every parameter of the backbone is trained."""

    trains_backbone = True

    def insert(self, backbone: Backbone) -> None:
        """Unfreeze everything."""
        backbone.requires_grad_(True)
