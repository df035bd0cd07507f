"""A client that speaks ASGI to the whole service: it decides every chunk border, and can hang up.

    async with serving(settings_in(tmp_path)) as service:
        client = service.client()
        answer = await client.request("PUT", "/api/ingestion/uploads/a.txt", body=[b"he", b"", b"llo"])
        assert answer.status == 201

It stands where uvicorn stands and is as strict: an answer with a malformed header, a body of
another length than it declares, or a message too many fails the test. Cookies are kept as a
browser keeps them, one jar a client.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog

from app.config import Settings
from app.errors import problem_codes
from app.main import build
from app.web.services import Services

Headers = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

SECRET_KEY = "a-key-for-tests-of-more-than-32-characters"
_PATIENCE = 60.0  # seconds; a bound for a machine under load, not a measure
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

# The renderer's own tracebacks show every local variable, and take half a second each.
_RENDERER = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _RENDERER])


def settings_in(directory: Path, database_url: str | None = None, **others: Any) -> Settings:
    """Settings for a service that keeps everything in `directory`, and uses the disk to its end.

    Records that failed stay for good: tests write their dates, and the sweep of the start may come at any time.
    """
    given: dict[str, Any] = {"storage_dir": directory / "store", "min_free_space": 0, "secret_keys": SECRET_KEY}
    given["retain_failed"] = timedelta(days=36_500)
    if database_url is not None:
        given["database_url"] = database_url
    return Settings(**given | others)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator["Service"]:
    """The built application between the two ends of its lifespan."""
    app = build(settings)
    state: dict[str, Any] = {}
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    lifespan = asyncio.create_task(app(scope, told.get, heard.put))

    async def say(event: str) -> None:
        await told.put({"type": f"lifespan.{event}"})
        answer = asyncio.create_task(heard.get())
        await asyncio.wait((answer, lifespan), timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() or answer.result()["type"] != f"lifespan.{event}.complete":
            answer.cancel()
            await lifespan  # raises what went wrong
            raise AssertionError(f"the lifespan did not complete its {event}")

    await say("startup")
    try:
        yield Service(app, state)
    finally:
        await say("shutdown")
        await lifespan


class HangUp(Exception):
    """Raised by a body that is an async iterable: the client is gone."""


@dataclass
class Answer:
    """What the service sent. `status` is 0 when nothing came."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    blocks: list[bytes] = field(default_factory=list)
    """The body as it was sent, also the empty messages."""
    asked: int = 0
    """How many messages of the request the service took before its answer: none if the headers were enough."""
    complete: bool = False
    """Whether the answer came to its end."""
    heard: bool = True
    """Whether the client was still there at the end."""
    interim: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """What was said before the answer, each as status and headers."""
    broken: BaseException | None = None
    """What the application raised after its answer had begun; a server would cut the connection."""

    def all(self, name: str) -> list[str]:
        """The values of every header of this name."""
        return [value for key, value in self.headers if key == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The value of the only header of this name."""
        [value] = self.all(name)
        return value

    def get(self, name: str) -> str | None:
        """The value of the only header of this name, or None."""
        return self[name] if self.all(name) else None

    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int, code: str) -> dict[str, Any]:
        """The problem document, after a look at whether it is one: this status, this code, and whole."""
        assert self.status == status, (self.status, self.body)
        assert self.complete
        assert self.broken is None
        problem = self.json()
        assert problem["code"] == code, problem
        assert self["content-type"] == "application/problem+json"
        assert problem["type"] == (problem_codes()[code].registered or f"urn:waybill:problem:{code}")
        assert problem["status"] == status
        assert problem["request_id"] == self["x-request-id"]
        assert problem["title"]
        assert problem["detail"]
        return problem


class Service:
    """A running service. `state` is what its handlers are given."""

    def __init__(self, app: Any, state: dict[str, Any]) -> None:
        self.app = app
        self.state: Services = state  # type: ignore[assignment]
        self._directory = self.state["settings"].storage_dir

    def files(self) -> dict[str, bytes]:
        """What is published, by id."""
        return {path.name: path.read_bytes() for path in self._directory.glob("files/*/*")}

    def path_of(self, upload_id: str) -> Path:
        """Where a published file lies."""
        [path] = self._directory.glob(f"files/*/{upload_id}")
        return path

    def staged(self) -> list[str]:
        """What is received and not yet published, as far as it is on the disk."""
        return [path.name for path in self._directory.glob("staging/*/*")]

    def client(self, *, scheme: str = "http", host: str = "waybill.test") -> "Client":
        """A new browser, with an empty jar."""
        return Client(self, scheme, host)


class Client:
    """One browser. `cookies` is its jar; put something in, or take it out."""

    def __init__(self, service: Service, scheme: str, host: str) -> None:
        self._service = service
        self._scheme = scheme
        self._host = host
        self.cookies: dict[str, str] = {}
        self._secure: set[str] = set()

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Headers = (),
        body: bytes | Iterable[bytes] | AsyncIterable[bytes] = b"",
        hang_up_after: int | None = None,
        stop_listening_after: int | None = None,
        receive: Receive | None = None,
        listen: Callable[[bytes], object] | None = None,
    ) -> Answer:
        """Send one request, get its answer. `listen` is called with each block of it, as it comes.

        `body` is one chunk, several, or an async iterable that gives each when it is time.
        The first two declare their length, the last does not, unless `headers` say
        otherwise: a Content-Length or Transfer-Encoding there is sent instead.

        The client hangs up before its chunk number `hang_up_after` (0: before the first;
        the length of `body`: behind the last one, but before the end that would follow
        it), or when it has got `stop_listening_after` blocks of the answer. `receive`
        stands in for all of this: it gives the raw messages.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        fields = [(name.lower().encode("ascii"), _bytes(value)) for name, value in pairs]
        names = {name for name, _ in fields}
        chunks = [body] if isinstance(body, bytes) else body
        if isinstance(chunks, AsyncIterable):
            if not names & {b"content-length", b"transfer-encoding"}:
                fields.append((b"transfer-encoding", b"chunked"))
        else:
            chunks = list(chunks)
            declares = any(chunks) or method in {"POST", "PUT", "PATCH"}
            if declares and not names & {b"content-length", b"transfer-encoding"}:
                fields.append((b"content-length", str(sum(map(len, chunks))).encode()))
        if b"host" not in names:
            fields.insert(0, (b"host", self._host.encode()))
        if b"cookie" not in names and (jar := self._cookie_header()):
            fields.append((b"cookie", jar.encode("latin-1")))
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 50000),
            "scheme": self._scheme,
            "root_path": "",
            "headers": fields,
            "state": dict(self._service.state),
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
        }
        exchange = _Exchange(method, chunks, hang_up_after, stop_listening_after, receive, listen)
        answer = exchange.answer
        scope["extensions"] = {"waybill.interim": exchange.send_interim}
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._service.app(scope, exchange.receive, exchange.send)
        except _ServerError:
            raise
        except Exception as error:
            if not answer.status:
                raise
            answer.broken = error
        finally:
            await exchange.close()
        answer.heard = not exchange.gone.is_set()
        answer.body = b"".join(answer.blocks)
        if answer.heard and answer.broken is None:
            assert answer.complete, "the application returned without completing its answer"
            exchange.check_length()
        if answer.heard:
            self._keep(answer.all("set-cookie"))
        return answer

    async def get(self, target: str, *, headers: Headers = ()) -> Answer:
        return await self.request("GET", target, headers=headers)

    async def put(self, filename: str, body: Any = b"", *, headers: Headers = (), **how: Any) -> Answer:
        """PUT a file under a name that is part of the target as it stands."""
        return await self.request("PUT", f"/api/ingestion/uploads/{filename}", headers=headers, body=body, **how)

    async def post(self, target: str, body: Any = b"", *, headers: Headers = (), **how: Any) -> Answer:
        return await self.request("POST", target, headers=headers, body=body, **how)

    async def delete(self, target: str, *, headers: Headers = ()) -> Answer:
        return await self.request("DELETE", target, headers=headers)

    def _cookie_header(self) -> str:
        sent = {
            name: value for name, value in self.cookies.items() if self._scheme == "https" or name not in self._secure
        }
        return "; ".join(f"{name}={value}" for name, value in sent.items())

    def _keep(self, set_cookies: list[str]) -> None:
        for line in set_cookies:
            pair, *attributes = [part.strip() for part in line.split(";")]
            name, _, value = pair.partition("=")
            known = {key.lower(): text for key, _, text in (attribute.partition("=") for attribute in attributes)}
            self.cookies.pop(name, None)
            self._secure.discard(name)
            if int(known.get("max-age", "1")) > 0:
                self.cookies[name] = value
                if "secure" in known:
                    self._secure.add(name)


