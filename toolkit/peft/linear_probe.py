"""Linear probe: only the head (and the final norm) is trained."""

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


@PEFT.register("linear_probe", paper="arXiv:2312.03694, section 3")
class LinearProbe(PeftMethod):
    """A linear classifier on the frozen backbone; the final norm is trained, as in the paper."""

    may_add_nothing = True

    def check(self) -> None:
        """There is nothing to choose layers for."""
        if self.layers != "all":
            raise ConfigError("a linear probe adapts no blocks: leave 'layers' out")

    def insert(self, backbone: Backbone) -> None:
        """Nothing to insert."""
