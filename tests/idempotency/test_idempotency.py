"""However often, wherever and after whatever an upload with a key is sent again, it lands once."""

import asyncio
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import idempotency
from app.errors import IncompleteBody, KeyInUse, Unavailable, UploadError
from app.history import HistoryQuery
from app.idempotency import LEASE_SECONDS, IdempotencyKeys
from app.idempotency import records as key_records
from app.idempotency.records import KeyedRequest
from app.maintenance.sweep import KEY_GRACE_US, Sweeper
from app.metrics import Metrics
from app.model import Protocol, Session, Status
from app.sessions import merge_records
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.uploads import records as upload_records
from app.uploads.group_commit import Publisher
from app.uploads.ingest import Ingest, IngestLimits, Visitor
from app.uploads.recording import ANSWERED_US
from tests.contracts.records import upload
from tests.support.strategies import form
from tests.support.unreliable import NOW, Store, Time, coming, ids, opened, until

CONTENT = b"hello, waybill"
ASKED = KeyedRequest(Protocol.RAW, "a/b", "a.bin", len(CONTENT))
DAY = 86_400
LANDED = upload(1, protocol=Protocol.RAW)


class Process:
    """One process of the service, beside others over the same store and database."""

    def __init__(self, db, store, publisher, clock, new_id):
        self.db, self.publisher = db, publisher
        limits = IngestLimits(file_bytes=1000, files=1, requests_at_once=100)
        self.ingest = Ingest(store, publisher, limits=limits, now_us=clock, new_id=new_id)
        self.once = IdempotencyKeys(db, Metrics(), now_us=clock, new_id=new_id)

    def send(self, key="key"):
        return Attempt(self, key)


class Attempt:
    """A request that is answered with what landed. It brings its body when it is told to `end`, if it gets that far."""

    def __init__(self, process, key):
        self.waits = asyncio.Event()
        self.may_go_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(process, key))

    async def _run(self, process, key):
        begun = await process.once.begin("mine", key, ASKED)
        if isinstance(begun, list):
            return begun
        async with (
            begun,
            process.ingest.request(visitor=Visitor("mine"), protocol=Protocol.RAW, claim=begun.id) as landing,
        ):
            await landing.begin_file("a.bin", "a/b")
            await landing.write(CONTENT)
            self.waits.set()
            await self.may_go_on
            await landing.end_file()
            return await landing.publish()

    async def began(self):
        """Wait until it has all but its end, or its answer."""
        waiting = asyncio.create_task(self.waits.wait())
        await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return self

    async def answer(self):
        """What it is told without a look at its body; raises what it is refused."""
        await self.began()
        assert self.task.done(), "it has the key"
        return self.task.result()

    def end(self):
        if not self.may_go_on.done():
            self.may_go_on.set_result(None)
        return self.task

    def hang_up(self):
        if not self.may_go_on.done():
            self.may_go_on.set_exception(IncompleteBody(len(CONTENT), None))
            self.may_go_on.exception()  # fetched: it may have been cancelled

    def told(self):
        """The ids that its client was told, if it was told any."""
        failed = not self.task.done() or self.task.cancelled() or self.task.exception()
        return [] if failed else [upload.id for upload in self.task.result()]


class World:
    """Any number of processes; `stack` ends them."""

    def __init__(self, url, stack):
        self.url, self.stack = url, stack
        self.store, self.clock, self.new_id = Store(), Time(), ids()

    async def process(self, patience=0.0):
        db = await opened(self.url)
        self.stack.push_async_callback(db.close)
        publisher = Publisher(self.store, db, now_us=self.clock, patience_seconds=patience)
        await self.stack.enter_async_context(publisher)
        return Process(db, self.store, publisher, self.clock, self.new_id)

    async def landed(self, db):
        """The ids of all uploads that are completed, which are those that are stored."""
        page = await upload_records.list_uploads(db, "mine", HistoryQuery(), after=None, page_size=500)
        completed = [upload.id for upload in page.uploads if upload.status is Status.COMPLETED]
        assert await self.store.contents() == dict.fromkeys(completed, CONTENT)
        return completed


@pytest.fixture
async def world(database_url):
    async with AsyncExitStack() as stack:
        yield World(database_url, stack)


