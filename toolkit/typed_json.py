"""Dataclasses as JSON and back; what is read is checked against the annotations of the fields."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, Union, runtime_checkable

from toolkit.errors import RunError, first_line
from toolkit.files import write_atomically

T = TypeVar("T")
CHECKSUM = "checksum"
"""The key of a file's checksum, which files of older versions lack."""
Scalar = bool | int | float | str | None
"""A JSON value without parts."""


@runtime_checkable
class OwnForm(Protocol):
    """A dataclass whose JSON form is not simply its fields by name."""

    def as_dict(self) -> dict[str, Any]:
        """Its JSON form."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The dataclass of a JSON form.

        Raises:
            ShapeError: the form is another one.
        """


class ShapeError(ValueError):
    """A value that does not fit the dataclass it should become; the message says where."""


def to_json(value: Any, indent: int | None = None) -> str:
    """A dataclass, or a list of dataclasses, as JSON text."""
    return json.dumps(value, default=_form, indent=indent)


def _form(value: Any) -> dict[str, Any]:
    """The JSON form of a dataclass, whose values may be dataclasses."""
    if isinstance(value, OwnForm):
        return value.as_dict()
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def write_json(file: Path, value: Any, indent: int | None = None) -> None:
    """Write a dataclass to a JSON file, with a checksum of what it says."""
    values = json.loads(to_json(value))
    write_atomically(file, json.dumps(values | {CHECKSUM: checksum(values)}, indent=indent))


def read_object(file: Path, largest: int) -> dict[str, Any]:
    """The object in a JSON file of others, which may hold anything.

    Args:
        file: where it is.
        largest: bytes that are read at most.

    Raises:
        OSError: it cannot be read.
        ShapeError: it is larger, is not JSON, or holds something else than an object.
    """
    if file.stat().st_size > largest:
        raise ShapeError(f"it is larger than {largest >> 20} MiB")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ShapeError(first_line(error)) from None
    if not isinstance(values, dict):
        raise ShapeError(f"it should hold an object, not {values!r:.60}")
    return values


def checksum(values: Mapping[str, Any]) -> str:
    """The hash of what a JSON file says, the order of its keys and lines apart."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_json(file: Path, kind: type[T], upgrade: Callable[[Any], Any], remedy: str) -> T:
    """Read a dataclass from a JSON file.

    Args:
        file: what `write_json` or `to_json` made.
        kind: see `from_plain`.
        upgrade: turns parsed JSON of an older format into today's.
        remedy: what the user can do if the file is damaged.

    Raises:
        OSError: it cannot be read.
        RunError: it is damaged.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        saved = values.pop(CHECKSUM, None) if isinstance(values, dict) else None
        if saved not in (None, checksum(values)):
            raise ShapeError("its content is not what was saved")
        return from_plain(kind, upgrade(values))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({error}); {remedy}") from None


def read_if_there(
    file: Path, kind: type[T], upgrade: Callable[[Any], Any], remedy: str
) -> T | None:
    """What `read_json` reads, or None if there is no such file.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    try:
        return read_json(file, kind, upgrade, remedy)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}); {remedy}") from None


def from_plain(kind: type[T], value: Any) -> T:
    """Turn parsed JSON into a dataclass.

    Args:
        kind: the dataclass. Its fields may be dataclasses, lists, dictionaries with keys of type
            `str` or `int`, unions of these, literals, plain values, and `Any`.
        value: what `json.loads` returned. Keys without a field are left out, and a field with a
            default may be missing.

    Raises:
        ShapeError: a field is missing, or has a value of another type.
    """
    made: T = _convert(kind, value, "")
    return made


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, value, where)
    if origin is Literal:
        return _one_of(arguments, value, where)
    if origin in (Union, types.UnionType):
        return _first_that_fits(arguments, value, where)
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        keys, values = arguments
        return {_key(keys, k, where): _convert(values, v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise _wrong(getattr(hint, "__name__", str(hint)), value, where)


def _wrong(expected: str, value: Any, where: str) -> ShapeError:
    return ShapeError(f"{where.lstrip('.') or 'the file'} should be {expected}, not {value!r:.60}")


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if any(value == option and type(value) is type(option) for option in options):
        return value
    raise _wrong(f"one of {', '.join(map(str, options))}", value, where)


def _made(kind: Any, values: dict[str, Any], where: str) -> Any:
    if issubclass(kind, OwnForm):
        try:
            return kind.from_dict(values)
        except ShapeError as error:
            raise ShapeError(f"{where.lstrip('.')}: {error}") from None
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        place = f"{where}.{field.name}"
        if field.name in values:
            found[field.name] = _convert(hints[field.name], values[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ShapeError(f"'{place.lstrip('.')}' is missing")
    return kind(**found)


def _first_that_fits(options: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for option in options:
        try:
            return _convert(option, value, where)
        except ShapeError as error:
            problems.append(str(error))
    raise ShapeError(problems[0])


def _key(kind: Any, key: str, where: str) -> Any:
    """JSON has no keys but strings; those of a `dict[int, ...]` become numbers again."""
    try:
        return kind(key)
    except ValueError:
        raise ShapeError(f"{where.lstrip('.')} has the key {key!r}, not a number") from None
