"""A server on loopback that runs in a thread of its own, on an event loop of its own, until its block is left."""

import asyncio
import threading
from typing import Self

BLOCK = 64 * 1024
PATIENCE = 20.0  # seconds

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class OwnThread:
    """A subclass says in `_connect` what becomes of a connection; at the end `closing` is set, and it is cancelled."""

    def __init__(self) -> None:
        self.port = 0
        self.closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.closing.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BLOCK)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self.closing.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError
