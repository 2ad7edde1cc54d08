"""MC-MoE: mixed-precision quantisation of experts by integer programme, and online pruning.

Huang et al., Mixture Compressor for Mixture-of-Experts LLMs (arXiv:2410.06270), on a trained
mixture of adapters.
"""

from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.mixtures.observe import some_of, visit
from toolkit.mixtures.tool import Found, MixtureData, MixtureTool
from toolkit.model import AudioClassifier
from toolkit.peft.base import setting
from toolkit.peft.mixture import Mixture, RoutedMixture, mixtures, routed_mixtures
from toolkit.registry import TOOLS

from . import calibration, pruning
from .packing import HalfTensor, PackedTensor, replace
from .programme import allocate, block_budgets
from .quantise import Quantised, gptq, nearest

WEIGHTS = {"down": 2, "up": 1}
"""The packed weights of experts, and the axis of the token width d along which groups run, since a
row of `up` has only r weights."""


@TOOLS.register("mc_moe", paper="arXiv:2410.06270", verb="compress")
class MCMoE(MixtureTool):
    """MC-MoE: experts of 1 to 3 bits chosen by integer programme, and online dynamic pruning."""

    bits: list[int] = setting([1, 2, 3], "widths that an expert can have")
    avg_bits: float = setting(2.5, "bits per expert, averaged over a mixture's experts", minimum=1)
    alpha: float = setting(1.0, "exponent of how often an expert is activated", minimum=0)
    beta: float = setting(1.0, "exponent of an expert's routing weight", minimum=0)
    gamma: float = setting(2.0, "exponent of the error of an expert at a width", minimum=0)
    force_widths: list[int] = setting(
        [2, 3], "widths that at least one expert of each mixture must have"
    )
    equality: bool = setting(True, "use exactly avg_bits; false: at most")
    group_size: int = setting(
        128, "most weights of a row that share a scale", minimum=1, maximum=128
    )
    backend: Literal["gptq", "rtn"] = setting("gptq", "GPTQ, or rounding to nearest")
    rest_bits: Literal[4, 8, 16] | None = setting(
        None,
        "bits of the other trained matrices (head, router, ...), with vectors in half precision; "
        "16: all in half precision; none: as trained (paper: 4)",
    )
    router_topk: int = setting(
        2, "experts per token that count as activated, where tokens choose", minimum=1
    )
    mu: Literal["median"] | float | None = setting(
        None,
        "online pruning drops experts below this multiple of a token's first: a number, median (of "
        "second over first in the calibration tokens, as in the paper), or none: no pruning",
        minimum=0,
    )
    protect: float = setting(
        0.02,
        "share of tokens, besides special ones, that are never pruned; 0: not even special ones",
        minimum=0,
        maximum=1,
    )
    calibration_clips: int = setting(128, "clips of the training folds to calibrate on", minimum=1)
    sequential: bool = setting(
        False,
        "calibrate each mixture on what reaches it once those before it are quantised (as the "
        "published code does); takes as many times longer as there are mixtures",
    )

    def check(self) -> None:
        """Check that codes can have these widths, and that the forced ones are among them."""
        if not self.bits or not all(1 <= bits <= 8 for bits in self.bits):
            raise ConfigError(f"'bits' must be widths from 1 to 8, not {self.bits}")
        if not set(self.force_widths) <= set(self.bits):
            raise ConfigError(
                f"'force_widths' {self.force_widths} are not all among 'bits' {self.bits}: leave "
                "out the others"
            )

    def apply(self, model: AudioClassifier, data: MixtureData) -> dict[str, Any]:
        """Calibrate, choose widths, quantise, and pack."""
        found = mixtures(model.backbone)
        self._refuse(model, found)
        clips = some_of(data.calibration, self.calibration_clips)
        sizes = [mixture.num_experts for mixture in found.values()]
        budgets = dict(zip(found, block_budgets(self.avg_bits, sizes), strict=True))
        stages = [[site] for site in found] if self.sequential else [list(found)]
        widths: dict[str, list[int]] = {}
        usages: dict[str, calibration.Usage] = {}
        for sites in stages:
            stage = {site: found[site] for site in sites}
            seen, quantised = self._calibrated(model, data, clips, stage)
            errors = self._errors(model, data, clips, quantised)
            for site, mixture in stage.items():
                widths[site] = self._widths(seen[site], errors[site], budgets[site])
                self._pack(mixture, widths[site])
                for name, at_widths in quantised[site].items():
                    mixture.experts.packed[name].fill(at_widths)
            usages |= seen
        self._surround(model)
        if self.mu is not None:
            for site, router in pruning_routers(model).items():
                router.mu.fill_(self._threshold(usages[site], self.mu))
        return {"widths": widths}

    def _calibrated(
        self,
        model: AudioClassifier,
        data: MixtureData,
        clips: pd.DataFrame,
        stage: dict[str, Mixture],
    ) -> tuple[dict[str, calibration.Usage], dict[str, dict[str, dict[int, Quantised]]]]:
        """How some mixtures use their experts, and each of their packed weights at each width."""
        usages = {
            site: calibration.Usage(mixture.experts, self.backend == "gptq")
            for site, mixture in stage.items()
        }

        def see(site: str, mixture: Mixture, x: Tensor) -> None:
            if site in usages:
                usages[site].add(mixture, self._view(mixture, x))

        visit(model, data, clips, see)
        with torch.no_grad():
            quantised = {s: self._quantise(m.experts, usages[s]) for s, m in stage.items()}
        return usages, quantised

    def restructure(self, model: AudioClassifier, plan: dict[str, Any]) -> None:
        """Put packed tensors in place of weights, and pruning routers around routers."""
        for site, mixture in mixtures(model.backbone).items():
            self._pack(mixture, plan["widths"][site])
        self._surround(model)

    def _pack(self, mixture: Mixture, widths: list[int]) -> None:
        """Put packed tensors, still without values, in place of the weights of a mixture."""
        experts = mixture.experts
        for name, axis in WEIGHTS.items():
            shape = getattr(experts, name).shape
            packed = PackedTensor(shape, axis, widths, self.group_size)
            replace(experts, name, packed.to(experts.up_bias.device))

    def _surround(self, model: AudioClassifier) -> None:
        """Put pruning routers around routers, and pack what else is trained."""
        if self.mu is not None:
            for site, routed in routed_mixtures(model.backbone).items():
                self._insert_pruning(model, site, routed)
        if self.rest_bits is not None:
            pack_rest(model, self.rest_bits, self.group_size)

    def report(self, model: AudioClassifier, plan: dict[str, Any]) -> Found:
        """Widths and bytes of the experts, and what online pruning did since the model was loaded.

        `run_tool` measures it on the test fold in between.
        """
        found = mixtures(model.backbone).values()
        packed = [mixture.experts.packed[name] for mixture in found for name in WEIGHTS]
        sizes = {
            kind: sum(b.nbytes for p in packed for n, b in p.named_buffers() if n.startswith(kind))
            for kind in ("codes", "scale", "zero")
        }
        weights = sum(p.numel() for p in packed)
        widths = [width for own in plan["widths"].values() for width in own]
        details = {
            "bits_per_expert": plan["widths"],
            "average_bits": sum(widths) / len(widths),
            "bits_per_weight_with_scales": 8 * sum(sizes.values()) / weights,
            "expert_bytes_before": 4 * weights,
            "expert_bytes_after": sum(sizes.values()),
            "expert_bytes_of_scales": sizes["scale"] + sizes["zero"],
        }
        return Found(details=details) if self.mu is None else self._pruned(model, details)

    def _pruned(self, model: AudioClassifier, details: dict[str, Any]) -> Found:
        """These details and what online pruning did."""
        routers = pruning_routers(model)
        counts = torch.stack([router.counts for router in routers.values()]).sum(dim=0)
        tokens, safe, before, after = counts.double().clamp(min=1).tolist()
        pruning_details = {
            "mu": {site: router.mu.item() for site, router in routers.items()},
            "pruned_share": 1 - after / before,
            "protected_share": safe / tokens,
            "active_mean_before": before / tokens,
        }
        return Found(active_mean=after / tokens, details=details | pruning_details)

    def _refuse(self, model: AudioClassifier, found: dict[str, Mixture]) -> None:
        """Explain why a mixture cannot be compressed."""
        method = model.method.registered_name
        if not found or not all(m.has_router or m.reads_slots for m in found.values()):
            raise ConfigError(
                f"'{method}' is no mixture whose experts mc_moe can weigh: use a bundle of a "
                "mixture with a router (dense_moa, topk_moa) or of soft_moa"
            )
        if not all(mixture.in_full_precision for mixture in found.values()):
            raise ConfigError(
                f"the experts of '{method}' are not adapters of one width in full precision: use a "
                "bundle of dense_moa, topk_moa or soft_moa that no other tool has packed or cached"
            )
        if self.backend == "gptq" and any(
            type(mixture.experts).projection is not Experts.projection for mixture in found.values()
        ):
            raise ConfigError(
                "GPTQ needs the inputs that the weights multiply, and these experts fold a norm "
                "into the weights: use `--backend rtn`"
            )
        if self.mu is None:
            return
        if any(mixture.reads_slots for mixture in found.values()):
            raise ConfigError(
                "online pruning saves nothing in Soft-MoA: its experts read slots, which are "
                "computed whatever weights tokens give them; leave out `--mu`"
            )
        if not all(mixture.weighs_experts for mixture in found.values()):
            raise ConfigError(
                f"online pruning drops the experts with the smallest weights for a token, and the "
                f"gates of '{method}' are no softmax that gives these weights; leave out `--mu`"
            )
        if any(mixture.num_experts < 2 for mixture in found.values()):
            raise ConfigError("a mixture of one expert cannot lose any; leave out `--mu`")

    def _view(self, mixture: Mixture, x: Tensor) -> calibration.View:
        return calibration.view(mixture, x, self.router_topk)

    def _quantise(
        self, experts: Experts, usage: calibration.Usage
    ) -> dict[str, dict[int, Quantised]]:
        """Each packed weight at each width, all experts at once."""
        at_widths: dict[str, dict[int, Quantised]] = {}
        for name, axis in WEIGHTS.items():
            vectors = getattr(experts, name).detach().movedim(axis, -1)  # [E, V, d]
            for bits in set(self.bits):
                if self.backend == "gptq":
                    inputs: Literal["within", "across"] = "within" if name == "down" else "across"
                    hessian = usage.hessians[name]
                    chosen = gptq(vectors, hessian, bits, self.group_size, inputs)
                else:
                    chosen = nearest(vectors, bits, self.group_size)
                at_widths.setdefault(name, {})[bits] = chosen
        return at_widths

    def _errors(
        self,
        model: AudioClassifier,
        data: MixtureData,
        clips: pd.DataFrame,
        quantised: dict[str, dict[str, dict[int, Quantised]]],
    ) -> dict[str, dict[int, Tensor]]:
        """epsilon of each expert at each width: the norm of the change in the mixture's output."""
        weights = {
            site: {
                bits: {n: of[n][bits].weights().movedim(-1, a) for n, a in WEIGHTS.items()}
                for bits in sorted(set(self.bits))
            }
            for site, of in quantised.items()
        }
        squares: dict[str, dict[int, Tensor]] = {site: {} for site in weights}

        def see(site: str, mixture: Mixture, x: Tensor) -> None:
            if site not in weights:
                return
            found = calibration.squared_errors(mixture, self._view(mixture, x), weights[site])
            for bits, square in found.items():
                squares[site][bits] = squares[site].get(bits, 0) + square

        visit(model, data, clips, see)
        return {s: {bits: q.sqrt() for bits, q in of.items()} for s, of in squares.items()}

    def _widths(
        self, usage: calibration.Usage, errors: dict[int, Tensor], budget: int
    ) -> list[int]:
        """The widths of a mixture's experts (PMQ)."""
        weight = (usage.activations / usage.tokens) ** self.alpha
        weight = weight * (usage.mass / usage.tokens) ** self.beta
        costs = [(weight * errors[bits] ** self.gamma).tolist() for bits in sorted(errors)]
        rows = list(zip(*costs, strict=True))
        return allocate(rows, sorted(errors), budget, self.force_widths, self.equality)

    def _threshold(self, usage: calibration.Usage, mu: float | Literal["median"]) -> float:
        return usage.ratios.median().item() if mu == "median" else mu

    def _insert_pruning(self, model: AudioClassifier, site: str, mixture: RoutedMixture) -> None:
        backbone = model.backbone
        attention = pruning.attention_of(backbone, int(site.split(".")[1]))
        if 0 < self.protect < 1:
            pruning.observe(backbone)
        special = backbone.prefix_tokens
        mixture.router = pruning.PruningRouter(mixture, self.protect, special, attention)