BOUNDARIES = st.text("-abc0123456789", min_size=1, max_size=70)


def form_asked(parts, boundary):
    body, _ = form([(None, None, b"a field"), *(("a.bin", None, bytes(size)) for size in parts)], boundary=boundary)
    return KeyedRequest(Protocol.FORM, "multipart/form-data", None, len(body), len(boundary))


@given(parts=st.lists(st.integers(0, 500), min_size=1, max_size=4), boundaries=st.tuples(BOUNDARIES, BOUNDARIES))
def test_a_form_may_be_the_same_whatever_its_boundary(parts, boundaries):
    first, again = (form_asked(parts, boundary) for boundary in boundaries)
    assert first.may_be(again)
    assert again.may_be(first)
    if len(boundaries[0]) == len(boundaries[1]):
        assert not form_asked([*parts[:-1], parts[-1] + 1], boundaries[1]).may_be(first)


class TestKeyClaims:
    async def test_an_upload_that_landed_is_answered_by_all_processes_for_a_day(self, world):
        one, other = await world.process(), await world.process()
        first = await (await one.send().began()).end()
        world.clock.pass_by(seconds=DAY - 1)
        for process in (one, other):
            assert await process.send().answer() == first
        world.clock.pass_by(seconds=1)
        again = await (await other.send().began()).end()
        assert await world.landed(one.db) == [again[0].id, first[0].id]

    async def test_a_claim_is_held_as_long_as_it_is_renewed(self, world, monkeypatch):
        monkeypatch.setattr(idempotency, "LEASE_SECONDS", 0.03)
        one, other = await world.process(), await world.process()
        first = await one.send().began()
        renewing = asyncio.create_task(one.once.renew())
        for _ in range(3):
            world.clock.pass_by(seconds=0.02)
            async with asyncio.timeout(60):
                while not await held_until(one.db, world.clock() + 30_000):  # noqa: ASYNC110  # nobody tells us
                    await asyncio.sleep(0.001)
            with pytest.raises(KeyInUse):
                await other.send().answer()
        renewing.cancel()
        await first.end()
        assert len(await world.landed(one.db)) == 1

    async def test_a_request_whose_claim_was_lost_lands_nothing_and_its_neighbours_land(self, world, monkeypatch):
        one, other = await world.process(), await world.process()
        slow, neighbours = await one.send().began(), [await one.send(f"key {n}").began() for n in range(3)]
        world.clock.pass_by(seconds=LEASE_SECONDS)
        first = await (await other.send().began()).end()
        world.store.gate.close()  # so that they land together
        held = one.send("a key of its own")
        await held.began()
        tasks = [held.end()]
        await coming(world.store.gate.reached)
        tasks += [slow.end(), *(neighbour.end() for neighbour in neighbours)]
        await until(lambda: len(one.publisher._publishing._waiting) == 4)
        world.store.gate.open()
        await asyncio.wait(tasks)
        with pytest.raises(KeyInUse):
            await tasks[1]
        told = [upload.id for task in (tasks[0], *tasks[2:]) for upload in await task]
        assert sorted(await world.landed(one.db)) == sorted([first[0].id, *told])
        assert await one.send().answer() == first

    async def test_a_slow_request_whose_claim_nobody_took_lands(self, world):
        process = await world.process()
        slow = await process.send().began()
        world.clock.pass_by(seconds=LEASE_SECONDS + KEY_GRACE_US / 2e6)
        assert (await sweeper(world, process).once()).keys_forgotten == 0
        [upload] = await slow.end()
        assert await world.landed(process.db) == [upload.id]

    async def test_a_refused_request_releases_its_key_at_once(self, world):
        process = await world.process()
        first = await process.send().began()
        first.hang_up()
        with pytest.raises(IncompleteBody):
            await first.task
        [upload] = await (await process.send().began()).end()
        assert await world.landed(process.db) == [upload.id]

    async def test_a_key_that_cannot_be_released_is_free_when_its_claim_expires(self, world, monkeypatch):
        process = await world.process()
        first = await process.send().began()

        async def away(*_):
            raise Unavailable

        monkeypatch.setattr(key_records, "free", away)
        first.hang_up()
        with pytest.raises(IncompleteBody):
            await first.task
        with pytest.raises(KeyInUse):
            await process.send().answer()
        world.clock.pass_by(seconds=LEASE_SECONDS)
        [upload] = await (await process.send().began()).end()
        assert await world.landed(process.db) == [upload.id]

    @pytest.mark.parametrize("fate", ["lost", "away"])
    async def test_a_request_of_unknown_outcome_has_landed_or_can_be_retried(self, world, fate):
        process = await world.process()
        first = await process.send().began()
        process.db.fails = [fate]
        with pytest.raises(Unavailable):
            await first.end()
        await until(lambda: not process.publisher._in_doubt)
        again = process.send()
        if fate == "lost":
            [upload] = await again.answer()
        else:
            with pytest.raises(KeyInUse):
                await again.answer()
            world.clock.pass_by(seconds=LEASE_SECONDS)
            [upload] = await (await process.send().began()).end()
        assert await world.landed(process.db) == [upload.id]

    async def test_a_request_that_breaks_after_landing_keeps_its_answer(self, world):
        process = await world.process()
        begun = await process.once.begin("mine", "key", ASKED)
        landing = process.ingest.request(visitor=Visitor("mine"), protocol=Protocol.RAW, claim=begun.id)
        with suppress(RuntimeError):
            async with begun, landing:
                await landing.begin_file("a.bin", "a/b")
                await landing.write(CONTENT)
                await landing.end_file()
                landed = await landing.publish()
                raise RuntimeError
        assert await process.send().answer() == landed

    async def test_a_request_cancelled_while_landing_has_landed_or_can_be_retried(self, world):
        process = await world.process()
        first = await process.send().began()
        world.store.gate.close()
        task = first.end()
        await coming(world.store.gate.reached)
        task.cancel()
        await asyncio.wait((task,))
        world.store.gate.open()
        [upload] = await (await process.send().began()).end()
        await until(lambda: not process.publisher._publishing._waiting)
        assert (await process.send().answer())[0].id == upload.id


