"""The body of one request: counted, refused when longer or shorter than declared, or too slow."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

from starlette.requests import Request

from app.errors import BadRequest, IncompleteBody, RequestTooLarge, TookTooLong, TooSlow, UnsupportedMediaType
from app.protocols.headers import content_length
from app.protocols.intents import Checksum

Block = bytes | memoryview
PACE_SECONDS: Final = 30.0
"""The minimum rate is held over windows of this length, so that a train may pass a tunnel."""


class Body:
    """A request's body. Enter it and iterate once over its blocks. The constructor refuses by the headers alone.

    Raises:
        UnsupportedMediaType: the body is compressed; nothing is ever decompressed here.
        BadRequest: its length is declared in two ways or in an unreadable one.
        RequestTooLarge: the body is, or proves to be, over `limit` bytes.
        IncompleteBody: the client hung up, or sent another length than it declared.
        TooSlow: fewer than `min_rate` bytes a second arrived for `PACE_SECONDS`.
        DigestMismatch, ChecksumMismatch: the complete body fails one of the `checks`.
        TookTooLong: the body had not arrived after `timeout` seconds, and up to `PACE_SECONDS` more.
    """

    def __init__(
        self, request: Request[Any], *, limit: int, min_rate: int, timeout: float, checks: Sequence[Checksum] = ()
    ) -> None:
        headers = request.headers
        self.declared = content_length(headers.getlist("content-length"))
        if "content-encoding" in headers and not _tokens(headers.getlist("content-encoding")) <= {"identity"}:
            raise UnsupportedMediaType("the body has a Content-Encoding; send the bytes as they are")
        if "transfer-encoding" in headers and (transfer := _tokens(headers.getlist("transfer-encoding"))):
            # An HTTP parser may pass `gzip, chunked` on as if only `chunked` stood there.
            if transfer != {"chunked"}:
                raise BadRequest("the body has a Transfer-Encoding other than chunked")
            if self.declared is not None:
                raise BadRequest("a body has either a Content-Length or a Transfer-Encoding")
        if self.declared is not None and self.declared > limit:
            raise RequestTooLarge(self.declared, limit)
        self.received = 0
        self._receive = request.receive
        self._limit = limit
        self._ended = False
        self._checks = [(check, check.hasher()) for check in checks] if checks else []
        self._pace = _Pace(min_rate, timeout)

    def __enter__(self) -> Self:
        self._pace.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pace.stop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            message = await self._pace.wait_for(self._receive, self.received)
            if message["type"] == "http.disconnect":
                raise IncompleteBody(self.received, self.declared)
            self._ended = not message.get("more_body", False)
            block: bytes = message.get("body", b"")
            self.received += len(block)
            if self.received > self._limit:
                raise RequestTooLarge(self.received, self._limit)
            if block:
                for _, hasher in self._checks:
                    hasher.update(block)
                return block
        if self.declared is not None and self.received != self.declared:
            raise IncompleteBody(self.received, self.declared)
        for check, hasher in self._checks:
            check.check(hasher)
        raise StopAsyncIteration


class BodyBlocks(Protocol):
    """The blocks of a request's body, and how long it is by its headers."""

    @property
    def declared(self) -> int | None: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...


class Rest:
    """The body of a request that was interrupted: the blocks that came, then the reason."""

    def __init__(self, blocks: Sequence[Block], reason: BaseException, declared: int | None) -> None:
        self.declared = declared
        self._blocks = blocks
        self._reason = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    async def __aiter__(self) -> AsyncIterator[Block]:
        for block in self._blocks:
            yield block
        raise self._reason


def _tokens(values: list[str]) -> set[str]:
    return {token for value in values for element in value.split(",") if (token := element.strip(" \t").lower())}


class _Pace:
    """Ends a wait for the client when too few bytes arrive for too long; our own slowness is never counted.

    One timer a request, not one a block: it looks back over the window that has passed.
    """

    def __init__(self, min_rate: int, timeout: float) -> None:
        self._min_rate = min_rate
        self._timeout = timeout
        self._left = timeout
        self._received = 0
        self._mark = 0
        self._waiting: asyncio.Task[Any] | None = None
        self._late: TooSlow | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._loop.call_later(min(PACE_SECONDS, self._left), self._look_back)

    async def wait_for(self, receive: Any, received: int) -> Any:
        self._received = received
        self._waiting = asyncio.current_task(self._loop)
        try:
            return await receive()
        except asyncio.CancelledError:
            if self._late is not None and self._waiting is not None and self._waiting.uncancel() == 0:
                raise self._late from None
            raise
        finally:
            self._waiting = None

    def _look_back(self) -> None:
        # The last window may be shorter: at its end only the whole time counts.
        window = min(PACE_SECONDS, self._left)
        self._left -= window
        if self._waiting is not None:
            if self._left <= 0:
                self._late = TookTooLong(self._timeout)
            elif self._received - self._mark < self._min_rate * window:
                self._late = TooSlow(PACE_SECONDS, self._min_rate)
            if self._late is not None:
                self._waiting.cancel()
                return
        self._left = self._left or PACE_SECONDS  # the time is up while we are busy: check again
        self._mark = self._received
        self.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
