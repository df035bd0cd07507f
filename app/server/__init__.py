"""The server: uvicorn's processes, their shutdown, and the memory allocator beneath them."""

import asyncio
import ctypes
import gc
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from types import FrameType
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import HANDLED_SIGNALS

from app import logs, main
from app.config import Settings
from app.errors import Unavailable, Unusable, UploadError
from app.metrics import SharedWorkerSlots, WorkerSlots
from app.secret_key import with_secret_keys
from app.server.connection import Connection
from app.server.forwarded import Proxies
from app.server.listening import close_sockets, open_sockets, shown
from app.server.workers import Workers
from app.web.exchange import Exchange
from app.web.problems import problem

log = structlog.stdlib.get_logger("waybill.server")

LAST_SECONDS: Final = 10.0
"""How long a process may take to close what it opened, once its requests have ended or were cut off."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MMAP_BYTES: Final = 32 * 1024 * 1024
_TRIM_BYTES: Final = 64 * 1024 * 1024
_GARBAGE_THRESHOLD: Final = 10_000
# A thread that publishes a commit group needs the interpreter again after each system call, a few times a file. By
# default it would wait 5 ms each time while the event loop is busy, and all of the group's answers with it.
_SWITCH_SECONDS: Final = 0.0005
_SPARE_DESCRIPTORS: Final = 48
_RUNNING: Final = "Uvicorn running on {} (Press CTRL+C to quit)"
_ADDRESS_CHARACTERS: Final = 45  # the longest IPv6 address; a proxy may forward anything


def serve(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT; False if the service could not start, and the log says why.

    The caller has checked that the service can start. Shutdown takes no longer than its timeout and
    `LAST_SECONDS`, whatever clients, disks and databases do; nothing that was acknowledged
    depends on an orderly shutdown.
    """
    try:
        settings = with_secret_keys(settings)
    except Unusable as error:
        log.error("service not started", reason=str(error))
        return False
    config = _config(settings)
    try:
        sockets = open_sockets(settings)
    except (OSError, Unusable) as error:
        log.error("socket not opened", reason=str(error), host=settings.listen or settings.host)
        return False
    config.where = shown(sockets[0], "" if settings.listen else settings.host)
    try:
        if config.workers > 1:
            log.info(_RUNNING.format(config.where))
            patience = settings.shutdown_timeout.total_seconds() + LAST_SECONDS + 2.0
            return Workers(config, sockets, patience_seconds=patience).serve()
        server = _Server(config)
        for number in (*HANDLED_SIGNALS, signal.SIGHUP):  # sent when its terminal closes
            # When it has stopped, uvicorn raises the signal that it caught again, for the previous
            # handler. That is this one: an orderly stop on request is a success.
            signal.signal(number, server.handle_exit)
        server.run(sockets)
    except SystemExit:  # uvicorn's sign that it could not start
        return False
    finally:
        close_sockets(sockets)
    return server.started


def _config(settings: Settings) -> "_Config":
    worker_slots = SharedWorkerSlots() if settings.workers > 1 else None
    config = _Config(
        # Workers get these settings and keys, whatever the environment and secret.key contain by then.
        partial(create, settings, worker_slots),
        factory=True,
        workers=settings.workers,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=4096,
        proxy_headers=False,  # `Served` reads them
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout.total_seconds()),
        timeout_worker_healthcheck=2,  # for the second check, see `Workers`: no signal is handled meanwhile
        reset_contextvars=True,  # python/cpython#140947: one request's log fields could show up in another's
    )
    config.most_connections = settings.max_connections
    return config


class _Config(uvicorn.Config):
    """uvicorn's settings, and ours for a connection. Every worker starts by loading them."""

    most_connections: int
    where: str

    def configure_logging(self) -> None:  # called in a worker before anything else
        super().configure_logging()
        if multiprocessing.parent_process() is not None:
            for number in HANDLED_SIGNALS:
                # When the worker has stopped, uvicorn raises the signal that it caught again. By default
                # that would kill the process, with its last log lines.
                signal.signal(number, _exit)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal signals all processes; the parent handles it


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


