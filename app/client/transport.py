"""Requests of the client: tried again with growing, random pauses for as long as the caller is patient.

    async with Transport(patience=120) as transport:
        reply = await transport.ask("GET", url)            # an answer, or Unreachable

An upload that is resumed has to look where to go on before it tries again. It calls `once`, and `Attempts.failed`
between two tries.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib import metadata
from typing import Any, Final, NamedTuple, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from app.client.failures import AccessDenied, ConnectionBroken, TransferFailed, Unreachable
from app.protocols.headers import parse_http_date

STALL: Final = 60.0
"""Seconds without a byte sent or received after which a connection counts as broken."""
_SLOWEST: Final = 2048
"""Bytes a second at which a body that is handed to the kernel in one piece arrives at least."""
_CONNECT: Final = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
_MISSED: Final = 3
"""Tries without an answer after which the user is told."""
_LONGEST_ANSWER: Final = 16 * 1024 * 1024

# Body blocks, made anew for every try; the argument is called whenever the last one was taken.
Blocks = Callable[[Callable[[], None]], AsyncIterator[bytes]]


class Reply(NamedTuple):
    """An answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises TransferFailed if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise TransferFailed("bad_answer", f"the answer is not JSON: {self.body[:80]!r}") from None

    @property
    def code(self) -> str:
        """The problem code of a refusal; that of its status where it is no problem document."""
        return str(self._problem().get("code", f"http_{self.status}"))

    @property
    def detail(self) -> str:
        problem = self._problem()
        return str(problem.get("detail") or problem.get("title") or self.body[:200].decode(errors="replace").strip())

    def _problem(self) -> dict[str, Any]:
        if "problem+json" in self.headers.get("Content-Type", ""):
            found = self.json()
            return found if isinstance(found, dict) else {}
        return {}

    def refused(self) -> Exception:
        """The failure that this answer means, for what was asked for."""
        said = self.detail or f"HTTP status {self.status}"
        if self.status in (401, 403):
            return AccessDenied(said)
        return TransferFailed(self.code, said)

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 423, 425, 429, 500, 502, 503, 504) or (
            self.status == 409 and self.code == "in_progress"
        )

    @property
    def retry_after(self) -> float | None:
        """Seconds that the service asks to wait, None if it does not say."""
        text = self.headers.get("Retry-After", "").strip()
        if text.isdecimal():
            return float(text)
        date = parse_http_date(text) if text else None
        return None if date is None else max(0.0, date - time.time())


class Transport:
    """One client's connections to one service. Use it as a context manager.

    `patience` is how many seconds the service may be away, None for ever. `connections` is how many may be open.
    `report` is told once that the service is away, and once that it is there again.
    """

    def __init__(
        self, *, patience: float | None, connections: int = 8, report: Callable[[str], None] | None = None
    ) -> None:
        self.patience = patience
        self.answered_at = 0.0
        self._report = report or (lambda _: None)
        self._is_away = False
        self._connections = connections
        self._client: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"waybill/{metadata.version('waybill')}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Blocks | None = None
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Callable[[], None]]]:
        """Send a request, and give its answer with a function to call for every block read of it.

        Raises ConnectionBroken when there is no answer, or it ends early, or no byte moves for STALL seconds.
        """
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(STALL + (len(body) / _SLOWEST if isinstance(body, bytes) else 0)) as bound:

                def moved() -> None:
                    bound.reschedule(now() + STALL)

                given = body(moved) if callable(body) else body
                at = URL(url, encoded=True)
                async with self._client.request(
                    method, at, headers=headers, data=given, allow_redirects=False, proxy=_proxy(at.scheme, at.host)
                ) as answer:
                    if answer.status not in (502, 503, 504):  # a proxy whose service is away answers too
                        self._answered()
                    yield answer, moved
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise ConnectionBroken(f"{URL(url).authority}: {_reason(error)}") from error

    def _answered(self) -> None:
        self.answered_at = time.monotonic()
        if self._is_away:
            self._is_away = False
            self._report("the service answers again")

    def missed(self, why: str) -> None:
        """Report, once until it answers again, that the service is away."""
        if not self._is_away:
            self._is_away = True
            self._report(f"no answer, trying again: {why}")

    async def once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Blocks | None = None
    ) -> Reply:
        """Send a request once and return the answer, whatever it says; raises ConnectionBroken if there is none."""
        async with self.stream(method, url, headers, body) as (answer, moved):
            whole = bytearray()
            async for block in answer.content.iter_any():
                moved()
                whole += block
                if len(whole) > _LONGEST_ANSWER:
                    raise TransferFailed("bad_answer", "the answer is too long")
            return Reply(answer.status, answer.headers, bytes(whole))

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        """Send a request until it is answered by more than `try again later`.

        Raises:
            Unreachable: the service was away for too long.
            TransferFailed: it answers others, but not this, for as long.
        """
        attempts = Attempts(self)
        while True:
            try:
                reply = await self.once(method, url, headers, body)
            except ConnectionBroken as error:
                await attempts.failed(error)
            else:
                if not reply.is_temporary:
                    return reply
                await attempts.failed(reply)


class Attempts:
    """The tries of one piece of work: how long to pause after one that failed, and when to give up."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._failing_since: float | None = None
        self._count = 0

    def progressed(self) -> None:
        """Begin again with short pauses: something has come through."""
        self._failing_since, self._count = None, 0

    async def failed(self, why: ConnectionBroken | Reply) -> None:
        """Wait before the next try, as long as the answer asks for, or a random while that grows.

        Raises:
            Unreachable: the service has been away for too long.
            TransferFailed: it answers others, but not this, for as long.
        """
        now = time.monotonic()
        asked = why.retry_after if isinstance(why, Reply) else None
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._count, 10)) * random.uniform(0.5, 1)  # noqa: S311
        if asked is not None:
            pause = asked + pause  # on top: all who were sent away at once should not return at once
        if not (isinstance(why, Reply) and why.status == 429):  # its turn comes when other uploads end
            self._failing_since = now if self._failing_since is None else self._failing_since
            self._give_up_by(now + pause, why)
        self._count += 1
        if self._count == _MISSED and self._transport.answered_at < (self._failing_since or 0):
            self._transport.missed(_said(why))
        await asyncio.sleep(pause)

    def _give_up_by(self, moment: float, why: ConnectionBroken | Reply) -> None:
        patience = self._transport.patience
        if patience is None or self._failing_since is None or moment - self._failing_since <= patience:
            return
        if self._transport.answered_at < self._failing_since:
            raise Unreachable(_said(why))
        raise TransferFailed("unreachable", _said(why))


def _reason(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, TimeoutError):
        return "no byte came or went in time"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__


@cache
def _proxy(scheme: str, host: str | None) -> str | None:
    """The proxy that the environment names for a host. aiohttp would look for it at every request, in a thread."""
    return None if host is None or proxy_bypass(host) else getproxies().get(scheme)


def _said(why: ConnectionBroken | Reply) -> str:
    return str(why) if isinstance(why, ConnectionBroken) else f"{why.status} {why.detail}"
