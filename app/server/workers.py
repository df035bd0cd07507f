"""The processes that serve: replaced when they die, restarted one after the other, and ended in bounded time."""

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
"""A worker that has answered nothing for so long hangs. A machine that swaps may well take some seconds for it."""


class Workers(Multiprocess):
    """uvicorn's worker processes; `patience_seconds` is how long one may take to end once it was told to.

    SIGHUP replaces them one after the other: the next takes requests before the one before is told
    to end, and all have the same listening socket, so nobody finds it closed. One worker more than
    usual lives meanwhile, never two. A replacement that does not start leaves those that serve.
    """

    handle_ttin = handle_ttou = None  # type: ignore[assignment]  # how many there are is a setting

    def __init__(self, config: Config, sockets: list[socket], *, patience_seconds: float) -> None:
        super().__init__(config, sockets)
        self._patience_seconds = patience_seconds
        self._old: list[Process] = []
        self._coming: Process | None = None
        self._leaving: Process | None = None
        self._deadline = 0.0
        self._heard: WeakKeyDictionary[Process, float] = WeakKeyDictionary()

    def serve(self) -> bool:
        """Serve until told to stop; False when the workers could not start."""
        self.run()
        return all(process.exitcode != STARTUP_FAILURE for process in self.processes)

    def handle_hup(self) -> None:
        log.info("restarting the workers, one after the other")
        self._old = list(self.processes)

    def keep_subprocess_alive(self) -> None:
        answered = [self._answers(worker) for worker in self.processes]  # all are asked, whatever the first says
        if not all(answered):
            super().keep_subprocess_alive()  # looks again, and replaces it
        if not self.should_exit.is_set():
            self._restart()

    def _answers(self, worker: Process) -> bool:
        """Whether it lives and has been heard of lately. Nobody waits: what is heard answers the question before."""
        now = time.monotonic()
        if worker.ping(timeout=0):
            self._heard[worker] = now
        return worker.process.is_alive() and now - self._heard.setdefault(worker, now) < _SILENT_SECONDS

    def _restart(self) -> None:
        """Take the next step that can be taken without waiting: a signal to stop must be heard between any two."""
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
        """Let the replacement take its place, if it serves by now."""
        if coming.is_ready(timeout=0.2):
            self._coming, self._leaving = None, coming
            if self._old:
                self._leaving = self._old.pop(0)
                self.processes[self.processes.index(self._leaving)] = coming
            self._leaving.terminate()
            self._deadline = time.monotonic() + self._patience_seconds
        elif not coming.process.is_alive() or time.monotonic() > self._deadline:
            log.error("a new worker does not start: the others stay", pid=coming.pid)
            coming.kill()
            coming.process.join()
            self._coming, self._old = None, []

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # while it is open here, clients connect and wait for nobody
        self.processes += [worker for worker in (self._coming, self._leaving) if worker is not None]
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + self._patience_seconds
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            self._see_off(worker)

    def _see_off(self, worker: Process) -> None:
        """It was told to end and has had its time."""
        if worker.process.is_alive():
            log.error("a worker does not stop and is killed", pid=worker.pid)
            worker.process.kill()
        worker.process.join()
