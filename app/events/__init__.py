"""Events: what happens to a session's uploads, sent to whoever listens, in the order in which it was committed.

    change committed, by any process → read twice a second, once for all listeners of this process → sent

A listener that comes back, or reads slowly, reads the changes that it missed from the database by itself.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from pydantic_core import to_json

from app.db.database import Db
from app.errors import TooManyStreams, Unavailable, UploadError
from app.events import records
from app.events.positions import START, ChangePosition, Positions
from app.events.reader import EventReader
from app.events.records import Offset
from app.events.streams import Stream
from app.model import Clock, Upload
from app.protocols.event_stream import COMMENT, event, only_position, retry
from app.sessions import token_records

log = structlog.stdlib.get_logger("waybill.events")

STREAMS_OF_SESSION: Final = 8
_TICK_SECONDS: Final = 0.5
_COMMENT_SECONDS: Final = 15.0
_RETRY_MILLISECONDS: Final = 1000
_TOKENS_AT_ONCE: Final = 500
_OFFSETS: Final = 1000


class EventStreams:
    """The listeners of this process. `run` it as long as they are served.

    `encode` writes a record as JSON. `receiving` returns how far the uploads of some sessions are that this
    process is receiving.
    """

    def __init__(
        self,
        db: Db,
        positions: Positions,
        *,
        encode: Callable[[Upload], bytes],
        receiving: Callable[[set[str]], Iterable[Offset]],
        now_us: Clock,
    ) -> None:
        self._db = db
        self._reader = EventReader(db, positions, encode)
        self._receiving = receiving
        self._now_us = now_us
        self._streams: defaultdict[str, list[Stream]] = defaultdict(list)
        self._newest = START
        self._offsets: dict[str, int] = {}
        self._stopped = False
        self._is_late = False

    def count(self) -> int:
        """Count the listeners of this process."""
        return sum(map(len, self._streams.values()))

    @asynccontextmanager
    async def listen(
        self, session_id: str, token_hash: str, after: str | None
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Open a stream; its blocks are complete events. It ends with the session, the token or the service.

        `after` is the position behind which to go on. An unknown one gets the event `reset`: the listener has to
        read the history again.

        Raises:
            TooManyStreams: the session has as many streams in this process as it may.
            Unavailable: the database is away, or the service stops.
        """
        self._require_room(session_id)
        newest = await self._reader.find_newest()
        known = None if after is None else await self._reader.find(after)
        self._require_room(session_id)
        if not self._streams:
            self._newest, self._offsets = newest, {}
        stream = Stream(session_id, token_hash, known or newest)
        self._streams[session_id].append(stream)
        try:
            yield self._blocks(stream, is_lost=after is not None and known is None)
        finally:
            self._remove(stream)

    def _require_room(self, session_id: str) -> None:
        if self._stopped:
            raise Unavailable("the service is stopping", retry_after=5)
        if len(self._streams.get(session_id, ())) >= STREAMS_OF_SESSION:
            raise TooManyStreams(STREAMS_OF_SESSION)

    async def _blocks(self, stream: Stream, *, is_lost: bool) -> AsyncGenerator[bytes, None]:
        position, reader = stream.position, self._reader
        yield retry(_RETRY_MILLISECONDS) + (reader.reset(position) if is_lost else only_position(reader.mark(position)))
        while True:
            stream.wake.clear()
            if block := await self._missed(stream) if stream.behind else stream.take():
                yield block
            elif stream.ended:
                return
            elif not stream.behind and not await _woken(stream):
                yield COMMENT + only_position(reader.mark(stream.position))

    async def _missed(self, stream: Stream) -> bytes:
        """Read some of what a listener missed; with the last of it the listener has caught up."""
        newest = self._newest
        if stream.ended or newest.id <= stream.looked_through:
            stream.catch_up(newest)
            return b""
        try:
            changes, until = await self._reader.read_missed(stream, newest)
            events = await self._reader.write(changes)
        except UploadError as error:
            self._note_late(error)
            await asyncio.sleep(_TICK_SECONDS)
            return b""
        stream.looked_through = until
        if changes:
            stream.position = ChangePosition(changes[-1].id, changes[-1].at)
        if until == self._newest.id:
            stream.catch_up(self._newest)
        return b"".join(block for block, _, _ in events)

    def _remove(self, stream: Stream) -> None:
        listeners = self._streams[stream.session_id]
        listeners.remove(stream)
        if not listeners:
            del self._streams[stream.session_id]

    def _all(self) -> list[Stream]:
        return [stream for streams in self._streams.values() for stream in streams]

    async def run(self, stopping: asyncio.Event) -> None:
        """Send what happens, until the service stops; then end all streams."""
        while not stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await stopping.wait()
            if self._streams and not stopping.is_set():
                await self._tick()
        self._stopped = True
        for stream in self._all():
            stream.end()

    async def _tick(self) -> None:
        try:
            await self._check_tokens()
            await self._read()
            await self._report_offsets()
        except UploadError as error:
            self._note_late(error)
        except Exception:
            log.exception("events not read")
        else:
            self._is_late = False

    def _note_late(self, error: UploadError) -> None:
        if not self._is_late:  # once, and not twice a second
            log.warning("events delayed", reason=str(error))
        self._is_late = True

    async def _read(self) -> None:
        while (changes := await self._reader.list_after(newest := self._newest)) or changes is None:
            if changes is None:
                if newest == self._newest:
                    await self._begin_again()
                return
            sessions = set(self._streams)
            events = await self._reader.write([change for change in changes if change.session_id in sessions])
            self._newest = ChangePosition(changes[-1].id, changes[-1].at)
            for block, session_id, position in events:
                for stream in self._streams.get(session_id, ()):
                    stream.add(block, position)
            for stream in self._all():
                if stream.session_id not in sessions:  # it came meanwhile
                    stream.fall_behind()

    async def _begin_again(self) -> None:
        """Have all listeners read the history again: the database was replaced by another, or an older one."""
        log.warning("changes lost, listeners begin again", listeners=self.count())
        self._newest = await self._reader.find_newest()
        for stream in self._all():
            stream.reset(self._newest, self._reader.reset(self._newest))

    async def _report_offsets(self) -> None:
        """Send how far unfinished uploads are: here to the byte, in other processes as far as is durable."""
        sessions = set(self._streams)
        offsets = {each.upload_id: each for each in await records.list_offsets(self._db.reading, sessions, _OFFSETS)}
        offsets |= {each.upload_id: each for each in self._receiving(sessions)}
        for each in offsets.values():
            if each.offset != self._offsets.get(each.upload_id, 0):
                data = to_json({"id": each.upload_id, "offset": each.offset, "length": each.length})
                for stream in self._streams.get(each.session_id, ()):
                    stream.add(event("upload.progress", data))
        self._offsets = {each.upload_id: each.offset for each in offsets.values()}

    async def _check_tokens(self) -> None:
        """End streams whose token opens no session any more; those whose session joined another begin again."""
        streams, opened = self._all(), dict[str, str]()
        hashes = list({stream.token_hash for stream in streams})
        for at in range(0, len(hashes), _TOKENS_AT_ONCE):
            some = hashes[at : at + _TOKENS_AT_ONCE]
            opened |= await token_records.list_sessions(self._db, some, self._now_us())
        for stream in streams:
            session_id = opened.get(stream.token_hash)
            if session_id is None:
                stream.end()
            elif session_id != stream.session_id and stream in self._streams.get(stream.session_id, ()):
                self._remove(stream)
                stream.session_id = session_id
                self._streams[session_id].append(stream)
                stream.reset(self._newest, self._reader.reset(self._newest))


async def _woken(stream: Stream) -> bool:
    try:
        async with asyncio.timeout(_COMMENT_SECONDS):
            await stream.wake.wait()
    except TimeoutError:
        return False
    return True
