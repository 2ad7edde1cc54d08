"""Write a plugin to start from: `toolkit new-plugin`."""

import argparse
from pathlib import Path

from toolkit.cli.parser import Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command `new-plugin`."""
    new = commands.add_parser("new-plugin", parents=[common], help="write a new PEFT method")
    new.add_argument("name")
    new.add_argument("--folder", type=Path, default=Path("plugins"), help="default: plugins")
    new.set_defaults(run=make_plugin)


def make_plugin(options: argparse.Namespace) -> None:
    """`toolkit new-plugin NAME`."""
    from toolkit.scaffold import new_plugin

    files = new_plugin(options.name, options.folder)
    for file in files:
        print(f"wrote {file}")
    print(f"try:  toolkit train ESC50 {files[1]} --debug")
    print(f"test: python -m pytest {files[2]}")
