"""A run that is stopped, or that nobody hears any more, says how to go on, and goes on."""

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import forked
from recipe import SMALL, TRAIN

from toolkit.data.synthetic.corpus import write_corpus

HOW_ON = "; the same command continues where this stopped\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty clips of 0.6 s each in ESC-50's layout."""
    folder = tmp_path_factory.mktemp("corpus") / "mini"
    return write_corpus(folder, clips_per_class=5, seconds=0.6, progress=False)


def training(corpus: Path, folder: Path, epochs: int) -> Callable[[], None]:
    """The work of a process that runs the recipe in a folder."""
    words = ["hparams/linear.yaml", "--data_folder", str(corpus), *SMALL, "--folds", "1"]
    words += ["--epochs", str(epochs), "--output_folder", "out"]

    def work() -> None:
        os.chdir(folder)
        sys.argv = [str(TRAIN), *words]
        runpy.run_path(str(TRAIN), run_name="__main__")

    return work


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_one_word(
    corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = forked(training(corpus, tmp_path, 100_000), tmp_path / "said")
    log = tmp_path / "out" / "train_log.txt"
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) > 1)
    os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode == 128 + number
    said = (tmp_path / "said").read_text()
    assert said.endswith(f"\nstopped by {number.name}{HOW_ON}") and "Traceback" not in said
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_closed_output_ends_a_run_with_one_message(corpus: Path, tmp_path: Path) -> None:
    read, write = os.pipe()

    def unheard() -> None:
        os.close(read)
        training(corpus, tmp_path, 2)()

    process = forked(unheard, tmp_path / "said", write)
    os.close(write)
    os.read(read, 1)  # as `| head -1` does
    os.close(read)
    process.join(300)
    assert process.exitcode == 2
    said = (tmp_path / "said").read_text()
    assert said.endswith(f"error: the standard output cannot be written (Broken pipe){HOW_ON}")
    assert "Traceback" not in said and "Exception ignored" not in said
    again = forked(training(corpus, tmp_path, 2), tmp_path / "said")
    again.join(300)
    assert again.exitcode == 0 and (tmp_path / "out" / "result.json").is_file()
