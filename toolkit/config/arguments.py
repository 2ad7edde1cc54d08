"""Words of a command line as configuration: overrides, settings, and names with settings.

Text is text: a value that is typed is read as YAML only where it looks like a value of YAML, never
has a comment, and is taken as it was typed by a setting that wants text.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.config.allowed import CALLABLE_TAGS
from toolkit.config.references import REFERENCES
from toolkit.config.tree import dump_in_one_line, parse, tag_of
from toolkit.errors import ConfigError
from toolkit.registry import Registry
from toolkit.settings import Settings, matches

WORD = re.compile(r"(?=.*\w)[-+]?[\w.][-+.\w]*|~")
"""What may be a number, a truth value or none; other text that is not in brackets is text."""

PAIRS = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^,])+""")


@dataclasses.dataclass(frozen=True)
class Malformed:
    """A typed value that is no YAML; only a setting that wants text can take it."""

    error: ConfigError


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a user typed after `train.py`.

    Attributes:
        hparams: the configuration file as typed.
        overrides: dotted key -> value, e.g. `{"peft.slots": 2}`.
        plugins: folders given with `--plugins`.
        trust: whether any callable may be constructed.
        texts: dotted key -> the value as it was typed.
    """

    hparams: str
    overrides: dict[str, Any]
    plugins: list[str]
    trust: bool
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read `HPARAMS [--key value | --key=value | --flag] ...`.

    Raises:
        ConfigError: no configuration file, or more than one; an empty value.
    """
    files, options = _split_options(arguments)
    if len(files) != 1:
        raise ConfigError(
            "name one configuration file, e.g. `train.py hparams/softmoa.yaml --seed 1`"
            + (f", not {len(files)}: {', '.join(files)}" if files else "")
        )
    folders = [text for key, text in options if key == "plugins"]
    texts = {key: text for key, text in options if key != "plugins"}
    overrides = {key: _read(text, f"--{key}") for key, text in texts.items()}
    trust = overrides.pop("trust", False)
    if not isinstance(trust, bool):
        raise ConfigError("'--trust' is a flag; it takes no value")
    return CommandLine(files[0], overrides, folders, trust, texts)


def parse_settings(arguments: Sequence[str], kind: type[Settings]) -> dict[str, Any]:
    """Read `--avg-bits 2.5 --fast` as `{"avg_bits": 2.5, "fast": True}`.

    Args:
        arguments: words of a command line.
        kind: what the settings are for.

    Raises:
        ConfigError: a word that belongs to no option; an empty value, or one that is no YAML.
    """
    words, options = _split_options(arguments)
    if words:
        raise ConfigError(f"unexpected argument {words[0]!r}; write settings as --name value")
    found = {key.replace("-", "_"): (text, f"--{key}") for key, text in options}
    hints = typing.get_type_hints(kind)
    return {key: read_setting(text, hints.get(key), where) for key, (text, where) in found.items()}


def parse_spec(text: str, registry: Registry[Any]) -> dict[str, Any]:
    """Read `"soft_moa:slots=2,placement=ffn"` as `{"name": "soft_moa", "slots": 2, ...}`.

    Commas inside brackets and quotes do not separate settings.

    Args:
        text: the name, and settings.
        registry: where the name is registered.

    Raises:
        UnknownName: it is not registered.
        ConfigError: a setting without a value, or a value that is not valid YAML.
    """
    name, colon, settings = text.partition(":")
    hints = typing.get_type_hints(registry.get(name)) if settings else {}
    config: dict[str, Any] = {"name": name}
    pairs = PAIRS.findall(settings)
    if ",".join(pairs) != settings or (colon and not settings):
        raise ConfigError(f"'{text}': write settings as name:key=value,key=value")
    for pair in pairs:
        key, given, value = pair.partition("=")
        if not given:
            raise ConfigError(f"'{text}': write settings as key=value, not {pair!r}")
        key = key.strip()
        config[key] = read_setting(value, hints.get(key), f"'{key}' of '{text}'")
    return config


def read_setting(text: str, hint: Any, origin: str) -> Any:
    """A typed value for a setting of a type; None: the type is not known.

    Raises:
        ConfigError: it is empty, or no YAML.
    """
    value = as_wanted(text, _read(text, origin), hint)
    if isinstance(value, Malformed):
        raise value.error
    return value


def typed(value: Any) -> str:
    """A value as it is typed on a command line; reading it gives the value."""
    is_plain = isinstance(value, str) and value.strip() and not value.startswith("--")
    if is_plain and _read(value, "") == value:
        return str(value)
    return dump_in_one_line(value)


def as_wanted(text: str, value: Any, hint: Any) -> Any:
    """A typed value for a setting of a type: as it was read or, if that does not fit, as text.

    Args:
        text: as typed.
        value: what was read.
        hint: the type; None: unknown.
    """
    fits = hint is None or matches(value, hint) or not matches(text, hint)
    is_tag = tag_of(value).startswith((*REFERENCES, *CALLABLE_TAGS))
    return value if fits or is_tag else text


def _read(text: str, origin: str) -> Any:
    """A value as typed: YAML in brackets, in quotes or with a tag; a number; else text."""
    if not text.strip():
        raise ConfigError(f"{origin} is empty: give a value, or null for none")
    if not text.startswith(("[", "{", '"', "'", "!", "- ")) and not WORD.fullmatch(text):
        return text
    try:
        return parse(text, origin, comments=False)
    except ConfigError as error:
        return Malformed(error)


def _split_options(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Words by themselves, and options with their text (`true` for a flag)."""
    words: list[str] = []
    options: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        key, given, text = word[2:].partition("=")
        if not given:
            text = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        options.append((key, text))
    return words, options
