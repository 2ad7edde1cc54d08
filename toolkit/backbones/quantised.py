"""Frozen weights in int8, by torchao, which is optional and slow to import."""

import importlib.util

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from toolkit.errors import ConfigError


def require_torchao() -> None:
    """Refuse int8 weights where torchao is not installed.

    Raises:
        ConfigError: it is missing.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "`weights: int8` needs torchao, which is not installed: "
            "`pip install 'audio-peft-toolkit[int8]'`, or leave 'weights' at float32"
        )


def quantise(module: nn.Module) -> None:
    """Keep the weights of all linear layers in a module in int8, with one scale per output.

    A layer multiplies by `scale * int8`, so that the gradient of its input is that of the weight
    which these stand for. Biases stay in floating point.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig(version=2))


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is kept in int8."""
    return is_traceable_wrapper_subclass(weight)


def plain(weight: Tensor) -> Tensor:
    """A weight in floating point; one in int8 is multiplied by its scales."""
    return weight.dequantize() if is_quantised(weight) else weight
