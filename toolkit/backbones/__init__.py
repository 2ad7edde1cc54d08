"""Pretrained encoders behind one interface: roles, features and tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.backbones.lean import without_unused_parts
from toolkit.errors import BackboneError
from toolkit.registry import BACKBONES

if TYPE_CHECKING:  # torch is slow to import
    from toolkit.backbones.base import Backbone, BackboneSource


def load_backbone(name: str, max_length: int = 1000, **settings: Any) -> "Backbone":
    """A pretrained backbone with its weights, in eval mode.

    Args:
        name: a registered name (`toolkit.list_registered("backbone")`), a folder written by
            `save_pretrained`, or a hub id (`owner/model`).
        max_length: the longest clip that it reads, in frames of 10 ms.
        settings: settings of the backbone's family; `toolkit.describe("backbone", name)` lists
            them.

    Raises:
        UnknownName: no such backbone.
        ConfigError: an unknown or impossible setting.
        BackboneError: the weights cannot be found, or do not fit.
    """
    return create({"name": name, **settings}).load(max_length)


def create(config: Mapping[str, Any]) -> "BackboneSource":
    """Make the backbone source that a configuration names.

    Args:
        config: `{"name": ..., ...}`, the name being a registered one, a folder written by
            `save_pretrained`, or a hub id (`owner/model`).

    Raises:
        UnknownName, ConfigError, BackboneError: no such backbone, or of no registered family.
    """
    name = config.get("name")
    if not isinstance(name, str):
        return BACKBONES.create(config)  # says that a name is needed
    if name not in BACKBONES.names() and ("/" in name or Path(name).is_dir()):
        config = {**config, "name": _family(name), "source": name}
    with without_unused_parts():
        return BACKBONES.create(config)


def _family(source: str) -> str:
    """The registered family that reads a checkpoint, by the model type in its config.json."""
    from toolkit.backbones.checkpoint import read_config  # torch is slow to import

    model_type = read_config(source).get("model_type")
    families: dict[str, str] = {}
    for name in BACKBONES.names():
        kinds = BACKBONES.peek(name).metadata.get("model_type", ())
        families |= dict.fromkeys([kinds] if isinstance(kinds, str) else kinds, name)
    if not isinstance(model_type, str) or model_type not in families:
        known = ", ".join(sorted(families))
        raise BackboneError(
            f"{source} has the model type {model_type!r:.60}, for which there is no backbone "
            f"(known: {known})"
        )
    return families[model_type]
