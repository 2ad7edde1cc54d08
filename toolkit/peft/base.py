"""What a PEFT method is: settings, where its modules go, and what is trained.

A method needs only `insert`. Everything else (training, saving, resuming, the registry's tests,
the benchmark) follows from the structure of what it inserted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.backbones.base import Backbone, Placement, Site
from toolkit.backbones.quantised import is_quantised
from toolkit.errors import ConfigError
from toolkit.padding import TokenContext
from toolkit.peft import insertion
from toolkit.settings import Settings, setting

__all__ = [
    "Objective", "PeftMethod", "Placement", "Recorder", "Site", "insertion", "quirk", "setting",
]  # fmt: skip

NORM_OF = {"mhsa": "norm.mhsa", "ffn": "norm.ffn"}


def quirk(doc: str) -> Any:
    """A setting that reproduces what the papers' reference code does otherwise than the papers.

    None, the default, means what the method's `reference` says; ask `method.is_on(name)`.
    """
    return setting(None, f"reference code: {doc}; none: as `reference` says")


class Objective(Protocol):
    """What the predictions for one training batch are judged by, whatever the task of the corpus.

    A method that only adds losses of its own modules calls `loss` and nothing else.
    """

    def loss(self, logits: Tensor) -> Tensor:
        """The task's mean loss of logits [B, C], a scalar."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> probabilities [B, C]: softmax or sigmoid, as the task asks."""

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """How far two predictions [B, C] for the same clips differ: symmetric KL, a scalar."""


class PeftMethod(Settings, ABC):
    """Base of all methods.

    One rule for what trains: everything the method inserts, the stock tensors that it unfreezes,
    the final norm (unless `final_norm` is off) and the classifier's head.
    """

    trains_backbone: ClassVar[bool] = False
    """True if stock modules train as a whole; their dropout then runs too."""

    sparse: ClassVar[bool] = False
    """True if some trainable tensors may get no gradient in some steps (experts not used)."""

    identity_at_start: ClassVar[bool] = True
    """Whether the adapted backbone equals the frozen one before training; false only where what a
    method adds has an effect whatever its values (further tokens)."""

    may_add_nothing: ClassVar[bool] = False
    """True only where a model with nothing but a head is what the method may describe."""

    layers: str | list[int] = setting(
        "all", "blocks to adapt: all, 'first 3', 'last 6', 'every 2', or a list such as [0, 5]"
    )
    final_norm: bool = setting(True, "train the backbone's final layer norm (as the papers do)")
    reference: bool = setting(False, "do as the papers' reference code does, quirks included")
    zero_positions: bool | None = quirk("the position table is lost and stays zero")

    @abstractmethod
    def insert(self, backbone: Backbone) -> None:
        """Put the method's modules into a frozen backbone and unfreeze what it trains.

        Raises:
            ConfigError: this method cannot work on this backbone.
        """

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone, insert the method, and train the final norm if asked to.

        Raises:
            ConfigError: the backbone is already adapted, or this method cannot work on it.
        """
        if backbone.adapted_by is not None or any(True for _ in insertion.wrappers(backbone)):
            raise ConfigError(
                f"the backbone '{backbone.name}' is already adapted"
                f"{f' by {backbone.adapted_by!r}' if backbone.adapted_by else ''}, and a method "
                "would be put on top of it: load the backbone again first"
            )
        backbone.requires_grad_(False)
        if self.is_on("zero_positions"):
            backbone.zero_positions()
        self.insert(backbone)
        self._refuse_nothing(backbone)
        self._refuse_training_int8(backbone)
        backbone.adapted_by = self.registered_name
        for module in insertion.inserted(backbone):
            if isinstance(module, Recorder):
                module.context = backbone.context
        if self.final_norm:
            self.train_final_norm(backbone)

    def _refuse_nothing(self, backbone: Backbone) -> None:
        """Refuse an `insert` that has changed nothing: a linear probe would be trained instead."""
        changed = any(True for _ in insertion.wrappers(backbone)) or any(
            parameter.requires_grad for parameter in backbone.parameters()
        )
        if not changed and not self.may_add_nothing:
            raise ConfigError(
                f"the method '{self.registered_name}' inserts nothing and trains nothing of the "
                f"backbone '{backbone.name}', so a linear probe would be trained: insert modules "
                "in `insert`, for example with `insertion.parallel`"
            )

    def _refuse_training_int8(self, backbone: Backbone) -> None:
        if any(p.requires_grad and is_quantised(p) for p in backbone.parameters()):
            raise ConfigError(
                f"the method '{self.registered_name}' trains weights of the backbone "
                f"'{backbone.name}', which int8 cannot: load it with `weights: float32`"
            )

    def train_final_norm(self, backbone: Backbone) -> None:
        """Unfreeze the final norm."""
        backbone.norm.requires_grad_(True)

    def is_on(self, name: str) -> bool:
        """Whether a quirk is on: by itself, or with all others through `reference`."""
        value = getattr(self, name)
        return self.reference if value is None else value

    def sites(self, backbone: Backbone, *roles: str) -> Iterator[Site]:
        """The sites of these roles in the blocks that `layers` names; `both` is mhsa and ffn."""
        chosen = chosen_blocks(self.layers, backbone.depth)
        return (site for site in backbone.sites(*roles) if site.block in chosen)

    def train_norms(self, backbone: Backbone, placement: Placement) -> None:
        """Train the layer norms in front of the sublayers at which a method was inserted."""
        for site in self.sites(backbone, placement):
            backbone.site(site.block, NORM_OF[site.role]).module.requires_grad_(True)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """Named losses of the last forward pass, to be added to the task's loss."""
        return {}

    def training_losses(
        self,
        backbone: Backbone,
        forward: Callable[[Tensor], Tensor],
        features: Tensor,
        objective: Objective,
    ) -> dict[str, Tensor]:
        """The named losses of one training batch, whose sum is minimised; `task` is the task's.

        Args:
            backbone: the adapted backbone.
            forward: features -> logits; call it once per step (several passes as one larger batch).
            features: normalised [B, T, F].
            objective: the task's loss for the targets of this batch.
        """
        return {"task": objective.loss(forward(features)), **self.auxiliary_losses(backbone)}

    def on_step(
        self, backbone: Backbone, optimizer: Optimizer, step: int, total_steps: int
    ) -> None:
        """Called after optimiser step `step` (from 1) of `total_steps`, gradients still in place:
        schedules, what is learned from gradients, experts that come and go.

        A step that a gradient scaler leaves out, because gradients overflowed, has its number but
        is not followed by this call.
        """

    def on_epoch_start(self, backbone: Backbone, epoch: int, steps: int) -> None:
        """Called before the training of epoch `epoch` (from 1), which has `steps` optimiser steps
        (those before an interruption included)."""

    def on_epoch(self, backbone: Backbone, optimizer: Optimizer, epoch: int) -> None:
        """Called when the training of epoch `epoch` (from 1) has ended."""

    def parameter_groups(
        self, parameters: dict[str, nn.Parameter], lr: float
    ) -> list[dict[str, Any]]:
        """Optimiser groups; each `{"params": [...], "lr": ...}`.

        Args:
            parameters: trainable parameters by name.
            lr: the configured learning rate.
        """
        return [{"params": list(parameters.values()), "lr": lr}]

    def merge(self, backbone: Backbone) -> None:
        """Fold the method into the stock weights; `unmerge` restores them.

        Raises:
            ConfigError: what this method inserts cannot be folded exactly.
        """
        insertion.merge(backbone, self.registered_name)

    def unmerge(self, backbone: Backbone) -> None:
        """Undo `merge`."""
        insertion.unmerge(backbone)

    def record(self, backbone: Backbone, on: bool) -> None:
        """Switch on or off the recording of statistics by modules that offer it."""
        for module in insertion.inserted(backbone):
            if isinstance(module, Recorder):
                module.recording = on
                module.records.clear()

    def statistics(self, backbone: Backbone) -> dict[str, float | list[float]]:
        """Recorded statistics (expert load, entropy, ...), averaged over batches and modules."""
        recorders = [m for m in insertion.inserted(backbone) if isinstance(m, Recorder)]
        records = [record for module in recorders for record in module.records]
        keys = records[0] if records else ()
        return {key: torch.stack([r[key] for r in records]).mean(0).tolist() for key in keys}


