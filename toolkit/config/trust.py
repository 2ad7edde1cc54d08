"""What the tags of a configuration may construct, and their construction.

A file of someone else is never given to a loader that calls what tags name. The tree that is
checked here is the tree that is constructed here, part by part, without another reading of its
text. Only with `--trust` does HyperPyYAML's own loader read it.
"""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.loader import Loader

from toolkit.config.allowed import CALLABLE_TAGS, find_callable
from toolkit.config.configuration import Configuration
from toolkit.config.references import PLACEHOLDER, REFERENCES, resolve
from toolkit.config.tree import Tagged, dump, nodes, shown, tag_of
from toolkit.errors import ConfigError
from toolkit.foreign import blamed, place_of
from toolkit.settings import check_type

SIMPLE: Mapping[Any, type] = {
    key: kind for kind in (bool, int, float, str) for key in (kind, kind.__name__)
}
"""Annotations whose arguments are checked before a class is called, as they are or quoted."""


def construct(tree: dict[str, Any], name: str, trusted: bool) -> Configuration:
    """Resolve the references of a tree, check its tags, and construct what they name.

    Args:
        tree: a composed configuration.
        name: of the configuration.
        trusted: whether it may construct anything.

    Raises:
        ConfigError: a reference, a tag or a constructed object is refused.
    """
    if trusted:
        return _construct_anything(tree, name)
    check_tags(tree)
    resolved = resolve(tree)
    check_tags(resolved)  # a reference may have brought a callable to another key
    make = _Constructor()
    values = {
        key: make.value(key, part)
        for key, part in resolved.items()
        if not str(key).startswith("__")  # helpers for references, as in HyperPyYAML
    }
    return Configuration(values, dump(resolved), name)


def check_tags(tree: dict[str, Any]) -> None:
    """Refuse every tag but references and those of callables that a configuration may name.

    Args:
        tree: a configuration.

    Raises:
        ConfigError: another tag, or a callable that is not allowed there.
    """
    for where, node in nodes(tree):
        tag = tag_of(node)
        if tag.startswith(CALLABLE_TAGS):
            find_callable(where, tag, trusted=False)
        elif tag and tag not in (*REFERENCES, PLACEHOLDER):
            raise ConfigError(
                f"'{where}' uses the YAML tag {shown(tag)}, which only `--trust` allows"
            )


class _Constructor:
    """Makes values of a checked tree; a part that several references share is made once."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}  # by the identity of a part of the tree

    def value(self, where: str, node: Any) -> Any:
        """What a part of the tree stands for."""
        if not isinstance(node, dict | list | Tagged):
            return node
        if id(node) not in self.made:
            self.made[id(node)] = self._make(where, node)
        return self.made[id(node)]

    def _make(self, where: str, node: Any) -> Any:
        if isinstance(node, dict):
            return {key: self.value(f"{where}.{key}", value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.value(f"{where}.{index}", value) for index, value in enumerate(node)]
        target = find_callable(where, node.tag, trusted=False)
        given = self.value(where, node.value)
        if given and isinstance(given, str):
            raise ConfigError(
                f"'{where}': write the arguments of {node.tag} as a list or as a mapping, not as "
                f"{given!r}"
            )
        arguments = given if isinstance(given, list) else []
        options = given if isinstance(given, dict) else {}
        _check_arguments(where, node.tag, target, arguments, options)
        if node.tag.startswith("!name:"):
            return functools.partial(target, *arguments, **options) if given else target
        home = Path(inspect.getfile(target)).parent
        with blamed(f"'{where}': {node.tag} cannot be made", home, ConfigError):
            return target(*arguments, **options)


def _check_arguments(
    where: str, tag: str, target: type, arguments: list[Any], options: dict[Any, Any]
) -> None:
    """Refuse arguments that a class does not take; those of `!name:` may be incomplete."""
    signature = inspect.signature(target)
    bind = signature.bind if tag.startswith("!new:") else signature.bind_partial
    try:
        given = bind(*arguments, **options).arguments
    except TypeError as error:
        raise ConfigError(f"'{where}': {tag}: {error}") from None
    for name, value in given.items():
        hint = SIMPLE.get(signature.parameters[name].annotation)
        if hint is not None:
            check_type(f"{where}.{name}", value, hint)


class _TextInBrackets:
    """Reads `(1, 2)` as text: HyperPyYAML would run any tag between the brackets."""

    @classmethod
    def add_implicit_resolver(cls, *arguments: Any, **options: Any) -> None:
        """Ignore every resolver that HyperPyYAML adds."""


class _TrustingLoader(_TextInBrackets, Loader):
    """Constructs every tag."""


def _construct_anything(tree: dict[str, Any], name: str) -> Configuration:
    """Let HyperPyYAML construct whatever the tree names."""
    for where, node in nodes(tree):
        if tag_of(node).startswith(CALLABLE_TAGS):
            find_callable(where, node.tag, trusted=True)
    try:
        resolved = resolve_references(dump(tree)).getvalue()
        return Configuration(load_hyperpyyaml(resolved, loader=_TrustingLoader), resolved, name)
    except ConfigError:
        raise
    except Exception as error:  # the trusted callables may raise anything
        reason = " ".join(map(str, error.args)) or place_of(error, Path())
        raise ConfigError(f"the configuration cannot be built: {reason}") from error
