"""Which YAML tags may be constructed, and their construction.

HyperPyYAML calls whatever a tag names. Here a configuration is checked before that: without
`--trust` it may only name callables of the packages in `ALLOWED`.
"""

import pydoc
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.comments import CommentedMap, CommentedSeq, CommentedSet
from ruamel.yaml.loader import Loader, SafeLoader

from toolkit import plugins
from toolkit.config.configuration import Configuration
from toolkit.config.tree import dump, tag_of
from toolkit.errors import ConfigError

ALLOWED = ("toolkit", "speechbrain", "torch", plugins.PACKAGE)
CALLABLE_TAGS = ("!new:", "!name:", "!apply:")
PLAIN_TAGS = ("!ref", "!copy", "!PLACEHOLDER")


def check_tags(tree: CommentedMap, trusted: bool) -> None:
    """Refuse tags that would call or import something outside the allow-list.

    Args:
        tree: a composed configuration.
        trusted: whether the user allows everything.

    Raises:
        ConfigError: a tag or a callable that is not allowed, or that does not exist.
    """
    for key, value in tree.items():
        for where, node in _nodes(_plain_key(key, "the configuration"), value):
            tag = tag_of(node)
            if isinstance(node, CommentedSet):
                raise ConfigError(f"'{where}' is a YAML set; write it as a list")
            if tag.startswith(CALLABLE_TAGS):
                find_callable(where, tag, trusted)
            elif tag and not tag.startswith(PLAIN_TAGS) and not trusted:
                raise ConfigError(f"'{where}' uses the YAML tag {tag}, which only `--trust` allows")


def find_callable(where: str, tag: str, trusted: bool) -> Any:
    """The object that a tag such as `!new:torch.nn.Linear` names.

    Args:
        where: the key whose value carries the tag, for error messages.
        tag: one of `CALLABLE_TAGS` and a dotted path.
        trusted: whether it may be outside the allowed packages.

    Raises:
        ConfigError: it does not exist, or it is not allowed.
    """
    kind, _, path = tag.partition(":")
    try:
        target = pydoc.locate(path) if trusted else _find_allowed(path)
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"'{where}' names {path}, which cannot be imported: {error}") from error
    if target is None and trusted:
        raise ConfigError(f"'{where}' names {path}, which does not exist")
    if target is None:
        raise ConfigError(
            f"'{where}' names {path}, which is not a callable of "
            f"{', '.join(f'{package}.' for package in ALLOWED)} "
            "(any callable is allowed with `--trust`)"
        )
    if kind == "!apply" and not trusted:
        raise ConfigError(
            f"'{where}' calls {path} while the configuration is read, which only `--trust` allows"
        )
    return target


def construct(tree: CommentedMap, name: str, trusted: bool) -> Configuration:
    """Resolve a checked tree's references and construct what its tags name.

    Args:
        tree: a configuration that `check_tags` has passed.
        name: the name of the configuration.
        trusted: whether Python's own YAML tags are constructed too.

    Raises:
        ConfigError: a reference or a constructed object is refused.
    """
    text = dump(tree)
    loader = _TrustingLoader if trusted else _CheckedLoader
    try:
        resolved = resolve_references(text).getvalue()
        return Configuration(load_hyperpyyaml(resolved, loader=loader), resolved, name)
    except ConfigError:
        raise
    except Exception as error:  # the constructed callables may raise anything
        detail = " ".join(str(part) for part in error.args)
        raise ConfigError(f"the configuration cannot be built: {detail}") from error


class _TextInBrackets:
    """Reads `(1, 2)` as text: HyperPyYAML would run any tag between the brackets."""

    @classmethod
    def add_implicit_resolver(cls, *arguments: Any, **options: Any) -> None:
        """Ignore every resolver that HyperPyYAML adds."""


class _CheckedLoader(_TextInBrackets, SafeLoader):
    """Constructs HyperPyYAML's tags, but none of Python's own YAML tags."""


class _TrustingLoader(_TextInBrackets, Loader):
    """Constructs every tag."""


def _nodes(where: str, node: Any) -> Iterator[tuple[str, Any]]:
    """A node and all below it, each with its dotted key."""
    yield where, node
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            yield from _nodes(f"{where}.{_plain_key(key, where)}", value)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield from _nodes(f"{where}.{index}", value)


def _plain_key(key: Any, where: str) -> str:
    if not isinstance(key, str | int | float):
        raise ConfigError(f"'{where}' has a key that is neither a word nor a number")
    return str(key)


def _find_allowed(path: str) -> Any:
    """Import a dotted path step by step without leaving the allowed packages; None if it does.

    Checking the first word alone would allow `torch.os.system`.
    """
    package, *steps = path.split(".")
    target: Any = pydoc.locate(package) if package in ALLOWED else None
    for step in steps:
        if isinstance(target, ModuleType):
            inner = pydoc.locate(f"{target.__name__}.{step}")
            name = inner.__name__ if isinstance(inner, ModuleType) else target.__name__
            target = inner if name.split(".")[0] == package else None
        else:
            target = getattr(target, step, None)
    home = getattr(target, "__module__", None) or package
    allowed = not isinstance(target, ModuleType) and home.split(".")[0] in ALLOWED
    return target if allowed else None
