"""The processes that execute the runs of a study, none of which outlives a study that stops."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

GRACE_SECONDS = 20.0
"""How long a process may take to end after it was asked to, before it is killed."""


class Stopping(Exception):
    """The study ends, and starts nothing any more."""


class Children:
    """The running processes of a study; threads share it.

    Attributes:
        stopping: whether `end` was called: what ends from then on was interrupted.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def started(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process, which has ended when the block ends, with all that it has started.

        Raises:
            Stopping: `end` was called.
        """
        with self._lock:
            if self.stopping:
                raise Stopping
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            yield process
        finally:
            end_all([process])
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """End all processes, and start no other."""
        with self._lock:
            self.stopping = True
            running = list(self._running)
        end_all(running)


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, wait, and kill what is left of them and of what they have started.

    A recipe ends its own loader processes, so it alone is asked.
    """
    family: list[psutil.Process] = []
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family += psutil.Process(process.pid).children(recursive=True)
            process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
