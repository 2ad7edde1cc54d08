"""The classifier: backbone + method + pooling + head, and the one rule for what is saved."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from toolkit.backbones.base import Backbone
from toolkit.errors import BundleError, ConfigError
from toolkit.peft import insertion
from toolkit.peft.base import PeftMethod

Pooling = Literal["mean", "patches", "cls", "first", "all", "prompts", "prompts+patches"]


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
        pooling: `mean` (over the patches; `patches` says the same), `cls` (mean of the special
            tokens, e.g. CLS and DIST), `first` (CLS alone), `all` (mean over every token, as the
            papers' code does), and with prompts `prompts` or `prompts+patches`.

    Raises:
        ConfigError: the method cannot work on the backbone, or there are no prompts to pool.
    """

    def __init__(
        self, backbone: Backbone, method: PeftMethod, num_classes: int, pooling: Pooling
    ) -> None:
        super().__init__()
        self.method, self.pooling = method, pooling
        method.apply(backbone)
        if pooling.startswith("prompts") and not backbone.prompt_tokens:
            raise ConfigError(
                f"pooling '{pooling}' needs a method with prompts, which "
                f"'{method.registered_name}' is not; use mean, cls, first or all"
            )
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features [B, T, F] -> logits [B, C]."""
        return self.head(self.pool(self.backbone(features)))

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, M, d] -> [B, d]."""
        special = self.backbone.prefix_tokens
        patches = special + self.backbone.prompt_tokens
        begin, end = {
            "mean": (patches, None),
            "patches": (patches, None),
            "cls": (0, special),
            "first": (0, 1),
            "all": (0, None),
            "prompts": (special, patches),
            "prompts+patches": (special, None),
        }[self.pooling]
        return tokens[:, begin:end].mean(dim=1)

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
        named = ((self._lasting_name(n), t) for n, t in self.state_dict(keep_vars=True).items())
        return {name: tensor.detach() for name, tensor in named if self._changes(name, tensor)}

    def _changes(self, name: str, tensor: Tensor) -> bool:
        if isinstance(tensor, nn.Parameter):
            return tensor.requires_grad
        return self.method.trains_backbone or name not in self.backbone.stock

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
