"""What is registered, and the settings of one such thing, as data and as text."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from toolkit.errors import UnknownName, did_you_mean
from toolkit.registry import REGISTRIES, Registry
from toolkit.settings import Settings, type_name


@dataclasses.dataclass(frozen=True)
class SettingDescription:
    """One setting.

    Attributes:
        name: as in a configuration.
        type: as a user reads it, e.g. `"int or none, at least 1"`.
        default: its value where nothing is said.
        doc: what it does.
    """

    name: str
    type: str
    default: object
    doc: str

    def __str__(self) -> str:
        doc = f"\n      {self.doc}" if self.doc else ""
        return f"  {self.name} = {self.default!r}  ({self.type}){doc}"


@dataclasses.dataclass(frozen=True)
class Description:
    """One registered thing.

    Attributes:
        name: as in a configuration.
        summary: the first line of its docstring.
        source: paper, or `"not given"`.
        origin: `file:line` of its definition.
        settings: in the order of its definition.
    """

    name: str
    summary: str
    source: str
    origin: str
    settings: tuple[SettingDescription, ...]

    @property
    def heading(self) -> str:
        """Everything but the settings, in two lines."""
        return f"{self.name}: {self.summary}\nsource: {self.source}; defined at {self.origin}"

    def __str__(self) -> str:
        title = "settings:" if self.settings else "settings: none"
        return "\n".join([self.heading, title, *map(str, self.settings)])


def list_registered(kind: str, pattern: str = "*") -> list[str]:
    """Names of what is registered, sorted; imports neither torch nor the things themselves.

    Args:
        kind: `peft`, `backbone`, `corpus`, `pipeline`, `tool` or `search`.
        pattern: shell-style, such as `"*lora*"`.

    Raises:
        UnknownName: there is no such registry.
    """
    return registry_of(kind).names(pattern)


def describe(kind: str, name: str) -> Description:
    """The settings, defaults and source of one registered thing; `print` shows them as text.

    Args:
        kind: see `list_registered`.
        name: registered name.

    Raises:
        UnknownName: there is no such registry or name; the nearest ones are suggested.
    """
    entry = registry_of(kind).entry(name)
    assert entry.target is not None
    return Description(
        name=entry.name,
        summary=entry.description,
        source=str(entry.metadata.get("paper", "not given")),
        origin=entry.origin,
        settings=tuple(_settings(entry.target)),
    )


def registry_of(kind: str) -> Registry[typing.Any]:
    """The registry of a kind, which may be in the plural.

    Raises:
        UnknownName: there is no such registry.
    """
    by_plural = {registry.variable.lower(): registry for registry in REGISTRIES.values()}
    found = REGISTRIES.get(kind) or by_plural.get(kind)
    if found is None:
        raise UnknownName(
            f"there is no registry '{kind}'{did_you_mean(kind, REGISTRIES)} "
            f"(known: {', '.join(REGISTRIES)})"
        )
    return found


def _settings(target: type[Settings]) -> typing.Iterator[SettingDescription]:
    hints = typing.get_type_hints(target)
    for field in dataclasses.fields(target):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        kind = type_name(hints[field.name]) + _range(field.metadata)
        yield SettingDescription(field.name, kind, default, field.metadata.get("doc", ""))


def _range(metadata: Mapping[str, Any]) -> str:
    """`", 0 to 1"`, `", at least 1"`, or nothing."""
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    return "" if high is None else f", at most {high}"
