"""Does what `python FILE WORD ...` does, and ends like a killed process before a file operation.

    python killed_at.py NUMBER FOLDER FILE WORD ...

The operation is the NUMBER-th that writes, renames or removes something below FOLDER. A process
that gets to its end prints how many there were.
"""

import os
import runpy
import sys
from typing import Any

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changed_path(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audit event is about to change."""
    path = arguments[0]
    if event not in OPERATIONS or not isinstance(path, str | os.PathLike):
        return None
    if event == "open" and not arguments[2] & WRITING:
        return None
    directory = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
    place = "." if directory == -1 else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.abspath(os.path.join(place, os.fspath(path)))


def main(number: int, folder: str, words: list[str]) -> None:
    """Run the command, counting its operations."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = changed_path(event, arguments) if arguments else None
        if path is not None and path.startswith(folder):
            count += 1
            if count == number:
                os._exit(9)

    sys.addaudithook(hook)
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    runpy.run_path(words[0], run_name="__main__")
    print(f"{count} operations")


if __name__ == "__main__":
    main(int(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:])