class Recorder(nn.Module):
    """Base of inserted modules that can record statistics of their passes, such as mixtures.

    Attributes:
        recording: whether `forward` appends to `records` in this pass: it is switched on, and the
            batch has real tokens.
        records: one mapping of detached tensors per forward pass.
        context: which tokens of a batch are real, and which have merged; None: all are real.
    """

    context: TokenContext | None = None

    def __init__(self) -> None:
        super().__init__()
        self._switched_on = False
        self.records: list[dict[str, Tensor]] = []

    @property
    def recording(self) -> bool:
        """Whether this pass is recorded; set it to switch recording on or off."""
        return self._switched_on and (self.mask is None or bool(self.mask.any()))

    @recording.setter
    def recording(self, on: bool) -> None:
        self._switched_on = on

    @property
    def mask(self) -> Tensor | None:
        """[B, T], True where a token of the present batch is real; None: all of them are."""
        return None if self.context is None else self.context.mask

    def sizes(self, tokens: Tensor) -> Tensor | None:
        """[B, T], how many patches each of the tokens [B, T, d] stands for; None: one each."""
        return None if self.context is None else self.context.sizes(tokens)

    def real_sizes(self, tokens: Tensor) -> Tensor | None:
        """The sizes [N] of the present batch's real tokens; None: one patch each."""
        sizes = self.sizes(tokens)
        return None if sizes is None else self.real(sizes)

    def real(self, values: Tensor) -> Tensor:
        """What belongs to the present batch's real tokens: [B, T, ...] -> [N, ...]."""
        mask = self.mask
        return values.flatten(0, 1) if mask is None else values[mask]


def chosen_blocks(layers: str | list[int], depth: int) -> set[int]:
    """The block numbers (from 0) that a `layers` setting names in a backbone of `depth` blocks.

    Raises:
        ConfigError: not such a setting, or a block that is not there.
    """
    blocks = list(range(depth))
    if isinstance(layers, list):
        wrong = [number for number in layers if number not in blocks]
        if wrong or not layers:
            raise ConfigError(f"'layers' {layers}: the backbone has blocks 0 to {depth - 1}")
        return set(layers)
    if layers == "all":
        return set(blocks)
    word, _, count = layers.partition(" ")
    if word not in ("first", "last", "every") or not count.isdigit() or not 0 < int(count) <= depth:
        raise ConfigError(
            f"'layers' must be all, 'first N', 'last N', 'every N' (N from 1 to {depth}) or a list "
            f"of block numbers, not {layers!r}"
        )
    number = int(count)
    slices = {"first": blocks[:number], "last": blocks[-number:], "every": blocks[::number]}
    return set(slices[word])
