"""Which keys exist: those of the outermost file, and the parameters of constructed callables."""

import inspect
from collections.abc import Collection
from typing import Any

from toolkit.config.allowed import CALLABLE_TAGS, find_callable
from toolkit.config.tree import Tagged, dump_in_one_line
from toolkit.errors import ConfigError, UnknownKey, did_you_mean
from toolkit.registry import REGISTRIES


def check_keys(tree: dict[str, Any], schema: dict[str, Any], trusted: bool) -> None:
    """Refuse unknown keys at every depth.

    Args:
        tree: a composed configuration.
        schema: the outermost file that it extends.
        trusted: see `find_callable`.

    Raises:
        UnknownKey: a key that the schema lacks or that a callable does not take.
        ConfigError: a registered part that is neither a name nor a mapping with a name.
    """
    for key, value in tree.items():
        if key not in schema:
            raise UnknownKey(f"unknown key '{key}'{did_you_mean(key, schema)}")
        if value is None and schema[key] is None:
            continue
        if key in REGISTRIES and not isinstance(value, dict):
            shown = dump_in_one_line(value)[:60]
            raise ConfigError(f"'{key}' must be a name, or a mapping with a name, not {shown}")
        # A registered entry checks its own settings when it is created.
        _check_node(key, value, None if key in REGISTRIES else schema[key], trusted)


def _check_node(where: str, node: Any, schema: Any, trusted: bool) -> None:
    inside = node.value if isinstance(node, Tagged) else node
    if isinstance(inside, dict):
        known = _known_keys(where, node, schema, trusted)
        for key, value in inside.items():
            if known is not None and key not in known:
                raise UnknownKey(
                    f"unknown key '{where}.{key}'{did_you_mean(key, known)}"
                    f" (known: {', '.join(map(str, known))})"
                )
            inner = known[key] if isinstance(known, dict) else None
            _check_node(f"{where}.{key}", value, inner, trusted)
    elif isinstance(inside, list):
        for index, value in enumerate(inside):
            _check_node(f"{where}.{index}", value, None, trusted)


def _known_keys(where: str, node: Any, schema: Any, trusted: bool) -> Collection[str] | None:
    """The keys that a mapping may have; None if it may have any."""
    if isinstance(node, Tagged):
        is_callable = node.tag.startswith(CALLABLE_TAGS)
        return _parameters(find_callable(where, node.tag, trusted)) if is_callable else None
    return schema if isinstance(schema, dict) else None


def _parameters(target: Any) -> list[str] | None:
    """Names of the parameters that a callable takes; None if it takes any."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]
