"""muMoE: experts as slices of a factorised tensor (Oldfield et al., arXiv:2402.12550)."""

from typing import Literal

from torch import Tensor

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, Placement, insertion, setting
from toolkit.peft.mixture import Mixture
from toolkit.registry import PEFT

from . import multilinear
from .multilinear import MultilinearBlock


@PEFT.register("mumoe", paper="arXiv:2402.12550")
class MuMoE(PeftMethod):
    """Multilinear mixture: every token uses all experts, which are one factorised tensor."""

    placement: Placement = setting("ffn", "which sublayers get a mixture: mhsa, ffn or both")
    num_experts: int = setting(64, "experts of the first mode, N1", minimum=1)
    hierarchy: int = setting(
        1, "experts of a second mode, N2, so N1 N2 in all; 1: no second mode", minimum=1
    )
    factorisation: Literal["cp", "tr"] = setting(
        "cp", "sum of outer products (cp) or tensor ring with ranks 4, 4 and `rank` (tr)"
    )
    rank: int = setting(16, "rank R of each layer", minimum=1)
    match_params: int | None = setting(
        None,
        "instead of `rank`: the smallest rank with at least this many parameters per block",
        minimum=1,
    )
    layers_per_block: Literal[1, 2] = setting(
        2,
        "two layers d -> b -> d with a GELU between, or one layer d -> d (the paper's fine-tuning)",
    )
    bottleneck: int = setting(16, "width b between two layers", minimum=1)
    input_norm: bool = setting(
        False,
        "a layer norm between gates and layers, which trains (the paper's code offers it)",
    )
    act: Literal["entmax15", "softmax"] = setting("entmax15", "gates with exact zeros, or without")
    norm: Literal["batch", "layer", "none"] = setting(
        "batch",
        "norm in front of the gates: over clips and tokens (batch), over experts (layer), or none",
    )
    norms: bool = setting(True, "train the layer norms in front of those sublayers")

    @property
    def modes(self) -> tuple[int, ...]:
        """Experts of each mode."""
        return (self.num_experts,) if self.hierarchy == 1 else (self.num_experts, self.hierarchy)

    @property
    def inner_width(self) -> int | None:
        """The width between two layers; None where there is one."""
        return self.bottleneck if self.layers_per_block == 2 else None

    def insert(self, backbone: Backbone) -> None:
        """Insert one block beside each sublayer."""
        dim, rank = backbone.width, self.rank_at(backbone.width)
        for site in self.sites(backbone, self.placement):
            block = MultilinearBlock(
                self.factorisation,
                self.modes,
                dim,
                self.inner_width,
                rank,
                self.act,
                self.norm,
                self.input_norm,
            )
            insertion.parallel(site, "mumoe", MultilinearMixture(block))
        if self.norms:
            self.train_norms(backbone, self.placement)

    def rank_at(self, dim: int) -> int:
        """The rank in a backbone of width `dim`.

        Raises:
            ConfigError: `match_params` is too small for rank 1.
        """
        if self.match_params is None:
            return self.rank

        def count(rank: int) -> int:
            return MultilinearBlock.count(
                self.factorisation, self.modes, dim, self.inner_width, rank, self.input_norm
            )

        rank = multilinear.matched_rank(self.match_params, count)
        if rank < 1:
            raise ConfigError(
                f"'match_params' {self.match_params} is less than a block of rank 1 has "
                f"({count(1)}); raise it, or lower 'num_experts'"
            )
        return rank


class MultilinearMixture(Mixture):
    """A block of multilinear layers with its gates.

    Args:
        block: the layers and gates.
    """

    def __init__(self, block: MultilinearBlock) -> None:
        super().__init__()
        self.block = block

    @property
    def experts(self) -> MultilinearBlock:
        """The block, whose slices the experts are."""
        return self.block

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        gates = self.block.route(x, self.mask)
        if self.recording:
            self.records.append(multilinear.metrics([self.real(gate) for gate in gates]))
        return self.block(x, gates)

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, N]; with two modes, of the experts (n1, n2) in that order."""
        return multilinear.joint(self.block.route(x, self.mask if mask is None else mask))
