"""Dense mixture of adapters (the dense baseline of Cappellazzo et al., arXiv:2402.00828)."""

from typing import ClassVar

from torch import Tensor, nn

from toolkit.backbones.base import Backbone, Site
from toolkit.experts.base import Experts
from toolkit.peft.blocks import REFERENCE_STD
from toolkit.peft.mixture import MixtureMethod, RoutedMixture
from toolkit.registry import PEFT
from toolkit.routing import dense


@PEFT.register("dense_moa", paper="arXiv:2402.00828")
class DenseMoA(MixtureMethod):
    """Dense mixture of adapters: every token goes through every expert, weighted by a softmax."""

    def mixture(self, backbone: Backbone, site: Site) -> "DenseMixture":
        """The experts and the softmax router of one site."""
        mixture = DenseMixture(self.experts(backbone, self.num_experts, site.out_dim))
        if self.is_on("reference_init"):
            nn.init.trunc_normal_(mixture.router.linear.weight, std=REFERENCE_STD)
            nn.init.zeros_(mixture.router.linear.bias)
        return mixture


class DenseMixture(RoutedMixture):
    """`sum_e softmax(W x + b)_e E_e(x)`.

    Args:
        experts: E experts of width d.
    """

    experts: Experts
    router: dense.DenseRouter
    prunable: ClassVar[bool] = True

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.router = dense.DenseRouter(experts.dim, experts.num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        gates = self.gates(x)
        if self.recording:
            self.records.append(dense.metrics(self.real(gates), self.real_sizes(x)))
        return self.experts.mix(x, gates)
