"""What the mixtures of adapters share: where they go, and the quirk of adding one twice."""

from torch import nn

from toolkit.backbones.base import Backbone, Placement, Site
from toolkit.peft.base import insertion, quirk, setting
from toolkit.peft.blocks import BlockMethod


class MixtureMethod(BlockMethod):
    """Base of Dense-MoA and Soft-MoA: a mixture parallel to each chosen sublayer."""

    placement: Placement = setting("mhsa", "which sublayers get a mixture: mhsa, ffn or both")
    num_experts: int = setting(7, "adapters a mixture, E", minimum=1)
    reduction: int = setting(128, "inner width is the token width divided by this", minimum=1)
    add_twice: bool | None = quirk("a mixture at the attention alone is added after the ffn again")

    def mixture(self, backbone: Backbone, site: Site) -> nn.Module:
        """The mixture of one site: tokens [B, T, d] -> [B, T, d]."""
        raise TypeError(f"{type(self).__name__} must define mixture()")

    def insert(self, backbone: Backbone) -> None:
        """One mixture a site."""
        twice = self.placement == "mhsa" and self.is_on("add_twice")
        for site in self.block_sites(backbone):
            mixture = self.mixture(backbone, site)
            if twice:
                again = backbone.site(site.block, "ffn")
                insertion.parallel_twice(site, again, self.registered_name, mixture)
            else:
                insertion.parallel(site, self.registered_name, mixture)
        if self.norms:
            self.train_norms(backbone, self.placement)
