"""Dotted keys: `--nested.key value` sets one value of a tree."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from toolkit.errors import ConfigError, UnknownKey, did_you_mean
from toolkit.registry import REGISTRIES


def override_all(tree: CommentedMap, overrides: Mapping[str, Any]) -> None:
    """Set several dotted keys in a tree, in order.

    Raises:
        ConfigError: a key that leads nowhere.
    """
    for key, value in overrides.items():
        _override(tree, key, value)


def expand_names(tree: CommentedMap) -> None:
    """Write `peft: lora` as `peft: {name: lora}`, and likewise for everything registered."""
    for key in REGISTRIES:
        if isinstance(tree.get(key), str):
            tree[key] = CommentedMap(name=tree[key])


def _override(tree: CommentedMap, key: str, value: Any) -> None:
    """Set a dotted key; every step but the last must lead to a mapping or a list."""
    *path, last = key.split(".")
    node: Any = tree
    if path and path[0] in REGISTRIES and tree.get(path[0], "") is None:
        tree[path[0]] = CommentedMap()  # `--pipeline.name x` where there was none
    for step in path:
        node = _child(node, step, key)
    if isinstance(node, CommentedSeq):
        _child(node, last, key)
        node[int(last)] = value
    elif isinstance(node, CommentedMap):
        node[last] = value
    else:
        raise ConfigError(f"'--{key}' leads into '{path[-1]}', which is a single value")
    expand_names(tree)


def _child(node: Any, step: str, key: str) -> Any:
    if isinstance(node, CommentedSeq):
        if not step.isdigit() or int(step) >= len(node):
            raise ConfigError(f"'--{key}': '{step}' is no index of a list of length {len(node)}")
        return node[int(step)]
    if not isinstance(node, CommentedMap) or step not in node:
        known = node if isinstance(node, CommentedMap) else ()
        raise UnknownKey(f"unknown key '{step}' in '--{key}'{did_you_mean(step, known)}")
    return node[step]
