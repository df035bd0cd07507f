"""A session that joins another brings everything, however much that is, whoever dies meanwhile, and holds nobody up."""

import asyncio
from contextlib import contextmanager

import pytest

from app.idempotency import records as key_records
from app.idempotency.records import KeyedRequest
from app.model import MAX_TIME_US, Protocol
from app.quotas import records as quota_records
from app.quotas.records import Allowance
from app.resumables import records as resumable_records
from app.sessions import merge_records, totals_records
from app.sessions import records as session_records
from app.sessions.merge import SessionMerges
from app.uploads import records as upload_records
from tests.contracts.records import NOW, everything, insert, inserted, opens, resource, session, upload
from tests.support.unreliable import Time, opened

pytestmark = pytest.mark.asyncio
MANY = 40


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


@pytest.fixture
def few(monkeypatch):
    """Slices are small, as if sessions were large."""
    monkeypatch.setattr("app.sessions.merge.FIRST_SLICE", 3)
    monkeypatch.setattr("app.sessions.merge._MOST", 3)
    monkeypatch.setattr("app.sessions.merge._LEAST", 3)
    monkeypatch.setattr("app.sessions.merge._PAUSE_SECONDS", 0)


async def filled(db, owner, first):
    """A session with many of everything."""
    await insert(db, session(owner))
    await upload_records.insert_uploads(db, [upload(first + number, owner) for number in range(MANY)])
    for number in range(5):
        await inserted(db, resource(first + 100 + number, session_id=owner, is_part=True, upload=None))
    granted = [Allowance(f"{owner} {number}", owner, None, 1, 1, MAX_TIME_US) for number in range(5)]
    await db.transaction(lambda unit: quota_records.grant(unit, granted))
    for number in range(5):
        assert await taken(db, owner, first + number)


async def taken(db, owner, number):
    asked = KeyedRequest(Protocol.RAW, "a/b", "c", 1)
    return await key_records.take(
        db, owner, f"{number:064x}", f"claim {owner} {number}", asked, now_us=NOW, until_us=NOW + 99
    )


async def merge(db, from_id, into_id, most=3):
    assert await db.transaction(lambda unit: merge_records.merge(unit, from_id, into_id, NOW, most))


async def all_there(db, owner, *firsts):
    """Everything that these sessions had is this one's, counted, and found under its keys."""
    assert len(await everything(db, owner)) == MANY * len(firsts)
    has = await totals_records.find(db, owner)
    assert (has.of("completed").uploads, has.granted) == (MANY * len(firsts), (5 * len(firsts), 5 * len(firsts)))
    for first in firsts:
        for number in range(5):
            assert await key_records.find(db, owner, f"{first + number:064x}", NOW)
            assert (await resumable_records.find(db, resource(first + 100 + number).key_hash)).session_id == owner
    assert [session_id async for session_id in totals_records.recount(db)] == []


@pytest.mark.usefixtures("few")
async def test_records_that_are_being_moved_are_found_and_arrive(db):
    await filled(db, "old", 1000)
    await insert(db, session("mine"))
    await merge(db, "old", "mine")
    assert await opens(db, "token of old") == "mine"
    assert len(await everything(db)) == 3  # the newest first
    for number in range(5):  # nothing is taken for unknown meanwhile
        assert await key_records.find(db, "mine", f"{1000 + number:064x}", NOW)
        assert (await resumable_records.find(db, resource(1100 + number).key_hash)).session_id == "mine"
    assert await upload_records.delete_upload(db, "mine", upload(1000).id, NOW)
    assert not await upload_records.delete_upload(db, "other", upload(1001).id, NOW)
    await upload_records.insert_uploads(db, [upload(1000 + MANY, "old")])  # one that was under way
    moves = SessionMerges(db, now_us=lambda: NOW)
    await moves.finish()
    assert await everything(db, "old") == []
    has = await totals_records.find(db, "mine")
    assert (has.of("completed").uploads, has.of("deleted").uploads) == (MANY, 1)


@pytest.mark.usefixtures("few")
async def test_sessions_that_join_one_after_the_other_bring_everything_to_the_last(db):
    for owner, first in (("a", 1000), ("b", 2000), ("c", 3000)):
        await filled(db, owner, first)
    await merge(db, "a", "b")
    await merge(db, "b", "c")
    await upload_records.insert_uploads(db, [upload(9, "a"), upload(8, "b")])
    await SessionMerges(db, now_us=lambda: NOW).finish()
    await db.transaction(lambda unit: unit.execute("DELETE FROM uploads WHERE size_bytes < 1000"))
    await all_there(db, "c", 1000, 2000, 3000)


