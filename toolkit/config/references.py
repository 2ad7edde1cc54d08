"""References between the values of a configuration: `!ref`, `!copy` and `!PLACEHOLDER`.

As in HyperPyYAML, `!ref <a[b]>` is the value under that key, of whatever type, and other text
around references becomes text or, if it is arithmetic on numbers, a number. Unlike there, text that
is referred to is text, also if it has `<` or an operator in it.
"""

import copy
import itertools
import re
from typing import Any

from toolkit.config.arithmetic import evaluate
from toolkit.config.tree import MOST_NODES, Tagged, nodes
from toolkit.errors import ConfigError

LONGEST = 10_000
"""Limit of the characters of a text with references."""
LONGEST_CHAIN = 100
"""Limit of the references that lead to one another."""

REFERENCE = re.compile(r"<([^>]*)>")
REFERENCES = ("!ref", "!copy")
PLACEHOLDER = "!PLACEHOLDER"


def resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the values of its references in their place.

    What `!ref` refers to is the same object in both places, `!copy` makes another one.

    Raises:
        ConfigError: a reference leads nowhere, to itself, or beyond a limit; a placeholder is left.
    """
    resolved: dict[str, Any] = _Resolver(tree).resolve("", tree)
    _count(resolved)
    return resolved


class _Resolver:
    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.resolved: dict[int, Any] = {}  # by the identity of a part of `tree`
        self.open: set[int] = set()
        self.copied = 0

    def resolve(self, where: str, node: Any) -> Any:
        """A part of the configuration without references; made once."""
        if not isinstance(node, dict | list | Tagged):
            return node
        if id(node) in self.open:
            raise _impossible(where, "it refers to itself")
        if len(self.open) > LONGEST_CHAIN:
            raise _impossible(where, f"more than {LONGEST_CHAIN} references lead to one another")
        if id(node) not in self.resolved:
            self.open.add(id(node))
            self.resolved[id(node)] = self._made(where, node)
            self.open.remove(id(node))
        return self.resolved[id(node)]

    def _made(self, where: str, node: Any) -> Any:
        prefix = f"{where}." if where else ""
        if isinstance(node, dict):
            return {key: self.resolve(f"{prefix}{key}", value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.resolve(f"{prefix}{index}", value) for index, value in enumerate(node)]
        if node.tag == PLACEHOLDER:
            raise ConfigError(
                f"'{where}' is a !PLACEHOLDER and must be replaced: give `--{where} VALUE`"
            )
        if node.tag not in REFERENCES:
            return Tagged(node.tag, self.resolve(where, node.value))
        if not isinstance(node.value, str):
            raise _impossible(where, f"{node.tag} takes text such as <seed>")
        value = self._text(where, node.value)
        if node.tag == "!ref":
            return value
        self.copied = _count(value, self.copied)
        return copy.deepcopy(value)

    def _text(self, where: str, text: str) -> Any:
        """What a text with references stands for."""
        whole = REFERENCE.fullmatch(text)
        if whole:
            return self._find(where, whole[1])
        found = [self._find(where, key) for key in REFERENCE.findall(text)]
        if any(isinstance(value, dict | list | Tagged) for value in found):
            raise _impossible(where, f"'{text}' puts more than a single value into a text")
        parts = list(map(str, found))
        if len(text) + sum(map(len, parts)) > LONGEST:
            raise _impossible(where, f"its text has more than {LONGEST:,} characters")
        filled = REFERENCE.sub(lambda _: parts.pop(0), text)
        numbers = [value for value in found if isinstance(value, int | float)]
        return evaluate(filled) if found and len(numbers) == len(found) else filled

    def _find(self, where: str, reference: str) -> Any:
        """The value of `a[b][c]`."""
        if "." in reference:
            raise _impossible(
                where, f"<{reference}> reads an attribute, which only `--trust` allows"
            )
        branch: Any = self.tree
        resolved = False
        for step in reference.split("["):
            key = step.strip("]")
            inside = branch.value if isinstance(branch, Tagged) else branch
            if not isinstance(inside, dict) or key not in inside:
                raise _impossible(where, f"there is no <{reference}>")
            branch = inside[key]
            if isinstance(branch, Tagged) and branch.tag in REFERENCES:
                branch, resolved = self.resolve(where, branch), True
        return branch if resolved else self.resolve(where, branch)


def _count(tree: Any, before: int = 0) -> int:
    """The parts of a tree and those counted before; a limit keeps references from exploding."""
    number = before + sum(1 for _ in itertools.islice(nodes(tree), MOST_NODES + 1))
    if number > MOST_NODES:
        raise ConfigError(
            f"the configuration is too large: its references make more than {MOST_NODES:,} values"
        )
    return number


def _impossible(where: str, reason: str) -> ConfigError:
    return ConfigError(f"the configuration cannot be built: '{where}': {reason}")
