"""The order of changes: a reader that goes on behind the last id misses nothing and sees nothing twice."""

import asyncio
import random
import re

import pytest

from app.db import queries
from app.db.queryable import Transaction
from app.events import records
from app.model import Failure, Protocol, Status, Upload
from app.uploads import records as upload_records
from tests.support.unreliable import NOW, opened

pytestmark = pytest.mark.asyncio


def upload(number: int, status: Status = Status.COMPLETED, session_id: str = "mine") -> Upload:
    there = status in {Status.COMPLETED, Status.DELETED}
    return Upload(
        id=f"00000000-0000-7000-8000-{number:012d}",
        session_id=session_id,
        filename="a",
        content_type=None,
        size=1,
        sha256="0" * 64 if there else None,
        status=status,
        protocol=Protocol.TUS,
        created_at=NOW,
        completed_at=NOW if there else None,
        error=Failure(code="x", detail="") if status is Status.FAILED else None,
    )


BEGUN = 1  # the id of the row with which every database begins


async def changes_of(db):
    return await records.list_from(db, BEGUN + 1, 10_000)


async def kinds(db, number):
    return [change.kind for change in await changes_of(db) if change.upload_id == upload(number).id]


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


async def change(db, number, how):
    """Write the record by this statement."""
    upload_id = upload(number).id
    match how:
        case "insert_uploads":
            await upload_records.insert_uploads(db, [upload(number)])
        case "advance_upload":
            await db.run("advance_upload", upload_id=upload_id, size_bytes=1, status="uploading")
        case "end_upload":
            await db.run("end_upload", upload_id=upload_id, status="expired")
        case "fail_uploads":
            await upload_records.fail_uploads(db, [upload_id], "lost", "")
        case "repair_uploads":
            await upload_records.repair_uploads(db, [upload_id])
        case "delete_session_uploads":
            await upload_records.delete_session_uploads(db, "mine", [upload_id], NOW)
        case "delete_uploads":
            await upload_records.delete_uploads(db, [upload_id], NOW)


# How records are changed, and what is told of it; the last three change no status: a record moves to another session,
# which tells of it (`joined`), is forgotten when it is old, or nothing is written at all.
LIVES = [
    (["insert_uploads", "insert_uploads"], ["created", "completed"]),  # again, after a lost answer
    (["insert_uploads", "fail_uploads", "repair_uploads"], ["created", "completed", "failed", "completed"]),
    (["insert_uploads", "delete_session_uploads", "delete_session_uploads"], ["created", "completed", "deleted"]),
    (["insert_uploads", "delete_uploads"], ["created", "completed", "deleted"]),
    (["begun", "advance_upload", "insert_uploads"], ["created", "completed"]),
    (["begun", "end_upload"], ["created", "expired"]),
]
SILENT = {"move_uploads", "delete_failed_uploads", "try_recording"}


async def test_each_change_of_a_record_is_told_once(db):
    for number, (ways, told) in enumerate(LIVES):
        if ways[0] == "begun":
            await upload_records.insert_uploads(db, [upload(number, Status.UPLOADING)])
        for how in ways:
            await change(db, number, how)
        assert await kinds(db, number) == told
    everything = await changes_of(db)
    assert await records.list_of_session(db, "mine", BEGUN, everything[-1].id, 100) == everything
    assert await records.list_of_session(db, "mine", everything[2].id, everything[4].id, 100) == everything[3:5]
    assert await records.list_of_session(db, "other", BEGUN, everything[-1].id, 100) == []


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_every_statement_that_writes_records_is_tried_here(dialect):
    """Whoever adds one to the service will say here what is told of it."""
    writes = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM) uploads\b")
    found = {name for name, query in queries.load(dialect).items() if writes.search(query.statement)}
    assert found == {how for ways, _ in LIVES for how in ways if how != "begun"} | SILENT


async def test_a_transaction_that_is_taken_back_leaves_no_change(db):
    class Thought(Exception):
        pass

    async def run(transaction: Transaction) -> None:
        await upload_records.insert_uploads(transaction, [upload(1)])
        raise Thought

    with pytest.raises(Thought):
        await db.transaction(run)
    assert await changes_of(db) == []


async def test_a_reader_beside_many_writers_misses_nothing_and_repeats_nothing(database_url):
    """Transactions of several processes commit in another order than they began."""
    writers = [await opened(database_url) for _ in range(3)]
    reader = await opened(database_url)
    rounds, done = 25, asyncio.Event()

    async def write(db, first):
        for number in range(first, first + rounds):

            async def run(transaction: Transaction, number: int = number) -> None:
                await upload_records.insert_uploads(transaction, [upload(number, session_id=f"session {number % 5}")])
                for _ in range(random.randrange(4)):  # others may commit meanwhile
                    await asyncio.sleep(0)

            await db.transaction(run)

    async def read():
        seen, after = [], BEGUN
        while True:
            last = done.is_set()
            page = await records.list_from(reader, after + 1, 7)
            seen += page
            after = page[-1].id if page else after
            if last and not page:
                return seen
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(db, 1000 * each + 100 * at) for each, db in enumerate(writers) for at in range(3)))
    done.set()
    seen = await reading
    assert seen == await changes_of(reader)
    assert len(seen) == 2 * 9 * rounds
    assert [change.kind for change in seen[::2]] == ["created"] * 9 * rounds
    for db in (*writers, reader):
        await db.close()


async def test_old_changes_are_forgotten_from_the_oldest_on(db):
    await upload_records.insert_uploads(db, [upload(number) for number in range(5)])
    changes = [await records.find(db, BEGUN), *await changes_of(db)]
    assert changes[0].kind == "begun"
    assert await records.forget(db, changes[0].at, 3) == 0  # it is not older than itself
    assert await records.forget(db, 2**62, 3) == 3
    assert await records.list_from(db, 0, 100) == changes[3:]


async def test_the_newest_change_is_never_forgotten(db):
    await upload_records.insert_uploads(db, [upload(1)])
    newest = await records.find_newest(db)
    while await records.forget(db, 2**62, 3):
        pass
    assert await records.list_from(db, 0, 100) == [newest]
    assert await records.find(db, newest.id) == newest
