"""YAML documents as trees that keep their tags and comments."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from toolkit.errors import ConfigError


def parse(text: str, origin: str) -> Any:
    """Read a YAML document without constructing what its tags name.

    Args:
        text: the document.
        origin: what error messages call it, such as a path or `--lr`.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        return YAML().load(text)
    except YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from None


def dump(tree: Any) -> str:
    """A tree as YAML text; `parse` reads it back."""
    stream = StringIO()
    YAML().dump(tree, stream)
    return stream.getvalue()


def tag_of(node: Any) -> str:
    """A node's own tag, such as `!ref`; empty if it has none."""
    return (node.tag.value or "") if hasattr(node, "tag") else ""