class _ServerError(AssertionError):
    """The application broke a rule that uvicorn would cut the connection for."""


class _Exchange:
    """The server's half of one exchange."""

    def __init__(
        self,
        method: str,
        chunks: list[bytes] | AsyncIterable[bytes],
        hang_up_after: int | None,
        stop_listening_after: int | None,
        receive: Receive | None,
        listen: Callable[[bytes], object] | None,
    ) -> None:
        self.answer = Answer()
        self._listen = listen
        self.gone = asyncio.Event()
        self._method = method
        self._stop_listening_after = stop_listening_after
        self._scripted = receive
        self._over = asyncio.Event()
        self._chunks = self._deliver(chunks, hang_up_after)
        self._next: asyncio.Future[dict[str, Any]] | None = None

    async def receive(self) -> dict[str, Any]:
        if self._over.is_set():
            return {"type": "http.disconnect"}
        self.answer.asked += not self.answer.status
        if self._next is None:
            self._next = asyncio.ensure_future(self._message())
        message = await asyncio.shield(self._next)  # who stops waiting loses no message
        self._next = None
        return message

    async def _message(self) -> dict[str, Any]:
        if self._scripted is not None:
            message = await self._scripted()
        elif (chunk := await anext(self._chunks, None)) is not None:
            return chunk
        else:
            await self._over.wait()
            message = {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self._hang_up()
        return message

    async def _deliver(
        self, chunks: list[bytes] | AsyncIterable[bytes], hang_up_after: int | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        if isinstance(chunks, AsyncIterable):
            try:
                async for chunk in chunks:
                    yield {"type": "http.request", "body": chunk, "more_body": True}
            except HangUp:
                self._hang_up()
            else:
                yield {"type": "http.request", "body": b"", "more_body": False}
            return
        for number, chunk in enumerate(chunks[:hang_up_after], start=1):
            more = hang_up_after is not None or number < len(chunks)
            yield {"type": "http.request", "body": chunk, "more_body": more}
        if hang_up_after is not None:
            self._hang_up()
        elif not chunks:
            yield {"type": "http.request", "body": b"", "more_body": False}

    def _hang_up(self) -> None:
        self.gone.set()
        self._over.set()

    async def send(self, message: dict[str, Any]) -> None:
        # What is sent to a client that has gone is written down all the same: a test may
        # want to know what it would have been told.
        answer = self.answer
        if message["type"] == "http.response.start":
            if answer.status:
                raise _ServerError("the answer was started twice")
            answer.status = message["status"]
            for name, value in message.get("headers", ()):
                if not _NAME.fullmatch(name.lower()) or not _VALUE.fullmatch(value):
                    raise _ServerError(f"a malformed header: {name!r}: {value!r}")
                answer.headers.append((name.lower().decode("ascii"), value.decode("latin-1")))
            return
        if message["type"] != "http.response.body" or not answer.status or answer.complete:
            raise _ServerError(f"unexpected {message['type']}")
        body = bytes(message.get("body", b""))
        answer.blocks.append(b"" if self._method == "HEAD" else body)  # as a server leaves it out
        if self._listen is not None:
            self._listen(body)
        if not message.get("more_body", False):
            answer.complete = True
            self._over.set()
        elif self._stop_listening_after is not None and len(answer.blocks) >= self._stop_listening_after:
            self._hang_up()

    def send_interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not 100 < status < 200 or self.answer.status:
            raise _ServerError("what comes before the answer is an interim response")
        self.answer.interim.append((status, {name.decode(): value.decode() for name, value in headers}))

    def check_length(self) -> None:
        answer = self.answer
        if self._method == "HEAD":
            return
        if answer.status in {204, 304}:
            assert not answer.body, f"a {answer.status} has no body"
        elif (declared := answer.get("content-length")) is not None:
            assert int(declared) == len(answer.body), "the body is not as long as declared"

    async def close(self) -> None:
        self._over.set()
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))
        await self._chunks.aclose()


def _bytes(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value
