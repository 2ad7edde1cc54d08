"""How a command ends: one message and an exit status."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import forked

from toolkit import os_errors
from toolkit.errors import ConfigError
from toolkit.program import Program


def ending(work: Callable[[], object], said: Path, continues: bool, stdout: int | None) -> int:
    """The exit status of a process that does some work in a `Program`."""

    def run() -> None:
        with Program(continues):
            work()

    process = forked(run, said, stdout)
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def refused() -> None:
    raise ConfigError("name a folder")


def full() -> None:
    with open("/dev/full", "w") as file:
        file.write("text")


def torn() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "disk/file")


HOW_ON = "; the same command continues where this stopped"


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize(
    ("work", "status", "says"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(3), 3, ""),
        (refused, 2, "error: name a folder\n"),
        (torn, 2, "error: disk/file: Input/output error: check this place and try again\n"),
        (full, 2, "error: No space left on device: free some space, or name a place on another "
                  "disk{how_on}\n"),
        *(
            (functools.partial(signal.raise_signal, number), 128 + number, f"\n{says}{{how_on}}\n")
            for number, says in (
                (signal.SIGINT, "interrupted"),
                (signal.SIGTERM, "stopped by SIGTERM"),
                (signal.SIGHUP, "stopped by SIGHUP"),
            )
        ),
    ],
)  # fmt: skip
def test_endings(
    work: Callable[[], object], status: int, says: str, continues: bool, tmp_path: Path
) -> None:
    stdout = os.open(os.devnull, os.O_WRONLY)
    assert ending(work, tmp_path / "said", continues, stdout) == status
    assert (tmp_path / "said").read_text() == says.format(how_on=HOW_ON if continues else "")


@pytest.mark.parametrize("amount", [1, 100_000])
def test_a_closed_output(tmp_path: Path, amount: int) -> None:
    """`| head` is no fault of a listing; a run that nobody hears says how to go on."""
    for continues, status in ((False, 0), (True, 2)):
        work = lambda: print("x" * amount)  # noqa: E731
        assert ending(work, tmp_path / "said", continues, closed_pipe()) == status
        said = f"error: the standard output cannot be written (Broken pipe){HOW_ON}\n"
        assert (tmp_path / "said").read_text() == (said if continues else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full: Linux")
@pytest.mark.parametrize("amount", [1, 100_000])
def test_a_full_output(tmp_path: Path, amount: int) -> None:
    stdout = os.open("/dev/full", os.O_WRONLY)
    assert ending(lambda: print("x" * amount), tmp_path / "said", False, stdout) == 2
    said = "error: the standard output cannot be written (No space left on device)\n"
    assert (tmp_path / "said").read_text() == said


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_was_closed_is_the_null_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, None)  # as Python does after `>&-`
    with Program():
        print("lost" if sys.stdin.readable() and sys.stdout.writable() else "")
        assert not sys.stdout.isatty() and not sys.stderr.isatty()
    assert getattr(sys, name).name == os.devnull


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def stubborn() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)

    assert ending(stubborn, tmp_path / "said", True, None) == -signal.SIGTERM


def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` asks."""

    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Program():
            signal.raise_signal(signal.SIGHUP)

    process = forked(work, tmp_path / "said")
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", sorted(os_errors.REMEDIES))
def test_every_error_names_its_path_and_a_remedy(number: int) -> None:
    text = os_errors.sentence(OSError(number, os.strerror(number), "some/where"))
    assert text.startswith(f"some/where: {os.strerror(number)}: ")
    assert os_errors.sentence(OSError(number, os.strerror(number))).startswith(os.strerror(number))


def test_errors_that_are_not_of_the_system() -> None:
    assert os_errors.sentence(OSError("no connection to the hub")) == "no connection to the hub"
    moved = OSError(errno.ENOSPC, "full", "old", None, "new")
    assert os_errors.sentence(moved).startswith("new: full: free some space")
    assert "caf\udce9" in os_errors.sentence(OSError(errno.ENOENT, "none", b"caf\xe9"))
