"""AutoMoE: mixtures of unequal adapters, as a supernet to search or as one architecture.

Jawahar et al., AutoMoE: Heterogeneous Mixture-of-Experts with Adaptive Computation
(arXiv:2210.07535), with adapters as experts of a frozen backbone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import cast

import torch
from torch import Tensor, nn

from toolkit import processes
from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier
from toolkit.peft.base import NORM_OF, Objective, PeftMethod, chosen_blocks, insertion, setting
from toolkit.registry import PEFT
from toolkit.routing import topk

from .genome import ROLES, Genome, Place, Space, from_config, to_config
from .mixture import Elastic, ElasticMixture, ElasticNorm, FixedMixture, SwitchMixture


@PEFT.register("automoe", paper="arXiv:2210.07535")
class AutoMoE(PeftMethod):
    """AutoMoE: a search finds where experts are, how many and how wide; a genome fixes it."""

    sparse = True
    may_add_nothing = True  # a genome may have no mixture

    genome: list[dict] | None = setting(
        None,
        "one architecture, as one gene per block such as {site: mhsa, ranks: [8, 16], topk: 1} or "
        "{site: none}; none: the supernet of all of them, for `toolkit search`",
    )
    places: list[Place] = setting(
        ["none", "mhsa", "ffn", "both"], "supernet: sublayers at which a block can have mixtures"
    )
    max_experts: int = setting(4, "supernet: most experts per mixture, M", minimum=1)
    ranks: list[int] = setting([4, 8, 16, 32], "supernet: inner widths that an expert can have")
    topk: list[int] = setting([1, 2], "supernet: numbers of experts per token")
    balance: float = setting(0.01, "weight of the loss that balances experts", minimum=0)
    norms: bool = setting(True, "train the layer norms in front of sublayers with a mixture")

    def check(self) -> None:
        """Check that genes have values to choose from, and that a genome is complete."""
        for name in ("ranks", "topk"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ConfigError(f"'{name}' must list numbers from 1, not {values}")
        if not set(self.places) - {"none"}:
            raise ConfigError("'places' must hold at least one of mhsa, ffn and both")
        if self.genome is not None:
            from_config(self.genome)

    def insert(self, backbone: Backbone) -> None:
        """Insert the genome's mixtures, or elastic ones of the greatest size at every site."""
        if self.genome is None:
            self._insert_supernet(backbone)
            return
        genome = from_config(self.genome)
        if len(genome) != backbone.depth:
            raise ConfigError(
                f"'genome' has genes for {len(genome)} blocks, the backbone '{backbone.name}' has "
                f"{backbone.depth}: use the backbone that it was found for"
            )
        most = max((gene.experts for gene in genome), default=0)
        for site in self.sites(backbone, "both"):
            gene = genome[site.block]
            if site.role in gene.roles:
                insertion.parallel(site, "automoe", FixedMixture(backbone.width, gene, most))
                if self.norms:
                    _norm_of(backbone, site).module.requires_grad_(True)

    def _insert_supernet(self, backbone: Backbone) -> None:
        roles = {role for place in self.places for role in ROLES[place]}
        for site in self.sites(backbone, *sorted(roles)):
            mixture = ElasticMixture(backbone.width, self.max_experts, max(self.ranks), site)
            insertion.parallel(site, "automoe", mixture)
            if self.norms:
                norm = _norm_of(backbone, site)
                elastic = ElasticNorm(cast(nn.LayerNorm, norm.module), site)
                insertion.reparametrise(norm, "automoe", elastic)
        choose(backbone, self.space(backbone).largest)

    def space(self, backbone: Backbone) -> Space:
        """The architectures that the settings allow for a backbone."""
        return Space(
            depth=backbone.depth,
            blocks=frozenset(chosen_blocks(self.layers, backbone.depth)),
            places=tuple(self.places),
            max_experts=self.max_experts,
            ranks=tuple(self.ranks),
            topk=tuple(self.topk),
        )

    def fixed(self, genome: Genome) -> "AutoMoE":
        """The method that trains one architecture with otherwise equal settings."""
        return type(self)(**{**self.as_dict(), "genome": to_config(genome)})

    @contextmanager
    def subnet(self, backbone: Backbone, genome: Genome) -> Iterator[None]:
        """Make a supernet one of its architectures for a while, and then the largest again."""
        choose(backbone, genome)
        try:
            yield
        finally:
            choose(backbone, self.space(backbone).largest)

    def training_losses(
        self,
        backbone: Backbone,
        forward: Callable[[Tensor], Tensor],
        features: Tensor,
        objective: Objective,
    ) -> dict[str, Tensor]:
        """The losses of one training batch; a supernet trains an architecture drawn uniformly.

        The draw depends only on torch's random state; all processes of a job use the first's.
        """
        if self.genome is not None:
            return super().training_losses(backbone, forward, features, objective)
        seed = processes.first(torch.randint(2**31, (1,), device="cpu").to(features.device))
        drawn = self.space(backbone).random(Random(int(seed)))
        with self.subnet(backbone, drawn):
            return super().training_losses(backbone, forward, features, objective)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """The weighted balance loss, summed over the mixtures of the last pass."""
        routers = [m.router for m in insertion.inserted(backbone) if isinstance(m, SwitchMixture)]
        routings = [router.take_routing() for router in routers if router.routing is not None]
        if not routings:
            return {}
        return {"balance": self.balance * torch.stack(list(map(topk.balance, routings))).sum()}


def method_of(model: AudioClassifier) -> AutoMoE:
    """The method of a model that AutoMoE adapted."""
    return cast(AutoMoE, model.method)


def choose(backbone: Backbone, genome: Genome) -> None:
    """Make a supernet one of its architectures."""
    for module in insertion.inserted(backbone):
        if isinstance(module, Elastic):
            module.choose(genome)


@torch.no_grad()
def inherit(supernet: AudioClassifier, model: AudioClassifier) -> None:
    """Give a model of one architecture the supernet's weights.

    Args:
        supernet: the trained supernet.
        model: a model made with `AutoMoE.fixed` on the same backbone; changed in place.
    """
    method = method_of(model)
    genome = from_config(method.genome or [])
    choose(supernet.backbone, genome)
    for site in method.sites(model.backbone, "both"):
        if site.role not in genome[site.block].roles:
            continue
        elastic = supernet.backbone.site(site.block, site.role).module
        cast(FixedMixture, site.module.inserted).load(cast(ElasticMixture, elastic.inserted))
        if method.norms:
            learned = cast(ElasticNorm, _norm_of(supernet.backbone, site).module.inserted)
            _norm_of(model.backbone, site).module.load_state_dict(learned.state_dict())
    choose(supernet.backbone, method_of(supernet).space(supernet.backbone).largest)
    model.backbone.norm.load_state_dict(supernet.backbone.norm.state_dict())
    model.head.load_state_dict(supernet.head.state_dict())


def _norm_of(backbone: Backbone, site: Site) -> Site:
    """The site of the norm in front of a sublayer."""
    return backbone.site(site.block, NORM_OF[site.role])
