"""Code of others, such as plugins: whatever it raises becomes one sentence that says where."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from toolkit.errors import PluginError, ToolkitError
from toolkit.program import Stopped


@contextmanager
def blamed(what: str, home: Path, kind: type[ToolkitError] = PluginError) -> Iterator[None]:
    """Turn whatever the block raises into an error that the user can solve.

    Errors of the toolkit pass, and so does a signal that ends the process, but not a
    `KeyboardInterrupt` that the code raises itself.

    Args:
        what: the beginning of the message, such as "the plugin 'x' is broken".
        home: the folder of the foreign code, whose innermost line is named.
        kind: of the error.

    Raises:
        PluginError: the block failed; or an error of the given kind.
    """
    with _interrupts() as interrupted:
        try:
            yield
        except ToolkitError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if interrupted or isinstance(error, Stopped):
                raise
            raise kind(f"{what}: {place_of(error, home)}") from error


def place_of(error: BaseException, home: Path) -> str:
    """Where below a folder an error arose, and the error, in one line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(home)]
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    frame = (inside or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}: {text}"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes the interrupts by the user that arrive during the block."""
    arrived: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield arrived
        return

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGINT, before)
