"""Assemble the command line, run one command, and turn errors into messages."""

import argparse
import sys
from collections.abc import Sequence

from toolkit import __version__, plugins
from toolkit.cli import console, corpus, mixture, plugin, predict, recipe, registered, study
from toolkit.cli.parser import Parser
from toolkit.errors import ToolkitError

GROUPS = (registered, recipe, plugin, predict, mixture, corpus, study)
"""Modules with a function `add`, in the order in which `toolkit --help` lists their commands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error that the user can solve is one message and exit status 2.

    An interrupted command ends with exit status 130.
    """
    options = _parse(arguments)
    try:
        plugins.discover_and_report([*options.plugins, *options.project(options)])
        options.run(options)
    except ToolkitError as error:
        console.print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        how_on = "; the same command continues where this stopped" if options.continues else ""
        print(f"\ninterrupted{how_on}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:  # a fault of ours: drawn on a terminal, as Python prints it elsewhere
        if not sys.stderr.isatty():
            raise
        console.print_traceback()
        sys.exit(1)


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
