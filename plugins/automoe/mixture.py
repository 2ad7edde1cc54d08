"""The mixtures of AutoMoE: fixed ones of one architecture, and elastic ones of a supernet."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Site
from toolkit.experts.bottleneck import Bottleneck
from toolkit.peft.mixture import RoutedMixture
from toolkit.peft.topk import pass_metrics
from toolkit.routing import topk

from .genome import Gene, Genome
from .ragged import Pack, RaggedExperts, front


class SwitchMixture(RoutedMixture):
    """`sum over the top k of p_e(x) E_e(x)`, p = softmax(W x) over the experts there are.

    Gates are not normalised to sum to 1, so that the router learns from the task even if k = 1
    (Fedus et al., Switch Transformers, arXiv:2101.03961, equation 2).

    Args:
        router: tokens [B, T, d] -> gates [B, T, E].
        most: experts of the largest mixture in the model; statistics have as many entries.
    """

    router: topk.TopKRouter

    def __init__(self, router: topk.TopKRouter, most: int) -> None:
        super().__init__()
        self.router, self.most = router, most

    @abstractmethod
    def pack(self) -> Pack | None:
        """The present experts; None if there is no mixture."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]; the scalar 0 if there is no mixture."""
        pack = self.pack()
        if pack is None:
            return x.new_zeros(())
        gates = self.router(x, self.mask)
        self.router.count(self.sizes(x))
        if self.recording:
            self.records.append(self._metrics(x, gates))
        return pack.mix(x, gates[..., : pack.num_experts])

    @property
    def mixes_adapters(self) -> bool:
        """False: experts have widths of their own, packed side by side or cut from larger ones."""
        return False

    def _metrics(self, x: Tensor, gates: Tensor) -> dict[str, Tensor]:
        found = pass_metrics(self.router, x, self.mask, gates, self.sizes(x))
        more = (0, self.most - len(self.alive))
        return {name: functional.pad(t, more) if t.ndim else t for name, t in found.items()}


class FixedMixture(SwitchMixture):
    """The mixture of one gene.

    Args:
        dim: token width d.
        gene: the experts.
        most: as for `SwitchMixture`.
    """

    experts: RaggedExperts

    def __init__(self, dim: int, gene: Gene, most: int) -> None:
        super().__init__(_router(dim, gene.experts, gene.topk), most)
        self.experts = RaggedExperts(dim, gene.ranks)

    def pack(self) -> Pack:
        """All experts."""
        return self.experts.pack()

    @torch.no_grad()
    def load(self, elastic: "ElasticMixture") -> None:
        """Copy the weights of an elastic mixture that has this gene."""
        pack = elastic.pack()
        if pack is None:
            raise RuntimeError("choose the genome of this mixture before its weights are copied")
        self.experts.load(pack)
        weight = self.router.linear.weight
        weight.copy_(elastic.router.linear.weight[: len(weight)])


class Elastic:
    """What a supernet inserts at one site: it can become what any gene describes.

    Attributes:
        block, role: those of the site.
        gene: the present gene; None: there is no mixture here.
    """

    block: int
    role: str
    gene: Gene | None = None

    def choose(self, genome: Genome) -> None:
        """Become what a genome describes."""
        gene = genome[self.block]
        self.gene = gene if self.role in gene.roles else None


class ElasticMixture(SwitchMixture, Elastic):
    """M experts of the greatest width, of which a gene uses the front.

    The front are the first experts, the first channels of each, and the router's first rows.

    Args:
        dim: token width d.
        max_experts: M.
        width: width of every expert.
        site: the site at which it is inserted.
    """

    experts: Bottleneck

    def __init__(self, dim: int, max_experts: int, width: int, site: Site) -> None:
        super().__init__(_router(dim, max_experts, max_experts), max_experts)
        self.block, self.role = site.block, site.role
        self.experts = Bottleneck(max_experts, dim, width)

    def choose(self, genome: Genome) -> None:
        """Become the mixture of a genome: experts beyond it cannot be chosen."""
        super().choose(genome)
        if self.gene is not None:
            number, device = len(self.router.alive), self.router.alive.device
            # A new tensor, since the backward pass of the last architecture may need the old one.
            self.router.alive = torch.arange(number, device=device) < self.gene.experts
            self.router.k = self.gene.topk

    def pack(self) -> Pack | None:
        """The front of the experts, or None where the gene has no mixture."""
        return None if self.gene is None else front(self.experts, self.gene.ranks)


class ElasticNorm(nn.Module, Elastic):
    """A layer norm with learned weights where the next sublayer has a mixture, else the stock one.

    Args:
        stock: the layer norm with whose values it starts.
        site: the sublayer.
    """

    def __init__(self, stock: nn.LayerNorm, site: Site) -> None:
        super().__init__()
        self.block, self.role = site.block, site.role
        self.weight = nn.Parameter(stock.weight.detach().clone())
        self.bias = nn.Parameter(stock.bias.detach().clone())

    def forward(self, x: Tensor, stock: nn.LayerNorm) -> Tensor:
        """[..., d] -> [..., d]."""
        if self.gene is None:
            return stock(x)
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, stock.eps)


def _router(dim: int, num_experts: int, k: int) -> topk.TopKRouter:
    return topk.TopKRouter(dim, num_experts, k, renormalise=False)
