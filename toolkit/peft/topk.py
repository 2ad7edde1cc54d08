"""Sparse mixtures of adapters: what the methods with a top-k gate share.

The plugins topk_moa and expert_pruning register such methods, and several tools work on them.
"""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts, by_expert
from toolkit.peft.base import insertion, setting
from toolkit.peft.blocks import REFERENCE_STD
from toolkit.peft.mixture import MixtureMethod, RoutedMixture
from toolkit.routing import topk
from toolkit.routing.router import Router


class TopKMethod(MixtureMethod):
    """Base of the methods in which every token chooses k experts by a softmax."""

    sparse: ClassVar[bool] = True

    k: int = setting(2, "experts per token", minimum=1)
    renormalise: bool | None = setting(
        None, "a token's gates sum to 1 (GShard), or are its probabilities (Switch); none: if k > 1"
    )
    w_balance: float = setting(0.01, "weight of the loss that balances experts", minimum=0)
    w_z: float = setting(0.0, "weight of the loss that keeps the router's logits small", minimum=0)
    w_entropy: float = setting(
        0.0, "weight of the routing's entropy (SEER-MoE's second stage)", minimum=0
    )
    jitter: float = setting(
        0.0, "in training the router's input is multiplied by 1 +- this", minimum=0, maximum=1
    )
    noise: float = setting(0.0, "standard deviation of the logits' noise in training", minimum=0)
    capacity: float | None = setting(
        None,
        "most tokens per expert in training, in multiples of a fair share; none: no limit",
        minimum=0.01,
    )

    def check(self) -> None:
        """Check that there are k experts to choose from."""
        if self.k > self.num_experts:
            raise ConfigError(
                f"a token cannot go to {self.k} of {self.num_experts} experts: lower 'k' or raise "
                "'num_experts'"
            )

    def mixture(self, backbone: Backbone, site: Site) -> "TopKMixture":
        """The experts and the top-k router of one site."""
        renormalise = self.k > 1 if self.renormalise is None else self.renormalise
        router = topk.TopKRouter(
            site.out_dim,
            self.num_experts,
            self.k,
            renormalise,
            self.jitter,
            self.noise,
            self.capacity,
        )
        if self.is_on("reference_init"):
            nn.init.trunc_normal_(router.linear.weight, std=REFERENCE_STD)
        experts = self.experts(backbone, self.num_experts, site.out_dim)
        return self.mixture_of(experts, router)

    def mixture_of(self, experts: Experts, router: topk.TopKRouter) -> "TopKMixture":
        """Combine experts and router; a method with its own kind of mixture overrides this."""
        return TopKMixture(experts, router)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """The router losses whose weight is not 0, weighted and summed over the mixtures."""
        wanted = {
            "balance": (self.w_balance, topk.balance),
            "router_z": (self.w_z, topk.z_loss),
            "gate_entropy": (self.w_entropy, topk.entropy),
        }
        routings = [mixture.trained_router.take_routing() for mixture in topk_mixtures(backbone)]
        return {
            name: weight * torch.stack([loss(routing) for routing in routings]).sum()
            for name, (weight, loss) in wanted.items()
            if weight
        }


class TopKMixture(RoutedMixture):
    """`sum_e g_e E_e(x)` over the experts to which the router gives a gate.

    Args:
        experts: E experts of width d.
        router: tokens [B, T, d] -> gates [B, T, E], most of them zero.
    """

    experts: Experts
    router: topk.TopKRouter
    prunable: ClassVar[bool] = True

    def __init__(self, experts: Experts, router: topk.TopKRouter) -> None:
        super().__init__()
        self.experts, self.router = experts, router

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] -> [B, T, d].

        Args:
            x: tokens.
            mask: [B, T], True where a token is real; None: as the backbone says.
        """
        if mask is None:
            mask = self.mask
        gates = self.router(x, mask)
        self.trained_router.count(self.sizes(x))
        if self.recording:
            self.records.append(pass_metrics(self.router, x, mask, gates, self.sizes(x)))
        return self.experts.mix_chosen(x, gates)

    @property
    def trained_router(self) -> topk.TopKRouter:
        """The router without what tools have put around it."""
        return cast(topk.TopKRouter, self.router.trained)

    def shares(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The probabilities of all experts, [B, T, E]."""
        return self.trained_router.route(x, self.mask if mask is None else mask).probabilities


def pass_metrics(
    router: Router, x: Tensor, mask: Tensor | None, gates: Tensor, sizes: Tensor | None
) -> dict[str, Tensor]:
    """Statistics of a pass: the trained router's probabilities, and the gates that tools left.

    Args:
        router: a top-k router, perhaps inside others that tools have put around it.
        x, mask: as it was given them.
        gates: what it returned, [B, T, E].
        sizes: [B, T], how many patches each token stands for; None: one each.
    """
    routing = cast(topk.TopKRouter, router.trained).routing_of(x, mask)
    return topk.metrics(dataclasses.replace(routing, gates=gates, sizes=sizes))


def forget(optimizer: Optimizer, parameters: Iterable[Tensor], experts: Tensor) -> None:
    """Clear an optimiser's state of some experts.

    Args:
        optimizer: in its state, tensors of a parameter's shape are set to zero at these experts.
        parameters: those whose first axis runs over experts.
        experts: [E], bool.
    """
    for parameter in parameters:
        for state in optimizer.state.get(parameter, {}).values():
            if isinstance(state, Tensor) and state.shape == parameter.shape:
                by_expert(state, len(experts))[experts] = 0


def topk_mixtures(backbone: Backbone) -> list[TopKMixture]:
    """The sparse mixtures inserted into a backbone."""
    return [m for m in insertion.inserted(backbone) if isinstance(m, TopKMixture)]
