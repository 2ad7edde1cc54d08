"""Soft mixture of adapters (Cappellazzo et al., arXiv:2402.00828)."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft.base import quirk, setting
from toolkit.peft.mixture import Mixture, MixtureMethod
from toolkit.registry import PEFT
from toolkit.routing import soft

PhiInit = Literal["lecun", "soft_moe", "xavier"]
TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal that is cut off at -2 and 2."""


@PEFT.register("soft_moa", paper="arXiv:2402.00828")
class SoftMoA(MixtureMethod):
    """Soft mixture of adapters: experts read slots, which are weighted means of tokens."""

    slots: int | Literal["tokens/experts"] = setting(
        1,
        "slots per adapter, S; tokens/experts: as many in all as there are tokens (2308.00951)",
        minimum=1,
    )
    phi_init: PhiInit | None = setting(
        None,
        "start of the slot embeddings: lecun (normal of variance 1 / d), soft_moe (as the code of "
        "2308.00951: truncated normal of variance 1 / (d E)), xavier (as the papers' code: normal "
        "of variance 2 / (S (d + E))); none: xavier with reference_init, else lecun",
    )
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
            self.slots_on(backbone),
            self.normalize,
            self.noise,
            over_experts=self.is_on("normalize_over_experts"),
        )
        if self.start != "lecun":  # with which a mixture starts
            initialise(mixture.phi, self.start)
        return mixture

    @property
    def start(self) -> PhiInit:
        """How the slot embeddings start."""
        if self.phi_init is not None:
            return self.phi_init
        return "xavier" if self.is_on("reference_init") else "lecun"

    def slots_on(self, backbone: Backbone) -> int:
        """Slots per adapter on a backbone.

        Raises:
            ConfigError: they follow from the number of tokens, which differs from clip to clip.
        """
        if self.slots != "tokens/experts":
            return self.slots
        if backbone.grid is None:
            raise ConfigError(
                "`slots: tokens/experts` needs the same number of tokens in every clip, and with "
                f"'{backbone.name}' it depends on the clip: set `slots` to a number"
            )
        tokens = backbone.prefix_tokens + math.prod(backbone.grid)
        return max(1, round(tokens / self.num_experts))


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
        initialise(self.phi, "lecun")

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
            self.records.append(soft.metrics(routing, mask, self.sizes(x)))
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
        sizes = self.sizes(x)
        scale = self.scale
        if scale is not None and self.over_experts:
            x, phi = soft.normalised_over_experts(x, phi, scale)
            scale = None
        noise = self.noise if self.training else 0.0
        routing = soft.route(x, phi, scale=scale, mask=mask, sizes=sizes, noise_std=noise)
        return routing, x


def initialise(phi: Tensor, start: PhiInit) -> None:
    """Draw slot embeddings [d, E, S] in place.

    At 7 experts of width 768 with one slot, their standard deviations are 0.036, 0.0136 and 0.051.

    Args:
        phi: slot embeddings.
        start: `lecun`: logits of tokens with unit variance have unit variance. `soft_moe`: what
            JAX's `lecun_normal` makes of this shape, whose fan-in is d E. `xavier`: what PyTorch's
            `xavier_normal_` makes of it, with fans of E S and d S.
    """
    dim, experts, _ = phi.shape
    if start == "lecun":
        nn.init.normal_(phi, std=1 / math.sqrt(dim))
    elif start == "soft_moe":
        std = 1 / math.sqrt(dim * experts) / TRUNCATED_STD
        nn.init.trunc_normal_(phi, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.xavier_normal_(phi)
