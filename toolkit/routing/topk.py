"""Sparse routing: every token goes to the k experts with the largest softmax probabilities.

Shazeer et al. (arXiv:1701.06538), GShard (Lepikhin et al., arXiv:2006.16668), Switch Transformer
(Fedus et al., arXiv:2101.03961), ST-MoE (Zoph et al., arXiv:2202.08906).

Shapes: B clips, T tokens, d width, E experts.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from toolkit import processes
from toolkit.routing import dense
from toolkit.routing.precision import wide, without_autocast
from toolkit.routing.router import Router

INIT_SCALE = 0.1
"""The router starts as a truncated normal of variance 0.1 / d (Switch Transformer, section 2.4)."""


@dataclasses.dataclass(frozen=True)
class TopKRouting:
    """Who takes which token.

    Attributes:
        logits: [B, T, E]; -inf for an expert that is not alive.
        probabilities: [B, T, E], their softmax.
        chosen: [B, T, E], bool: the token's k experts before any is dropped for lack of capacity.
        gates: [B, T, E], the factors of the experts' outputs; zero where not chosen or dropped.
        real: [B, T], bool, tokens that are not padding.
        sizes: [B, T], how many patches each token stands for; None: one each.
    """

    logits: Tensor
    probabilities: Tensor
    chosen: Tensor
    gates: Tensor
    real: Tensor
    sizes: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """[B, T], what each token counts in a mean: its size, and 0 if it is padding."""
        return self.real.to(self.logits.dtype) if self.sizes is None else self.real * self.sizes


class TopKRouter(Router):
    """Gates g_e = p_e for the k largest of p = softmax(W x), else 0.

    Decided in float32 whatever the precision around it (Switch's selective precision), since a
    decision is not continuous.

    Args:
        dim: token width d.
        num_experts: E.
        k: experts per token; all that are alive, if there are fewer.
        renormalise: divide a token's gates by their sum (GShard); else they stay probabilities
            (Switch), so that the router learns from the task at k = 1 too.
        jitter: in training the router reads x * U(1 - jitter, 1 + jitter) (Switch).
        noise: standard deviation of the noise on the logits in training (Shazeer et al.).
        capacity: in training an expert takes at most this multiple of its fair share of the batch,
            k / E times the real tokens, first choices before second ones, in the order of the
            tokens (GShard); with several processes, of the part that each has. None: no limit, so
            no token is dropped. Evaluation never drops.

    Attributes:
        alive: [E], bool, which experts can be chosen; all, unless a method drops some.
        routing: that of the last training pass, until it is taken.
    """

    weighs_experts: ClassVar[bool] = True
    k: int

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 2,
        renormalise: bool = True,
        jitter: float = 0.0,
        noise: float = 0.0,
        capacity: float | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_experts, bias=False)
        self.k, self.renormalise = k, renormalise
        self.jitter, self.noise, self.capacity = jitter, noise, capacity
        self.register_buffer("alive", torch.ones(num_experts, dtype=torch.bool))
        self.routing: TopKRouting | None = None
        nn.init.trunc_normal_(self.linear.weight, std=math.sqrt(INIT_SCALE / dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, d] and an optional mask [B, T] of real ones -> gates [B, T, E]."""
        routing = self.route(x, mask)
        if self.training:
            self.routing = routing
        return routing.gates.to(x.dtype)

    def routing_of(self, x: Tensor, mask: Tensor | None = None) -> TopKRouting:
        """The routing of the pass that `forward` has just made, noise of the training included.

        Args:
            x, mask: as `forward` was given them.
        """
        if self.training and self.routing is not None:
            return self.routing
        return self.route(x, mask)

    def count(self, sizes: Tensor | None) -> None:
        """Say how many patches each token of the training pass just made stands for, [B, T]."""
        if self.training and self.routing is not None and sizes is not None:
            self.routing = dataclasses.replace(self.routing, sizes=sizes)

    def take_routing(self) -> TopKRouting:
        """Return the routing of the last training pass and forget it.

        Raises:
            RuntimeError: there was no training pass since the last call.
        """
        routing, self.routing = self.routing, None
        if routing is None:
            raise RuntimeError("call the model in train mode before asking for its losses")
        return routing

    def route(self, x: Tensor, mask: Tensor | None = None) -> TopKRouting:
        """Route tokens [B, T, d], with a mask [B, T] of the real ones."""
        with without_autocast(x):
            logits = self._logits(wide(x))
            probabilities = logits.softmax(dim=-1)
            count = min(self.k, logits.shape[-1])
            top = probabilities.topk(count, dim=-1).indices
            real = torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask
            chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top, True)
            chosen = chosen & self.alive & real[..., None]
            gates = probabilities * chosen
            if self.renormalise:
                total = gates.sum(dim=-1, keepdim=True)
                gates = gates / total.clamp(min=torch.finfo(gates.dtype).tiny)
            if self.training and self.capacity is not None:
                gates = gates * within(top, chosen, self._room(real, count, self.capacity))
        return TopKRouting(logits, probabilities, chosen, gates, real)

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave only some experts, in this order."""
        dense.keep_rows(self.linear, numbers)
        self.alive = self.alive[list(numbers)].clone()

    def _logits(self, x: Tensor) -> Tensor:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = functional.linear(x, wide(self.linear.weight))
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        return logits.masked_fill(~self.alive, -math.inf)

    def _room(self, real: Tensor, choices: int, capacity: float) -> Tensor:
        """How many of the real tokens' choices an expert may take, a scalar."""
        share = real.sum().float() * choices / self.linear.out_features
        return (capacity * share).ceil()


