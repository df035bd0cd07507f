"""Clients that upload all the time, each in its own way, and remember what they were told.

async with Load(running.port, headers) as load:
    await load.rounds(2)
    ...
load.all_landed(running)
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from random import Random
from urllib.parse import urlsplit

import httpx

from tests.interop.clients import everything
from tests.support.sender import Tus
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Answer, Cut, Service, ask

SMALL, LARGE = 3_000, 600_000  # kept in memory until they are published, and staged in a file
BOUNDARY = "a-boundary-that-no-file-contains"

Way = Callable[[int, Mapping[str, str], str, bytes], Awaitable[list[Answer]]]


async def raw(port: int, headers: Mapping[str, str], name: str, content: bytes) -> list[Answer]:
    return [await ask(port, "PUT", f"{UPLOADS}/{name}", headers, content)]


async def form(port: int, headers: Mapping[str, str], name: str, content: bytes) -> list[Answer]:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return [await ask(port, "POST", UPLOADS, {**headers, **kind}, body)]


async def tus(port: int, headers: Mapping[str, str], name: str, content: bytes) -> list[Answer]:
    """Created, sent in two pieces with a question between."""
    answers = [await ask(port, "POST", UPLOADS, {**headers, **Tus.create(name, len(content))})]
    middle = len(content) // 2
    for start, end in [(0, middle), (middle, len(content))]:
        if answers[-1].status >= 300:
            break
        path = urlsplit(answers[0].headers["location"]).path
        told = {**headers, **Tus.append(start, last=end == len(content))}
        answers.append(await ask(port, "PATCH", path, told, content[start:end]))
        answers.append(await ask(port, "HEAD", path, {**headers, **Tus.ask()}))
    return answers


class Kept:
    """A client whose connections are kept; it sends a file and asks for the history."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, port: int, headers: Mapping[str, str], name: str, content: bytes) -> list[Answer]:
        url = f"http://127.0.0.1:{port}"
        try:
            made = await self._client.put(f"{url}{UPLOADS}/{name}", headers=headers, content=content)
            asked = await self._client.get(f"{url}{HISTORY}?limit=1", headers=headers)
        except httpx.TransportError as error:
            raise Cut(repr(error)) from error
        return [Answer(answer.status_code, answer.headers, answer.content) for answer in (made, asked)]


class Load:
    """Each client sends one file after the other until the load ends. Use as an async context manager.

    `refused` has every answer that was no success, `cut` what broke off, and `acknowledged` the digest
    of each file whose last answer was a success, by its name. Who is cut has done, if `once`.
    """

    def __init__(
        self, port: int, headers: Mapping[str, str], ways: tuple[Way, ...] = (), *, once: bool = False
    ) -> None:
        self.port = port
        self.acknowledged: dict[str, str] = {}
        self.sent: dict[str, str] = {}
        self.refused: list[Answer] = []
        self.cut: list[Cut] = []
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(keepalive_expiry=PATIENCE), timeout=PATIENCE, trust_env=False
        )
        self._ways = ways or (raw, form, tus, kept := Kept(self._client), raw, form, tus, kept)
        self._headers = headers
        self._once = once
        self._rounds = [0] * len(self._ways)
        self._group = asyncio.TaskGroup()
        self._stopping = False
        self._news = asyncio.Condition()

    async def __aenter__(self) -> "Load":
        await self._group.__aenter__()
        for number, way in enumerate(self._ways):
            self._group.create_task(self._run(number, way))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping = True
        try:
            await self._group.__aexit__(*error)  # type: ignore[arg-type]
        finally:
            await self._client.aclose()

    async def rounds(self, number: int) -> None:
        """Wait until every client has tried this many more files."""
        wanted = [rounds + number for rounds in self._rounds]

        def enough() -> bool:
            return all(rounds >= least for rounds, least in zip(self._rounds, wanted, strict=True))

        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(enough)

    async def _run(self, number: int, way: Way) -> None:
        chance = Random(number)
        for count_ in count():
            if self._stopping:
                return
            name = f"{number}-{count_}"
            content = chance.randbytes(LARGE if count_ % 8 == number else chance.randrange(1, SMALL))
            self.sent[name] = hashlib.sha256(content).hexdigest()
            try:
                answers = await way(self.port, self._headers, name, content)
            except Cut as cut:
                self.cut.append(cut)
                if self._once:
                    return
            else:
                refused = [answer for answer in answers if not 200 <= answer.status < 300]
                self.refused += refused
                if not refused:
                    self.acknowledged[name] = self.sent[name]
            async with self._news:
                self._rounds[number] += 1
                self._news.notify_all()

    def all_landed(self, running: Service) -> None:
        """What was acknowledged is listed once and is what was sent; so is all that is listed as completed."""
        with running.client(headers=dict(self._headers)) as client:
            listed = [record for record in everything(client) if record["status"] == "completed"]
        found = {record["filename"]: record["sha256"] for record in listed}
        assert Counter(record["filename"] for record in listed) == Counter(found.keys())
        assert self.acknowledged.items() <= found.items()
        assert found.items() <= self.sent.items()
