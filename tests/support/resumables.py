"""Any number of processes of the service over one database and one store, for tests of uploads in several requests."""

import asyncio
import hashlib
from contextlib import AsyncExitStack
from itertools import count

import pytest

from app.history import HistoryQuery
from app.main import resumables
from app.model import Protocol
from app.resumables import Appended, Description
from app.signing import Signer
from app.uploads import records as upload_records
from app.uploads.group_commit import Publisher
from app.uploads.ingest import Ingest, IngestLimits, Visitor
from tests.support.asgi import SECRET_KEY
from tests.support.unreliable import Store, Time, coming, ids, opened

HOUR = 3600
DAY = 24 * HOUR
LIMIT = 1_000_000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Worker:
    """One process of the service: its own connections, publisher and turns over the shared store and database."""

    def __init__(self, db, storage, publisher, clock, new_id, *, at_once=8):
        self.db, self.storage, self.publisher, self.clock = db, storage, publisher, clock
        keys = count(1)
        self.ingest = Ingest(storage, publisher, limits=IngestLimits(LIMIT, 10, at_once), now_us=clock, new_id=new_id)
        self.resumes = resumables(
            storage,
            db,
            publisher,
            self.ingest,
            idle_us=DAY * 1_000_000,
            cap_us=7 * DAY * 1_000_000,
            now_us=clock,
            new_id=new_id,
            new_key=lambda: f"key {id(self)} {next(keys)}",
            derive_key=Signer([SECRET_KEY], "concatenation").derive,
        )

    async def create(self, length=None, *, session="mine", protocol=Protocol.TUS, **more):
        visitor = Visitor(session)
        return (
            await self.resumes.create(
                visitor, Description(protocol, filename="a.bin", content_type="a/b", length=length, **more)
            )
        )[1]

    async def concatenate(self, *keys, session="mine"):
        return await self.resumes.concatenate(
            Visitor(session), Description(Protocol.TUS, "all.bin", "a/b", concat="final;…"), keys
        )

    async def append(self, key, offset, *blocks, session="mine", **more):
        """One request that brings these blocks; the upload afterwards."""
        async with self.resumes.append(key, session, Appended(offset, **more)) as appending:
            for block in blocks:
                await appending.write(block)
            return await appending.keep()

    async def offset(self, key, session="mine"):
        return (await self.resumes.find(key, session, newest=True)).offset

    async def history(self, session="mine"):
        page = await upload_records.list_uploads(
            self.db, session, HistoryQuery(order="oldest"), after=None, page_size=500
        )
        assert page.skipped == 0
        return page.uploads

    async def statuses(self, session="mine"):
        return [(upload.size, upload.status.value) for upload in await self.history(session)]

    async def content(self, upload_id):
        stored = await self.storage.open(upload_id)
        try:
            return await stored.read(0, 2**30)
        finally:
            await stored.close()

    async def unfinished(self):
        return [(file.fence, file.size) async for found in self.storage.walk_unfinished(0) for file in found]


class World:
    """Any number of workers over one database and one store."""

    def __init__(self, url, storage, stack):
        self.url, self.storage, self.stack = url, storage, stack
        self.clock = Time()
        self.new_id = ids()

    async def worker(self, **more):
        db = await opened(self.url)
        self.stack.push_async_callback(db.close)
        publisher = Publisher(self.storage, db, now_us=self.clock, patience_seconds=0.2)
        await self.stack.enter_async_context(publisher)
        worker = Worker(db, self.storage, publisher, self.clock, self.new_id, **more)
        self.stack.push_async_callback(worker.resumes.close, 5)
        return worker


class Tail:
    """The row of an upload as it is now. `lose` puts it back: a fail-over lost what was committed since."""

    _COLUMNS = ("fence", "holder", "holder_id", "holder_seen_us", "file_fence", "offset_bytes", "length_bytes",
                "digest_state", "expires_at_us", "ended_as")  # fmt: skip

    def __init__(self, worker, key):
        self._db, self._key_hash = worker.db, sha(key.encode())

    async def __aenter__(self):
        self._row = await self._db.one("find_resumable", key_hash=self._key_hash)
        return self

    async def __aexit__(self, *_):
        pass

    async def lose(self):
        columns = [column for column in self._COLUMNS if column in self._row.keys()]  # noqa: SIM118  # a row is no dict
        settings = ", ".join(f"{column} = {_literal(self._row[column])}" for column in columns)

        async def run(unit):
            await unit.execute(f"UPDATE resumables SET {settings} WHERE key_hash = '{self._key_hash}'")
            if self._row["status"] is not None:
                await unit.execute(
                    f"UPDATE uploads SET status = '{self._row['status']}', size_bytes = {self._row['size_bytes']}, "
                    "sha256 = NULL, completed_at_us = NULL, error_code = NULL, error_detail = NULL "
                    f"WHERE id = '{self._row['upload_id']}'"
                )

        await self._db.transaction(run)


def _literal(value):
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


class Writer:
    """A request that has brought some bytes and waits for more."""

    def __init__(self, worker, key, offset, *blocks, **more):
        self.arrived = asyncio.Event()
        self.more: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run(worker, key, offset, blocks, more))

    async def _run(self, worker, key, offset, blocks, more):
        async with worker.resumes.append(key, "mine", Appended(offset, **more)) as appending:
            for block in blocks:
                await appending.write(block)
            self.arrived.set()
            while (block := await self.more.get()) is not None:
                await appending.write(block)
            return await appending.keep()

    async def __aenter__(self):
        await coming(self.arrived)
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.wait((self.task,))


@pytest.fixture
async def world(database_url):
    async with AsyncExitStack() as stack:
        yield World(database_url, Store(), stack)


@pytest.fixture
async def worker(world):
    return await world.worker()


@pytest.fixture(params=["one process", "two processes"])
async def pair(world, request):
    """Two workers, which may be the same one."""
    first = await world.worker()
    return first, (first if request.param == "one process" else await world.worker())
