"""What is registered: `toolkit list`, `toolkit describe` and `toolkit matrix`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from toolkit.cli.console import print_table
from toolkit.cli.parser import Commands
from toolkit.description import describe, registry_of
from toolkit.errors import ConfigError, UnknownName
from toolkit.registry import PEFT, REGISTRIES, Registry


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands `list`, `describe` and `matrix`."""
    kinds = ", ".join(REGISTRIES)
    listing = commands.add_parser("list", parents=[common], help="list what is registered")
    listing.add_argument("kind", nargs="?", help=f"one of {kinds}; default: all")
    listing.add_argument("pattern", nargs="?", default="*", help="names, such as 'soft*'")
    listing.set_defaults(run=list_registered)

    about = commands.add_parser("describe", parents=[common], help="show the settings of one entry")
    about.add_argument("kind", help=f"one of {kinds}")
    about.add_argument("names", nargs="*", metavar="NAME", help="or soft_moa:num_experts=14")
    about.add_argument(
        "--parameters",
        action="store_true",
        help="number of parameters on AST-base, of all methods or of NAMEs",
    )
    about.set_defaults(run=describe_registered)

    grid = commands.add_parser(
        "matrix", parents=[common], help="check every PEFT method on every backbone"
    )
    grid.add_argument("--method", default="*", metavar="PATTERN", help="names, such as '*lora*'")
    grid.add_argument("--backbone", default="*", metavar="PATTERN", help="such as 'wav2vec2*'")
    grid.set_defaults(run=check_matrix)


def list_registered(options: argparse.Namespace) -> None:
    """`toolkit list [KIND [PATTERN]]`."""
    registries = [registry_of(options.kind)] if options.kind else list(REGISTRIES.values())
    for registry in registries:
        names = registry.names(options.pattern)
        if options.kind and not names:
            raise UnknownName(f"no {registry.kind} matches '{options.pattern}'")
        entries = map(registry.peek, names)
        print_table(
            [(e.name, e.description, str(e.metadata.get("paper", ""))) for e in entries],
            lambda name, text, paper: f"  {name:<18} {text}{f'  [{paper}]' if paper else ''}",
            ("name", "description", "source"),
            title=registry.key,
        )


def describe_registered(options: argparse.Namespace) -> None:
    """`toolkit describe KIND NAME`, and `toolkit describe peft [SPEC ...] --parameters`."""
    registry = registry_of(options.kind)
    if options.parameters:
        _describe_parameters(registry, options.names)
    elif len(options.names) == 1:
        _describe_entry(registry, options.names[0])
    else:
        raise ConfigError("name one thing to describe, e.g. `toolkit describe peft soft_moa`")


def check_matrix(options: argparse.Namespace) -> None:
    """`toolkit matrix`: exit status 1 if a cell is broken."""
    from fnmatch import filter as matching

    from toolkit.testing import matrix

    methods = PEFT.names(options.method)
    families = matching(matrix.families(), options.backbone)
    if not methods or not families:
        raise UnknownName("no method or no backbone matches (`toolkit list` shows all)")
    cells = list(matrix.cells(methods, families))
    print_table(
        matrix.rows(cells),
        lambda method, *signs: f"{method:<20}" + "".join(f" {sign:>14}" for sign in signs),
        ("method", *families),
        heading=" " * 20 + "".join(f" {family:>14}" for family in families),
    )
    print("\n".join(matrix.notes(cells)))
    if any(cell.verdict == "broken" for cell in cells):
        sys.exit(1)


def _describe_entry(registry: Registry[Any], name: str) -> None:
    found = describe(registry.key, name)
    print(found.heading)
    if registry is PEFT:
        from toolkit.counting import count_on_ast_base

        count = count_on_ast_base({"name": found.name})
        share = 100 * count.method / (count.total - count.head)
        print(
            f"trains: {count.method:,} parameters on AST-base ({share:.2f} %) with the settings "
            f"below, and the head ({count.head:,} for 50 classes)"
        )
    if not found.settings:
        print("settings: none")
        return
    by_name = {setting.name: setting for setting in found.settings}
    print_table(
        [(s.name, repr(s.default), s.type, s.doc) for s in found.settings],
        lambda name, *_: str(by_name[name]),
        ("setting", "default", "type", "description"),
        title="settings:",
    )


def _describe_parameters(registry: Registry[Any], specs: Sequence[str]) -> None:
    """One row per method: parameters on AST-base (500 frames, 50 classes), without its weights."""
    if registry is not PEFT:
        raise ConfigError("parameters are counted for PEFT methods: `describe peft --parameters`")
    print_table(
        map(_count, specs or registry.names()),
        lambda spec, *counts: f"{spec:<40} {counts[0]:>12} {counts[1]:>8} {counts[2]:>12}",
        ("method", "trained", "head", "frozen"),
        heading=f"{'method':<40} {'trained':>12} {'head':>8} {'frozen':>12}",
    )


def _count(spec: str) -> tuple[str, str, str, str]:
    from toolkit.config import parse_spec
    from toolkit.counting import count_on_ast_base

    count = count_on_ast_base(parse_spec(spec, PEFT))
    frozen = count.total - count.trainable
    return spec, f"{count.method:,}", f"{count.head:,}", f"{frozen:,}"
