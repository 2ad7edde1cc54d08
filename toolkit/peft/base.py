"""What a PEFT method is: settings, where its modules go, and what is trained.

A method needs only `insert`. Everything else (training, saving, resuming, the registry's tests,
the benchmark) follows from the structure of what it inserted.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone, Placement, Site
from toolkit.errors import ConfigError
from toolkit.peft import insertion
from toolkit.settings import Settings, setting

__all__ = ["PeftMethod", "Placement", "Site", "bottleneck_width", "insertion", "setting"]

NORM_OF = {"mhsa": "norm.mhsa", "ffn": "norm.ffn"}


class PeftMethod(Settings, ABC):
    """Base of all methods.

    One rule for what trains: everything the method inserts, the stock tensors that it unfreezes,
    the final norm (unless `final_norm` is off) and the classifier's head.
    """

    trains_backbone: ClassVar[bool] = False
    """True if the whole backbone trains; its dropout then runs too."""

    final_norm: bool = setting(True, "train the backbone's final layer norm (as the papers do)")

    @abstractmethod
    def insert(self, backbone: Backbone) -> None:
        """Put the method's modules into a frozen backbone and unfreeze what it trains.

        Raises:
            ConfigError: this method cannot work on this backbone.
        """

    def apply(self, backbone: Backbone) -> None:
        """Freeze the backbone, insert the method, and train the final norm if asked to."""
        backbone.requires_grad_(False)
        self.insert(backbone)
        if self.final_norm:
            backbone.norm.requires_grad_(True)

    def auxiliary_losses(self, backbone: Backbone) -> dict[str, Tensor]:
        """Named losses of the last forward pass, to be added to the task's loss."""
        return {}

    def on_step(self, backbone: Backbone, step: int, total_steps: int) -> None:
        """Called before optimiser step `step` (from 0) of `total_steps`: schedules."""

    def on_epoch(self, backbone: Backbone, epoch: int) -> None:
        """Called when epoch `epoch` (from 1) has ended: adding or dropping experts."""

    def parameter_groups(
        self, parameters: dict[str, nn.Parameter], lr: float
    ) -> list[dict[str, Any]]:
        """Optimiser groups; each `{"params": [...], "lr": ...}`.

        Args:
            parameters: trainable parameters by name.
            lr: the configured learning rate.
        """
        return [{"params": list(parameters.values()), "lr": lr}]

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
    """Base of inserted modules that can record statistics of their forward passes.

    Attributes:
        recording: whether `forward` shall append to `records`.
        records: one mapping of detached tensors a forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recording = False
        self.records: list[dict[str, Tensor]] = []


def unfreeze_norms(backbone: Backbone, placement: Placement) -> None:
    """Train the layer norms in front of the sublayers at which a method was inserted."""
    for site in backbone.sites(placement):
        backbone.site(site.block, NORM_OF[site.role]).module.requires_grad_(True)


def bottleneck_width(dim: int, reduction: int) -> int:
    """Inner width r = round(d / reduction), as the reference code rounds.

    Raises:
        ConfigError: no bottleneck is left.
    """
    width = round(dim / reduction)
    if width < 1:
        raise ConfigError(
            f"reduction {reduction} leaves no bottleneck in a backbone of width {dim}; "
            f"use at most {2 * dim - 1}"
        )
    return width