def pruning_routers(model: AudioClassifier) -> dict[str, pruning.PruningRouter]:
    """The routers that this tool has put around those of the mixtures, by site."""
    found = {site: m.router for site, m in routed_mixtures(model.backbone).items()}
    return {s: router for s, router in found.items() if isinstance(router, pruning.PruningRouter)}


def pack_rest(model: AudioClassifier, bits: int, group_size: int) -> None:
    """Pack every trained parameter: matrices at a width, vectors in half precision.

    Args:
        model: its trainable parameters are replaced by packed tensors with their values.
        bits: width of matrices; 16: half precision, like vectors.
        group_size: most weights that share a scale.
    """
    trained = [
        (owner, name, parameter.detach())
        for owner in list(model.modules())
        for name, parameter in list(owner.named_parameters(recurse=False))
        if parameter.requires_grad
    ]
    for owner, name, values in trained:
        packed = (
            halved(values) if bits == 16 or values.ndim < 2 else coded(values, bits, group_size)
        )
        replace(owner, name, packed.to(values.device))


def halved(values: Tensor) -> HalfTensor:
    """A tensor in half precision."""
    packed = HalfTensor(values.shape)
    packed.values.copy_(values)
    return packed


def coded(values: Tensor, bits: int, group_size: int) -> PackedTensor:
    """A tensor as one item at a width, whose groups run along its longest axis."""
    axis = max(range(values.ndim), key=values.shape.__getitem__)
    vectors = values.movedim(axis, -1).reshape(1, -1, values.shape[axis])
    packed = PackedTensor(values.shape, axis, [bits], group_size)
    return packed.fill({bits: nearest(vectors, bits, group_size)})
