"""Requests as handlers get them, and the shortest way from the router to a handler and back."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.datastructures import Headers as SearchedHeaders
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_NONE: list[str] = []


class RequestHeaders(SearchedHeaders):
    """Starlette's headers, sorted by name once. Its own are searched and decoded anew for every access."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._list = list(pairs)
        self._named: dict[str, list[str]] = {}
        for name, value in self._list:
            self._named.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def getlist(self, key: str) -> list[str]:
        return self._named.get(key.lower(), _NONE)

    def get(self, key: str, default: Any = None) -> Any:
        values = self._named.get(key.lower())
        return values[0] if values else default

    def __getitem__(self, key: str) -> str:
        return self._named[key.lower()][0]

    def __contains__(self, key: Any) -> bool:
        return key.lower() in self._named


class Request(StarletteRequest[Any]):
    """Starlette's request, with the headers that its Exchange has sorted and the lifespan's state as it is."""

    @property
    def headers(self) -> SearchedHeaders:
        headers: RequestHeaders = self.scope["exchange"].headers
        return headers

    @property
    def state(self) -> Any:
        return self.scope["state"]


class Handler:
    """A handler as an ASGI application. Its refusals, like all its exceptions, go up to ExchangeMiddleware.

    Starlette's own would look for exception handlers twice on the way out, in closures made for each request.
    """

    def __init__(self, handle: Callable[[StarletteRequest[Any]], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive, send))
        await response(scope, receive, send)
