"""A loaded configuration: its values, its text, and a digest to compare it by."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.config.tree import Tagged, dump, parse


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

    def changed(self, values: Mapping[str, Any]) -> "Configuration":
        """The same configuration with other plain values at some outermost keys."""
        text = dump({**parse(self.text, "the configuration"), **values})
        return dataclasses.replace(self, values={**self.values, **values}, text=text)

    def digest(self, ignore: Sequence[str] = ()) -> str:
        """Hash of all values except those under the top-level keys in `ignore`."""
        kept = {k: v for k, v in self.flat.items() if k.split(".")[0] not in ignore}
        text = json.dumps(kept, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def flatten(text: str) -> dict[str, Any]:
    """The text of a configuration as dotted key -> plain value, for comparing and recording."""
    return dict(_flatten(parse(text, "the configuration")))


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    inside = node.value if isinstance(node, Tagged) else node
    if isinstance(inside, dict | list):
        if isinstance(node, Tagged):
            yield f"{prefix}.!" if prefix else "!", node.tag
        items = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for key, value in items:
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(node) if isinstance(node, Tagged) else node
