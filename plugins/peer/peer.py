"""PEER: retrieval from a pool of single neurons (He, Mixture of A Million Experts, 2407.04153)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit.backbones.base import Backbone
from toolkit.errors import ConfigError
from toolkit.experts.batch_norm import batch_norm
from toolkit.peft.base import PeftMethod, Placement, insertion, setting
from toolkit.peft.mixture import Mixture
from toolkit.registry import PEFT
from toolkit.routing.precision import wide, without_autocast

from .pool import NeuronPool
from .product_key import ProductKeys

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
}


@PEFT.register("peer", paper="arXiv:2407.04153")
class Peer(PeftMethod):
    """PEER: every token retrieves a few of very many tiny experts by product keys."""

    placement: Placement = setting("ffn", "which sublayers get a mixture: mhsa, ffn or both")
    n_keys: int = setting(32, "sub-keys per half; the pool holds n_keys^2 experts", minimum=1)
    heads: int = setting(4, "retrievals per token", minimum=1)
    topk: int = setting(8, "experts per retrieval", minimum=1)
    d_key: int = setting(16, "width of queries and keys, both halves together", minimum=2)
    query_bn: bool = setting(
        True, "batch norm on the queries, which spreads the tokens over more experts"
    )
    score: Literal["softmax", "sigmoid"] = setting(
        "softmax", "gates of the retrieved experts: softmax over them, or a sigmoid of each"
    )
    expert_rank: int = setting(1, "neurons per expert", minimum=1)
    share_pool: bool = setting(
        True, "one pool for all blocks; each block has its own queries and keys"
    )
    pool_lr_mult: float = setting(
        1.0, "learning rate of the pool, as a multiple of that of the rest", above=0
    )
    norms: bool = setting(True, "train the layer norms in front of those sublayers")

    def check(self) -> None:
        """Check that queries have two halves and the pool has enough experts."""
        if self.d_key % 2:
            raise ConfigError(
                f"'d_key' must be even, since it is cut into halves, not {self.d_key}"
            )
        if self.topk > self.n_keys**2:
            raise ConfigError(
                f"'topk' {self.topk} is more than the {self.n_keys**2} experts of the pool; "
                "lower it, or raise 'n_keys'"
            )

    def insert(self, backbone: Backbone) -> None:
        """Insert one retrieval per site; the first site owns a shared pool."""
        pool: NeuronPool | None = None
        for site in self.sites(backbone, self.placement):
            owner = pool is None or not self.share_pool
            if pool is None or owner:
                pool = NeuronPool(self.n_keys**2, backbone.width, self.expert_rank)
            insertion.parallel(site, "peer", RetrievedExperts(self, backbone.dim, pool, owner))
        if self.norms:
            self.train_norms(backbone, self.placement)

    def parameter_groups(
        self, parameters: dict[str, nn.Parameter], lr: float
    ) -> list[dict[str, Any]]:
        """Two groups: the pool, with its own learning rate, and the rest."""
        pooled = {name for name in parameters if ".peer.pool." in name}
        rest = [p for name, p in parameters.items() if name not in pooled]
        return [
            {"params": rest, "lr": lr},
            {"params": [parameters[name] for name in sorted(pooled)], "lr": self.pool_lr_mult * lr},
        ]

    def statistics(self, backbone: Backbone) -> dict[str, float | list[float]]:
        """How evenly the pool is used, where z is each expert's share of all recorded gates.

        Returns:
            usage: share of the experts with z > 0.
            unevenness: log N + sum z log z, the divergence of z from the uniform: 0 is even.
            gate_entropy: entropy of a retrieval's gates over its maximum (0 with `topk` 1).
            active_mean: different experts that a token retrieves in a block, on average.
        """
        modules = [m for m in insertion.inserted(backbone) if isinstance(m, RetrievedExperts)]
        records = [(module.experts, module.records[0]) for module in modules if module.records]
        if not records:
            return {}
        pools: dict[nn.Module, Tensor] = {}
        for pool, record in records:
            pools[pool] = pools.get(pool, 0) + record["gates"]
        shares = torch.stack([gates / gates.sum() for gates in pools.values()])  # [pools, N]
        uneven = math.log(shares.shape[1]) - torch.special.entr(shares).sum(dim=1)
        means = {
            key: torch.stack([record[key] / record["tokens"] for _, record in records]).mean()
            for key in ("gate_entropy", "active_mean")
        }
        return {
            "usage": (shares > 0).float().mean().item(),
            "unevenness": uneven.mean().item(),
            **{key: value.item() for key, value in means.items()},
        }


class RetrievedExperts(Mixture):
    """`sum over heads and retrieved i of gate_i e_i(x)` (2407.04153, equation 4).

    Args:
        settings: the method.
        dim: token width d.
        pool: the experts.
        owner: hold the pool as a child, so that it is trained, saved and moved with the model;
            the other sites only refer to it.
    """

    def __init__(self, settings: Peer, dim: int, pool: NeuronPool, owner: bool) -> None:
        super().__init__()
        width = settings.heads * settings.d_key
        self.heads, self.topk, self.score = settings.heads, settings.topk, settings.score
        self.query = nn.Linear(dim, width, bias=False)
        self.norm = nn.BatchNorm1d(width) if settings.query_bn else nn.Identity()
        self.keys = ProductKeys(settings.n_keys, settings.d_key)
        if owner:
            self.pool = pool
        self.shared = (pool,)  # in a tuple: a reference, not a child

    @property
    def experts(self) -> NeuronPool:
        """The pool."""
        return self.shared[0]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]; padding gives 0 and has no part in the norm of the queries."""
        tokens = self.real(x)
        gates, experts = self.retrieve(tokens)
        if self.recording:
            self._count(gates.detach(), experts)
        out = self.experts(tokens, gates.flatten(1), experts.flatten(1))
        if self.mask is None:
            return out.view_as(x)
        return out.new_zeros(x.shape).masked_scatter(self.mask[..., None], out)

    def retrieve(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [M, d] -> gates and numbers of each head's experts, both [M, h, k]; in float32."""
        with without_autocast(tokens):
            queries = functional.linear(wide(tokens), wide(self.query.weight))
            query = batch_norm(self.norm, queries)
            found = self.keys(rearrange(query, "m (h c) -> m h c", h=self.heads), self.topk)
            return GATES[self.score](found.scores), found.indices

    def gates(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, N]; an expert's gates of all heads are added up."""
        gates, experts = (found.flatten(1) for found in self.retrieve(x.flatten(0, 1)))
        dense = gates.new_zeros(len(gates), self.num_experts)
        return dense.scatter_add(1, experts, gates).view(*x.shape[:2], -1)

    def experts_per_token(self) -> float:
        """Different experts that a token retrieved in the recorded passes, on average."""
        return self.records[0]["active_mean"].item() / self.records[0]["tokens"].item()

    def _count(self, gates: Tensor, indices: Tensor) -> None:
        """Add up in one record the gates of each expert [N] and what `statistics` averages."""
        if not self.records:
            sums = {"gates": gates.new_zeros(self.num_experts)}
            names = ("gate_entropy", "active_mean", "tokens")
            self.records.append(sums | {name: gates.new_zeros(()) for name in names})
        record = self.records[0]
        record["gates"].index_add_(0, indices.flatten(), gates.flatten())
        shares = gates / gates.sum(dim=-1, keepdim=True)
        entropy = torch.special.entr(shares).sum(dim=-1) / math.log(max(self.topk, 2))  # [M, h]
        repeated = (indices.flatten(1).sort(dim=1).values.diff(dim=1) == 0).sum(dim=1)
        record["gate_entropy"] += entropy.mean(dim=1).sum()
        record["active_mean"] += (self.heads * self.topk - repeated).sum()
        record["tokens"] += len(gates)
