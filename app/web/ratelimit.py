"""Rate limit headers: a session's limits on every answer to an upload (draft-ietf-httpapi-ratelimit-headers-10)."""

from collections.abc import Iterable, Iterator
from typing import Final

from starlette.requests import Request

from app.uploads.ingest import Ingest
from app.web.exchange import exchange_of
from app.web.services import Services
from app.web.session import caller_of

_MOST: Final = 999_999_999_999_999  # the largest integer of a structured field (RFC 9651 §3.3.1)


def tell(request: Request[Services]) -> None:
    """Have the answer state the limits of the caller's session, and how much is left of each."""
    ingest: Ingest = request.state["ingest"]
    if ingest.quotas is None and ingest.limits.requests_at_once_of_session is None:
        return
    session_id = caller_of(request).visitor().session_id
    exchange = exchange_of(request.scope)
    others = exchange.more_headers
    exchange.more_headers = lambda: (*others(), *_fields(ingest, session_id))


def _fields(ingest: Ingest, session_id: str) -> Iterator[tuple[bytes, bytes]]:
    standing = list(_standing(ingest, session_id))
    yield b"ratelimit-policy", _list((name, f'q={_number(limit)};qu="{unit}"') for name, unit, limit, _ in standing)
    if known := [(name, f"r={_number(left)}") for name, _, _, left in standing if left is not None]:
        yield b"ratelimit", _list(known)


def _standing(ingest: Ingest, session_id: str) -> Iterator[tuple[str, str, int, int | None]]:
    """Iterate over the limits: name, unit, limit, and how much is left, None while unknown."""
    at_once = ingest.limits.requests_at_once_of_session
    if at_once is not None:
        yield "at-once", "concurrent-requests", at_once, max(0, at_once - ingest.under_way(session_id))
    if ingest.quotas is not None:
        uploads, size = ingest.quotas.limits
        uploads_left, size_left = ingest.quotas.left(session_id)
        if size is not None:
            yield "quota", "content-bytes", size, size_left
        if uploads is not None:
            yield "quota-uploads", "uploads", uploads, uploads_left


def _list(items: Iterable[tuple[str, str]]) -> bytes:
    return ", ".join(f'"{name}";{parameters}' for name, parameters in items).encode("ascii")


def _number(count: int) -> int:
    return min(count, _MOST)
