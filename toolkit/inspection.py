"""What a method would do to AST-base, found without its weights."""

from collections.abc import Mapping
from typing import Any

import torch

from toolkit.backbones.ast import AST
from toolkit.model import AudioClassifier, ParameterCount
from toolkit.registry import PEFT


def count_on_ast_base(
    config: Mapping[str, Any], max_length: int = 500, num_classes: int = 50
) -> ParameterCount:
    """Parameters of a method on AST-base.

    Args:
        config: the method, `{"name": ..., setting: value, ...}`.
        max_length: frames that the backbone reads; its position table counts.
        num_classes: C, for the head.

    Raises:
        UnknownName, ConfigError: no such method or setting.
    """
    backbone = AST().architecture(max_length)
    with torch.device("meta"):
        method = PEFT.create(config, "peft")
        return AudioClassifier(backbone, method, num_classes, "all").count()
