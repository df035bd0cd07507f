"""A proxy on loopback that breaks the network after so many bytes, and mends it when it is told."""

import asyncio
import threading
from contextlib import suppress

from tests.support.cutting_proxy import reset
from tests.support.own_thread import BLOCK, OwnThread, Streams
from tests.support.service import PATIENCE


class Gate(OwnThread):
    """Passes everything on until `budget` bytes have come from its clients, or until an answer begins with `loses`;
    then every connection is reset, and each new one as well, until `mend`. The service behind it may end, and start
    again on another port.
    """

    def __init__(self, upstream_port: int, *, budget: int | None = None, loses: bytes | None = None) -> None:
        super().__init__()
        self.upstream_port = upstream_port
        self.passed = 0
        """Bytes that came from clients and went on to the service."""
        self._budget = budget
        self._loses = loses
        self._open: set[asyncio.StreamWriter] = set()
        self._broken = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_broken(self) -> None:
        assert self._broken.wait(PATIENCE), f"only {self.passed} bytes came"

    def mend(self) -> None:
        self._budget = self._loses = None
        self._broken.clear()

    def _break(self) -> None:
        self._broken.set()
        for writer in self._open:
            reset(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._broken.is_set():
                raise ConnectionResetError
            service = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=BLOCK)
        except OSError:
            reset(writer)
            return
        ends = {writer, service[1]}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass((reader, service[1]), counts=True))
                both.create_task(self._pass((service[0], writer), counts=False))
        except* OSError:
            pass
        finally:
            self._open -= ends
            for end in ends:
                end.close()

    async def _pass(self, way: Streams, *, counts: bool) -> None:
        reader, writer = way
        while block := await reader.read(BLOCK):
            if counts and self._budget is not None and self.passed + len(block) > self._budget:
                self._break()
            if not counts and self._loses is not None and block.startswith(self._loses):
                self._break()
            if self._broken.is_set():
                raise ConnectionResetError
            self.passed += len(block) if counts else 0
            writer.write(block)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()
