"""Sending of a stream, such as standard input, whose length nobody knows and which cannot be read twice.

A block stays in memory until the service has it, so a broken connection costs nothing. The death of the client does:
then the upload ends as one that nobody finished.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from hashlib import sha256
from typing import BinaryIO, Final

from app.client.failures import ConnectionBroken, TransferFailed
from app.client.sending import Moved
from app.client.sent import Arrived
from app.client.sources import BLOCK as PIECE
from app.client.sources import SMALL
from app.client.transport import Reply
from app.client.wire import Wire, is_spoilt

BLOCK: Final = 8 * 1024 * 1024


async def send_stream(wire: Wire, name: str, stream: BinaryIO, moved: Moved) -> tuple[Arrived, int]:
    """Send all of a stream under a name; what has arrived, and its size."""
    outgoing = _Outgoing(wire, name, moved)
    block = await asyncio.to_thread(stream.read, BLOCK)
    try:
        while following := await asyncio.to_thread(stream.read, BLOCK):
            await outgoing.append(block)
            block = following
        if outgoing.offset == 0 and len(block) <= SMALL and wire.takes_whole_files:
            arrived = await wire.put(name, block, sha256(block).hexdigest(), os.urandom(16).hex())
        else:
            arrived = await outgoing.end(block)
    except BaseException:
        await outgoing.cancel()
        raise
    return arrived, outgoing.offset or len(block)


class _Outgoing:
    """The upload that a stream goes to. `offset` is how many bytes of it have arrived."""

    def __init__(self, wire: Wire, name: str, moved: Moved) -> None:
        self._wire, self._name, self._moved = wire, name, moved
        self._digest = sha256()
        self._url: str | None = None
        self.offset = 0

    async def append(self, block: bytes) -> None:
        """Send a block after which others follow."""
        if self._url is None:
            self._url = await self._wire.create(self._name, None)
        await self._send(self._url, block, None)

    async def end(self, block: bytes) -> Arrived:
        """Send the last block, and return what has arrived with it."""
        length = self.offset + len(block)
        if self._url is None:
            self._url = await self._wire.create(self._name, length)
        reply = await self._send(self._url, block, length) if block else await self._wire.head(self._url)
        attempts = self._wire.attempts()
        while not (arrived := self._wire.landed(reply, self._digest.hexdigest())):
            await attempts.failed(reply)
            reply = await self._wire.head(self._url)
        return arrived

    async def cancel(self) -> None:
        """Cancel what was begun."""
        if self._url is not None:
            await self._wire.cancel(self._url)

    async def _send(self, url: str, block: bytes, length: int | None) -> Reply:
        """Send a block until the server has it; `length` is that of the stream, with its last block."""
        self._digest.update(block)
        end = self.offset + len(block)
        digest = "" if length is None else self._digest.hexdigest()
        attempts = self._wire.attempts()
        reply = Reply(200, {"Upload-Offset": str(self.offset)}, b"")
        while True:
            had, self.offset = self.offset, self._arrived(reply, end - len(block), end)
            if self.offset > had:
                attempts.progressed()
                self._moved(self.offset)
            if self.offset == end:
                return reply
            rest = memoryview(block)[len(block) - (end - self.offset) :]
            try:
                reply = await self._wire.append(
                    url, self.offset, len(rest), partial(_pieces, rest), length=length, digest=digest
                )
                if reply.status in (200, 204):
                    continue
                if not (reply.is_temporary or is_spoilt(reply) or reply.status == 409):
                    raise reply.refused()
                await attempts.failed(reply)
            except ConnectionBroken as error:
                await attempts.failed(error)
            reply = await self._wire.head(url)

    @staticmethod
    def _arrived(reply: Reply, start: int, end: int) -> int:
        text = reply.headers.get("Upload-Offset", "")
        if reply.status not in (200, 204):
            raise reply.refused()
        if not text.isdecimal() or not start <= int(text) <= end:
            raise TransferFailed("bad_answer", f"the server says that it has {text or 'no number of'} bytes of {end}")
        return int(text)


async def _pieces(block: memoryview, moved: Callable[[], None]) -> AsyncIterator[bytes]:
    for at in range(0, len(block), PIECE):
        yield bytes(block[at : at + PIECE])
        moved()
