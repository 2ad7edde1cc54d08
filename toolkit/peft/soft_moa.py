"""Soft mixture of adapters (Cappellazzo et al., arXiv:2402.00828)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft.base import quirk, setting
from toolkit.peft.mixture import Mixture, MixtureMethod
from toolkit.registry import PEFT
from toolkit.routing import soft


@PEFT.register("soft_moa", paper="arXiv:2402.00828")
class SoftMoA(MixtureMethod):
    """Soft mixture of adapters: experts read slots, which are weighted means of tokens."""

    slots: int = setting(1, "slots per adapter, S", minimum=1)
    normalize: bool = setting(False, "unit-length tokens and slot embeddings in the router")
    noise: float = setting(0.0, "standard deviation of the router's noise in training", minimum=0)
    normalize_over_experts: bool | None = quirk(
        "normalised routing divides slot embeddings by their length over experts, and makes the "
        "slots of normalised tokens"
    )

    def check(self) -> None:
        """Refuse convolutions over a grid, since slots form none."""
        if self.block == "convpass" and self.convolution == "2d":
            raise ConfigError(
                "Soft-MoA's experts read slots, which form no grid of patches: use "
                "`convolution: 1d`, or Dense-MoA"
            )

    def mixture(self, backbone: Backbone, site: Site) -> "SoftMixture":
        """The experts and the slot embeddings of one site."""
        site.require_whole_clips("Soft-MoA")
        mixture = SoftMixture(
            self.experts(backbone, self.num_experts, site.out_dim),
            self.slots,
            self.normalize,
            self.noise,
            over_experts=self.is_on("normalize_over_experts"),
        )
        if self.is_on("reference_init"):
            # Xavier as the reference code applies it to [d, E, S]: fans (E S, d S).
            nn.init.xavier_normal_(mixture.phi)
        return mixture


class SoftMixture(Mixture):
    """Tokens -> slots -> experts -> tokens.

    Args:
        experts: E experts of width d.
        slots: S.
        normalize: give `routing.soft.route` a trained scale, with unit-length tokens and slots.
        noise: standard deviation of the noise on the logits while training.
        over_experts: normalise as `routing.soft.normalised_over_experts` does.
    """

    experts: Experts
    reads_slots: ClassVar[bool] = True
    prunable: ClassVar[bool] = True

    def __init__(
        self,
        experts: Experts,
        slots: int,
        normalize: bool = False,
        noise: float = 0.0,
        over_experts: bool = False,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.phi = nn.Parameter(torch.empty(experts.dim, experts.num_experts, slots))
        self.scale = nn.Parameter(torch.ones(())) if normalize else None
        self.noise, self.over_experts = noise, over_experts
        nn.init.normal_(self.phi, std=1 / math.sqrt(experts.dim))  # LeCun normal, as 2308.00951

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] -> [B, T, d].

        Args:
            x: tokens.
            mask: [B, T], True where a token is real; None: as the backbone says.
        """
        if mask is None:
            mask = self.mask
        routing, x = self.route(x, mask)
        if self.recording:
            self.records.append(soft.metrics(routing, mask))
        return routing.tokens(self.experts(routing.slots(x)))

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Always refused.

        Raises:
            ConfigError: experts read slots.
        """
        raise ConfigError(
            "a soft mixture has no gates: its experts read slots made of all tokens; use a "
            "mixture whose tokens choose experts, such as dense_moa or topk_moa"
        )

    def expert_inputs(self, x: Tensor) -> Tensor:
        """The slots of each expert, [B, E, S, d]."""
        routing, tokens = self.route(x)
        return routing.slots(tokens)

    def shares(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The combine weights of each expert, summed over its slots: [B, T, E]."""
        return self.route(x, mask)[0].combine.sum(dim=-1)

    def keep_routing(self, numbers: Sequence[int]) -> None:
        """Leave the slots of some experts.

        Only the softmax of the combine weights then runs over fewer; the dispatch weights of a
        slot are a softmax over tokens and stay as they are.
        """
        self.phi = nn.Parameter(self.phi.detach()[:, list(numbers)].clone())

    def token_weights(self, x: Tensor) -> dict[str, Tensor]:
        """The dispatch and the combine weights, each [B, T, E, S]."""
        routing, _ = self.route(x)
        return {"dispatch": routing.dispatch, "combine": routing.combine}

    def route(self, x: Tensor, mask: Tensor | None = None) -> tuple[soft.SoftRouting, Tensor]:
        """Route tokens [B, T, d]; returns the routing and the tokens of which slots are made."""
        phi: Tensor = self.phi
        scale = self.scale
        if scale is not None and self.over_experts:
            x, phi = soft.normalised_over_experts(x, phi, scale)
            scale = None
        noise = self.noise if self.training else 0.0
        return soft.route(x, phi, scale=scale, mask=mask, noise_std=noise), x
