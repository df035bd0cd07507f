"""One query for many: each gets its own record, none older than its question, and a failure is everybody's."""

import asyncio

import pytest

from app.errors import Unavailable
from app.uploads import records as upload_records
from app.uploads.lookup import Lookup
from tests.contracts.records import upload
from tests.support.unreliable import Gate, coming, opened


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


class Asked:
    """Asks the real database, once the gate is open; `fails` says with what not to."""

    def __init__(self, db):
        self._db = db
        self.gate = Gate()
        self.fails = []
        self.queries = 0

    async def one(self, name, **arguments):
        return await self._db.one(name, **arguments)

    async def many(self, name, **arguments):
        await self.gate.pass_through()
        self.queries += 1
        if self.fails:
            raise self.fails.pop()
        return await self._db.many(name, **arguments)


@pytest.fixture
async def asked(db):
    await upload_records.insert_uploads(db, [upload(number) for number in range(1, 150)] + [upload(200, "another")])
    return Asked(db)


async def test_each_caller_gets_its_own_record(asked):
    lookup = Lookup(asked)
    numbers = [1, 2, 2, 200, 300, *range(3, 150)]
    found = await asyncio.gather(*(lookup.find("mine", upload(number).id) for number in numbers))
    assert found == [upload(number) if number < 200 else None for number in numbers]
    assert asked.queries == 2


async def test_an_answer_is_never_older_than_its_question(asked, db):
    lookup = Lookup(asked)
    first = asyncio.create_task(lookup.find("mine", upload(1).id))
    await coming(asked.gate.reached)
    await first
    asked.gate.close()
    second = asyncio.create_task(lookup.find("mine", upload(2).id))
    await coming(asked.gate.reached)
    await upload_records.insert_uploads(db, [upload(150)])
    late = asyncio.create_task(lookup.find("mine", upload(150).id))
    await asyncio.sleep(0)
    asked.gate.open()
    assert await second == upload(2)
    assert await late == upload(150)
    assert asked.queries == 3


@pytest.mark.parametrize(
    ("error", "told"), [(Unavailable("away", retry_after=9), Unavailable), (ValueError("a fault"), ValueError)]
)
async def test_a_failure_reaches_all_who_wait_and_nobody_later(asked, error, told):
    lookup = Lookup(asked)
    asked.fails = [error]
    asked.gate.close()
    waiting = [asyncio.create_task(lookup.find("mine", upload(1).id))]
    await coming(asked.gate.reached)
    waiting.append(asyncio.create_task(lookup.find("mine", upload(2).id)))
    await asyncio.sleep(0)
    asked.gate.open()
    for task in waiting:
        with pytest.raises(told, match=str(error)):
            await task
    assert await lookup.find("mine", upload(1).id) == upload(1)


async def test_a_caller_that_leaves_cancels_no_other(asked):
    lookup = Lookup(asked)
    asked.gate.close()
    waiting = [asyncio.create_task(lookup.find("mine", upload(number).id)) for number in (1, 2)]
    await coming(asked.gate.reached)
    waiting[0].cancel()
    asked.gate.open()
    assert await waiting[1] == upload(2)
    assert waiting[0].cancelled()