class _Server(uvicorn.Server):
    """uvicorn's server, in which a second Ctrl+C forces the exit, as uvicorn announces.

    Clients that have connected when it stops are still served; with several workers, by the others.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info(_RUNNING.format(self.config.where))  # type: ignore[attr-defined]  # an attribute of `_Config`

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = [found for server in self.servers for listening in server.sockets for found in _accepted(listening)]
        for server in self.servers:
            server.close()  # at once, because connections made before it is done are reset
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._connection, connection)
        await super().shutdown(sockets)

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:  # uvicorn would go on waiting for the listening sockets, and these for every connection
            for connection in list(self.server_state.connections):
                connection.transport.abort()


def _accepted(listening: socket.socket) -> list[socket.socket]:
    """Accept the waiting connections, which closing the socket would reset."""
    found = []
    with socket.fromfd(listening.fileno(), listening.family, listening.type) as same:
        same.setblocking(False)
        with suppress(OSError):  # none waits any more, or no more can be accepted
            while True:
                found.append(same.accept()[0])
    return found


def create(settings: Settings, worker_slots: WorkerSlots | None = None) -> ASGIApp:
    """Build the application in the process that serves it, and prepare the process."""
    logs.configure(settings.log_format, settings.log_level)
    keep_freed_blocks()
    raise_open_files_limit()
    _end_with_parent()
    return Served(main.build(settings, worker_slots), settings.database_pool_size, Proxies(settings.trusted_proxies))


def keep_freed_blocks() -> None:
    """Have glibc keep the blocks that bodies are read into.

    They are up to 256 KiB long. By default glibc maps each anew and unmaps it at
    once, and the kernel zeroes every page of every body: measured, two thirds of the CPU
    that receiving cost. Other C libraries have no such call and need none.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def collect_rarely() -> None:
    """Have Python collect reference cycles less often, and never among the objects made at the start.

    By default it collects after every 700 new containers, which a few requests make, and now and then
    traverses everything that was imported: measured, a sixth of the CPU of a small upload. Requests,
    refused ones included, leave no cycles, so there is little to collect; and traversing many times
    as many at once would block the event loop for longer than a request may.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)


def raise_open_files_limit() -> None:
    """Allow as many open files as the system lets this process have: each upload may need two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_descriptors_for_files(database_connections: int) -> None:
    """Accept no more connections than can each have a file open, beside all other descriptors. To be called last."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = len(os.listdir("/dev/fd")) + 2 * database_connections + _SPARE_DESCRIPTORS
    Connection.MOST = max(1, (allowed - others) // 2) if allowed != resource.RLIM_INFINITY else sys.maxsize


def _end_with_parent() -> None:
    """Have a worker stop when its parent was killed: it would occupy the port for ever, without supervision."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        log.warning("parent process gone")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="waybill-parent", daemon=True).start()


class Served:
    """The application with the concerns of its process: the client's address, startup and shutdown."""

    def __init__(self, app: ASGIApp, database_connections: int, proxies: Proxies) -> None:
        self._app = app
        self._database_connections = database_connections
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        self._proxies.read(scope)
        if client := scope.get("client"):
            structlog.contextvars.bind_contextvars(client=client[0][:_ADDRESS_CHARACTERS])
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await self._cut_off(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log in one line why startup or shutdown failed; the framework would pass its traceback on as text."""

        async def receive_within_bounds() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                _end_at_last()
            return message

        async def send_without_text(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                collect_rarely()
                sys.setswitchinterval(_SWITCH_SECONDS)
                keep_descriptors_for_files(self._database_connections)
            await send({"type": message["type"]})

        try:
            await self._app(scope, receive_within_bounds, send_without_text)
        except (Unusable, UploadError) as error:
            log.error("service not started", reason=str(error))
        except Exception:
            log.exception("start or stop failed")

    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was cut off because the service stops."""
        exchange: Exchange | None = scope.get("exchange")
        if exchange is None or exchange.status:
            return  # the answer has begun: uvicorn closes the connection
        refusal = problem(Unavailable("the service is stopping", retry_after=5), exchange.id)
        refusal.headers["X-Request-Id"] = exchange.id
        refusal.headers["Connection"] = "close"
        refusal.headers["X-Content-Type-Options"] = "nosniff"
        async with asyncio.timeout(1):  # the client may not read
            await refusal(scope, receive, send)


def _end_at_last() -> None:
    """End this process after a bounded time from now on, even if it waits for a disk or a database."""

    def end() -> None:
        log.critical("shutdown timed out", seconds=LAST_SECONDS)
        logs.flush()
        os._exit(1)

    timer = threading.Timer(LAST_SECONDS, end)
    timer.daemon = True
    timer.start()