class TestRaces:
    """Two transactions want the same row; the one that comes second waits, and sees what the first one did."""

    KEY = ("mine", idempotency.hashed("key"))

    async def both(self, db, first, second):
        """Begin `second` in the middle of `first`, a transaction; what came of the second."""
        begun = []

        async def run(unit):
            await first(unit)
            if not begun:
                begun.append(asyncio.ensure_future(second()))
                await asyncio.sleep(0.05)  # the second may get as far as it can

        await db.transaction(run)
        return await begun[0]

    async def take(self, asks, claim_id, now_us):
        return await key_records.take(asks, *self.KEY, claim_id, ASKED, now_us=now_us, until_us=now_us + 10)

    async def test_a_takeover_during_a_commit_gets_nothing(self, world):
        db = (await world.process()).db
        assert await self.take(db, "first", NOW)
        assert not await self.both(
            db,
            lambda unit: key_records.answer(unit, {"first": [LANDED]}, NOW + 1000),
            lambda: self.take(db, "second", NOW + 20),
        )
        assert await key_records.find(db, *self.KEY, NOW) is not None

    async def test_a_commit_during_a_takeover_commits_nothing(self, world):
        db = (await world.process()).db
        assert await self.take(db, "first", NOW)

        async def commit():
            return await db.transaction(lambda unit: key_records.answer(unit, {"first": [LANDED]}, NOW + 1000))

        assert await self.both(db, lambda unit: self.take(unit, "second", NOW + 20), commit) == {"first"}

    async def test_a_key_claimed_while_its_session_joins_another_is_claimed_there(self, world):
        db = (await world.process()).db
        both = [Session(id=each, created_at=NOW, last_seen_at=NOW, expires_at=NOW + 99) for each in ("mine", "joined")]
        arrivals = [NewSession(each, f"token of {each.id}") for each in both]
        await db.transaction(lambda unit: session_records.insert_sessions(unit, arrivals))
        assert await self.both(
            db,
            lambda unit: merge_records.merge(unit, "mine", "joined", NOW),
            lambda: self.take(db, "first", NOW),
        )
        for session_id in ("mine", "joined"):
            assert await key_records.find(db, session_id, idempotency.hashed("key"), NOW) is not None
        assert not await key_records.take(
            db, "joined", idempotency.hashed("key"), "second", ASKED, now_us=NOW, until_us=NOW
        )


