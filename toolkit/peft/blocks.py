"""What adapters and mixtures share: the kind of expert block, its width and its initial values."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from toolkit.backbones.base import Backbone, Placement, Site
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.experts.bottleneck import Bottleneck
from toolkit.experts.conformer import Conformer
from toolkit.experts.convpass import Convpass
from toolkit.peft.base import PeftMethod, quirk, setting

REFERENCE_STD = 0.02
"""Standard deviation of the truncated normal with which the reference code ends up."""


class BlockMethod(PeftMethod):
    """Base of the methods that put expert blocks at sublayers."""

    placement: Placement = setting("ffn", "which sublayers: mhsa, ffn or both")
    block: Literal["bottleneck", "conformer", "convpass"] = setting(
        "bottleneck", "kind of the adapters"
    )
    reduction: int = setting(64, "inner width is the token width divided by this", minimum=1)
    kernel: int = setting(8, "width of a conformer's convolution, in tokens", minimum=1)
    convolution: Literal["1d", "2d"] = setting(
        "1d", "convpass over the sequence (1d) or over the patch grid (2d)"
    )
    dropout: float = setting(
        0.0, "of convpass, before the projection back to the token width", minimum=0, below=1
    )
    norms: bool = setting(True, "train the layer norms in front of those sublayers")
    discard_norm: bool | None = quirk("the conformer's inner norm is computed and discarded")
    discard_convolution: bool | None = quirk("convpass's convolution is computed and discarded")
    reference_init: bool | None = quirk("linears start as a truncated normal of std 0.02")

    def experts(self, backbone: Backbone, num_experts: int, dim: int | None = None) -> Experts:
        """Make the expert blocks of one site.

        Args:
            backbone: the backbone whose tokens they read.
            num_experts: E.
            dim: token width at that site; None: the width of all blocks.

        Raises:
            ConfigError: the bottleneck would have no channel, the backbone has no patch grid, or
                `dim` is missing and the blocks differ in width.
        """
        dim = backbone.width if dim is None else dim
        shape = (num_experts, dim, bottleneck_width(dim, self.reduction))
        if self.block == "conformer":
            experts: Experts = Conformer(*shape, self.kernel, not self.is_on("discard_norm"))
        elif self.block == "convpass":
            experts = Convpass(*shape, **self._convpass(backbone))
        else:
            experts = Bottleneck(*shape)
        if self.is_on("reference_init"):
            for weight in (experts.down, experts.up):
                nn.init.trunc_normal_(weight, std=REFERENCE_STD)
            if isinstance(experts, Convpass):
                nn.init.xavier_uniform_(experts.conv.weight)
        experts.context = backbone.context
        return experts

    def block_sites(self, backbone: Backbone) -> Iterator[Site]:
        """The sites at which blocks are inserted.

        Raises:
            ConfigError: a convolution over tokens would see only windows of a clip there.
        """
        for site in self.sites(backbone, self.placement):
            if self.block != "bottleneck":
                site.require_whole_clips(f"a {self.block} adapter")
            yield site

    def _convpass(self, backbone: Backbone) -> dict[str, Any]:
        options = {"dropout": self.dropout, "convolve": not self.is_on("discard_convolution")}
        if self.convolution == "1d":
            return options
        if backbone.grid is None:
            raise ConfigError(
                f"the backbone '{backbone.name}' has no grid of patches; use `convolution: 1d`"
            )
        return options | {"grid": backbone.grid, "prefix_tokens": backbone.prefix_tokens}


def bottleneck_width(dim: int, reduction: int) -> int:
    """Inner width r = round(d / reduction), as the reference code rounds.

    Raises:
        ConfigError: the bottleneck would have no channel.
    """
    width = round(dim / reduction)
    if width < 1:
        raise ConfigError(
            f"reduction {reduction} leaves no bottleneck in a backbone of width {dim}; "
            f"use at most {2 * dim - 1}"
        )
    return width
