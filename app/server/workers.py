"""The worker processes: replaced when they die, restarted one after the other, and ended in bounded time."""

import time
from socket import socket
from typing import Final
from weakref import WeakKeyDictionary

import structlog
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

log = structlog.stdlib.get_logger("waybill.server")

_START_SECONDS: Final = 60.0
_SILENT_SECONDS: Final = 30.0
"""A worker that has not answered the health check for so long hangs. A machine that swaps may need some seconds."""


class Workers(Multiprocess):
    """uvicorn's worker processes; `patience_seconds` is how long one may take to end after its signal.

    SIGHUP replaces them one after the other: a replacement takes requests before the old worker is
    stopped, and all have the same listening socket, so no client finds it closed. Meanwhile there is
    one worker more than usual, never two. If a replacement does not start, the old workers stay.
    """

    handle_ttin = handle_ttou = None  # type: ignore[assignment]  # their number is a setting

    def __init__(self, config: Config, sockets: list[socket], *, patience_seconds: float) -> None:
        super().__init__(config, sockets)
        self._patience_seconds = patience_seconds
        self._old: list[Process] = []
        self._coming: Process | None = None
        self._leaving: Process | None = None
        self._deadline = 0.0
        self._heard: WeakKeyDictionary[Process, float] = WeakKeyDictionary()

    def serve(self) -> bool:
        """Serve until a signal to stop; False when the workers could not start."""
        self.run()
        return all(process.exitcode != STARTUP_FAILURE for process in self.processes)

    def handle_hup(self) -> None:
        log.info("workers restarting")
        self._old = list(self.processes)

    def keep_subprocess_alive(self) -> None:
        answered = [self._answers(worker) for worker in self.processes]  # all are asked, whatever the first answers
        if not all(answered):
            super().keep_subprocess_alive()  # checks again, and replaces a dead worker
        if not self.should_exit.is_set():
            self._restart()

    def _answers(self, worker: Process) -> bool:
        """Whether the worker lives and has answered lately. Never waits: an answer is to the previous check."""
        now = time.monotonic()
        if worker.ping(timeout=0):
            self._heard[worker] = now
        return worker.process.is_alive() and now - self._heard.setdefault(worker, now) < _SILENT_SECONDS

    def _restart(self) -> None:
        """Take the next step of a restart without waiting: signals to stop are handled between any two steps."""
        if self._leaving is not None:
            if self._leaving.process.is_alive() and time.monotonic() < self._deadline:
                return
            self._see_off(self._leaving)
            self._leaving = None
        self._old = [worker for worker in self._old if worker in self.processes]  # one that died was replaced
        if self._coming is not None:
            self._receive(self._coming)
        elif self._old:
            self._coming = Process(self.config, self.sockets)
            self._coming.start()
            self._deadline = time.monotonic() + _START_SECONDS

    def _receive(self, coming: Process) -> None:
        """Have the replacement take the old worker's place, if it serves by now."""
        if coming.is_ready(timeout=0.2):
            self._coming, self._leaving = None, coming
            if self._old:
                self._leaving = self._old.pop(0)
                self.processes[self.processes.index(self._leaving)] = coming
            self._leaving.terminate()
            self._deadline = time.monotonic() + self._patience_seconds
        elif not coming.process.is_alive() or time.monotonic() > self._deadline:
            log.error("new worker not started", pid=coming.pid)
            coming.kill()
            coming.process.join()
            self._coming, self._old = None, []

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # while it is open here, clients could connect without being served
        self.processes += [worker for worker in (self._coming, self._leaving) if worker is not None]
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + self._patience_seconds
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            self._see_off(worker)

    def _see_off(self, worker: Process) -> None:
        """Kill a worker that has not ended in time after its signal."""
        if worker.process.is_alive():
            log.error("worker killed", pid=worker.pid)
            worker.process.kill()
        worker.process.join()
