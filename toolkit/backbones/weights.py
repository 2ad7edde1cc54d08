"""Checks of a checkpoint's weights: before they are read, and after."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from toolkit.backbones.checkpoint import MOST_PARAMETERS
from toolkit.errors import BackboneError, first_line, listed

FLOATS = ("F64", "F32", "F16", "BF16")
WEIGHTS = ("*.safetensors", "*.bin")
LEAST_BYTES = 2
"""Of one parameter in a file: those of half precision."""


def require_size(model: nn.Module, source: str) -> None:
    """Refuse a model that is larger than any backbone.

    Args:
        model: on the meta device.
        source: where its configuration is, for the message.

    Raises:
        BackboneError: it has more than `MOST_PARAMETERS`.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise BackboneError(
            f"the config.json of {source} describes {count:,} parameters, and a backbone may have "
            f"at most {MOST_PARAMETERS:,}"
        )


def require_weights(folder: Path, model: nn.Module, heads: tuple[str, ...]) -> None:
    """Refuse a folder whose files cannot hold the weights of a model, before memory is taken.

    Args:
        folder: the checkpoint.
        model: on the meta device.
        heads: prefixes of tensors that it does not use.

    Raises:
        BackboneError: the files are too small, or hold integers where the model has fractions.
    """
    if (folder / "adapter_config.json").exists():
        raise BackboneError(
            f"{folder} holds an adapter of another library, which would be merged unseen: name the "
            "folder of the backbone alone"
        )
    files = [file for pattern in WEIGHTS for file in folder.glob(pattern)]
    size = sum(file.stat().st_size for file in files)
    count = sum(parameter.numel() for parameter in model.parameters())
    if files and size < LEAST_BYTES * count:
        raise BackboneError(
            f"{folder} is not a whole {type(model).__name__}: its config.json describes {count:,} "
            f"parameters, and its files of weights hold {size:,} bytes"
        )
    whole = {_last(n) for n, b in model.named_buffers() if not b.is_floating_point()} | COUNTERS
    found = [n for file in folder.glob("*.safetensors") for n in _integers(file)]
    odd = [name for name in found if _last(name) not in whole and not name.startswith(heads)]
    if odd:
        raise BackboneError(
            f"{folder} holds integers where {type(model).__name__} has fractions, in "
            f"{listed(odd, 3)}: choose a checkpoint that is not quantised"
        )


COUNTERS = {"num_batches_tracked", "position_ids", "relative_position_index"}
"""Tensors of integers that models of other versions or heads have."""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _integers(file: Path) -> list[str]:
    """Names of the tensors in a file that are not of a floating-point type."""
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            return [n for n in names if tensors.get_slice(n).get_dtype() not in FLOATS]
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{file} is damaged ({first_line(error)}): fetch it again") from None


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that have infinities or values that are not numbers."""
    return [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        BackboneError: a tensor has infinities or values that are not numbers.
    """
    odd = not_finite(tensors)
    if odd:
        raise BackboneError(
            f"{source} holds values that are not finite numbers, in {listed(odd, 3)}: fetch it "
            "again, or choose another checkpoint"
        )
