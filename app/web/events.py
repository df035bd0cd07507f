"""GET /api/ingestion/events: what happens to the caller's uploads, as it happens."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import BadQuery
from app.protocols.event_stream import LAST_EVENT_ID, MEDIA_TYPE
from app.web.downloads import hang_up
from app.web.services import Services
from app.web.session import caller_of

ENDLESS: Final = "waybill.endless"
"""Stands in the scope of a request whose answer ends with the client: nobody waits for it behind a FIN."""
_HEADERS: Final = {
    "Content-Type": MEDIA_TYPE,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events until its buffer is full
}


async def listen(request: Request[Services]) -> Response:
    """GET, HEAD /api/ingestion/events: a stream of the session's events, from now on or behind a position."""
    caller = caller_of(request).living()
    after = _after(request)
    if request.method == "HEAD":
        return Response(headers=_HEADERS)
    request.scope[ENDLESS] = True
    return _EventsAnswer(request.state["events"].listen(caller.session.id, caller.token.hash, after))


def _after(request: Request[Any]) -> str | None:
    """The position behind which the stream is to go on: that of a reconnect comes before that of the URL."""
    given = request.query_params.multi_items()
    for name, _ in given:
        if name != "after":
            raise BadQuery("a parameter", "after alone")
    if len(given) > 1:
        raise BadQuery("after", "the parameter once")
    last: str | None = request.headers.get(LAST_EVENT_ID)
    return last if last is not None else next((value for _, value in given), None)


class _EventsAnswer(Response):
    """The answer that goes on until the stream ends or the client leaves."""

    def __init__(self, stream: AbstractAsyncContextManager[AsyncGenerator[bytes, None]]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stream as blocks:  # refused in here, it becomes a problem document
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            tasks = asyncio.create_task(_send_all(blocks, send)), asyncio.create_task(hang_up(receive))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()


async def _send_all(blocks: AsyncGenerator[bytes, None], send: Send) -> None:
    async with aclosing(blocks):
        async for block in blocks:
            await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
