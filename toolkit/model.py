"""The classifier: backbone + method + pooling + head, and the one rule for what is saved."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import BundleError
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod

Pooling = Literal["mean", "cls", "all"]


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """How many parameters a classifier has.

    Attributes:
        method: trainable ones outside the head.
        head: the head's.
        total: all, frozen and trainable.
    """

    method: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """Method and head."""
        return self.method + self.head


class AudioClassifier(nn.Module):
    """Features -> logits through an adapted backbone.

    Args:
        backbone: frozen, as loaded; the method is applied to it here.
        method: how it is adapted.
        num_classes: C.
        pooling: `mean` over the patches, `cls` (mean of the special tokens, e.g. CLS and DIST)
            or `all` (mean over every token, as the papers' code does).
    """

    def __init__(
        self, backbone: Backbone, method: PeftMethod, num_classes: int, pooling: Pooling
    ) -> None:
        super().__init__()
        self.method, self.pooling = method, pooling
        method.apply(backbone)
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features [B, T, F] -> logits [B, C]."""
        return self.head(self.pool(self.backbone(features)))

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, M, d] -> [B, d]."""
        prefix = self.backbone.prefix_tokens
        if self.pooling == "cls":
            tokens = tokens[:, :prefix]
        elif self.pooling == "mean":
            tokens = tokens[:, prefix:]
        return tokens.mean(dim=1)

    def train(self, mode: bool = True) -> "AudioClassifier":
        """Train mode reaches what was inserted and the head; a frozen backbone stays in eval."""
        super().train(mode)
        if not self.method.trains_backbone:
            insertion.set_training(self.backbone, mode)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by lasting name."""
        return {
            self._lasting_name(name): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """All that training changes, by lasting name: trainable parameters, and the buffers of
        inserted modules (of every module if the whole backbone trains).

        The tensors are the live ones, detached; copy them to keep them.
        """
        buffers = {
            self._lasting_name(name): buffer
            for name, buffer in self.named_buffers()
            if self.method.trains_backbone or self._lasting_name(name) not in self.backbone.stock
        }
        return {name: t.detach() for name, t in {**self.trainable(), **buffers}.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Set what `state` returned.

        Raises:
            BundleError: a tensor is missing, has no place, or is of another shape.
        """
        own = self.state()
        missing, extra = sorted(own.keys() - tensors), sorted(tensors.keys() - own)
        wrong = [
            f"{n} {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}"
            for n in own.keys() & tensors
            if tensors[n].shape != own[n].shape
        ]
        if missing or extra or wrong:
            raise BundleError(
                "these weights do not fit the model: "
                f"missing: {', '.join(missing) or 'none'}; without a place: "
                f"{', '.join(extra) or 'none'}; of another shape: {', '.join(wrong) or 'none'}; "
                "use the settings that they were trained with"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def count(self) -> ParameterCount:
        """Parameters trained in the method and in the head, and all of them."""
        head = sum(p.numel() for p in self.head.parameters())
        trainable = sum(p.numel() for p in self.trainable().values())
        total = sum(p.numel() for p in self.parameters())
        return ParameterCount(method=trainable - head, head=head, total=total)

    def _lasting_name(self, path: str) -> str:
        stock = path.removeprefix("backbone.model.")
        return path if stock == path else self.backbone.canonical(stock)
