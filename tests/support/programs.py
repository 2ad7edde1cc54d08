"""The programs `toolkit`, `python` and `torchrun`, which start at once: see `warm_python`."""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WARM = Path(__file__).with_name("warm_python.py")
ROOT = Path(__file__).parents[2]
PROGRAMS = {"python": "", "toolkit": "-m toolkit", "torchrun": "-m torch.distributed.run"}


@functools.cache
def warm_programs() -> Path:
    """A folder with the programs, which work until this process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(_served(folder))


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[Path]:
    """Write the programs into a folder; they work until the context ends."""
    server = folder / "server"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, WARM, server], env=environment) as process:
        while not server.exists():
            assert process.poll() is None, "the warm Python did not start"
            time.sleep(0.1)
        for name, module in PROGRAMS.items():
            file = folder / name
            client = f'exec "{sys.executable}" -I "{WARM}" "{server}" {module} "$@"'
            file.write_text(f"#!/bin/sh\n{client}\n", encoding="utf-8")
            file.chmod(0o755)
        yield folder
        process.kill()