@pytest.mark.usefixtures("few")
async def test_sessions_that_joined_a_session_follow_it_into_another(db):
    await insert(db, session("hub"), session("mine"), *(session(f"session {number}") for number in range(10)))
    for number in range(10):
        await merge(db, f"session {number}", "hub")
    await merge(db, "hub", "mine")
    await SessionMerges(db, now_us=lambda: NOW).finish()
    found = [await session_records.find_session(db, f"session {number}") for number in range(10)]
    assert {each.merged_into for each in found} == {"mine"}


@pytest.mark.usefixtures("few")
async def test_another_process_goes_on_with_the_merge_of_a_dead_one(db, database_url):
    await filled(db, "old", 1000)
    await insert(db, session("mine"))
    await merge(db, "old", "mine")
    dying = asyncio.create_task(SessionMerges(db, now_us=lambda: NOW).finish())
    for _ in range(20):
        await asyncio.sleep(0)
    dying.cancel()
    await asyncio.wait([dying])
    other = await opened(database_url)
    await SessionMerges(other, now_us=lambda: NOW).finish()
    await other.close()
    await all_there(db, "mine", 1000)


@pytest.mark.usefixtures("few")
async def test_simultaneous_merges_and_uploads_bring_everything(db, database_url):
    await filled(db, "old", 1000)
    await filled(db, "mine", 2000)
    await merge(db, "old", "mine")
    other = await opened(database_url)

    async def record(number):
        await upload_records.insert_uploads(db, [upload(number, "old", size=number), upload(number + 500, "mine")])

    movers = [SessionMerges(each, now_us=lambda: NOW).finish() for each in (db, other, db)]
    await asyncio.gather(*movers, *map(record, range(30)))
    await SessionMerges(db, now_us=lambda: NOW).finish()
    await other.close()
    assert await everything(db, "old") == []
    await db.transaction(lambda unit: unit.execute("DELETE FROM uploads WHERE size_bytes < 1000"))
    await all_there(db, "mine", 1000, 2000)


async def test_a_merge_is_looked_at_once_more_and_then_forgotten(db):
    await insert(db, session("old"), session("mine"))
    await merge(db, "old", "mine")
    clock = Time(NOW)
    moves = SessionMerges(db, now_us=clock)
    assert await merge_records.list_pending(db, NOW, 9) == {"old": False}
    await moves.finish()
    assert await merge_records.list_pending(db, NOW, 9) == {}
    # As somebody would leave it who was just about to commit, and whom nothing here waits for.
    await db.transaction(lambda unit: unit.execute("UPDATE sessions SET merged_into_id = NULL WHERE id = 'old'"))
    await upload_records.insert_uploads(db, [upload(1, "old")])
    await db.transaction(lambda unit: unit.execute("UPDATE sessions SET merged_into_id = 'mine' WHERE id = 'old'"))
    await db.transaction(lambda unit: unit.run("mark_merge_whole", session_id="old", whole_at_us=NOW))
    clock.pass_by(seconds=61)
    await moves.finish()
    assert await everything(db) == [upload(1)]
    clock.pass_by(seconds=61)
    await moves.finish()
    assert await merge_records.list_pending(db, MAX_TIME_US, 9) == {}


@pytest.mark.usefixtures("few")
async def test_a_join_waits_for_a_short_move_and_not_for_a_long_one(db, monkeypatch):
    await filled(db, "old", 1000)
    await insert(db, session("mine"))
    await merge(db, "old", "mine")
    moves = SessionMerges(db, now_us=lambda: NOW)
    with monkeypatch.context() as hasty:
        hasty.setattr("app.sessions.merge._HURRY_SECONDS", 0)
        await moves.hurry("old")
    assert len(await everything(db)) < MANY
    monkeypatch.setattr("app.sessions.merge._HURRY_SECONDS", 60)
    await moves.hurry("old")
    await all_there(db, "mine", 1000)


@pytest.mark.usefixtures("few")
async def test_the_rest_is_moved_in_the_background_by_one_process(db):
    await filled(db, "old", 1000)
    await insert(db, session("mine"))
    await merge(db, "old", "mine")
    asked = []

    @contextmanager
    def alone_at_it():
        asked.append(True)
        yield len(asked) > 1

    moves = SessionMerges(db, now_us=lambda: NOW)
    running = asyncio.create_task(moves.run(alone_at_it))
    async with asyncio.timeout(60):
        while await merge_records.list_pending(db, NOW, 9):
            moves._soon.set()
            await asyncio.sleep(0.01)
    running.cancel()
    await all_there(db, "mine", 1000)
