"""AdapMoE: fewer experts where they hardly matter, and a cache for the rest.

Zhong et al., AdapMoE: Adaptive Sensitivity-based Expert Gating and Management for Efficient MoE
Inference (arXiv:2408.10284), on a trained mixture of adapters.
"""

import dataclasses
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from toolkit.errors import ConfigError
from toolkit.mixtures.observe import some_of, visit
from toolkit.mixtures.tool import Found, MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft.base import setting
from toolkit.peft.mixture import mixtures, routed_mixtures
from toolkit.registry import TOOLS

from . import allocation
from .cache import CachedExperts, total_counts
from .gating import AdaptiveRouter, adaptive_routers, budget_for, tails, threshold_of
from .predictor import Predictor, at_entrance
from .sensitivity import Sensitivity, measure
from .simulator import Clip, measured_loads, simulate
from .trace import Trace, Uses


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
    alloc: Literal["dp", "trace", "uniform"] = setting(
        "dp",
        "how slots are distributed: for the fewest loads, as expected by the paper's formula (dp) "
        "or as counted on the calibration clips (trace), or evenly (uniform)",
    )
    prefetch: Literal["gate_reuse", "none"] = setting(
        "gate_reuse",
        "prefetch the next mixture's experts as its router guesses them from the present tokens",
    )
    look_ahead: int = setting(
        1,
        "mixtures ahead for which to guess; the nearest that lacks a guessed expert is served",
        minimum=1,
    )
    room: int = setting(
        1, "prefetched experts that can wait in front of a mixture, besides its slots", minimum=1
    )
    first_layer: bool = setting(
        True, "guess for the first mixture too, by a predictor fitted on the calibration clips"
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
        trace = Trace(model, list(sensitivities), self.base_topk, self.look_ahead)
        with trace.at_entrance():
            visit(model, data, clips, trace.see)
        budget = self._budget(trace, sensitivities)
        thresholds = {site: threshold_of(budget, s) for site, s in sensitivities.items()}
        calibration: dict[str, Any] = {
            "score_at_top_k": at_top_k,
            "active_at_top_k": trace.active_at_top_k(),
            "T": budget,
            "sensitivities": sensitivities,
            "thresholds": thresholds,
            "prefetch_accuracy": trace.accuracies(thresholds),
        }
        slots = predictor = None
        if self.cache_slots is not None:
            predictor = self._predictor(trace, thresholds)
            run = trace.clips(thresholds, predictor, self.prefetch == "gate_reuse")
            curves = self._curves(trace.experts, run)
            slots = self._slots(curves, self.cache_slots)
            calibration |= self._foreseen(run, curves, slots)
            self._insert_caches(model, slots, predictor)
        for site, router in adaptive_routers(model).items():
            router.threshold.fill_(thresholds[site])
            router.active.zero_()
        return {
            "slots": slots,
            "first_layer": None if predictor is None else predictor.dim,
            "calibration": calibration,
        }

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Insert the routers and, if there are slots, the caches."""
        self._insert_routers(model)
        if plan["slots"] is not None:
            predictor, dim = None, plan.get("first_layer")  # bundles of 0.1 do not speak of it
            if dim is not None:
                first = mixtures(model.backbone)[next(iter(plan["slots"]))]
                predictor = Predictor(dim, first.num_experts)
            self._insert_caches(model, plan["slots"], predictor)

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

    def _insert_caches(
        self, model: AudioClassifier, slots: dict[str, int], predictor: Predictor | None
    ) -> None:
        found, routers = mixtures(model.backbone), adaptive_routers(model)
        for site, number in slots.items():
            experts = found[site].experts
            found[site].experts = CachedExperts(experts, experts.like(1), number, self.room)
        sites = list(slots)
        if self.prefetch == "gate_reuse":
            for place, site in enumerate(sites):
                following = sites[place + 1 : place + 1 + self.look_ahead]
                found[site].experts.following = tuple(
                    (routers[other], found[other].experts) for other in following
                )
        if predictor is not None:
            first = found[sites[0]].experts
            first.predictor = predictor.to(first.store.up.device)
            at_entrance(model.backbone, first.foresee)

    def _predictor(self, trace: Trace, thresholds: dict[str, float]) -> Predictor | None:
        """The predictor of the first mixture, fitted to the trace."""
        if not self.first_layer or self.prefetch == "none":
            return None
        tokens, shares = torch.cat(trace.entering), trace.first_shares(thresholds)
        predictor = Predictor(tokens.shape[-1], shares.shape[-1]).to(tokens.device)
        predictor.fit(tokens, shares)
        return predictor

    def _budget(self, trace: Trace, sensitivities: dict[str, float]) -> float:
        """T, as set or chosen for `target_active`."""
        if self.T is not None:
            return self.T
        costs = [tails(trace.weights(s)).double().square() * v for s, v in sensitivities.items()]
        tokens = sum(len(cost) for cost in costs)
        return budget_for(torch.cat([c.flatten() for c in costs]), tokens, self.target_active)

    def _curves(self, experts: dict[str, int], run: list[Clip]) -> "Curves":
        """Loads per clip at each mixture with 0, ..., E slots."""
        expected, measured = [], []
        for number, size in enumerate(experts.values()):
            uses, precision = Uses.of(run, number, size)
            expected.append(
                [
                    allocation.expected_loads(slots, size, uses, precision, self.room)
                    for slots in range(size + 1)
                ]
            )
            measured.append(measured_loads(run, number, size, self.room))
        return Curves(experts, expected, measured)

    def _slots(self, curves: "Curves", total: int) -> dict[str, int]:
        """Cache slots of each mixture."""
        if self.alloc == "uniform":
            chosen = allocation.uniform(list(curves.experts.values()), total)
        else:
            chosen = allocation.allocate(
                curves.expected if self.alloc == "dp" else curves.measured, total
            )
        return dict(zip(curves.experts, chosen, strict=True))

    def _foreseen(self, run: list[Clip], curves: "Curves", slots: dict[str, int]) -> dict[str, Any]:
        """Expected loads per clip and a simulation of the calibration clips.

        Both are for the chosen slots and for an even distribution of as many.
        """
        even = allocation.uniform(list(curves.experts.values()), sum(slots.values()))
        foreseen = {}
        for name, numbers in (("chosen", list(slots.values())), ("uniform", even)):
            outcome = simulate(run, numbers, self.load_time, self.room)
            loads = sum(curve[n] for curve, n in zip(curves.expected, numbers, strict=True))
            foreseen[name] = {
                "expected_loads": loads,
                "loads": outcome["misses"] / len(run),
                **outcome,
            }
        return {"simulation": foreseen}


@dataclasses.dataclass(frozen=True)
class Curves:
    """Loads per clip for which each mixture waits, by its slots.

    Attributes:
        experts: E of each mixture by site.
        expected: by the paper's formula, of each mixture with 0, ..., E slots.
        measured: counted on the calibration clips.
    """

    experts: dict[str, int]
    expected: list[list[float]]
    measured: list[list[float]]


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
