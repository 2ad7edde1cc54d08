"""Configurations: HyperPyYAML files that extend each other, overridden from the command line.

A file may begin with `extends: other.yaml` and then holds only the values that differ. The
outermost file defines which keys exist: any other key is refused, wherever it comes from, and so
is a setting that a registered entry or a constructed callable does not take. Only callables that
`allowed.py` names are constructed, unless the user passes `--trust`.
"""

from toolkit.config.arguments import (
    CommandLine,
    parse_command_line,
    parse_settings,
    parse_spec,
    read_setting,
    typed,
)
from toolkit.config.compose import HPARAMS, load, recipe_of, sources
from toolkit.config.configuration import Configuration, flatten

__all__ = [
    "HPARAMS",
    "CommandLine",
    "Configuration",
    "flatten",
    "load",
    "parse_command_line",
    "parse_settings",
    "parse_spec",
    "read_setting",
    "recipe_of",
    "sources",
    "typed",
]
