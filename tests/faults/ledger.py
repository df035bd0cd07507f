"""What was sent, what the service said of it, and whether it kept its word, whatever happened to it in between.

A file's content follows from its name, so nothing sent needs to be kept: `raw-7.3000` was sent by raw and has 3,000
bytes, which follow from the whole name.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from app import ids, main
from app.config import Settings
from app.history import HistoryQuery
from app.maintenance import sweep, verify
from app.model import Status
from app.resumables import expiration
from app.sessions import records as session_records
from app.uploads import records as upload_records
from tests.support.sender import BROKEN, Resumable, Sender, Tus
from tests.support.service import HISTORY, UPLOADS, Answer, Cut, Service, ask
from tests.support.tally import Row, Tally

PROTOCOLS = ("form", "raw", "tus", "resumable")
RESUMABLE = {"tus": Tus, "resumable": Resumable}
BOUNDARY = "no-content-holds-this-boundary"
SIZES = (3_000, 100_000, 600_000)  # up to these: joined in memory, held in memory, written in blocks
_DAYS_US = 9 * 86_400_000_000  # what nobody comes back for is over by then

Headers = Mapping[str, str]


def name_of(protocol: str, number: object, size: int) -> str:
    return f"{protocol}-{number}.{size}"


def content_of(name: str) -> bytes:
    return Random(name).randbytes(int(name.rpartition(".")[2]))


def form_of(name: str, content: bytes) -> tuple[Headers, bytes]:
    """A form with this one file: what its request is headed with, and its body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body


async def new_session(port: int) -> Headers:
    answer = await ask(port, "POST", "/api/session")
    if answer.status in BROKEN:
        raise Cut("it has just begun")
    assert answer.status == 200, answer
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


class Address:
    """Where the service is, which ends and starts again elsewhere."""

    def __init__(self, running: Service) -> None:
        self.running = running
        self._is_there = asyncio.Event()
        self._is_there.set()

    async def port(self) -> int:
        await self._is_there.wait()
        return self.running.port

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nobody finds the service meanwhile."""
        self._is_there.clear()
        yield
        self._is_there.set()


@dataclass
class Ledger:
    """The sessions of a test, what each was promised, and the rows of the report in which that is counted."""

    rows: Mapping[str, Row]
    promised: dict[str, dict[str, str]] = field(default_factory=dict)
    """By the session's cookie and a file's name, the digest that was acknowledged."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, tally: Tally, fault: str, database: str, protocols: tuple[str, ...] = PROTOCOLS) -> "Ledger":
        return cls({protocol: tally(fault, protocol, database) for protocol in protocols})

    async def acknowledges(self, protocol: str, more: int) -> None:
        """Return when so many more of its files or offsets were acknowledged."""
        row = self.rows[protocol]
        enough = row.acknowledged + more
        while row.acknowledged < enough:
            self.news.clear()
            await self.news.wait()

    def injected(self) -> None:
        for row in self.rows.values():
            row.injected += 1

    def is_clean(self) -> None:
        for row in self.rows.values():
            row.is_clean()

    def row(self, name: str) -> Row:
        return self.rows[name.partition("-")[0]]

    def acknowledge(self, headers: Headers, name: str, digest: str) -> None:
        self.told(name)
        self.promised.setdefault(headers["Cookie"], {})[name] = digest
        self.row(name).wrong += digest != hashlib.sha256(content_of(name)).hexdigest()

    def told(self, name: str) -> None:
        self.row(name).acknowledged += 1
        self.news.set()

    # --- sending

    async def send(
        self, port: Callable[[], Awaitable[int]], headers: Headers, name: str, chance: Random, *, pieces: int = 256_000
    ) -> None:
        """Send it by its protocol; one that can be resumed goes on to its end, in such pieces. Others raise Cut."""
        protocol, content = name.partition("-")[0], content_of(name)
        if protocol in RESUMABLE:
            sender = Sender(
                name, content, headers, RESUMABLE[protocol], port, lambda _: self.told(name), chance, pieces
            )
            try:
                await sender.run()
            except AssertionError:
                self.row(name).lost += 1  # it holds the service to every offset that it was told
                raise
            self.acknowledge(headers, name, hashlib.sha256(content).hexdigest())
            return
        answer = await self._send_at_once(await port(), headers, name, content)
        if answer.status in BROKEN:
            raise Cut(f"{name}: {answer.status}")
        assert answer.status == 201, answer
        record = answer.json()["items"][0] if protocol == "form" else answer.json()
        self.acknowledge(headers, name, record["sha256"])

    async def _send_at_once(self, port: int, headers: Headers, name: str, content: bytes) -> Answer:
        if name.startswith("form-"):
            more, body = form_of(name, content)
            return await ask(port, "POST", UPLOADS, {**headers, **more}, body)
        return await ask(port, "PUT", f"{UPLOADS}/{quote(name)}", headers, content)

    # --- looking

    async def look(self, port: int, headers: Headers, seen: set[str] | None) -> dict[str, str]:
        """The digests of all files that show, by name; those whose ids are not yet `seen` are read, none without it."""
        shown: dict[str, str] = {}
        for item in await _history(port, headers):
            name, row = item["filename"], self.row(item["filename"])
            if item["status"] == "completed":
                row.wrong += name in shown  # once is enough
                shown[name] = item["sha256"]
                if seen is not None and item["id"] not in seen:
                    await self._read(port, headers, row, item)
                    seen.add(item["id"])
            else:
                answer = await answered(port, "GET", f"/api/ingestion/files/{item['id']}", headers)
                # It may have been completed between the two questions.
                row.partial += answer.status == 200 and answer.body != content_of(name)
        return shown

    async def _read(self, port: int, headers: Headers, row: Row, item: Mapping[str, Any]) -> None:
        content, link = content_of(item["filename"]), item["links"]["content"]
        head, got = await answered(port, "HEAD", link, headers), await answered(port, "GET", link, headers)
        if (head.status, got.status) == (200, 200):
            lengths = {item["size"], int(head.headers["content-length"]), len(got.body)}
            whole = lengths == {len(content)}
            row.partial += not whole
            row.wrong += whole and (got.body != content or item["sha256"] != hashlib.sha256(content).hexdigest())
        else:
            row.lost += 1

    async def check(self, port: int, headers: Headers, *, read: bool = True) -> None:
        """All that the session was promised is there."""
        promised = dict(self.promised.get(headers["Cookie"], {}))
        shown = await self.look(port, headers, set() if read else None)
        for name, digest in promised.items():
            self.row(name).lost += name not in shown
            self.row(name).wrong += shown.get(name, digest) != digest

    async def delete(self, port: int, headers: Headers, chance: Random) -> None:
        """Delete about half of what the session has; from then on it does not show."""
        for item in await _history(port, headers):
            if item["status"] == "completed" and chance.random() < 0.5:
                answer = await answered(port, "DELETE", item["links"]["content"], headers)
                assert answer.status == 204, answer
                self.promised[headers["Cookie"]].pop(item["filename"], None)


