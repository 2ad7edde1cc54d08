"""Dotted keys: `--nested.key value` sets one value of a tree."""

import copy
import typing
from collections.abc import Mapping
from typing import Any

from toolkit.config.arguments import CommandLine, Malformed, as_wanted
from toolkit.config.tree import Tagged
from toolkit.errors import ConfigError, UnknownKey, did_you_mean
from toolkit.registry import REGISTRIES
from toolkit.settings import Settings


def override_all(
    tree: dict[str, Any], command: CommandLine, options: type[Settings] | None
) -> None:
    """Set the overrides of a command line in a tree, in order.

    Args:
        tree: a configuration.
        command: with what was typed.
        options: the types of the outermost keys; None: they are not known.

    Raises:
        ConfigError: a key that leads nowhere, or a value that is no YAML.
    """
    for key in sorted(command.overrides, key=_place):
        _override(tree, key, command.overrides[key])
    # Which settings want text is known once the names of all registered things are.
    for key, value in command.overrides.items():
        if key in command.texts:
            wanted = as_wanted(command.texts[key], value, _type_of(key, tree, options))
            if isinstance(wanted, Malformed):
                raise wanted.error
            if wanted is not value:
                _override(tree, key, wanted)


def expand_names(tree: dict[str, Any]) -> None:
    """Write `peft: lora` as `peft: {name: lora}`, and likewise for everything registered."""
    for key in REGISTRIES:
        if isinstance(tree.get(key), str):
            tree[key] = {"name": tree[key]}


def _type_of(key: str, tree: Mapping[str, Any], options: type[Settings] | None) -> Any:
    """The type of an option or of a setting of a registered thing; None if it is not known."""
    first, *path = key.split(".")
    if first in REGISTRIES and path == ["name"]:
        return str
    if first in REGISTRIES and len(path) == 1 and isinstance(tree.get(first), Mapping):
        name, registry = tree[first].get("name"), REGISTRIES[first]
        known = name in registry.names()
        return typing.get_type_hints(registry.get(name)).get(path[0]) if known else None
    return None if path or options is None else typing.get_type_hints(options).get(first)


def _place(key: str) -> int:
    """Names come before the settings of what they name; all else stays in order."""
    first, _, rest = key.partition(".")
    return 0 if first in REGISTRIES and rest in ("", "name") else 1


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; every step but the last must lead to a mapping or a list."""
    *path, last = key.split(".")
    node: Any = tree
    if path and tree.get(path[0], "") is None:
        tree[path[0]] = {}  # `--pipeline.name x` where there was none
    if len(path) == 1 and path[0] in REGISTRIES and last == "name":
        old = tree.get(path[0])
        if isinstance(old, dict) and old.get("name") != value:
            tree[path[0]] = {}  # settings of another thing
    for step in path:
        node = _child(node, step, key)
    inside = node.value if isinstance(node, Tagged) else node
    if isinstance(inside, list):
        _child(node, last, key)
        inside[int(last)] = copy.deepcopy(value)
    elif isinstance(inside, dict):
        inside[last] = copy.deepcopy(value)
    else:
        raise ConfigError(
            f"'--{key}' leads into '{path[-1]}', which is a single value: set "
            f"`--{'.'.join(path)}` itself, or everything in it by name"
        )
    expand_names(tree)


def _child(node: Any, step: str, key: str) -> Any:
    inside = node.value if isinstance(node, Tagged) else node
    if isinstance(inside, list):
        if not step.isdecimal() or int(step) >= len(inside):
            raise ConfigError(f"'--{key}': '{step}' is no index of a list of length {len(inside)}")
        return inside[int(step)]
    if not isinstance(inside, dict) or step not in inside:
        known = inside if isinstance(inside, dict) else ()
        raise UnknownKey(f"unknown key '{step}' in '--{key}'{did_you_mean(step, known)}")
    return inside[step]
