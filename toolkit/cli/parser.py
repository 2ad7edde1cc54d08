"""What the parsers of all commands share."""

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias


class Parser(argparse.ArgumentParser):
    """A parser that accepts options only by their full names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not below `least`, as the `type` of an option."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return number

    return whole_number


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a group adds its commands.

A command is added with `parents=[common]`, which gives it `--plugins` and makes it refuse every
argument that it does not define. One that passes further options on says so with
`set_defaults(takes_settings=True)`, and finds them in `options.settings`.
"""
