"""YAML documents as plain trees: mappings, lists, single values, and `Tagged` for what has a tag.

Reading a document constructs nothing that its tags name. Merge keys (`<<`) are applied and aliases
become copies, so that whoever walks a tree sees all of it. Documents have limits, because a few
lines of YAML can stand for billions of values.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.loader import SafeLoader
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from toolkit.errors import ConfigError
from toolkit.files import read_text

MOST_CHARACTERS = 200_000
MOST_NODES = 10_000
"""Limit of the values and keys of a document, each alias counted as what it stands for."""
MOST_BITS = 1_000
"""Limit of a whole number."""
DEEPEST = 40
"""Limit of the levels of a document."""

STANDARD = "tag:yaml.org,2002:"  # what `!!` stands for
VALUES = {f"{STANDARD}{kind}" for kind in ("null", "bool", "int", "float")}
TEXTS = {f"{STANDARD}{kind}" for kind in ("str", "timestamp", "merge", "value")}
MERGE = f"{STANDARD}merge"
MAPPING = f"{STANDARD}map"
SEQUENCE = f"{STANDARD}seq"
TAG_AT_BRACKET = re.compile(r"(^|[\s\[{,])![^\s\[\]{}]*[\]}]")


@dataclasses.dataclass
class Tagged:
    """A value with a tag of its own, such as `!ref <seed>`.

    Attributes:
        tag: in full, such as `!ref` or `tag:yaml.org,2002:set`.
        value: a mapping, a list, or the text of a single value.
    """

    tag: str
    value: Any

    def __str__(self) -> str:
        return f"{shown(self.tag)} {self.value}".strip()


def parse(text: str, origin: str, *, comments: bool = True) -> Any:
    """Read a YAML document without constructing what its tags name.

    Args:
        text: the document.
        origin: what error messages call it, such as a path or `--lr`.
        comments: whether it may hold comments; elsewhere they would cut a text at ` #`.

    Raises:
        ConfigError: the text is not valid YAML, or exceeds a limit.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{origin} is too long: at most {MOST_CHARACTERS:,} characters are read")
    try:
        loader = _Loader(text, origin, comments)
        node = loader.get_single_node()
        return None if node is None else loader.tree(node)
    except YAMLError as error:
        hint = "; put a space between a tag and the bracket after it"
        raise ConfigError(
            f"{origin} is not valid YAML: {str(error)[:500]}"
            + (hint if TAG_AT_BRACKET.search(text) else "")
        ) from None


def read(path: Path) -> Any:
    """Read a YAML file; see `parse`.

    Raises:
        ConfigError: it is not text, it is not valid YAML, or it exceeds a limit.
    """
    if path.stat().st_size > 4 * MOST_CHARACTERS:  # a character has at most four bytes
        raise ConfigError(f"{path} is too long: at most {MOST_CHARACTERS:,} characters are read")
    return parse(read_text(path), str(path))


def dump(tree: Any) -> str:
    """A tree as YAML text; `parse` reads it back."""
    yaml, stream = YAML(typ="safe", pure=True), StringIO()
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = False, MOST_CHARACTERS, True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(tree, stream)
    return stream.getvalue()


