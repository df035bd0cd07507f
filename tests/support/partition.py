"""A way to a server that can be cut: silence in both directions, as when the network between is gone, and no reset.

with Partition(database.port) as way:
    service(database_url=way.leads(url))
    way.cut()
    way.heal()
    way.forget()
"""

import asyncio
import threading
from urllib.parse import urlsplit

from tests.support.own_thread import BLOCK, PATIENCE, OwnThread


class Partition(OwnThread):
    """While it is cut who connects waits, and what was sent is kept. Healed it arrives late, as TCP would have it.

    With `cut_before` it cuts itself when these bytes come from the client, before they pass.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.is_cut = threading.Event()
        self.cut_before: bytes | None = None
        self._server_port = port
        self._whole = asyncio.Event()
        self._whole.set()

    def leads(self, url: str) -> str:
        """The server's URL, by this way."""
        parts = urlsplit(url)
        return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{self.port}").geturl()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._cut)
        assert self.is_cut.wait(PATIENCE)

    def heal(self) -> None:
        self.is_cut.clear()
        self._loop.call_soon_threadsafe(self._whole.set)

    def forget(self) -> None:
        """Be silent for ever on the connections that are open, as a router that forgot them; new ones work."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (self._forget(), done.set()))
        assert done.wait(PATIENCE)

    def _forget(self) -> None:
        self._whole.clear()
        self._whole = asyncio.Event()
        self._whole.set()

    def _cut(self) -> None:
        self._whole.clear()
        self.is_cut.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other, whole = None, self._whole
        try:
            await whole.wait()
            back, other = await asyncio.open_connection("127.0.0.1", self._server_port)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, other, whole, told=True))
                both.create_task(self._pass_on(back, writer, whole, told=False))
        except* OSError:
            pass
        finally:
            writer.close()
            if other is not None:
                other.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event, *, told: bool
    ) -> None:
        while block := await reader.read(BLOCK):
            if told and self.cut_before is not None and self.cut_before in block:
                self.cut_before = None
                self._cut()
            await whole.wait()
            writer.write(block)
            await writer.drain()
        await whole.wait()
        writer.close()
