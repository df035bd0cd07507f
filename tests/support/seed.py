"""A process that has the service imported, and becomes it whenever it is asked: many starts without their imports.

Its standard input is a socket. Each request comes with the file that is to be the service's standard error; the answer
is the number of the new process and, once that has ended, its exit status.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO


class Seed:
    """Becomes one service at a time, which is used as a `Popen` is."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._asks, theirs = socket.socketpair()
        command = [sys.executable, __file__]
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, env=environment)

    def grow(self, directory: Path, environment: Mapping[str, str]) -> "Grown":
        ours, theirs = os.pipe()
        try:
            asked = json.dumps({"directory": str(directory), "environment": dict(environment)})
            socket.send_fds(self._asks, [asked.encode()], [theirs])
        finally:
            os.close(theirs)
        return Grown(self._asks, os.fdopen(ours, "rb"))

    def close(self) -> None:
        self._asks.close()
        self._process.wait()


class Grown:
    def __init__(self, answers: socket.socket, stderr: IO[bytes]) -> None:
        self.stderr = stderr
        self._answers = answers
        self.pid = self._next(None)
        self._status: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except BlockingIOError:
            return None

    def wait(self, timeout: float) -> int:
        if self._status is None:
            self._status = self._next(timeout)
        return self._status

    def _next(self, timeout: float | None) -> int:
        self._answers.settimeout(timeout)
        return int(self._answers.recv(16))


def main() -> None:
    sys.path.insert(0, os.environ["PYTHONPATH"])
    import app.checks
    import app.main
    import app.server  # noqa: F401  # what `serve` would import

    asks = socket.socket(fileno=os.dup(0))
    while True:
        told, files, _, _ = socket.recv_fds(asks, 65536, 1)
        if not told:
            return
        if (pid := os.fork()) == 0:
            asks.close()
            become(files[0], **json.loads(told))
        os.close(files[0])
        asks.sendall(str(pid).encode().ljust(16))
        _, status = os.waitpid(pid, 0)
        asks.sendall(str(os.waitstatus_to_exitcode(status)).encode().ljust(16))


def become(stderr: int, directory: str, environment: dict[str, str]) -> None:
    from app.cli import main

    nothing = os.open(os.devnull, os.O_RDWR)
    for new, standard in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(new, standard)
    os.close(nothing)
    os.close(stderr)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    main(["serve"])


if __name__ == "__main__":
    main()
