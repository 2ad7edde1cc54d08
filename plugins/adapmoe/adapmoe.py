"""AdapMoE: fewer experts where they hardly matter, and a cache for the rest.

Zhong et al., AdapMoE: Adaptive Sensitivity-based Expert Gating and Management for Efficient MoE
Inference (arXiv:2408.10284), on a trained mixture of adapters.
"""

import dataclasses
import itertools
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from toolkit.errors import ConfigError
from toolkit.mixtures.observe import some_of, visit
from toolkit.mixtures.tool import Found, MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft.base import setting
from toolkit.peft.mixture import Mixture, mixtures, routed_mixtures
from toolkit.registry import TOOLS

from . import allocation
from .cache import CachedExperts, by_count, total_counts
from .gating import AdaptiveRouter, budget_for, strongest, tails, threshold_of
from .sensitivity import Sensitivity, measure
from .simulator import Visit, simulate


@TOOLS.register("adapmoe", paper="arXiv:2408.10284", verb="compress")
class AdapMoE(MixtureTool):
    """AdapMoE: tokens skip experts that hardly change the loss; a cache prefetches experts."""

    T: float | None = setting(
        None,
        "largest cost of skipping an expert, mass^2 times sensitivity; none: what gives a token "
        "`target_active` experts (the paper's 0.005 is on the scale of its own sensitivities)",
        minimum=0,
    )
    target_active: float = setting(1.75, "mean number of experts per token if T is none", minimum=1)
    sensitivity: Sensitivity = setting(
        "fisher_delta",
        "sensitivity of a mixture: squared gradients times the squared difference of a token's two "
        "strongest experts (fisher_delta), or squared gradients alone (fisher_out)",
    )
    base_topk: int = setting(2, "experts per token before any is skipped, K", minimum=1)
    cache_slots: int | None = setting(
        None, "number of experts in the caches of all mixtures together; none: no cache", minimum=0
    )
    alloc: Literal["dp", "uniform"] = setting(
        "dp", "how slots are distributed: for the fewest expected loads (dp), or evenly (uniform)"
    )
    prefetch: Literal["gate_reuse", "none"] = setting(
        "gate_reuse",
        "prefetch the next mixture's experts as its router guesses them from the present tokens",
    )
    load_time: float = setting(
        1.0,
        "time to load an expert over that of a block, in the simulation of the cache",
        minimum=0,
    )
    calibration_clips: int = setting(128, "clips of the training folds to calibrate on", minimum=1)

    def apply(self, model: AudioClassifier, data: MixtureData) -> dict[str, Any]:
        """Measure sensitivities, choose thresholds, and distribute cache slots."""
        _refuse(model)
        clips = some_of(data.calibration, self.calibration_clips)
        self._insert_routers(model)
        at_top_k = data.score(model, data.test)
        sensitivities = measure(model, data, clips, self.sensitivity)
        trace = Trace(model, list(sensitivities), self.base_topk)
        visit(model, data, clips, trace.see)
        budget = self._budget(trace, sensitivities)
        thresholds = {site: threshold_of(budget, s) for site, s in sensitivities.items()}
        usages = trace.usages(thresholds)
        calibration: dict[str, Any] = {
            "score_at_top_k": at_top_k,
            "active_at_top_k": trace.active_at_top_k(),
            "T": budget,
            "sensitivities": sensitivities,
            "thresholds": thresholds,
            "prefetch_accuracy": {site: usage.accuracy for site, usage in usages.items()},
        }
        slots = None if self.cache_slots is None else self._slots(usages, self.cache_slots)
        if slots is not None:
            calibration |= self._foreseen(trace, thresholds, usages, slots)
            self._insert_caches(model, slots)
        for site, router in adaptive_routers(model).items():
            router.threshold.fill_(thresholds[site])
            router.active.zero_()
        return {"slots": slots, "calibration": calibration}

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Insert the routers and, if there are slots, the caches."""
        self._insert_routers(model)
        if plan["slots"] is not None:
            self._insert_caches(model, plan["slots"])

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> Found:
        """What the calibration found, and what the model has done since it was loaded.

        `run_tool` measures it on the test fold in between.
        """
        found = mixtures(model.backbone)
        counts = [router.active for router in adaptive_routers(model).values()]
        active = pad_sequence(counts, batch_first=True).sum(dim=0)  # sites may differ in experts
        share = active.double() / active.sum().clamp(min=1)
        mean = (share * torch.arange(len(share))).sum().item()
        details = {
            **plan["calibration"],
            "active_share": share.tolist(),
            "single_expert_share": share[1].item(),
            "fewer_activations": 1 - mean / plan["calibration"]["active_at_top_k"],
        }
        if plan["slots"] is not None:
            loads = total_counts(mixture.experts.cache for mixture in found.values())
            details |= {"slots": plan["slots"], "cache": loads}
        return Found(active_mean=mean, details=details)

    def _insert_routers(self, model: AudioClassifier) -> None:
        for mixture in routed_mixtures(model.backbone).values():
            router = AdaptiveRouter(mixture, self.base_topk)
            mixture.router = router.to(next(mixture.experts.buffers(), mixture.experts.up).device)

    def _insert_caches(self, model: AudioClassifier, slots: dict[str, int]) -> None:
        found = mixtures(model.backbone)
        for site, number in slots.items():
            experts = found[site].experts
            found[site].experts = CachedExperts(experts, experts.like(1), number)
        if self.prefetch == "gate_reuse":
            for site, following in itertools.pairwise(slots):
                next_router = adaptive_routers(model)[following]
                found[site].experts.following = (next_router, found[following].experts)

    def _budget(self, trace: "Trace", sensitivities: dict[str, float]) -> float:
        """T, as set or chosen for `target_active`."""
        if self.T is not None:
            return self.T
        costs = [tails(trace.weights(s)).double().square() * v for s, v in sensitivities.items()]
        tokens = sum(len(cost) for cost in costs)
        return budget_for(torch.cat([c.flatten() for c in costs]), tokens, self.target_active)

    def _slots(self, usages: dict[str, "Usage"], total: int) -> dict[str, int]:
        """Cache slots of each mixture."""
        if self.alloc == "uniform":
            chosen = allocation.uniform([u.experts for u in usages.values()], total)
        else:
            chosen = allocation.allocate([u.curve() for u in usages.values()], total)
        return dict(zip(usages, chosen, strict=True))

    def _foreseen(
        self,
        trace: "Trace",
        thresholds: dict[str, float],
        usages: dict[str, "Usage"],
        slots: dict[str, int],
    ) -> dict[str, Any]:
        """Expected loads per token and a simulation of the calibration clips.

        Both are for the chosen slots and for an even distribution of as many.
        """
        even = allocation.uniform([u.experts for u in usages.values()], sum(slots.values()))
        visits, foreseen = trace.visits(thresholds), {}
        for name, numbers in (("chosen", list(slots.values())), ("uniform", even)):
            outcome = simulate(visits, numbers, self.load_time, self.prefetch == "gate_reuse")
            loads = sum(u.curve()[n] for u, n in zip(usages.values(), numbers, strict=True))
            foreseen[name] = {"expected_loads": loads, **outcome}
        return {"simulation": foreseen}


@dataclasses.dataclass(frozen=True)
class Usage:
    """How tokens use a mixture.

    Attributes:
        experts: E.
        active: share of the tokens with 0, 1, ... experts.
        accuracy: share of the used experts that were guessed one mixture before.
    """

    experts: int
    active: list[float]
    accuracy: float

    def curve(self) -> list[float]:
        """Expected loads per token with 0, ..., E slots."""
        return [
            allocation.expected_loads(slots, self.experts, self.active, self.accuracy)
            for slots in range(self.experts + 1)
        ]


class Trace:
    """Which experts tokens choose, clip by clip, and which were guessed for them.

    Args:
        model: a model with adaptive routers.
        sites: the sites of its mixtures, in the order in which they run.
        count: K.
    """

    def __init__(self, model: AudioClassifier, sites: list[str], count: int) -> None:
        self.count, found = count, mixtures(model.backbone)
        self.experts = {site: found[site].num_experts for site in sites}
        self._routers = adaptive_routers(model)
        self._next = {a: (b, self._routers[b]) for a, b in itertools.pairwise(sites)}
        self._chosen: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
        self._guessed: dict[str, list[Tensor]] = {site: [] for site in sites}

    def see(self, site: str, mixture: Mixture, x: Tensor) -> None:
        """Note one clip [1, T, d] at a mixture."""
        gates = self._routers[site].router(x, mixture.mask)
        self._chosen[site].append(strongest(gates[0], self.count))
        if site in self._next:
            following, router = self._next[site]
            self._guessed[following].append(router.guess(x)[0])

    def weights(self, site: str) -> Tensor:
        """The weights of the K strongest experts of all tokens [N, K]."""
        return torch.cat([weights for weights, _ in self._chosen[site]])

    def active_at_top_k(self) -> float:
        """Mean number of experts per token before any is skipped."""
        weights = torch.cat([self.weights(site) for site in self._chosen])
        return (weights > 0).sum(dim=-1).double().mean().item()

    def usages(self, thresholds: dict[str, float]) -> dict[str, Usage]:
        """How tokens use the mixtures with these thresholds."""
        usages = {}
        for site, chosen in self._chosen.items():
            kept = [_kept(weights, thresholds[site]) for weights, _ in chosen]
            numbers = torch.cat(kept).sum(dim=-1)
            share = torch.bincount(numbers, minlength=self.count + 1) / len(numbers)
            right = sum(
                ((experts[:, :, None] == guess[:, None]).any(dim=-1) & keep).sum().item()
                for guess, (_, experts), keep in zip(
                    self._guessed[site], chosen, kept, strict=False
                )
            )  # the first mixture has no guesses
            usages[site] = Usage(self.experts[site], share.tolist(), right / int(numbers.sum()))
        return usages

    def visits(self, thresholds: dict[str, float]) -> list[list[Visit]]:
        """The trace in the form that the simulator reads."""
        sites = list(self._chosen)
        clips = []
        for clip in range(len(self._chosen[sites[0]])):
            visits = []
            for site, following in zip(sites, [*sites[1:], None], strict=True):
                weights, experts = self._chosen[site][clip]
                needed = experts[_kept(weights, thresholds[site])].unique().tolist()
                guessed = by_count(self._guessed[following][clip]) if following else []
                visits.append(Visit(needed, guessed))
            clips.append(visits)
        return clips


def _kept(weights: Tensor, threshold: float) -> Tensor:
    """Which of the K strongest experts [N, K] a token uses."""
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[:, 1:] = tails(weights) >= threshold
    return keep & (weights > 0)


def adaptive_routers(model: AudioClassifier) -> dict[str, AdaptiveRouter]:
    """The routers that this tool has put around those of the mixtures, by site."""
    found = {site: m.router for site, m in routed_mixtures(model.backbone).items()}
    return {site: router for site, router in found.items() if isinstance(router, AdaptiveRouter)}


def _refuse(model: AudioClassifier) -> None:
    """Explain why a mixture cannot be gated adaptively."""
    method, found = model.method.registered_name, list(mixtures(model.backbone).values())
    if any(mixture.reads_slots for mixture in found):
        raise ConfigError(
            "adaptive gating skips experts that a token chose, and in Soft-MoA tokens choose none: "
            "every expert reads slots made of all tokens; use a bundle of dense_moa or topk_moa"
        )
    if not found or not all(mixture.weighs_experts for mixture in found):
        raise ConfigError(
            f"'{method}' is no mixture whose router weighs a token's experts by a softmax: use a "
            "bundle of dense_moa or topk_moa"
        )
    if not all(mixture.mixes_adapters for mixture in found):
        raise ConfigError(
            f"the experts of '{method}' are not adapters of one width that no other cache keeps: "
            "use a bundle of dense_moa or topk_moa to which adapmoe has not yet given a cache"
        )
    if not all(mixture.num_experts > 1 for mixture in found):
        raise ConfigError(
            f"a mixture of '{method}' has one expert, which nothing can skip: use a bundle with at "
            "least two experts in each mixture"
        )
