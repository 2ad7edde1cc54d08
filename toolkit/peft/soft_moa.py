"""Soft mixture of adapters (Cappellazzo et al., arXiv:2402.00828)."""

import math

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.peft.base import (
    PeftMethod,
    Placement,
    Recorder,
    bottleneck_width,
    insertion,
    setting,
    unfreeze_norms,
)
from toolkit.registry import PEFT
from toolkit.routing import soft
from toolkit.routing.experts import BottleneckExperts


@PEFT.register("soft_moa", paper="arXiv:2402.00828")
class SoftMoA(PeftMethod):
    """Soft mixture of bottleneck adapters, parallel to a sublayer."""

    placement: Placement = setting("mhsa", "which sublayers get a mixture: mhsa, ffn or both")
    num_experts: int = setting(7, "adapters a mixture, E", minimum=1)
    slots: int = setting(1, "slots an adapter, S", minimum=1)
    reduction: int = setting(128, "inner width is the token width divided by this", minimum=1)
    normalize: bool = setting(False, "unit-length tokens and slot embeddings in the router")
    noise: float = setting(0.0, "standard deviation of the router's noise in training", minimum=0)
    norms: bool = setting(True, "train the layer norms in front of those sublayers")

    def insert(self, backbone: Backbone) -> None:
        """One mixture a site."""
        for site in backbone.sites(self.placement):
            width = bottleneck_width(site.out_dim, self.reduction)
            experts = BottleneckExperts(self.num_experts, site.out_dim, width)
            mixture = SoftMixture(
                experts, site.out_dim, self.num_experts, self.slots, self.normalize, self.noise
            )
            insertion.parallel(site, "soft_moa", mixture)
        if self.norms:
            unfreeze_norms(backbone, self.placement)


class SoftMixture(Recorder):
    """Tokens -> slots -> experts -> tokens.

    Args:
        experts: [B, E, S, d] -> [B, E, S, d].
        dim, num_experts, slots: d, E, S.
        normalize: see `routing.soft.route`.
        noise: standard deviation of the noise on the logits while training.
    """

    def __init__(
        self,
        experts: nn.Module,
        dim: int,
        num_experts: int,
        slots: int,
        normalize: bool = False,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.phi = nn.Parameter(torch.empty(dim, num_experts, slots))
        self.scale = nn.Parameter(torch.ones(())) if normalize else None
        self.noise = noise
        nn.init.normal_(self.phi, std=1 / math.sqrt(dim))  # LeCun normal, as 2308.00951

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and an optional mask [B, T] of real tokens -> [B, T, d]."""
        noise = self.noise if self.training else 0.0
        routing = soft.route(x, self.phi, scale=self.scale, mask=mask, noise_std=noise)
        if self.recording:
            self.records.append(soft.metrics(routing))
        return routing.tokens(self.experts(routing.slots(x)))
