"""Starts `dist` commands as forks of a process that has already imported the command.

The tests start hundreds of commands, and importing Prefect takes 2 s of CPU time for each. A fork has everything else that a
process has: signals, exit code, standard streams, environment, working directory, and an orderly exit of the interpreter.

`python -m tests.cli.fork_server PATH PACKAGE...` imports the modules of the packages and listens on the Unix socket PATH. A
request is a line with one JSON object (`arguments`, `environment`, `directory`) and the descriptors of the three standard
streams. The answer has two lines: the process id of the command and, later, its exit code.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_REQUEST_BYTES = 1 << 20
_STREAMS = 3


def main() -> None:
    """Serve requests until this process is terminated. In each fork, run the command of the request and exit."""
    path, *packages = sys.argv[1:]
    gc.disable()  # a fifth of the time of the imports otherwise
    for package in packages:
        _import_modules(package)
    gc.freeze()  # a collection in a fork would copy all pages
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes children that end
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{path}.new")
    listening.listen(64)
    Path(f"{path}.new").rename(path)
    while True:
        connection, _ = listening.accept()
        data, streams, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, _STREAMS)
        while not data.endswith(b"\n"):  # a long request arrives in pieces
            data += connection.recv(_REQUEST_BYTES)
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _run_command(connection, json.loads(data), streams)
        connection.close()
        for stream in streams:
            os.close(stream)


def _import_modules(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")


def _run_command(connection: socket.socket, request: Any, streams: list[int]) -> None:
    """Fork again. The child becomes the command. The parent reports the exit code of the child and ends."""
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The streams of the interpreter are from the time before the fork, and may have other encodings and buffers.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.argv = ["dist", *request["arguments"]]
    if "--direct" in sys.argv:
        sys.modules["prefect"] = None  # type: ignore[assignment]  # a direct run that imports Prefect fails
    from prefect_dist.cli.main import main as dist

    dist()  # raises SystemExit


if __name__ == "__main__":
    main()
