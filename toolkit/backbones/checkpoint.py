"""The config.json of a checkpoint: read as data, and checked before anything is built.

It comes from a folder or from the hub. No code that a repository brings along is ever run.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from toolkit.backbones.hub import hub_is_reachable
from toolkit.errors import BackboneError, first_line
from toolkit.typed_json import ShapeError, read_object

CONFIG = "config.json"
LARGEST_FILE = 16 * 2**20
MOST_LAYERS, LARGEST_NUMBER, MOST_VALUES = 1_000, 1_000_000, 10_000
MOST_PARAMETERS = 10**10
BLOCKS = ("num_hidden_layers", "encoder_layers", "depths")

FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, OSError, RuntimeError, SafetensorError, StrictDataclassError, TypeError,
    ValueError, pickle.UnpicklingError,
)  # fmt: skip
"""What a stock class raises when it is given a configuration or a file that it cannot use."""

UNUSED = (
    "architectures", "id2label", "label2id", "num_labels", "problem_type", "dtype", "torch_dtype",
    "return_dict", "output_attentions", "output_hidden_states", "transformers_version",
    "_name_or_path", "name_or_path",
)  # fmt: skip
"""Keys of config.json that the encoder has no use for: of heads, of files, of what is returned."""

KERNELS = (None, "eager", "sdpa")


def read_config(source: str) -> dict[str, Any]:
    """What the config.json of a checkpoint says.

    Args:
        source: a folder, or a hub id.

    Raises:
        BackboneError: it is missing or damaged, or asks for what is never done: running code of
            its own, quantised weights, or sizes above the limits.
    """
    values = read_if_there(Path(source) / CONFIG) if Path(source).is_dir() else _of_hub(source)
    if values is None:
        raise BackboneError(f"{source} holds no {CONFIG}; name a folder written by save_pretrained")
    if "auto_map" in values:
        raise BackboneError(
            f"'{source}' needs code of its own, which this toolkit never runs: choose a backbone "
            "of a registered family (`toolkit list backbone`)"
        )
    if values.get("quantization_config") is not None:
        raise BackboneError(
            f"'{source}' holds quantised weights, which this toolkit does not read: choose the "
            "checkpoint with the original weights"
        )
    _require_kernel(values, source)
    _require_type_of_weights(values, source)
    _require_limits(values, source)
    return values


def read_if_there(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file.

    Raises:
        BackboneError: it cannot be read, or holds something else.
    """
    if not file.is_file():
        return None
    try:
        return read_object(file, LARGEST_FILE)
    except (OSError, ShapeError) as error:
        raise damaged(file, first_line(error)) from None


def damaged(file: Path, reason: str) -> BackboneError:
    """The error of a file of a checkpoint that cannot be read."""
    return BackboneError(
        f"{file} cannot be read ({reason}): name a folder written by save_pretrained"
    )


def _of_hub(source: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    return fetched(source, PreTrainedConfig.get_config_dict, CONFIG)


def fetched(source: str, get: Callable[..., Any], what: str) -> dict[str, Any]:
    """What a configuration file of a model on the hub says.

    Args:
        source: the hub id.
        get: the function of transformers that reads such a file.
        what: its name, for the message.

    Raises:
        BackboneError: it cannot be fetched now.
    """
    try:
        values, _ = get(source, local_files_only=not hub_is_reachable())
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"'{source}' is neither a folder nor a model that can be fetched from the hub now "
            f"({what}); without internet use `--backbone ast_tiny` (embedded) or `--backbone PATH`"
        ) from error
    return dict(values)


def _require_kernel(values: Mapping[str, Any], source: str) -> None:
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if values.get(key) not in KERNELS:
            raise BackboneError(
                f"the {CONFIG} of {source} asks for the attention kernel {values[key]!r:.60}, "
                f"which this toolkit does not use: remove '{key}' from it"
            )


def _require_type_of_weights(values: Mapping[str, Any], source: str) -> None:
    for key in ("dtype", "torch_dtype"):
        name = values.get(key)
        kind = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
        if name is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise BackboneError(
                f"the {CONFIG} of {source} says that its weights are of the type {name!r:.60}: "
                "choose a checkpoint of floating-point numbers"
            )


def _require_limits(values: Mapping[str, Any], source: str) -> None:
    """Refuse sizes that no machine could build."""
    left = MOST_VALUES
    waiting: list[tuple[str, Any]] = [item for item in values.items() if item[0] not in UNUSED]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [item for item in value.items() if item[0] not in UNUSED]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = MOST_LAYERS if "layers" in key or key == "depths" else LARGEST_NUMBER
            least = 1 if key in BLOCKS else -most
            if not least <= value <= most:
                raise BackboneError(
                    f"the {CONFIG} of {source} says {key}: {value!r:.60}, and a backbone may have "
                    f"from {least:,} to {most:,} there"
                )
        left -= 1
        if left < 0:
            raise BackboneError(
                f"the {CONFIG} of {source} holds more than {MOST_VALUES:,} values: it is not that "
                "of a backbone"
            )


def stock_config(kind: Any, values: dict[str, Any], options: dict[str, Any], source: str) -> Any:
    """The configuration of a stock class.

    Args:
        kind: the class of transformers.
        values: what `read_config` returned.
        options: keys that differ from the checkpoint.
        source: of the checkpoint, for messages.

    Raises:
        BackboneError: it is of another family, or the class cannot use it.
    """
    whole = not kind.base_config_key  # CLAP's is a part of what a whole model says
    part = values if whole else values.get(kind.base_config_key, values)
    if not isinstance(part, dict) or part.get("model_type", kind.model_type) != kind.model_type:
        raise BackboneError(
            f"the {CONFIG} of {source} is not that of a model of the type '{kind.model_type}': "
            "name the folder alone with `--backbone`, and its family is found"
        )
    known = kind().to_dict() | kind.attribute_map
    chosen = {key: value for key, value in part.items() if key in known and key not in UNUSED}
    try:
        return kind.from_dict({**chosen, **options})
    except FAULTS as error:
        raise unusable(source, error) from None


def unusable(source: str, error: BaseException) -> BackboneError:
    """The error of a configuration from which nothing can be built."""
    reason = first_line(error).rstrip(":")
    return BackboneError(
        f"the {CONFIG} of {source} cannot be used ({type(error).__name__}: {reason}): "
        "name a folder written by save_pretrained"
    )