def dump_in_one_line(tree: Any) -> str:
    """A tree as one line of YAML; `parse` reads it back.

    The emitter of ruamel loses the braces of a tagged mapping within a list.
    """
    if isinstance(tree, Tagged):
        return f"{quote(shown(tree.tag), safe='!:/.,()')} {dump_in_one_line(tree.value)}"
    if isinstance(tree, dict):
        pairs = (f"{dump_in_one_line(k)}: {dump_in_one_line(v)}" for k, v in tree.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(dump_in_one_line, tree)) + "]"
    if isinstance(tree, str):
        quoted = json.dumps(tree, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    return dump(tree).removesuffix("\n").removesuffix("\n...")


def refuse_tags(tree: Any, origin: str) -> None:
    """Raise `ConfigError` if a tree has a tag anywhere."""
    for where, node in nodes(tree):
        if isinstance(node, Tagged):
            raise ConfigError(
                f"{origin} has the YAML tag {shown(node.tag)} at '{where}', where only plain "
                "values can be"
            )


def nodes(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All parts of a tree, each before what it holds, with their dotted keys."""
    yield where, node
    inner = node.value if isinstance(node, Tagged) else node
    if isinstance(inner, dict | list):
        items = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for key, value in items:
            yield from nodes(value, f"{where}.{key}" if where else str(key))


def tag_of(node: Any) -> str:
    """A node's own tag, such as `!ref`; empty if it has none."""
    return node.tag if isinstance(node, Tagged) else ""


def shown(tag: str) -> str:
    """A tag as it is written in a document."""
    return f"!!{tag.removeprefix(STANDARD)}" if tag.startswith(STANDARD) else tag


class _Loader(SafeLoader):
    """Reads one document of YAML 1.2 within the limits, and makes a tree of it."""

    def __init__(self, text: str, origin: str, comments: bool) -> None:
        super().__init__(text)
        self.warn_double_anchors = False
        self.text, self.origin, self.comments = text, origin, comments
        self.depth = self.composed = self.copied = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node within the limits; `tree` limits what aliases stand for."""
        self.composed = self._counted(self.composed)
        with _Deeper(self):
            return super().compose_node(parent, index)

    def scan_to_next_token(self) -> Any:
        """Skip blanks and, if they are allowed, comments."""
        start = self.reader.get_mark().index
        super().scan_to_next_token()
        skipped = self.text[start : self.reader.get_mark().index]
        if "#" in skipped and not self.comments:
            raise ConfigError(
                f"{self.origin}: {skipped.strip()!r} would be a comment; put a text with ' #' in "
                "quotes"
            )

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node without one; what other programs add is not read (`!tuple`)."""
        tag = super().resolve(kind, value, implicit)
        return tag if str(tag).startswith(STANDARD) else self.DEFAULT_SCALAR_TAG

    def tree(self, node: Node) -> Any:
        """The tree that a composed node stands for."""
        self.copied = self._counted(self.copied)
        with _Deeper(self):
            if isinstance(node, ScalarNode):
                return self._scalar(node)
            value = (
                self._mapping(node)
                if isinstance(node, MappingNode)
                else [self.tree(item) for item in node.value]
            )
            plain = MAPPING if isinstance(node, MappingNode) else SEQUENCE
            return value if node.tag == plain else Tagged(str(node.tag), value)

    def _scalar(self, node: ScalarNode) -> Any:
        if node.tag in TEXTS:
            return node.value
        if node.tag not in VALUES:
            return Tagged(str(node.tag), node.value)
        try:
            value = self.construct_object(node)
        except (ValueError, KeyError, IndexError):
            value = ...
        if value is ... or (isinstance(value, int) and value.bit_length() > MOST_BITS):
            raise ConfigError(
                f"{self.origin} is not valid YAML: {node.value[:40]!r} is no {shown(node.tag)}"
            )
        return value

    def _mapping(self, node: MappingNode) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                merged = self._merged(value_node) | merged
                continue
            key = self.tree(key_node)
            if not isinstance(key, str | int | float):
                line = key_node.start_mark.line + 1
                raise ConfigError(
                    f"{self.origin}, line {line}: a key is neither a word nor a number"
                )
            if key in own:
                raise ConfigError(
                    f"{self.origin} is not valid YAML: the key '{key}' is there twice "
                    f"(line {key_node.start_mark.line + 1})"
                )
            own[key] = self.tree(value_node)
        return merged | own

    def _merged(self, node: Node) -> dict[Any, Any]:
        """What `<<` stands for: a mapping, or several of which the first counts most."""
        value = self.tree(node)
        merged: dict[Any, Any] = {}
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise ConfigError(
                    f"{self.origin}, line {node.start_mark.line + 1}: '<<' takes a mapping without "
                    "a tag, or a list of them"
                )
            merged = part | merged
        return merged

    def _counted(self, number: int) -> int:
        if number >= MOST_NODES:
            raise ConfigError(f"{self.origin} is too large: it has more than {MOST_NODES:,} values")
        return number + 1


class _Deeper:
    """A level of a document that is being read."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader

    def __enter__(self) -> None:
        self.loader.depth += 1
        if self.loader.depth > DEEPEST:
            raise ConfigError(
                f"{self.loader.origin} is nested too deeply: more than {DEEPEST} levels"
            )

    def __exit__(self, *_: object) -> None:
        self.loader.depth -= 1


class _Representer(SafeRepresenter):
    """Writes trees, in which nothing is shared."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything where it stands."""
        return True

    def represent_tagged(self, data: Tagged) -> Node:
        """Write a value with its tag."""
        if isinstance(data.value, dict):
            return self.represent_mapping(data.tag, data.value)
        if isinstance(data.value, list):
            return self.represent_sequence(data.tag, data.value)
        return self.represent_scalar(data.tag, data.value)


_Representer.add_representer(Tagged, _Representer.represent_tagged)
