"""Requests as handlers get them, and the shortest way from a request's path to its handler and back."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette import routing
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class RequestHeaders(dict[str, str]):
    """The headers of a request by their names in lower case: of each the first value. `getlist` returns all values.

    They are sorted once. Starlette's own are searched and decoded anew for every access.
    """

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._repeated: dict[str, list[str]] = {}
        for raw_name, raw_value in pairs:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name in self:
                self._repeated.setdefault(name, [self[name]]).append(value)
            else:
                self[name] = value

    def getlist(self, name: str) -> list[str]:
        if name in self._repeated:
            return self._repeated[name]
        return [self[name]] if name in self else []


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
