"""Requests as handlers get them, and the shortest way from a request's path to its handler and back."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette import routing
from starlette.datastructures import Headers as SearchedHeaders
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_NONE: list[str] = []


class RequestHeaders(SearchedHeaders):
    """Starlette's headers, sorted by name once. Its own are searched and decoded anew for every access.

    Names are looked up as they are, in lower case, in which servers hand them on.
    """

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._list = list(pairs)
        named = self._named = {}  # type: dict[str, list[str]]
        for name, value in self._list:
            key = name.decode("latin-1")
            if key in named:
                named[key].append(value.decode("latin-1"))
            else:
                named[key] = [value.decode("latin-1")]

    def getlist(self, key: str) -> list[str]:
        return self._named.get(key, _NONE)

    def keys(self) -> list[str]:  # type: ignore[override]  # as Starlette's own
        return list(self._named)

    def get(self, key: str, default: Any = None) -> Any:
        values = self._named.get(key)
        return values[0] if values else default

    def __getitem__(self, key: str) -> str:
        return self._named[key][0]

    def __contains__(self, key: Any) -> bool:
        return key in self._named


class Request(StarletteRequest[Any]):
    """Starlette's request, with the headers that its Exchange has sorted and the lifespan's state as it is."""

    headers: Any = None  # plain attributes; Starlette's properties would search for them at each access
    state: Any = None

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.headers = scope["exchange"].headers
        self.state = scope["state"]
        self._receive = receive


class JsonResponse(Response):
    """A response of JSON as it is sent, with its further headers as they are sent."""

    def __init__(self, body: bytes, status_code: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.body, self.status_code, self.background = body, status_code, None
        length = b"%d" % len(body)
        self.raw_headers = [*headers, (b"content-length", length), (b"content-type", b"application/json")]


class Router:
    """Finds the handler of a request: by its path if that has no parameters, or how it begins if only the rest is one.

    All else is left to Starlette, which tries one route after the other.
    """

    def __init__(self, router: routing.Router) -> None:
        self._search = router
        self._whole: dict[tuple[str, str], ASGIApp] = {}
        self._begun: dict[str, list[tuple[str, str, ASGIApp]]] = {}
        for route in router.routes:
            if isinstance(route, routing.Route):
                begin, _, parameter = route.path.partition("{")
                for method in route.methods or ():
                    if not parameter:
                        self._whole[method, route.path] = route.app
                    elif parameter.endswith(":rest}"):
                        self._begun.setdefault(method, []).append((begin, parameter[: -len(":rest}")], route.app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._find(scope) or self._search)(scope, receive, send)

    def _find(self, scope: Scope) -> ASGIApp | None:
        if scope["type"] != "http":
            return None
        method, path = scope["method"], scope["path"]
        for begin, parameter, app in self._begun.get(method, ()):
            if path.startswith(begin):
                scope["path_params"] = {parameter: path[len(begin) :]}
                return app
        return self._whole.get((method, path))


class Handler:
    """A handler as an ASGI application. Its refusals, like all its exceptions, go up to ExchangeMiddleware.

    Starlette's own would look for exception handlers twice on the way out, in closures made for each request.
    """

    def __init__(self, handle: Callable[[StarletteRequest[Any]], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handle(Request(scope, receive))
        await response(scope, receive, send)
