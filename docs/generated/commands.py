"""The page of the command line, from its parser."""

import argparse
from collections.abc import Iterator

from toolkit.cli.main import parser

INTRODUCTION = """# Command line

This page is generated from the parser of `toolkit`; `toolkit COMMAND --help` prints the same.
Every command accepts `--plugins DIR`, a further folder of plugins, and exits with status 2 and one
sentence if something is wrong with the request.

The recipes have a command line of their own, `python recipes/ESC50/train.py hparams/NAME.yaml` or
`toolkit train ESC50 NAME`: every key of the [configuration](configuration.md) is an option.
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([INTRODUCTION, *_commands(parser(), "")])


def _commands(parent: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    for action in parent._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield from _commands(command, summaries.get(name, ""))
            return
    yield f"## {parent.prog}\n\n{_sentence(summary)}\n"
    usage = parent.format_usage().removeprefix("usage: ").strip()
    yield f"```text\n{usage}\n```\n"
    if parent.description:
        yield f"```text\n{parent.description.strip()}\n```\n"
    rows = [_row(action) for action in parent._actions if _shown(action)]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows, ""])
    if parent.epilog:
        yield f"{parent.epilog}\n"


def _shown(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction) and action.dest != "plugins"


def _row(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    names = ", ".join(action.option_strings)
    if not names:
        argument = str(action.metavar or action.dest)
    elif action.nargs == 0:
        argument = names
    else:
        argument = f"{names} {value}"
    return f"| `{argument}` | {_sentence(action.help or _default(action))} |"


def _default(action: argparse.Action) -> str:
    return f"default: {action.default}" if action.default is not None else ""


def _sentence(text: str) -> str:
    text = text.replace("|", "\\|").replace("*", "\\*")
    return text[:1].upper() + text[1:]
