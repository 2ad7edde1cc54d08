"""A run that is killed at any of its file operations and started again ends the same."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from programs import ROOT
from recipe import SMALL, TRAIN

from toolkit.data.synthetic.corpus import write_corpus

KILLED_AT = ROOT / "tests" / "support" / "killed_at.py"
SHARES = (0.0, 0.06, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
"""At which parts of all operations the run is killed in every test run."""


class Command:
    """The command of the run in one place.

    Args:
        programs: where `python` is.
        folder: to work in.
        corpus: the clips.
    """

    def __init__(self, programs: Path, folder: Path, corpus: Path) -> None:
        self.programs, self.folder = programs, folder
        folder.mkdir()
        self.words = [
            str(TRAIN), "hparams/lora.yaml", *SMALL, "--data_folder", str(corpus), "--folds", "2",
            "--peft.dropout", "0.1", "--ckpt_interval_minutes", "0.00001", "--batch_size", "12",
            "--output_folder", "out",
        ]  # fmt: skip

    def run(self, *before: str) -> subprocess.CompletedProcess[str]:
        """Start the run."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [self.programs / "python", *before, *self.words],
            cwd=self.folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    def killed_at(self, number: int) -> subprocess.CompletedProcess[str]:
        """Start the run, which is killed at an operation."""
        return self.run(str(KILLED_AT), str(number), "out")

    @property
    def found(self) -> tuple[bytes, dict[str, object]]:
        """The predictions, and what does not depend on the clock."""
        out = self.folder / "out"
        result = json.loads((out / "result.json").read_text())
        kept = ("score", "valid_score", "best_epoch", "confusion", "metrics")
        return (out / "predictions.csv").read_bytes(), {key: result[key] for key in kept}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty clips of 0.5 s."""
    folder = tmp_path_factory.mktemp("corpus") / "mini"
    return write_corpus(folder, clips_per_class=5, seconds=0.5, progress=False)


@pytest.fixture(scope="module")
def whole(
    programs: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Command]:
    """How many operations the run has, and what it leaves if nobody kills it."""
    command = Command(programs, tmp_path_factory.mktemp("whole") / "run", corpus)
    ended = command.killed_at(10**9)
    assert ended.returncode == 0, ended.stderr
    counted = re.search(r"(\d+) operations", ended.stdout)
    assert counted
    return int(counted[1]), command


def check(number: int, whole: Command, killed: Command) -> None:
    """Kill the run at an operation, start it again, and compare."""
    ended = killed.killed_at(number)
    assert ended.returncode == 9, ended.stderr
    resumed = killed.run()
    assert resumed.returncode == 0, f"killed at {number}: {resumed.stderr}"
    assert killed.found == whole.found, f"killed at {number}"


@pytest.mark.parametrize("share", SHARES)
def test_some_operations(
    share: float, whole: tuple[int, Command], programs: Path, corpus: Path, tmp_path: Path
) -> None:
    count, command = whole
    check(1 + int(share * count), command, Command(programs, tmp_path / "run", corpus))


@pytest.mark.wide
def test_every_operation(
    whole: tuple[int, Command], programs: Path, corpus: Path, tmp_path: Path
) -> None:
    count, command = whole
    for number in range(1, count + 1):
        check(number, command, Command(programs, tmp_path / str(number), corpus))
