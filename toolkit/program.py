"""How a program of the toolkit ends: in success, or in one message and an exit status.

    with Program():
        ...

Every command and every recipe runs in such a block. It turns the errors that a user can solve, what
the operating system refuses, an interruption and a closed output into one message each.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, TypeGuard

from toolkit import os_errors
from toolkit.errors import ToolkitError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNCHANGED = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Program:
    """A context that ends the process as described above.

    Args:
        continues: whether the same command, given again, continues where this one stopped.
    """

    def __init__(self, continues: bool = False) -> None:
        self.continues = continues
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Program":
        _open_closed_streams()
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) in UNCHANGED:  # not one that `nohup` ignores
                    self._handlers[number] = signal.signal(number, _stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end_with(error)
        finally:
            self._restore()

    def _end_with(self, error: BaseException | None) -> None:
        if isinstance(error, RuntimeError) and _is_loop(error.__context__):
            error = error.__context__  # pathlib hides it
        if error is None or isinstance(error, SystemExit):
            self._flush()
        elif isinstance(error, ToolkitError):
            _end(2, f"error: {error}")
        elif isinstance(error, KeyboardInterrupt):
            self._interrupted(error)
        elif isinstance(error, OSError):
            self._refused(error)
        elif isinstance(error, Exception) and sys.stderr.isatty():
            _draw(error)
            _end(1)

    def _interrupted(self, error: KeyboardInterrupt) -> None:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        what = "interrupted"
        if number != signal.SIGINT:
            what = f"stopped by {signal.Signals(number).name}"
        self._restore()
        _end(128 + number, f"\n{what}{self._how_on()}" if _speaks() else "")

    def _refused(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            self._output_lost(error)
        if error.filename is None and error.errno in os_errors.FULL:
            self._flush("\n")  # is it the output that cannot be written?
        how_on = self._how_on() if error.errno in os_errors.FULL else ""
        _end(2, f"error: {os_errors.sentence(error)}{how_on}")

    def _flush(self, last: str = "") -> None:
        try:
            print(last, end="", flush=True)
        except OSError as error:
            self._output_lost(error)

    def _output_lost(self, error: OSError) -> None:
        """End because nobody reads the output any more, as with `| head`, or it cannot be kept."""
        with contextlib.suppress(OSError, ValueError):  # what is left of it is not tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError) and not self.continues:
            _end(0)
        reason = error.strerror or "closed"
        _end(2, f"error: the standard output cannot be written ({reason}){self._how_on()}")

    def _how_on(self) -> str:
        return "; the same command continues where this stopped" if self.continues else ""

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back the handlers of the signals that end a program, which the block may exchange.

    A library that starts processes of its own may do so, such as Ray.
    """
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Send output whose stream was closed (`>&-`) to the null device.

    Python has no stream then, and the next file that is opened gets the number of the stream, and
    with it what libraries written in C say there.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _is_loop(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno == errno.ELOOP


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped`; a second signal ends the process at once."""
    for other in STOPPING:
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_DFL)
    raise Stopped(number)


def _speaks() -> bool:
    """Whether this process tells of a signal that all processes of the job were sent."""
    return os.environ.get("RANK", "0") == "0"


def _draw(error: Exception) -> None:
    """Draw the traceback of a fault of ours with `rich`."""
    from rich.console import Console
    from rich.traceback import Traceback

    drawn = Traceback.from_exception(type(error), error, error.__traceback__)
    Console(stderr=True).print(drawn)


def _end(status: int, message: str = "") -> None:
    if message:
        print(message, file=sys.stderr)
    sys.exit(status)
