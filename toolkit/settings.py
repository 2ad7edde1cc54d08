"""Checked settings: the base of every registered class (method, backbone, corpus, pipeline).

A setting has a type, a range and a description. They are checked wherever a value comes from:
YAML, the command line, a bundle or a Python caller.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Union, dataclass_transform

from toolkit.errors import ConfigError, did_you_mean
from toolkit.typed_json import ShapeError


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    nonzero: bool = False,
) -> Any:
    """A field with a description and a range, for use in a `Settings` class.

    Args:
        default: the value if the configuration does not give one.
        doc: one line, shown by `toolkit describe`.
        minimum, maximum: inclusive bounds of a number.
        above, below: exclusive bounds.
        nonzero: whether zero is refused.
    """
    metadata = {
        "doc": doc, "minimum": minimum, "maximum": maximum, "above": above, "below": below,
        "nonzero": nonzero,
    }  # fmt: skip
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class NamedSettings:
    """A registered name and its settings: what a registry makes the same thing from again.

    In JSON, as in YAML, both are in one mapping: `{"name": "lora", "rank": 8}`.

    Attributes:
        name: the registered name.
        settings: by name; which there are is up to the registered class.
    """

    name: str
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The mapping, as `Registry.create` takes it."""
        return {"name": self.name, **self.settings}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """Read what `as_dict` returned.

        Raises:
            ShapeError: it has no name.
        """
        settings = dict(values)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ShapeError(f"'name' should be a registered name, not {name!r:.60}")
        return cls(name, settings)


@dataclass_transform(kw_only_default=True)
class Settings:
    """Base of settings classes: subclasses are dataclasses, checked when they are created.

    A field may itself hold settings, alone or in a list, a dict or a union; `from_mapping` then
    builds them from nested mappings.

    Raises:
        ConfigError: a value of the wrong type or out of its range; subclasses raise it in
            `check` for combinations that cannot work.
    """

    registered_name: ClassVar[str]
    """The name under which a registry knows the class; set by `Registry.register`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check_type(field.name, value, hints[field.name])
            _check_range(field.name, value, field.metadata)
        self.check()

    def check(self) -> None:
        """Refuse combinations of values that cannot work (raise `ConfigError`)."""

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, fit for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def named(self) -> NamedSettings:
        """The settings with the registered name of their class."""
        return NamedSettings(self.registered_name, self.as_dict())

    def __repr__(self) -> str:
        names = [field.name for field in dataclasses.fields(self)]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({values})"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> typing.Self:
        """Make the settings from a mapping, refusing keys that are not settings.

        Args:
            values: setting name -> value; settings inside are mappings too (see `from_plain`).
            where: what the mapping is called in the configuration, for the error message.
        """
        hints = typing.get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"unknown setting '{where}.{key}'{did_you_mean(key, known)} "
                    f"(known: {', '.join(known) or 'none'})"
                )
        built = {key: _build(value, hints[key], f"{where}.{key}") for key, value in values.items()}
        try:
            return cls(**built)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_plain(cls, value: Any, where: str) -> typing.Self:
        """Make the settings from whatever stands for them in a configuration.

        That is a mapping, unless a subclass accepts a short form as well.

        Args:
            value: as read from YAML.
            where: see `from_mapping`.
        """
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' must be a mapping of settings, not {value!r}")
        return cls.from_mapping(value, where)


def _plain(value: Any) -> Any:
    """A value as it was before `_build`."""
    if isinstance(value, Settings):
        return value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _may_become(value: Any, hint: Any) -> bool:
    """Whether `_build` is the one to turn a value into an option of a union, or to refuse it."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        return True
    kinds = {list: list | tuple, dict: Mapping}
    return isinstance(value, kinds.get(typing.get_origin(hint), ()))


def _build(value: Any, hint: Any, where: str) -> Any:
    """A value in which the mappings that stand for settings have become settings."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Settings):
        return value if isinstance(value, hint) else hint.from_plain(value, where)
    if origin in (Union, types.UnionType):
        if any(matches(value, option) for option in arguments):
            return value
        options = [option for option in arguments if _may_become(value, option)]
        return _build(value, options[0], where) if options else value
    if origin is list and isinstance(value, list | tuple):
        return [_build(v, arguments[0], f"{where}.{i}") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: _build(v, arguments[1], f"{where}.{key}") for key, v in value.items()}
    return value


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; a whole number is a `float` too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin in (list, tuple):
        items = arguments[:1]
        return isinstance(value, list | tuple) and all(matches(v, i) for v in value for i in items)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            matches(k, arguments[0]) and matches(v, arguments[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def type_name(hint: Any) -> str:
    """A type hint as a user reads it: `"'mhsa' | 'ffn' | 'both'"`, `"int"`, `"str or none"`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}" if arguments else "list"
    if isinstance(hint, type) and issubclass(hint, Settings):
        return "mapping of settings"
    if hint is type(None):
        return "none"
    return getattr(hint, "__name__", str(hint))


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type than its annotation.

    Raises:
        ConfigError: it does not match; the message calls it `name`.
    """
    if matches(value, hint):
        return
    hint_text = ""
    options = [hint, *typing.get_args(hint)]
    words = [w for o in options if typing.get_origin(o) is Literal for w in typing.get_args(o)]
    if words:
        hint_text = did_you_mean(value, words)
    raise ConfigError(f"'{name}' must be {type_name(hint)}, not {value!r}{hint_text}")


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if value is None or isinstance(value, str | list | tuple | bool):
        return
    above, below = metadata.get("above"), metadata.get("below")
    if above is not None and not value > above:
        raise ConfigError(f"'{name}' must be above {above}, not {value}")
    if below is not None and not value < below:
        raise ConfigError(f"'{name}' must be below {below}, not {value}")
    if low is not None and not value >= low:  # refuses NaN too
        raise ConfigError(f"'{name}' must be at least {low}, not {value}")
    if high is not None and not value <= high:
        raise ConfigError(f"'{name}' must be at most {high}, not {value}")
    if metadata.get("nonzero") and value == 0:
        raise ConfigError(f"'{name}' must not be 0: nothing would be trained")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"'{name}' must be a finite number, not {value}")
