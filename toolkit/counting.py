"""Counting the parameters that a method trains on a backbone, without the weights of either."""

from collections.abc import Mapping
from typing import Any

import torch

from toolkit.backbones.ast import AST
from toolkit.backbones.base import BackboneSource
from toolkit.model import AudioClassifier, Pooling
from toolkit.parameters import ParameterCount
from toolkit.registry import PEFT


def count(
    source: BackboneSource,
    config: Mapping[str, Any],
    max_length: int,
    num_classes: int,
    pooling: Pooling = "all",
) -> ParameterCount:
    """Parameters of a method on a backbone.

    Args:
        source: the backbone.
        config: the method, `{"name": ..., setting: value, ...}`.
        max_length: frames that the backbone reads; its position table counts.
        num_classes: C, for the head.
        pooling: see `AudioClassifier`.

    Raises:
        UnknownName, ConfigError: no such method or setting, or one that cannot work there.
    """
    backbone = source.architecture(max_length)
    with torch.device("meta"):
        method = PEFT.create(config)
        return AudioClassifier(backbone, method, num_classes, pooling).count()


def count_on_ast_base(
    config: Mapping[str, Any], max_length: int = 500, num_classes: int = 50
) -> ParameterCount:
    """Parameters of a method on AST-base; see `count`."""
    return count(AST(), config, max_length, num_classes)