def within(top: Tensor, chosen: Tensor, room: Tensor | int) -> Tensor:
    """Find the choices that experts have room for: first choices first, in the order of tokens.

    Args:
        top: experts of each token, best first, [B, T, k].
        chosen: [B, T, E], bool, which of them count.
        room: how many choices an expert can take.

    Returns:
        [B, T, E], bool; also True where nothing was chosen.
    """
    ranks = functional.one_hot(top, chosen.shape[-1]).flatten(0, 1)  # [B T, k, E]
    ranks = ranks * chosen.flatten(0, 1)[:, None]
    queue = rearrange(ranks, "n k e -> (k n) e").cumsum(dim=0)  # first choices come first
    places = rearrange(queue, "(k n) e -> n k e", k=top.shape[-1])
    fits: Tensor = (places * ranks).sum(dim=1) <= room
    return fits.view_as(chosen)


def balance(routing: TopKRouting) -> Tensor:
    """E_alive sum_e f_e P_e: f the share of all choices, P the mean probability (Switch, eq. 4-6).

    It is 1 where all experts get equally many tokens. For k > 1 every choice counts (GShard counts
    only the first choices). The shares are those of the whole batch, over all processes of a job.
    """
    weights = routing.weights[..., None].to(routing.probabilities.dtype)
    chosen = (routing.chosen * weights).flatten(0, 1).sum(dim=0)
    sums = (routing.probabilities * weights).flatten(0, 1).sum(dim=0)
    tokens = weights.sum()[None]
    chosen, sums, tokens = processes.total(torch.cat([chosen, sums, tokens])).split(
        [len(chosen), len(sums), 1]
    )
    shares, mean = chosen / chosen.sum().clamp(min=1), sums / tokens.clamp(min=1)
    alive = torch.isfinite(routing.logits).any(dim=0).any(dim=0).sum()
    return alive * (shares * mean).sum()


def z_loss(routing: TopKRouting) -> Tensor:
    """Mean squared log-sum-exp of the logits, which keeps them small (ST-MoE, eq. 5)."""
    return _mean(routing.logits.logsumexp(dim=-1).square(), routing.weights)


def entropy(routing: TopKRouting) -> Tensor:
    """Mean entropy of a token's softmax in nats; minimising it sharpens the routing (SEER-MoE)."""
    return _mean(dense.entropy(routing.probabilities), routing.weights)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over the tokens of all processes."""
    sums = torch.stack([(values * weights).sum(), weights.sum().to(values.dtype)])
    total, tokens = processes.total(sums)
    return total / tokens.clamp(min=1)


def metrics(routing: TopKRouting) -> dict[str, Tensor]:
    """Statistics of a gate, averaged over clips and tokens; detached.

    Returns:
        load: [E], share of the choices that each expert gets; sums to 1.
        importance: [E], mean probability of each expert.
        gate_entropy: entropy of a token's probabilities over its maximum.
        active_mean: mean number of experts per token.
        alive: number of experts that can be chosen.
        unused: share of these that no token chose.
    """
    probabilities, used = routing.probabilities.detach(), routing.gates.detach() > 0
    counts = (used * routing.weights[..., None]).flatten(0, 1).sum(dim=0).float()
    alive = torch.isfinite(routing.logits).flatten(0, 1).any(dim=0)
    sizes = None if routing.sizes is None else routing.sizes[routing.real]
    dense_metrics = dense.metrics(probabilities[routing.real], sizes)
    return {
        "load": counts / counts.sum().clamp(min=1),
        "importance": dense_metrics["load"],
        "gate_entropy": dense_metrics["gate_entropy"],
        "active_mean": counts.sum() / routing.weights.sum().clamp(min=1),
        "alive": alive.sum().float(),
        "unused": ((counts == 0) & alive).sum() / alive.sum(),
    }
