"""CORS: the pages of other origins that may use the service, and the parts of its answers that they may read."""

from collections.abc import Iterable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.protocols import ietf, tus
from app.web.exchange import exchange_of
from app.web.resumables import offers

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED: Final = ", ".join(
    sorted(
        {*tus.RESPONSE_HEADERS, *ietf.RESPONSE_HEADERS}
        | {"Accept-Ranges", "Allow", "Content-Disposition", "Content-Range", "ETag", "Retry-After", "Waybill-Limits"}
        | {"Idempotent-Replayed", "RateLimit", "RateLimit-Policy", "Want-Repr-Digest", "X-Request-Id"}
    )
)
_PREFLIGHT_SECONDS: Final = 7200  # only Firefox caches for longer


class CorsMiddleware:
    """Answers preflights of the allowed origins, and lets their pages read every other answer.

    Placed within ExchangeMiddleware, so that refusals and faults can be read as well. For any other
    origin the service behaves as if there were no CORS, and the browser refuses.
    """

    def __init__(self, app: ASGIApp, *, allowed_origins: frozenset[str]) -> None:
        self._app = app
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        asked = exchange.headers
        origin = asked.get("origin")
        headers = list(_headers(origin if origin in self._allowed_origins else None))
        exchange.more_headers = lambda: headers
        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in asked
        if origin not in self._allowed_origins or not is_preflight:
            await self._app(scope, receive, send)
            return
        allowed = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS)}
        # An OPTIONS request may also ask for the supported protocols; one answer serves both.
        allowed.update(offers(scope["state"]["settings"]))
        if names := asked.get("access-control-request-headers"):
            # All requested headers are allowed: an origin that may use sessions gains nothing by one.
            allowed["Access-Control-Allow-Headers"] = names
        await Response(status_code=204, headers=allowed)(scope, receive, send)


def _headers(origin: str | None) -> Iterable[tuple[bytes, bytes]]:
    yield b"vary", b"Origin"
    if origin is not None:
        yield b"access-control-allow-origin", origin.encode("ascii")
        yield b"access-control-allow-credentials", b"true"
        yield b"access-control-expose-headers", _EXPOSED.encode("ascii")
