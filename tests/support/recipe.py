"""Runs the command line of a recipe as a user would, with small settings."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "recipes" / "ESC50" / "train.py"
SMALL = [
    "--backbone", "ast_tiny", "--max_length", "64", "--epochs", "2", "--batch_size", "8",
    "--noprogressbar", "true",
]  # fmt: skip


def command(*arguments: object, processes: int = 1) -> list[str]:
    """The command line of the ESC-50 recipe, started on one or several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--master_port", str(20000 + os.getpid() % 20000)]
    return [*launcher, str(TRAIN), *map(str, arguments)]


def run(*arguments: object, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the recipe to its end in the working directory `cwd`."""
    return subprocess.run(
        command(*arguments, processes=processes),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
