"""FacT: all updates of a backbone as one factorised tensor (Jie and Deng, arXiv:2212.03145)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone, Site
from toolkit.errors import ConfigError
from toolkit.peft.base import PeftMethod, insertion, setting
from toolkit.peft.lora import ROLE_OF
from toolkit.registry import PEFT


@PEFT.register("fact", paper="arXiv:2212.03145")
class FacT(PeftMethod):
    """Updates s U C V^T of every projection; U and V are shared by all, C is each one's core.

    A block has twelve d x d pieces: q, k, v, o, and four each of the feed-forward's projections.
    Tensor train (`tt`) gives every piece a free core [r, r]; Tucker (`tk`) makes the cores of one
    core tensor [r, r, r] and a row of r numbers for each piece.
    """

    rank: int = setting(16, "rank r of the cores", minimum=1)
    scale: float = setting(1.0, "factor s of the updates", nonzero=True)
    dropout: float = setting(0.1, "inside the updates", minimum=0, below=1)
    kind: Literal["tt", "tk"] = setting("tt", "tensor train or Tucker")

    def insert(self, backbone: Backbone) -> None:
        """One update per projection; the factors are owned by the first of them."""
        dim = backbone.width
        sites = list(self.sites(backbone, *ROLE_OF.values()))
        for site in sites:
            if site.in_dim % dim or site.out_dim % dim:
                raise ConfigError(f"FacT cuts projections into d x d pieces; {site.name} has none")
        factors = Factors(dim, self.rank, sum(_pieces(s, dim) for s in sites), self.kind)
        begin = 0
        for site in sites:
            count = _pieces(site, dim)
            update = Factorised(factors, begin, count, site, self.scale, self.dropout)
            insertion.parallel(site, "fact", update)
            begin += count


def _pieces(site: Site, dim: int) -> int:
    return site.in_dim * site.out_dim // dim**2


class Factors(nn.Module):
    """U, V and the cores, shared by all updates; V starts at zero.

    Args:
        dim: token width d.
        rank: r.
        pieces: number of d x d pieces.
        kind: `tt`, free cores, or `tk`, cores made of one core tensor.
    """

    def __init__(self, dim: int, rank: int, pieces: int, kind: str) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, dim))
        self.v = nn.Parameter(torch.zeros(dim, rank))
        shape = (rank, rank, rank) if kind == "tk" else (pieces, rank, rank)
        self.core = nn.Parameter(torch.empty(shape))
        self.rows = nn.Parameter(torch.empty(pieces, rank)) if kind == "tk" else None
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        nn.init.normal_(self.core, std=1 / math.sqrt(rank))
        if self.rows is not None:
            nn.init.normal_(self.rows, std=1 / math.sqrt(rank))

    def cores(self, begin: int, count: int) -> Tensor:
        """The cores of pieces `begin` to `begin + count`, [count, r, r]."""
        if self.rows is None:
            return self.core[begin : begin + count]
        return torch.einsum("pk,kab->pab", self.rows[begin : begin + count], self.core)


class Factorised(nn.Module):
    """The update of one projection, of `count` d x d pieces beside or above each other.

    Args:
        factors: what all updates share.
        begin, count: this projection's pieces.
        site: the projection.
        scale: factor s of the update.
        dropout: inside it, while training.
    """

    def __init__(
        self, factors: Factors, begin: int, count: int, site: Site, scale: float, dropout: float
    ) -> None:
        super().__init__()
        if begin == 0:
            self.factors = factors
        self.shared = (factors,)  # in a tuple: a reference, not a child
        self.begin, self.count = begin, count
        self.widens = site.out_dim > site.in_dim
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        factors = self.shared[0]
        cores = factors.cores(self.begin, self.count)
        if self.widens:
            hidden = functional.linear(x, factors.u)
            hidden = functional.dropout(hidden, self.dropout, self.training)
            pieces = torch.einsum("...r,prs->...ps", hidden, cores)
            out = functional.linear(pieces, factors.v).flatten(-2)
        else:
            parts = x.unflatten(-1, (self.count, -1))
            hidden = functional.linear(parts, factors.u)
            hidden = functional.dropout(hidden, self.dropout, self.training)
            mixed = torch.einsum("...pr,prs->...s", hidden, cores)
            out = functional.linear(mixed, factors.v)
        return self.scale * out

    def delta(self) -> Tensor:
        """The update of the weight, [out, in]."""
        factors = self.shared[0]
        pieces = torch.einsum(
            "ds,prs,re->pde", factors.v, factors.cores(self.begin, self.count), factors.u
        )
        return self.scale * torch.cat(list(pieces), dim=0 if self.widens else 1)

    def merge_into(self, linear: nn.Linear) -> None:
        """Add the update to a projection's weight."""
        linear.weight.add_(self.delta())
