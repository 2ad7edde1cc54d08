"""DynMoE: experts that choose their tokens, and are born and removed while training.

Guo et al., Dynamic Mixture of Experts (arXiv:2405.14297), with adapters as experts.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from toolkit import processes
from toolkit.backbones.base import Backbone, Placement
from toolkit.errors import ConfigError
from toolkit.experts.base import Experts
from toolkit.peft.base import insertion, setting
from toolkit.peft.blocks import BlockMethod
from toolkit.peft.mixture import RoutedMixture
from toolkit.peft.topk import forget
from toolkit.registry import PEFT

from . import top_any


@dataclasses.dataclass(frozen=True)
class Window:
    """Which of every `period` steps are recorded: `first` to `last`, counted from 0."""

    period: int
    first: int
    last: int

    def is_open(self, step: int) -> bool:
        """Whether step `step` (from 1) is recorded."""
        return self.first <= (step - 1) % self.period <= self.last

    def ends(self, step: int) -> bool:
        """Whether step `step` (from 1) is the last one that is recorded."""
        return (step - 1) % self.period == self.last


@PEFT.register("dynmoe", paper="arXiv:2405.14297")
class DynMoE(BlockMethod):
    """Dynamic mixture of adapters: any number of experts per token, of a changing number."""

    placement: Placement = setting("mhsa", "which sublayers get a mixture: mhsa, ffn or both")
    reduction: int = setting(128, "inner width is the token width divided by this", minimum=1)
    n_init: int = setting(8, "experts alive at the start", minimum=1)
    n_max: int = setting(16, "most experts that there can be", minimum=1)
    gate: top_any.Gradient | None = setting(
        None,
        "whose gradient the gates have: that of the paper's code for DeepSpeed, where the number "
        "of experts that fire is a constant, or for Tutel, where it is differentiated; none: tutel "
        "with `learn_tau`, which only Tutel's has, else deepspeed",
    )
    tau: float = setting(1.0, "factor of the cosines in the gate", minimum=0.01, maximum=100)
    learn_tau: bool = setting(False, "train that factor (a gate of the Tutel code does, from 10)")
    schedule: Literal["steps", "glue", "llava"] = setting(
        "steps",
        "when experts are born and removed: every `adapt_every` steps; in every epoch after three "
        "quarters, recorded from its half on (glue, as the paper's code); or every 900 steps, "
        "recorded for 300 (llava, as the paper's code)",
    )
    adapt_every: int = setting(
        20,
        "steps: those between births and removals; 0: never (1: as the code for DomainBed)",
        minimum=0,
    )
    record_window: int = setting(
        10, "steps: those before births and removals whose routing decides on them", minimum=1
    )
    w_div: float = setting(0.01, "weight of the loss that drives keys apart", minimum=0)
    w_simple: float = setting(0.01, "weight of the loss that keeps keys short", minimum=0)
    w_balance: float = setting(0.0, "weight of the loss that balances experts", minimum=0)
    balance_over: Literal["alive", "slots"] = setting(
        "alive",
        "factor of that loss: the experts alive, so that it is 1 at best, or all slots (as the "
        "paper's code)",
    )
    w_eff: float = setting(0.0, "weight of the loss on how many experts fire", minimum=0)
    fallback: bool = setting(True, "in evaluation, tokens that no expert takes go to the best one")

    def check(self) -> None:
        """Check that the experts fit and that there is time for a record."""
        if self.n_init > self.n_max:
            raise ConfigError(
                f"'n_init' {self.n_init} is more than 'n_max' {self.n_max}: raise 'n_max'"
            )
        if self.learn_tau and self.gate == "deepspeed":
            raise ConfigError(
                "only the gate of the Tutel code learns tau: set `gate` to tutel, or leave out "
                "'learn_tau'"
            )
        if self.adapt_every and self.record_window > self.adapt_every:
            raise ConfigError(
                f"'record_window' {self.record_window} is longer than 'adapt_every' "
                f"{self.adapt_every}: lower 'record_window' or raise 'adapt_every'"
            )

    def insert(self, backbone: Backbone) -> None:
        """Insert one mixture beside each sublayer."""
        for site in self.sites(backbone, self.placement):
            gradient = self.gate or ("tutel" if self.learn_tau else "deepspeed")
            router = top_any.TopAnyGate(
                backbone.width,
                self.n_max,
                self.n_init,
                self.tau,
                self.learn_tau,
                self.fallback,
                gradient,
            )
            mixture = DynamicMixture(self.experts(backbone, self.n_max), router)
            insertion.parallel(site, "dynmoe", mixture)
        if self.norms:
            self.train_norms(backbone, self.placement)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """The weighted losses on keys and routing, summed over the mixtures."""
        return {"dynmoe": torch.stack([self._loss(m) for m in _mixtures(backbone)]).sum()}

    def _loss(self, mixture: "DynamicMixture") -> Tensor:
        gate, routing = mixture.router, mixture.take_routing()
        loss = self.w_div * top_any.diversity(gate.keys, gate.alive)
        loss = loss + self.w_simple * top_any.simplicity(gate.keys)
        if routing is not None and self.w_balance:
            count = gate.alive.sum() if self.balance_over == "alive" else len(gate.alive)
            loss = loss + self.w_balance * top_any.balance(routing, count)
        if routing is not None and self.w_eff:
            loss = loss + self.w_eff * top_any.efficiency(routing)
        return loss

    def on_epoch_start(self, backbone: Backbone, epoch: int, steps: int) -> None:
        """Note how many steps an epoch has, which the schedule `glue` counts in."""
        for mixture in _mixtures(backbone):
            mixture.steps_per_epoch = steps

    @torch.no_grad()
    def on_step(
        self, backbone: Backbone, optimizer: Optimizer, step: int, total_steps: int
    ) -> None:
        """Record while the window is open, and adapt at its end."""
        mixtures = _mixtures(backbone)
        seen = torch.stack([mixture.take_seen() for mixture in mixtures])
        window = self.window(mixtures[0].steps_per_epoch)
        if window is None:
            return
        seen = processes.total(seen)
        if window.is_open(step):
            for mixture, row in zip(mixtures, seen, strict=True):
                mixture.record.add_(row)
        if window.ends(step):
            for mixture in mixtures:
                mixture.adapt(optimizer, lambda: self.experts(backbone, 1))

    def window(self, steps_per_epoch: int | None) -> Window | None:
        """The steps that are recorded; None: experts are never born or removed.

        Args:
            steps_per_epoch: optimiser steps of an epoch, if it is known.
        """
        if self.schedule == "llava":
            return Window(900, 300, 600)
        if self.schedule == "glue":
            if steps_per_epoch is None:
                raise RuntimeError("call `on_epoch_start` before the steps of an epoch")
            return Window(steps_per_epoch, steps_per_epoch // 2, 3 * steps_per_epoch // 4)
        if not self.adapt_every:
            return None
        return Window(self.adapt_every, self.adapt_every - self.record_window, self.adapt_every - 1)


def _mixtures(backbone: Backbone) -> list["DynamicMixture"]:
    return [m for m in insertion.inserted(backbone) if isinstance(m, DynamicMixture)]


class DynamicMixture(RoutedMixture):
    """The mean of the experts that fire on a token; nothing where none does.

    Args:
        experts: E experts of width d, one per slot of the gate.
        router: a gate with E slots.

    Attributes:
        record: [E + 1 + d]: how often each expert fired on the training tokens since recording
            began, the number of tokens on which none fired, and the sum of these tokens.
        steps_per_epoch: optimiser steps of an epoch, once one has begun.
        born: number of experts that were born in training.
        seed: seed of their weights; the same in every process of a job.
    """

    experts: Experts
    router: top_any.TopAnyGate
    record: Tensor
    born: Tensor
    seed: Tensor

    def __init__(self, experts: Experts, router: top_any.TopAnyGate) -> None:
        super().__init__()
        self.experts, self.router = experts, router
        size = experts.num_experts + 1 + experts.dim
        self.register_buffer("record", torch.zeros(size))
        self.register_buffer("born", torch.zeros((), dtype=torch.long))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.steps_per_epoch: int | None = None
        # Of the passes since the last step; a buffer would be overwritten by the first process's.
        self._seen: Tensor | None = None
        self._routing: top_any.TopAnyRouting | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        routing = self.router.route(x, self.mask)
        if self.training:
            self._routing = routing
            self._observe(x.detach(), routing)
        if self.recording:
            self.records.append(top_any.metrics(routing, self.router.alive))
        return self.experts.mix(x, routing.gates)

    def _observe(self, x: Tensor, routing: top_any.TopAnyRouting) -> None:
        uncovered = routing.uncovered.to(self.record.dtype)
        counts = routing.fired.detach().sum(dim=(0, 1))
        total = torch.einsum("b t, b t d -> d", uncovered, x.to(self.record.dtype))
        now = torch.cat([counts.to(self.record.dtype), uncovered.sum()[None], total])
        self._seen = now if self._seen is None else self._seen + now

    def take_seen(self) -> Tensor:
        """What `record` counts, for the passes since the last call."""
        seen, self._seen = self._seen, None
        return torch.zeros_like(self.record) if seen is None else seen

    def take_routing(self) -> top_any.TopAnyRouting | None:
        """Return the routing of the last training pass and forget it."""
        routing, self._routing = self._routing, None
        return routing

    def adapt(self, optimizer: Optimizer, one_expert: Callable[[], Experts]) -> None:
        """Remove the experts that never fired; if tokens were left over, add one expert for them.

        The key of the new expert is the direction of the sum of these tokens; the record restarts.

        Args:
            optimizer: its state for the new expert is cleared.
            one_expert: makes a new expert.
        """
        counts, uncovered, total = self.record.split(
            [self.experts.num_experts, 1, self.experts.dim]
        )
        self.router.alive &= counts > 0
        if uncovered > 0 and not self.router.alive.all():
            slot = int(self.router.alive.int().argmin())
            self._be_born(slot, one_expert, optimizer)
            self.router.keys[slot] = functional.normalize(total, dim=0)
            self.router.thresholds[slot] = 0
            self.router.alive[slot] = True
            self.born += 1
        self.record.zero_()

    def _be_born(self, slot: int, one_expert: Callable[[], Experts], optimizer: Optimizer) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(self.seed + self.born))
            fresh = one_expert().of(0)
        for name, tensor in self.experts.of(slot).items():
            tensor.copy_(fresh[name])
        slotted = [*self.experts.parameters(), self.router.keys, self.router.thresholds]
        forget(optimizer, slotted, torch.arange(self.experts.num_experts) == slot)
