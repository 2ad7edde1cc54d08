"""Runs the command line of a recipe as a user would, with small settings."""

import os
import subprocess
import sys
from pathlib import Path

from programs import warm_programs

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "recipes" / "ESC50" / "train.py"
SMALL = [
    "--backbone", "ast_tiny", "--max_length", "64", "--epochs", "2", "--batch_size", "8",
    "--noprogressbar", "true",
]  # fmt: skip


def command(*arguments: object) -> list[str]:
    """The command line of the ESC-50 recipe."""
    return [sys.executable, str(TRAIN), *map(str, arguments)]


def run(*arguments: object, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the recipe to its end in the working directory `cwd`, in one or several processes."""
    launcher: list[object] = [warm_programs() / "python"]
    if processes > 1:
        launcher = [warm_programs() / "torchrun", "--nproc_per_node", processes]
        launcher += ["--master_port", 20000 + os.getpid() % 20000]
    return subprocess.run(
        [*map(str, launcher), str(TRAIN), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
