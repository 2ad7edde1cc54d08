"""Words of a command line as configuration: overrides, settings, and names with settings."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from toolkit.config.tree import parse
from toolkit.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a user typed after `train.py`.

    Attributes:
        hparams: the configuration file as typed.
        overrides: dotted key -> value, e.g. `{"peft.slots": 2}`.
        plugins: folders given with `--plugins`.
        trust: whether any callable may be constructed.
    """

    hparams: str
    overrides: dict[str, Any]
    plugins: list[str]
    trust: bool


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read `HPARAMS [--key value | --key=value | --flag] ...`.

    Raises:
        ConfigError: no configuration file, or more than one.
    """
    files, options = _split_options(arguments)
    if len(files) != 1:
        raise ConfigError(
            "name one configuration file, e.g. `train.py hparams/softmoa.yaml --seed 1`"
            + (f", not {len(files)}: {', '.join(files)}" if files else "")
        )
    folders = [text for key, text in options if key == "plugins"]
    overrides = {key: parse(text, f"--{key}") for key, text in options if key != "plugins"}
    trust = overrides.pop("trust", False)
    return CommandLine(files[0], overrides, folders, trust is True)


def parse_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--avg-bits 2.5 --fast` as `{"avg_bits": 2.5, "fast": True}`.

    Raises:
        ConfigError: a word that belongs to no option.
    """
    words, options = _split_options(arguments)
    if words:
        raise ConfigError(f"unexpected argument {words[0]!r}; write settings as --name value")
    return {key.replace("-", "_"): parse(text, f"--{key}") for key, text in options}


def parse_spec(text: str) -> dict[str, Any]:
    """Read `"soft_moa:slots=2,placement=ffn"` as `{"name": "soft_moa", "slots": 2, ...}`.

    Values are read as YAML; commas inside brackets do not separate settings.

    Raises:
        ConfigError: a setting without a value, or a value that is not valid YAML.
    """
    name, _, settings = text.partition(":")
    config: dict[str, Any] = {"name": name}
    for pair in re.split(r",(?![^\[]*\])", settings) if settings else []:
        key, given, value = pair.partition("=")
        if not given:
            raise ConfigError(f"'{text}': write settings as key=value, not {pair!r}")
        config[key.strip()] = parse(value, f"'{text}'")
    return config


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
