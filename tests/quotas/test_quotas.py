"""Quotas as processes ask for them: nothing is granted twice, whatever comes between; what failed is given back."""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from app.errors import QuotaExceeded, Unavailable
from app.model import Amount
from app.quotas import Quotas
from app.quotas import records as quota_records
from app.sessions import totals_records
from tests.support.unreliable import NOW, coming, ids, opened, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
async def stack(database_url):
    async with AsyncExitStack() as opened_here:
        yield opened_here


async def process(stack, database_url, holder, **limits):
    """What one process has."""
    db = await opened(database_url)
    stack.push_async_callback(db.close)
    quotas = Quotas(db, **{"uploads": None, "size": None} | limits, holder=holder, now_us=lambda: NOW, new_id=ids())
    stack.push_async_callback(quotas.close)
    return db, quotas


async def has(db):
    return (await totals_records.find(db, "mine")).used


async def test_two_processes_are_never_granted_the_same_quota(stack, database_url, monkeypatch):
    """The one has looked, and has yet to say that it takes the place, when the other looks."""
    db, one = await process(stack, database_url, "one", uploads=1)
    _, other = await process(stack, database_url, "other", uploads=1)
    await one.grant("a", "mine", uploads=0, size=0)  # counted from now on
    looked, goes_on = asyncio.Event(), asyncio.Event()
    grant = quota_records.grant

    async def late(unit, allowances):
        if not looked.is_set():
            looked.set()
            await goes_on.wait()
        await grant(unit, allowances)

    monkeypatch.setattr(quota_records, "grant", late)
    first = asyncio.create_task(one.grant("b", "mine", uploads=1, size=0))
    await coming(looked)
    second = asyncio.create_task(other.grant("c", "mine", uploads=1, size=0))
    if database_url.startswith("postgresql"):
        watcher = await asyncpg.connect(database_url)
        stack.push_async_callback(watcher.close)

        async def second_waits():
            return second.done() or await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0

        await until(second_waits)
    goes_on.set()
    assert await first == Amount(1, 0)
    with pytest.raises(QuotaExceeded):
        await second
    assert await has(db) == Amount(1, 0)


async def test_many_requests_share_a_transaction_and_each_has_its_own_answer(stack, database_url):
    db, quotas = await process(stack, database_url, "one", size=1000)
    asked = [quotas.grant(str(n), "mine", uploads=1, size=300) for n in range(5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, Amount)] == [Amount(1, 300)] * 3
    assert [type(answer) for answer in answers if not isinstance(answer, Amount)] == [QuotaExceeded] * 2
    assert await has(db) == Amount(3, 900)
    assert quotas.left("mine") == (None, 100)


async def test_a_grant_is_enlarged_as_far_as_quota_is_left(stack, database_url):
    db, quotas = await process(stack, database_url, "one", size=1000)
    assert await quotas.grant("a", "mine", uploads=1, size=100, more=400) == Amount(1, 500)
    assert await quotas.grant("b", "mine", uploads=1, size=100, more=900) == Amount(1, 500)
    with pytest.raises(QuotaExceeded):
        await quotas.grant("c", "mine", uploads=1, size=1, more=900)
    assert await has(db) == Amount(2, 1000)


async def test_a_cancelled_request_holds_nothing_once_it_has_released(stack, database_url, monkeypatch):
    db, quotas = await process(stack, database_url, "one", size=1000)
    granted = quotas.request("mine")
    looked, goes_on = asyncio.Event(), asyncio.Event()
    lock = totals_records.lock

    async def late(unit, session_ids):
        looked.set()
        await goes_on.wait()
        return await lock(unit, session_ids)

    monkeypatch.setattr(totals_records, "lock", late)
    asking = asyncio.create_task(granted.need(1, 1000))
    await coming(looked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    granted.release()
    goes_on.set()
    assert await quotas.grant("b", "mine", uploads=1, size=1) == Amount(1, 1)
    assert await has(db) == Amount(1, 1)


async def test_a_grant_of_unknown_outcome_is_released_when_the_database_is_back(stack, database_url, monkeypatch):
    """F14: the answer to the COMMIT may have been lost, so it may have been granted."""
    db, quotas = await process(stack, database_url, "one", size=1000)
    transaction = db.transaction

    async def committed_and_lost(work, **more):
        await transaction(work, **more)
        raise Unavailable("lost")

    granted = quotas.request("mine")
    with monkeypatch.context() as lost:
        lost.setattr(db, "transaction", committed_and_lost)
        with pytest.raises(Unavailable):
            await granted.need(1, 1000)
    assert await has(db) == Amount(1, 1000)
    granted.release()
    assert await quotas.grant("b", "mine", uploads=1, size=1000) == Amount(1, 1000)


async def test_a_process_that_ends_releases_its_grants(stack, database_url):
    db, quotas = await process(stack, database_url, "one", size=1000)
    _, other = await process(stack, database_url, "other", size=1000)
    await quotas.grant("a", "mine", uploads=1, size=600)
    await other.grant("b", "mine", uploads=1, size=400)
    await quotas.close()
    assert await has(db) == Amount(1, 400)


async def test_live_grants_are_renewed_and_others_expire(stack, database_url, monkeypatch):
    db, quotas = await process(stack, database_url, "one", size=1000)
    _, dead = await process(stack, database_url, "dead", size=1000)
    await quotas.grant("a", "mine", uploads=1, size=600)
    await dead.grant("b", "mine", uploads=1, size=400)
    monkeypatch.setattr("app.quotas.LEASE_SECONDS", 0.01)
    quotas._now_us = lambda: NOW + 61_000_000  # renewed first, then looked at
    looking = asyncio.create_task(quotas.run())

    async def left():
        return await has(db) == Amount(1, 600)

    await until(left)
    looking.cancel()


async def test_one_failure_does_not_end_the_renewing(stack, database_url, monkeypatch):
    db, quotas = await process(stack, database_url, "one", size=1000)
    await quotas.grant("a", "mine", uploads=1, size=600)
    monkeypatch.setattr("app.quotas.LEASE_SECONDS", 0.01)
    faults = [RuntimeError("a fault of ours"), Unavailable("away")]
    renew, renewed = quota_records.renew, asyncio.Event()

    async def broken_at_first(*arguments):
        if faults:
            raise faults.pop(0)
        await renew(*arguments)
        renewed.set()

    monkeypatch.setattr(quota_records, "renew", broken_at_first)
    looking = asyncio.create_task(quotas.run())
    await coming(renewed)
    looking.cancel()
    assert await has(db) == Amount(1, 600)
