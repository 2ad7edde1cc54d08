"""Linear probe: only the head (and the final norm) is trained."""

from toolkit.backbones.base import Backbone
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("linear_probe", paper="arXiv:2312.03694, section 3")
class LinearProbe(PeftMethod):
    """A linear classifier on the frozen backbone; the final norm is trained, as in the paper."""

    def insert(self, backbone: Backbone) -> None:
        """Nothing to insert."""
