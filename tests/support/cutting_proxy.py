"""A proxy on loopback that does to connections what networks do, by chance and from a seed.

    with CuttingProxy(running.port, seed=1) as proxy:
        upload_to(proxy.port)

What strikes is triggered by a number of bytes, so it strikes in the middle of a head and of a body alike. The service
behind it may end and start again on another port, while its clients keep the address they know.
"""

import asyncio
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from tests.support.own_thread import BLOCK, OwnThread, Streams

# An answer is cut in its head: tus-js-client on Node would wait for ever for the rest of a body.
HEAD_OF_AN_ANSWER = 100  # bytes

FATES = (
    "close",  # both ends are told that it is over
    "reset",  # both ends lose what was on its way
    "vanish",  # the client is told; the service waits for more until the proxy is closed
    "stall",  # nothing passes for a while, then it goes on
    "hang",  # nothing passes for a while, then both are reset
    "deafen",  # the service does what it is asked, and its answer is lost
)


class Struck(Exception):
    """The connection has met its end."""


class CuttingProxy(OwnThread):
    """Something strikes a connection after at most `reach` bytes from its client, and again after as many.

    One in ten strikes within the first bytes, where heads are. `met` counts what struck. With a `reach` of None it only
    passes on. With `cut_answers_after` a connection ends when its service has sent so many bytes; with `hold_after`
    the first to pass more than that from its client is `held` until it is `released`.
    """

    def __init__(self, upstream_port: int, *, seed: int, reach: int | None = 1024 * 1024, pause: float = 0.1) -> None:
        super().__init__()
        self.upstream_port = upstream_port
        self.reach, self.pause = reach, pause
        self.met: Counter[str] = Counter()
        self.cut_answers_after: int | None = None
        self.hold_after: int | None = None
        self.held, self.released = threading.Event(), threading.Event()
        self._chance = random.Random(seed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fates(self) -> Iterator[tuple[int, str]]:
        """For one connection: what strikes it, and how many bytes after the last."""
        while self.reach is not None:
            reach = 1_000 if self._chance.random() < 0.1 else self.reach
            yield self._chance.randrange(1, reach), self._chance.choice(FATES)
        yield sys.maxsize, "none"

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            service = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=BLOCK)
        except OSError:  # it is being started anew
            reset(writer)
            return
        connection = _Connection(self, (reader, writer), service)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(connection.requests())
                both.create_task(connection.answers())
        except* (Struck, OSError):
            pass
        finally:
            writer.close()
            service[1].close()


class _Connection:
    """One client's connection to the service."""

    def __init__(self, proxy: CuttingProxy, client: Streams, service: Streams) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_service, self._to_service = service
        self._deaf = False

    async def requests(self) -> None:
        fates = self._proxy.fates()
        left, fate = next(fates)
        passed = 0
        while block := await self._from_client.read(BLOCK):
            while len(block) > left:
                await _write(self._to_service, block[:left])
                block = block[left:]
                self._proxy.met[fate] += 1
                await self._strike(fate)
                left, fate = next(fates)
            left -= len(block)
            await _write(self._to_service, block)
            passed += len(block)
            if passed > (self._proxy.hold_after or sys.maxsize) and not self._proxy.held.is_set():
                self._proxy.held.set()
                await asyncio.to_thread(self._proxy.released.wait)
        with suppress(OSError):  # who has said everything still listens
            self._to_service.write_eof()

    async def answers(self) -> None:
        left = self._proxy.cut_answers_after or sys.maxsize
        while block := await self._from_service.read(BLOCK):
            left -= len(block)
            if left < 0:
                self._proxy.met["cut answer"] += 1
                self._reset_both()
            if self._deaf:
                await _write(self._to_client, block[: random.Random(block).randrange(HEAD_OF_AN_ANSWER)])
                self._reset_both()
            await _write(self._to_client, block)
        with suppress(OSError):
            self._to_client.write_eof()

    async def _strike(self, fate: str) -> None:
        match fate:
            case "close":
                raise Struck
            case "reset":
                self._reset_both()
            case "vanish":
                reset(self._to_client)
                await self._proxy.closing.wait()
                self._reset_both()
            case "stall":
                await asyncio.sleep(self._proxy.pause)
            case "hang":
                await asyncio.sleep(self._proxy.pause)
                self._reset_both()
            case "deafen":
                self._deaf = True

    def _reset_both(self) -> None:
        reset(self._to_client)
        reset(self._to_service)
        raise Struck


async def _write(writer: asyncio.StreamWriter, block: bytes) -> None:
    writer.write(block)
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with RST, so that what is on its way is lost too."""
    if writer.is_closing():
        return
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
