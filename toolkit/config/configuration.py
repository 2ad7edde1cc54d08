"""A loaded configuration: its values, its text, and a digest to compare it by."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from toolkit.config.tree import parse, tag_of


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A loaded configuration.

    Attributes:
        values: top-level keys -> values and constructed objects.
        text: the merged YAML with its references resolved; loading it gives the same values.
        name: the name of the hparams file without its suffix.
    """

    values: dict[str, Any]
    text: str
    name: str

    @property
    def flat(self) -> dict[str, Any]:
        """Dotted key -> plain value; see `flatten`."""
        return flatten(self.text)

    def digest(self, ignore: Sequence[str] = ()) -> str:
        """Hash of all values except those under the top-level keys in `ignore`."""
        kept = {k: v for k, v in self.flat.items() if k.split(".")[0] not in ignore}
        text = json.dumps(kept, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def flatten(text: str) -> dict[str, Any]:
    """The text of a configuration as dotted key -> plain value, for comparing and recording."""
    return dict(_flatten(parse(text, "the configuration")))


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    tag = tag_of(node)
    if isinstance(node, CommentedMap | CommentedSeq):
        if tag:
            yield f"{prefix}.!" if prefix else "!", tag
        items = node.items() if isinstance(node, CommentedMap) else enumerate(node)
        for key, value in items:
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, f"{tag} {node.value}".strip() if tag else node
