"""What a mixture of experts can be asked, and what the methods that insert mixtures share.

Tools and views find mixtures with `mixtures` and ask them through `Mixture`, whichever method
inserted them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import repeat
from torch import Tensor

from toolkit.backbones.base import Backbone, Placement, Site
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft.base import Recorder, insertion, quirk, setting
from toolkit.peft.blocks import BlockMethod
from toolkit.routing.router import Router


class Mixture(Recorder, ABC):
    """A mixture of experts: tokens [B, T, d] -> [B, T, d].

    While `recording`, every forward pass appends statistics of the batch's real tokens to
    `records`, in training as in evaluation; padding is left out.

    Attributes:
        experts: what is mixed; `experts.num_experts` is their number.
        has_router: a router gives every token its gates.
        reads_slots: experts read slots made of all tokens, so a token chooses none.
        prunable: whether `keep` can take experts out.
    """

    experts: Any
    has_router: ClassVar[bool] = False
    reads_slots: ClassVar[bool] = False
    prunable: ClassVar[bool] = False

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.experts.num_experts)

    @property
    def alive(self) -> Tensor:
        """[E], bool, the experts that can be used: all, unless the method drops some."""
        return torch.ones(self.num_experts, dtype=torch.bool)

    @property
    def weighs_experts(self) -> bool:
        """Whether a token's gates come from a softmax and say how much each expert counts."""
        return False

    @property
    def k(self) -> int | None:
        """Experts that a token chooses, where that number is set; None elsewhere."""
        return None

    @property
    def mixes_adapters(self) -> bool:
        """Whether the experts are adapters, and no tool keeps them in a cache."""
        return isinstance(self.experts, Experts)

    @property
    def in_full_precision(self) -> bool:
        """Whether the experts are adapters whose weights no tool has packed."""
        return self.mixes_adapters and self.experts.in_full_precision

    @property
    def unchanged(self) -> bool:
        """Whether no tool has changed the experts or how tokens are routed to them."""
        return self.in_full_precision

    @abstractmethod
    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The factors of the experts' outputs, in evaluation.

        Args:
            x: tokens [B, T, d] as `forward` reads them in the same pass.
            mask: [B, T], True where a token is real; None: as the backbone says.

        Returns:
            [B, T, E], zero for the experts that a token does not use.

        Raises:
            ConfigError: experts read slots, so that tokens have no gates.
        """

    def expert_inputs(self, x: Tensor) -> Tensor:
        """What each expert reads: all tokens, or its slots.

        Args:
            x: as in `gates`.

        Returns:
            [B, E, S, d].
        """
        return repeat(x, "b t d -> b e t d", e=self.num_experts)

    def shares(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """How a token's weight is spread over the experts before any are cut off.

        Args:
            x, mask: as in `gates`.

        Returns:
            [B, T, E], sums to 1 over experts where the gates come from a softmax.
        """
        return self.gates(x, mask)

    def token_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Which expert uses which token, in evaluation: what `toolkit experts` draws.

        Args:
            x: as in `gates`.

        Returns:
            [B, T, E, S] of E experts with S slots each, by name: `gate` where tokens choose
            experts; `dispatch` (sums to 1 over tokens) and `combine` (sums to 1 over slots) where
            experts read slots.
        """
        return {"gate": self.gates(x)[..., None]}

    def experts_per_token(self) -> float:
        """Experts that a real token used in the recorded passes, on average."""
        used = [record["active_mean"] for record in self.records if "active_mean" in record]
        return torch.stack(used).mean().item() if used else float(self.num_experts)

    def refuse_unless_prunable(self) -> None:
        """Explain why `keep` cannot take experts out, if it cannot.

        Raises:
            ConfigError: this kind of mixture keeps all its experts, or a tool has changed it.
        """
        if not self.prunable:
            raise ConfigError(
                "no experts can be taken out of the mixtures of this method: use a bundle of "
                "dense_moa, topk_moa or soft_moa"
            )
        if not self.unchanged:
            raise ConfigError(
                "another tool has changed the experts or the routers of this bundle: prune first, "
                "then compress"
            )

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave only some experts, in this order; the tensors really shrink.

        The rest behave as if the logits of the others were -inf.

        Args:
            numbers: of the experts that stay.

        Raises:
            ConfigError: experts cannot be taken out; the message says why.
        """
        self.refuse_unless_prunable()
        self.experts = self.experts.only(numbers)
        self.keep_routing(numbers)

    def keep_routing(self, numbers: Sequence[int]) -> None:
        """Leave what routes tokens to some experts; every prunable mixture defines it."""
        raise TypeError(f"{type(self).__name__} must define keep_routing()")


class RoutedMixture(Mixture):
    """A mixture in which a router gives every token its gates.

    Attributes:
        router: makes the gates; tools may wrap it.
    """

    router: Router
    has_router: ClassVar[bool] = True

    @property
    def k(self) -> int | None:
        """As set in the trained router."""
        return self.router.trained.k

    @property
    def alive(self) -> Tensor:
        """The experts that the router can choose."""
        return self.router.trained.alive

    @property
    def weighs_experts(self) -> bool:
        """Whether the trained router is a softmax."""
        return self.router.trained.weighs_experts

    @property
    def unchanged(self) -> bool:
        """Whether neither experts nor router were changed by a tool."""
        return super().unchanged and self.router.trained is self.router

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The router's gates, [B, T, E]."""
        return self.router(x, self.mask if mask is None else mask)

    def keep_routing(self, numbers: Sequence[int]) -> None:
        """Leave the router's part of some experts."""
        self.router.keep(numbers)


def mixtures(backbone: Backbone) -> dict[str, Mixture]:
    """The inserted mixtures by site, such as `blocks.0.mhsa`, in the order of the blocks."""
    return {
        backbone.canonical(path): wrapper.inserted
        for path, wrapper in backbone.model.named_modules()
        if isinstance(wrapper, insertion.Wrapper) and isinstance(wrapper.inserted, Mixture)
    }


def routed_mixtures(backbone: Backbone) -> dict[str, RoutedMixture]:
    """The inserted mixtures that have a router, by site."""
    found = mixtures(backbone)
    return {site: m for site, m in found.items() if isinstance(m, RoutedMixture)}


class MixtureMethod(BlockMethod):
    """Base of Dense-MoA, Soft-MoA and the top-k methods: a mixture beside each chosen sublayer."""

    placement: Placement = setting("mhsa", "which sublayers get a mixture: mhsa, ffn or both")
    num_experts: int = setting(7, "adapters per mixture, E", minimum=1)
    reduction: int = setting(128, "inner width is the token width divided by this", minimum=1)
    add_twice: bool | None = quirk("a mixture at the attention alone is added after the ffn again")

    @abstractmethod
    def mixture(self, backbone: Backbone, site: Site) -> Mixture:
        """The mixture of one site."""

    def insert(self, backbone: Backbone) -> None:
        """Insert one mixture per site."""
        twice = self.placement == "mhsa" and self.is_on("add_twice")
        for site in self.block_sites(backbone):
            mixture = self.mixture(backbone, site)
            if twice:
                site.require_whole_clips("a mixture that is added twice")
                again = backbone.site(site.block, "ffn")
                insertion.parallel_twice(site, again, self.registered_name, mixture)
            else:
                insertion.parallel(site, self.registered_name, mixture)
        if self.norms:
            self.train_norms(backbone, self.placement)
