"""Sending of one file: a small one in a single request, everything else by tus.

Nothing half becomes visible: the last bytes of a file go in a request of their own, with the digest of the whole, and
only when the file is still what it was. So a plain server of tus does not complete a file that has changed either.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from app.client.failures import ConnectionBroken, SourceChanged, TransferFailed
from app.client.sent import Arrived, Sent
from app.client.sources import BLOCK, OpenSource
from app.client.transport import Attempts, Reply
from app.client.wire import Wire, is_spoilt

_LAST: Final = 64 * 1024
"""Bytes of a larger file that are sent only when all others have arrived."""
_MOST_STARTS: Final = 4

# Told how many bytes of the file have been sent; fewer than before, where some were lost.
Moved = Callable[[int], None]


async def send(wire: Wire, sent: Sent, source: OpenSource, moved: Moved, *, again: str = "") -> Arrived:
    """Send an open file, or what is missing of it.

    With `again`, a word of the caller's, the service stores it even if an upload of the same file is known.

    Raises:
        SourceChanged: the file has changed; what was begun is cancelled.
        TransferFailed, AccessDenied, Unreachable: it cannot be sent; it goes on from there the next time.
    """
    file = source.file
    if source.content is not None and wire.takes_whole_files:
        digest = source.digest()
        arrived = await wire.put(file.name, source.content, digest, sent.key(file.path, digest + again))
    else:
        arrived = await _Resumable(wire, sent, source, moved).send()
    moved(file.size)
    sent.arrived(file.path, file.identity, arrived)
    if source.content is None:  # only now: a death in between leaves an upload that is found to be complete
        sent.forget_unfinished(file.path)
    return arrived


class _Resumable:
    """One file on its way by tus. The URL of its upload is remembered, so that another process can go on."""

    def __init__(self, wire: Wire, sent: Sent, source: OpenSource, moved: Moved) -> None:
        self._wire, self._sent, self._source, self._moved = wire, sent, source, moved
        self._file = source.file
        self._url: str | None = None
        self._starts = 0
        self._failure: Exception | None = None

    async def send(self) -> Arrived:
        """Send what is missing, however often that breaks off."""
        try:
            return await self._send()
        except SourceChanged:
            await self._drop()
            raise

    async def _send(self) -> Arrived:
        attempts = self._wire.attempts()
        reply = await self._found()
        while True:
            offset = _offset(reply, self._file.size)
            if reply is None or offset is None or self._url is None:
                reply = await self._start()
            elif offset == self._file.size:
                digest = await asyncio.to_thread(self._source.digest)
                if arrived := self._wire.landed(reply, digest):
                    return arrived
                await attempts.failed(reply)
                reply = await self._wire.head(self._url)
            else:
                self._moved(offset)
                reply = await self._advance(self._url, offset, attempts)

    async def _found(self) -> Reply | None:
        """The state of an upload that was begun before, None if there is none of the file as it is now."""
        begun = self._sent.unfinished(self._file.path)
        if begun is None:
            return None
        known_as, self._url = begun
        if known_as != self._file.identity:
            await self._drop()
            return None
        return await self._wire.head(self._url)

    async def _drop(self) -> None:
        if self._url is not None:
            await self._wire.cancel(self._url)
            self._sent.forget_unfinished(self._file.path)
            self._url = None

    async def _start(self) -> Reply:
        """Create the upload, and return what HEAD says of it."""
        self._starts += 1
        if self._starts > _MOST_STARTS:
            raise TransferFailed("gone", "the server loses the upload again and again")
        self._url = await self._wire.create(self._file.name, self._file.size)
        self._sent.begun(self._file.path, self._file.identity, self._url)
        if self._file.size == 0:
            return await self._wire.head(self._url)
        return Reply(200, {"Upload-Offset": "0"}, b"")

    async def _advance(self, url: str, offset: int, attempts: Attempts) -> Reply | None:
        """Append once, and return what is known of the upload then; None if it has to be created again."""
        try:
            reply = await self._append(url, offset)
        except ConnectionBroken as error:
            if self._failure is not None:
                raise self._failure from None
            await attempts.failed(error)
            return await self._looked(url, offset, attempts)
        if reply.status in (200, 204):
            attempts.progressed()
            return reply
        if is_spoilt(reply):
            await self._drop()
            return None
        if reply.status in (404, 410):
            return None
        if not reply.is_temporary and reply.status != 409:
            raise reply.refused()
        await attempts.failed(reply)
        return await self._looked(url, offset, attempts)

    async def _looked(self, url: str, offset: int, attempts: Attempts) -> Reply:
        reply = await self._wire.head(url)
        if (_offset(reply, self._file.size) or 0) > offset:
            attempts.progressed()
        return reply

    async def _append(self, url: str, offset: int) -> Reply:
        before_last = self._file.size - _LAST
        if offset < before_last:
            return await self._wire.append(
                url, offset, before_last - offset, lambda moved: self._blocks(offset, before_last, moved)
            )
        content = await asyncio.to_thread(self._source.read, offset, self._file.size - offset)
        digest = await asyncio.to_thread(self._source.digest)
        self._source.check()
        return await self._wire.append(url, offset, len(content), content, digest=digest)

    async def _blocks(self, at: int, end: int, moved: Callable[[], None]) -> AsyncIterator[bytes]:
        """The bytes of the file from `at` to `end`; one block is read while another is sent."""
        read = self._source.read
        try:
            ahead = _soon(read, at, min(BLOCK, end - at))
            while at < end:
                block = await ahead
                at += len(block)
                if at < end:
                    ahead = _soon(read, at, min(BLOCK, end - at))
                yield block
                moved()
                self._moved(at)
        except (OSError, SourceChanged) as error:  # the HTTP client calls any of them a broken connection
            self._failure = error
            raise


def _soon(read: Callable[[int, int], bytes], offset: int, size: int) -> asyncio.Task[bytes]:
    """Begin a read in a thread. If the request breaks off meanwhile nobody asks how it ended."""
    task = asyncio.create_task(asyncio.to_thread(read, offset, size))
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
    return task


def _offset(reply: Reply | None, size: int) -> int | None:
    """How many bytes the server has by its answer, None if there is no upload any more.

    Raises the failure that another answer means.
    """
    if reply is None or reply.status in (404, 410):
        return None
    if reply.status not in (200, 204):
        raise reply.refused()
    text = reply.headers.get("Upload-Offset", "")
    if not text.isdecimal() or int(text) > size:
        raise TransferFailed("bad_answer", f"the server says that it has {text or 'no number of'} bytes of {size}")
    return int(text)
