"""What sessions have is always counted, right, whatever happens beside it; and what had not been counted is, once."""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from app.db import queries
from app.db.database import Db
from app.db.migrate import migrate
from app.db.queryable import json_parameter
from app.model import Amount, Failure, Status
from app.quotas import records as quota_records
from app.quotas.records import Allowance
from app.sessions import merge_records, totals_records
from app.sessions.merge import SessionMerges
from app.uploads import records as upload_records
from tests.contracts.records import NOW, insert, session, upload
from tests.support.unreliable import opened, until

pytestmark = pytest.mark.asyncio
COMING = {"status": Status.UPLOADING, "sha256": None, "completed_at": None}
LOST = {"status": Status.FAILED, "error": Failure(code="lost", detail="")}


@pytest.fixture
async def stack():
    async with AsyncExitStack() as opened_here:
        yield opened_here


@pytest.fixture
async def db(stack, database_url):
    return await process(stack, database_url)


async def process(stack, database_url) -> Db:
    db = await opened(database_url)
    stack.push_async_callback(db.close)
    return db


async def execute(db, statement):
    await db.transaction(lambda unit: unit.execute(statement))


async def counted(db, session_id="mine"):
    has = await totals_records.find(db, session_id)
    return {total.status: (total.uploads, total.size) for total in has.by_status}, tuple(has.granted)


async def differences(db) -> list[str]:
    return [session_id async for session_id in totals_records.recount(db)]


async def test_every_change_of_an_upload_changes_the_totals(db):
    await insert(db, session("mine"), session("other"))
    await upload_records.insert_uploads(
        db, [upload(3), upload(4), upload(5, **LOST), upload(7, "other"), upload(6, **COMING)]
    )
    assert await counted(db) == ({"completed": (2, 7), "failed": (1, 5), "uploading": (1, 6)}, (0, 0))
    await upload_records.insert_uploads(
        db, [upload(6), upload(3)]
    )  # the one has arrived, the other is recorded once more
    await upload_records.repair_uploads(db, [upload(5).id])
    assert await counted(db) == ({"completed": (4, 18)}, (0, 0))
    await upload_records.delete_upload(db, "mine", upload(4).id, NOW)
    await upload_records.fail_uploads(db, [upload(3).id, upload(5).id], "lost", "")
    assert await counted(db) == ({"completed": (1, 6), "deleted": (1, 4), "failed": (2, 8)}, (0, 0))
    assert await db.transaction(lambda unit: merge_records.merge(unit, "mine", "other", NOW))
    assert await counted(db, "other") == ({"completed": (2, 13), "deleted": (1, 4), "failed": (2, 8)}, (0, 0))
    assert await counted(db) == ({}, (0, 0))
    await execute(db, "DELETE FROM uploads WHERE status <> 'completed'")
    assert await counted(db, "other") == ({"completed": (2, 13)}, (0, 0))
    assert await differences(db) == []


async def test_granted_quota_is_counted_too(db):
    grants = [Allowance(name, "mine", "holder", 1, size, NOW + 5) for name, size in (("a", 2**30 + 1), ("b", 5))]
    await db.transaction(lambda unit: quota_records.grant(unit, grants))
    assert await counted(db) == ({}, (2, 2**30 + 6))
    await quota_records.renew(db, "holder", NOW + 6)
    await db.transaction(lambda unit: quota_records.grant(unit, [Allowance("b", "mine", "holder", 1, 9, NOW + 5)]))
    assert await quota_records.expire(db, NOW + 5, 9) == 0  # renewed
    await quota_records.release(db, ["a", "unknown"])
    assert await counted(db) == ({}, (1, 9))
    assert [await quota_records.expire(db, NOW + 6, 9) for _ in range(2)] == [1, 0]
    await quota_records.release_all(db, "holder")
    assert await counted(db) == ({}, (0, 0))
    assert await differences(db) == []


async def insert_as_older_code(unit, rows):
    columns = ("id", "session_id", "filename", "filename_folded", "size_bytes", "sha256", "status", "protocol",
               "created_at_us", "completed_at_us")  # fmt: skip
    values = [", ".join(f"'{each.as_row()[column]}'" for column in columns) for each in rows]
    await unit.execute(f"INSERT INTO uploads ({', '.join(columns)}) VALUES {', '.join(f'({v})' for v in values)}")


