"""The command `toolkit`, one file per group of commands.

Each file has a function `add` that adds its commands. What needs torch is imported by the commands
that use it, so that `toolkit --help` and `toolkit list` import none of it.
"""

from toolkit.cli.main import main

__all__ = ["main"]
