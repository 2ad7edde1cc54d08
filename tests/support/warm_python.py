"""A Python that has imported torch and its kin already, and runs each command in a fork of itself.

    python warm_python.py SOCKET                     serve, until killed
    python warm_python.py SOCKET -m MODULE WORD ...  do what `python -m MODULE WORD ...` does
    python warm_python.py SOCKET FILE WORD ...       do what `python FILE WORD ...` does

For pages with dozens of commands, each of which would import torch for seconds; so would the
processes that they start with `sys.executable`, which is therefore the program `python` beside the
socket. What a command imports at its start is tested elsewhere.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "toolkit.training.folds", "toolkit.inference.predict", "toolkit.testing.matrix",
    "toolkit.data.survey", "toolkit.backbones.ast", "toolkit.peft.lora", "matplotlib.pyplot",
    "pytest", "hypothesis",
)  # fmt: skip


def serve(address: str) -> None:
    """Run the commands of clients, each as soon as it comes."""
    for module in PRELOADED:
        importlib.import_module(module)
    sys.executable = str(Path(address).with_name("python"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            client, _ = listener.accept()
            with client:
                if os.fork() == 0:
                    answer(client)


def answer(client: socket.socket) -> None:
    """Run the command of a client and tell it the exit status; ends the process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        client.close()
        run(streams, **json.loads(request))
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    client.sendall(bytes([os.waitstatus_to_exitcode(status) % 256]))
    os._exit(0)


def run(streams: Sequence[int], words: list[str], folder: str, variables: dict[str, str]) -> None:
    """Be the command; ends the process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    status: object = 0
    if words[0] == "-u":  # as torchrun starts its workers
        words = words[1:]
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], folder
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def ask(address: str, words: list[str]) -> int:
    """Have a command run by the server: its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {"words": words, "folder": os.getcwd(), "variables": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        return server.recv(1)[0]


if __name__ == "__main__":
    _, address, *words = sys.argv
    if words:
        sys.exit(ask(address, words))
    serve(address)