async def test_uncounted_uploads_are_counted_once_while_uploads_go_on(stack, database_url, monkeypatch):
    """Several processes begin at the same time, and die half-way; more is recorded and deleted meanwhile."""
    monkeypatch.setattr(totals_records, "_PAGE", 7)
    before = Db(database_url)
    await before.open()
    stack.push_async_callback(before.close)
    with monkeypatch.context() as old:
        migrations = [each for each in queries.migrations(before.dialect) if each.number < 14]
        old.setattr("app.db.migrate.migrations", lambda dialect: migrations)
        await migrate(before, now_us=0)
    owners = [f"session {number:02}" for number in range(12)]
    rows = [upload(number, owners[number % 12], size=1) for number in range(100)]
    await before.transaction(lambda unit: insert_as_older_code(unit, rows))
    grants = [Allowance(owner, owner, None, 1, 1, NOW) for owner in ("session 03", "only granted")]
    await before.transaction(lambda unit: unit.run("put_allowances", rows=json_parameter([vars_of(g) for g in grants])))
    await before.close()

    db, other = await process(stack, database_url), await process(stack, database_url)

    async def goes_on(number):
        await upload_records.insert_uploads(db, [upload(1000 + number, owners[number % 12], size=1)])
        if number % 3 == 0:
            await upload_records.delete_upload(db, owners[number % 12], rows[number].id, NOW)

    class Killed(Exception):
        pass

    def dies():
        raise Killed

    with pytest.raises(Killed):
        await totals_records.begin(db, on_page=iter_once(dies))
    await asyncio.gather(totals_records.begin(db), totals_records.begin(other), *map(goes_on, range(60)))
    assert await differences(db) == []
    assert sum([(await totals_records.find(db, owner)).of("completed").uploads for owner in owners]) == 160 - 20
    assert [(await totals_records.find(db, owner)).granted for owner in ("session 03", "only granted")] == [
        (1, 1),
        (1, 1),
    ]
    begun = await db.one("find_totals_begun")
    assert begun is not None
    assert begun["is_whole"] == 1


def vars_of(allowance):
    return {name: getattr(allowance, name) for name in allowance.__slots__}


def iter_once(then):
    """What may be called once, and does `then` the second time."""
    called = []

    def call():
        if called:
            then()
        called.append(True)

    return call


async def test_a_count_that_is_wrong_is_found_and_made_right(db):
    await upload_records.insert_uploads(db, [upload(number, f"session {number % 4}") for number in range(40)])
    right = [await counted(db, f"session {number}") for number in range(4)]
    await execute(db, "UPDATE session_totals SET uploads = uploads + 1 WHERE session_id = 'session 1'")
    await execute(db, "DELETE FROM session_totals WHERE session_id = 'session 2'")
    await execute(db, "INSERT INTO session_totals VALUES ('nobody', 'failed', 1, 0, 3)")
    assert await differences(db) == ["nobody", "session 1", "session 2"]
    assert [await counted(db, f"session {number}") for number in range(4)] == right
    assert await counted(db, "nobody") == ({}, (0, 0))
    assert await differences(db) == []


async def test_sums_of_sessions_that_are_gone_are_forgotten(db):
    await insert(db, session("alive"))
    await upload_records.insert_uploads(
        db, [upload(1, "alive"), upload(2, "gone"), upload(3, "gone but not its upload")]
    )
    await execute(db, "DELETE FROM uploads WHERE size_bytes < 3")
    async for _ in totals_records.forget_ended(db):
        pass
    begins = {"after_id": "", "until_id": "z"}
    left = await db.transaction(lambda unit: unit.many("reset_session_totals", **begins))
    assert {row["session_id"] for row in left} == {"alive", "gone but not its upload"}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_first_grant_beside_an_uncommitted_join_counts_the_joined_uploads(db, database_url):
    """What was counted then from a snapshot was 1,566 of 6,002, for ever."""
    await insert(db, session("mine"), session("joined"))
    await upload_records.insert_uploads(db, [upload(number, "mine") for number in range(1, 30)])
    merging, go_on = asyncio.Event(), asyncio.Event()

    async def merge(unit):
        await merge_records.merge(unit, "mine", "joined", NOW)
        merging.set()
        await go_on.wait()

    join = asyncio.create_task(db.transaction(merge))
    await merging.wait()
    grant = asyncio.create_task(db.transaction(lambda unit: totals_records.lock(unit, ["joined", "mine"])))
    watcher = await asyncpg.connect(database_url)

    async def waits():
        return await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0

    await until(waits)
    await watcher.close()
    go_on.set()
    await join
    expected = totals_records.HeldTotals("joined", Amount(29, sum(range(1, 30))))
    assert await grant == {"joined": expected, "mine": expected}
    await SessionMerges(db, now_us=lambda: NOW).finish()
    assert await differences(db) == []
