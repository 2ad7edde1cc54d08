"""Assemble the command line, run one command, and turn errors into messages."""

import argparse
from collections.abc import Sequence

from toolkit import __version__, plugins
from toolkit.cli import cache, corpus, mixture, plugin, predict, recipe, registered, study
from toolkit.cli.parser import Parser
from toolkit.program import Program

GROUPS = (registered, recipe, plugin, predict, mixture, corpus, cache, study)
"""Modules with a function `add`, in the order in which `toolkit --help` lists their commands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `Program` says how it ends."""
    with Program() as program:
        options = _parse(arguments)
        program.continues = options.continues
        plugins.discover_and_report([*options.plugins, *options.project(options)])
        options.run(options)


def parser() -> argparse.ArgumentParser:
    """The command line of `toolkit`."""
    made: argparse.ArgumentParser = Parser(
        prog="toolkit",
        description="Adapt frozen audio transformers: list, train, predict, compress, compare.",
    )
    made.add_argument("--version", action="version", version=__version__)
    common = Parser(add_help=False)
    common.add_argument(
        "--plugins", action="append", default=[], metavar="DIR", help="a folder of plugins"
    )
    common.set_defaults(takes_settings=False, continues=False, project=lambda options: [])
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands, common)
    return made


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; only a command that takes settings keeps words it does not define."""
    made = parser()
    options, unknown = made.parse_known_args(arguments)
    if unknown and not options.takes_settings:
        made.error(f"unrecognised arguments: {' '.join(unknown)}")
    options.settings = unknown
    return options
