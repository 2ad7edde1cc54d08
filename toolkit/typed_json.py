"""Dataclasses as JSON and back; what is read is checked against the annotations of the fields."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Union

from toolkit.errors import RunError
from toolkit.files import write_atomically

T = TypeVar("T")
CHECKSUM = "checksum"
"""The key of a file's checksum, which files of older versions lack."""


class ShapeError(ValueError):
    """A value that does not fit the dataclass it should become; the message says where."""


def to_json(value: Any, indent: int | None = None) -> str:
    """A dataclass, or a list of dataclasses, as JSON text."""
    return json.dumps(value, default=dataclasses.asdict, indent=indent)


def write_json(file: Path, value: Any, indent: int | None = None) -> None:
    """Write a dataclass to a JSON file, with a checksum that `read_json` compares."""
    values = json.loads(to_json(value))
    write_atomically(file, json.dumps(values | {CHECKSUM: _checksum(values)}, indent=indent))


def _checksum(values: dict[str, Any]) -> str:
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
        if isinstance(values, dict) and CHECKSUM in values:
            if values.pop(CHECKSUM) != _checksum(values):
                raise ShapeError("its content is not what was saved")
        return from_plain(kind, upgrade(values))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({error}); {remedy}") from None


def from_plain(kind: type[T], value: Any) -> T:
    """Turn parsed JSON into a dataclass.

    Args:
        kind: the dataclass. Its fields may be dataclasses, lists, dictionaries with keys of type
            `str` or `int`, unions of these, plain values, and `Any`.
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
    expected = getattr(hint, "__name__", str(hint))
    raise ShapeError(f"{where.lstrip('.') or 'the file'} should be {expected}, not {value!r:.60}")


def _made(kind: Any, values: dict[str, Any], where: str) -> Any:
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
