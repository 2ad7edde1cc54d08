"""Adapting a backbone in one call: what a notebook does."""

from typing import Any

from torch import nn

from toolkit.backbones.base import Backbone
from toolkit.backbones.own import OwnBackbone, RoleMap
from toolkit.errors import ConfigError
from toolkit.model import AudioClassifier, Pooling
from toolkit.peft.base import PeftMethod
from toolkit.registry import PEFT


def adapt(
    backbone: Backbone | nn.Module,
    method: str | PeftMethod,
    num_classes: int = 0,
    *,
    pooling: Pooling = "mean",
    merge_tokens: int | None = None,
    roles: RoleMap | None = None,
    **settings: Any,
) -> AudioClassifier:
    """Freeze a backbone, insert a PEFT method, and put a classification head on top.

    What trains afterwards (`requires_grad`) is the method's parameters, the final layer norm
    (unless the method's `final_norm` is False) and the head.

    Args:
        backbone: from `load_backbone`, or any `nn.Module` together with `roles`. It is changed in
            place.
        method: registered name, such as `"soft_moa"`, or a method that was made before.
        num_classes: C; 0 (the default) makes no head, and the model returns pooled tokens [B, d].
        pooling: how tokens become one vector; see `AudioClassifier`.
        merge_tokens: tokens that merge into similar ones in every block, in training and in
            prediction (spectrogram transformers only); None: none does.
        roles: where the parts of an `nn.Module` of your own are.
        settings: settings of the method; `toolkit.describe("peft", method)` lists them.

    Returns:
        the model: normalised features -> logits [B, C].

    Raises:
        UnknownName: no such method.
        ConfigError: an unknown or impossible setting, or a method that cannot work on this
            backbone.
        BackboneError: the map of roles does not fit the module.

    Example:
        >>> backbone = toolkit.load_backbone("ast_tiny", max_length=248)
        >>> model = toolkit.adapt(backbone, "lora", num_classes=50, rank=8)
    """
    if isinstance(backbone, Backbone):
        if roles is not None:
            raise ConfigError("`roles` are for a module of your own; a loaded backbone has its own")
        adapted = backbone
    elif not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"{backbone!r} is not a backbone: load one, such as `toolkit.load_backbone('ast_tiny')`"
        )
    elif roles is None:
        raise ConfigError(
            f"{type(backbone).__name__} is not a backbone of this toolkit: say with "
            "`roles=RoleMap(...)` where its blocks and their parts are"
        )
    else:
        adapted = OwnBackbone(backbone, roles)
    if isinstance(method, str):
        made = PEFT.create({"name": method, **settings})
    elif settings:
        raise ConfigError(
            f"the method is already made, so {', '.join(settings)} cannot be set any more"
        )
    elif isinstance(method, PeftMethod):
        made = method
    else:
        raise ConfigError(f"{method!r} is not a method: give its name, such as 'lora'")
    return AudioClassifier(adapted, made, num_classes, pooling, merge_tokens=merge_tokens)
