"""Processes forked from the tests, so that nothing has to be imported again."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path


def forked(work: Callable[[], object], said: Path, stdout: int | None = None) -> BaseProcess:
    """Do some work in a new process.

    Args:
        work: what to do.
        said: the file that its error stream goes to.
        stdout: its standard output; None: the same file.
    """

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup` and `&` ignore them
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with said.open("wb") as file:
            os.dup2(file.fileno(), 2)
        os.dup2(2 if stdout is None else stdout, 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