class TestSweep:
    async def test_old_keys_are_removed_in_portions_and_no_others(self, world, monkeypatch):
        monkeypatch.setattr("app.maintenance.sweep._AT_ONCE", 2)
        process = await world.process()
        for number in range(5):
            await (await process.send(f"key {number}").began()).end()
        world.clock.pass_by(seconds=1)
        await (await process.send("later").began()).end()
        world.clock.now_us = NOW + ANSWERED_US + KEY_GRACE_US
        assert (await sweeper(world, process).once()).keys_forgotten == 5
        assert (await sweeper(world, process).once()).keys_forgotten == 0
        world.clock.pass_by(seconds=1)
        assert (await sweeper(world, process).once()).keys_forgotten == 1
        assert len(await world.landed(process.db)) == 6


def sweeper(world, process):
    return Sweeper(world.store, process.db, now_us=world.clock)


async def held_until(db, until_us):
    row = await db.one(
        "find_idempotency_key", session_id="mine", key_hash=idempotency.hashed("key"), now_us=until_us - 1
    )
    return row is not None


# --- any interleaving

STEPS = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["end", "end and wait", "hang up", "cancel"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["lost", "away"]), st.integers(0, 1)),
    st.tuples(st.just("pass by"), st.sampled_from([1, LEASE_SECONDS, 2 * LEASE_SECONDS])),
)


@given(steps=st.lists(STEPS, max_size=16), patience=st.sampled_from([0.0, 0.15]))
@example(steps=[("begin", 0), ("pass by", 15), ("begin", 1), ("end and wait", 1), ("end", 0)], patience=0.0)
@example(steps=[("begin", 0), ("pass by", 15), ("begin", 1), ("end and wait", 0), ("end", 1)], patience=0.0)
@example(steps=[("begin", 0), ("lost", 0), ("end", 0), ("pass by", 15), ("begin", 1), ("end", 1)], patience=0.0)
@example(steps=[("begin", 0), ("away", 0), ("end", 0), ("pass by", 15), ("begin", 1), ("end", 1)], patience=0.15)
@pytest.mark.slow
def test_any_interleaving_of_retries_leaves_one_upload(steps, patience):
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(f"sqlite:///{Path(directory)}/waybill.db", steps, patience))


async def play(url, steps, patience):
    """Requests begin, end and break off in two processes; in the end somebody sends until there is an answer."""
    async with AsyncExitStack() as stack:
        world = World(url, stack)
        processes = [await world.process(patience), await world.process(patience)]
        attempts = []
        for step, which in steps:
            if step == "begin":
                attempts.append(await processes[which].send().began())
            elif step in {"lost", "away"}:
                processes[which].db.fails.append(step)
            elif step == "pass by":
                world.clock.pass_by(seconds=which)
            elif attempts:
                await act(step, attempts[which % len(attempts)])
        for process in processes:
            process.db.fails.clear()
        told = {tuple(await answered(world, processes[0]))}
        for attempt in attempts:  # whoever was passed over goes on at last
            attempt.end()
            await asyncio.wait((attempt.task,))
            told.add(tuple(attempt.told()))
        told.add(tuple(await answered(world, processes[1])))
        await until(lambda: not any(process.publisher._in_doubt for process in processes))
        assert [list(each) for each in told if each] == [await world.landed(processes[0].db)]


async def act(step, attempt):
    match step:
        case "end":
            attempt.end()
            await asyncio.sleep(0)
        case "end and wait":
            attempt.end()
            await asyncio.wait((attempt.task,))
        case "hang up":
            attempt.hang_up()
        case "cancel":
            attempt.task.cancel()
            await asyncio.wait((attempt.task,))


async def answered(world, process):
    """What a client is told that sends the same until it is told anything."""
    async with asyncio.timeout(60):
        while True:
            attempt = await process.send().began()
            try:
                return [upload.id for upload in await attempt.end()]
            except UploadError:
                world.clock.pass_by(seconds=1)
                await asyncio.sleep(0.001)