async def answered(port: int, method: str, path: str, headers: Headers) -> Answer:
    answer = await ask(port, method, path, headers)
    if answer.status in BROKEN:
        raise Cut(f"{path}: {answer.status}")
    return answer


async def _history(port: int, headers: Headers) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    path: str | None = f"{HISTORY}?limit=500"
    while path:
        page = await answered(port, "GET", path, headers)
        assert page.status == 200, page
        found = page.json()
        items += found["items"]
        path = f"{HISTORY}?limit=500&cursor={found['next_cursor']}" if found["next_cursor"] else None
    return items


# --- what is left in the end


async def figures(port: int) -> dict[str, float]:
    """What /metrics says, by name, where there is one figure of it."""
    lines = (await ask(port, "GET", "/metrics")).body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[:1] != "#")}


async def at_rest(running: Service) -> dict[str, float]:
    """The figures once nothing is under way; those that are not at rest after all are leaks."""
    found: dict[str, float] = {}
    for _ in range(200):
        found = await figures(running.port)
        if not any(leaks(found)) and not staged(running):
            break
        await asyncio.sleep(0.05)  # no event tells of a connection whose end the service has yet to notice
    return found


def leaks(found: Mapping[str, float]) -> tuple[int, int]:
    """Bytes that are staged by nobody, and slots and uploads that nobody gives back."""
    slots = found["waybill_database_slots"] - found["waybill_database_slots_free"] + found["waybill_live_uploads"]
    return round(found["waybill_staged_bytes"]), round(slots)


def staged(running: Service) -> list[Path]:
    return list((running.store / "staging").glob("*/*"))


def settings_of(running: Service) -> Settings:
    url = running.settings["database_url"]
    return Settings.model_validate({"storage_dir": running.store, "database_url": url, "min_free_space": 0})


async def swept(settings: Settings) -> tuple[int, verify.Verified]:
    """Let a week pass and sweep, once the service has ended: how much was left that nobody owns, and what was kept."""
    later = ids.now_us() + _DAYS_US
    grace = {"grace_seconds": 0.0}
    with (
        patch.object(main, "now_us", lambda: later),
        patch.object(verify, "_GRACE_SECONDS", 0.0),
        patch.dict(sweep.Sweeper.__init__.__kwdefaults__, grace),
        patch.dict(expiration.Expiry.__init__.__kwdefaults__, grace),
    ):
        async with main.stores(settings) as (storage, db), main.receiving(settings, storage, db) as ways_in:
            done = await ways_in.sweeper.once()
            assert done.stopped is None, done
            left = len([file async for found in storage.walk_unfinished(0) for file in found])
            left += len(list((settings.storage_dir / "staging").glob("*/*")))
            left += done.records_lost
            for session in await session_records.list_sessions(db, 100_000):
                unended = HistoryQuery(statuses=(Status.UPLOADING, Status.PROCESSING))
                left += len(
                    (await upload_records.list_uploads(db, session.id, unended, after=None, page_size=500)).uploads
                )
            return left, await verify.verify(storage, db)


async def nothing_is_left(running: Service, ledger: Ledger) -> None:
    """Stop the service where it was left in peace, and count what is nobody's any more."""
    staged_bytes, slots = leaks(await at_rest(running))
    left = len(staged(running)) + (staged_bytes > 0)
    assert await asyncio.to_thread(running.stop) == 0
    unowned, kept = await swept(settings_of(running))
    row = next(iter(ledger.rows.values()))
    row.files += left + unowned + len(kept.without_record) + len(kept.foreign)
    row.slots += slots
    row.lost += len(kept.missing)
    row.wrong += len(kept.replaced) + len(kept.resized) + len(kept.altered) + len(kept.unreadable)
    assert kept.files >= sum(len(names) for names in ledger.promised.values())
