"""Who may see what: tokens open sessions, for as long as both live, and nothing else does."""

import asyncio
import gc
import hashlib
from contextlib import nullcontext, suppress
from itertools import count

import pytest

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import AmbiguousSession, Forbidden, NoSession, StorageFull, Unavailable
from app.history import HistoryQuery
from app.model import Protocol, Status, Upload
from app.sessions import KNOWN_SECONDS, Sessions, token_records
from app.sessions import records as session_records
from app.sessions.last_seen import SEEN_EVERY_US
from app.sessions.linking import LINK_CODE_SECONDS
from app.signing import Signer
from app.uploads import records as upload_records
from tests.support.unreliable import NOW, Time, coming, ids, opened

KEY, OTHER_KEY = "k" * 32, "o" * 32
DAY = 86_400
MAX_AGE = 30 * DAY


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


@pytest.fixture
def world(db):
    return World(db)


@pytest.fixture
def sessions(world):
    return world.worker()


@pytest.fixture
def clock(world):
    return world.clock


@pytest.fixture
def asked(monkeypatch):
    """The names of all queries that are asked."""
    names = []
    for kind in (Db, Transaction):
        rows = kind._rows

        def listen(self, name, how, params, rows=rows):
            names.append(name)
            return rows(self, name, how, params)

        monkeypatch.setattr(kind, "_rows", listen)
    return names


class World:
    """One database, and as many workers as a test wants."""

    def __init__(self, db):
        self.db = db
        self.clock = Time()
        self.new_id = ids()
        self.numbers = count(1)

    def worker(self, *, keys=(KEY,), clock=None, max_age=MAX_AGE):
        return Sessions(
            self.db,
            Signer(keys, "session"),
            max_age_us=max_age * 1_000_000,
            now_us=clock or self.clock,
            new_id=self.new_id,
            new_secret=lambda: f"secret{next(self.numbers)}",
            new_code=lambda: f"ABCD-EFGH-{next(self.numbers):04}",
        )

    async def upload(self, session_id):
        """Record an upload as the publisher does; its id."""
        upload = Upload(
            id=self.new_id(),
            session_id=session_id,
            filename="a",
            content_type=None,
            size=1,
            sha256="0" * 64,
            status=Status.COMPLETED,
            protocol=Protocol.RAW,
            created_at=NOW,
            completed_at=NOW,
            error=None,
        )
        await upload_records.insert_uploads(self.db, [upload])
        return upload.id

    async def history(self, session_id):
        page = await upload_records.list_uploads(
            self.db, session_id, HistoryQuery(order="oldest"), after=None, page_size=500
        )
        return [upload.id for upload in page.uploads]


async def start(sessions):
    """A new browser: what its session is, and the text that it carries."""
    arrival, token = sessions.begin()
    await sessions.save(arrival)
    return arrival.session, sessions.tokens.text_of(token)


async def who(sessions, *texts):
    """The id of the session that these texts open, or None."""
    recognised = await sessions.recognise([texts])
    return recognised.session.id if recognised else None


def token_in(sessions, text):
    [token] = sessions.tokens.read_all([text])
    return token


async def rotated(sessions, text):
    """The new text, which has not been used."""
    return sessions.tokens.text_of((await sessions.rotate(token_in(sessions, text))).token)


async def ended(sessions, text):
    await sessions.end(token_in(sessions, text))


async def joined(sessions, text, code):
    """Join as one who carries `text`, if it is any; the new text, which has not been used."""
    return sessions.tokens.text_of((await sessions.linking.join([text] if text else [], code)).token)


async def code_for(sessions, text):
    code, _ = await sessions.linking.link(token_in(sessions, text))
    return code


class TestTokens:
    async def test_a_token_opens_its_session(self, sessions):
        session, text = await start(sessions)
        recognised = await sessions.recognise([[text]])
        assert recognised.session == session
        assert sessions.tokens.text_of(recognised.token) == text
        assert sessions.max_age_seconds == MAX_AGE

    async def test_a_token_that_was_never_recorded_opens_nothing(self, sessions):
        _, token = sessions.begin()
        assert await who(sessions, sessions.tokens.text_of(token)) is None

    async def test_the_database_cannot_give_a_token_away(self, sessions, db):
        """It holds the hash alone."""
        arrival, token = sessions.begin()
        await sessions.save(arrival)
        assert arrival.token_hash == hashlib.sha256(token.secret.encode()).hexdigest()
        for stolen in (arrival.token_hash, sessions.tokens.text_of(token._replace(secret=arrival.token_hash))):
            assert await who(sessions, stolen) is None

    async def test_a_malformed_token_is_no_session(self, sessions):
        _, text = await start(sessions)
        secret, given_at, signature = text.split(".")
        for broken in (
            "", ".", "..", "...", " ", text[:-1], text + "=", text + "A", " " + text, text.upper(), text.swapcase(),
            secret, f"{secret}.{given_at}", f"{secret}.{given_at}.", f"{secret}..{signature}",
            f".{given_at}.{signature}", f"{secret}.{int(given_at) + 1}.{signature}",
            text.replace("-", "+").replace("_", "/") + "!",
            f"{text}ü", "ü", "\ud800", "\x00", "x" * 10_000, f"{text}\n", f"{text}.{signature}",
        ):  # fmt: skip
            assert await who(sessions, broken) is None, broken

    async def test_text_signed_for_another_purpose_or_with_another_key_is_no_token(self, sessions):
        session, text = await start(sessions)
        inner = text.rpartition(".")[0]
        assert text == Signer([KEY], "session").sign(inner)
        assert await who(sessions, Signer([KEY], "session").sign(inner)) == session.id
        assert await who(sessions, Signer([KEY], "cursor").sign(inner)) is None
        assert await who(sessions, Signer([OTHER_KEY], "session").sign(inner)) is None

    async def test_a_new_key_ends_no_session_and_without_the_old_one_they_end(self, world):
        before, during, after = (
            world.worker(keys=[KEY]),
            world.worker(keys=[OTHER_KEY, KEY]),
            world.worker(keys=[OTHER_KEY]),
        )
        session, old = await start(before)
        recognised = await during.recognise([[old]])
        assert recognised.session == session
        new = during.tokens.text_of(recognised.token)
        assert (await who(after, old), await who(after, new)) == (None, session.id)
        assert await who(before, new) is None

    async def test_two_texts_of_one_session_are_not_ambiguous(self, sessions):
        session, text = await start(sessions)
        other = await joined(sessions, "", await code_for(sessions, text))
        assert await who(sessions, text, other, text) == session.id

    async def test_two_different_sessions_are_ambiguous(self, sessions):
        (_, text), (_, other) = await start(sessions), await start(sessions)
        with pytest.raises(AmbiguousSession):
            await sessions.recognise([[text, other]])

    async def test_the_valid_token_wins_over_broken_and_dead_ones(self, sessions):
        session, text = await start(sessions)
        _, dead = await start(sessions)
        await ended(sessions, dead)
        for texts in ([dead, text], [text, dead], ["broken", text, "x.y.z"]):
            assert await who(sessions, *texts) == session.id

    async def test_many_tokens_are_asked_for_in_one_query(self, sessions, asked):
        texts = [(await start(sessions))[1] for _ in range(20)]
        asked.clear()
        with pytest.raises(AmbiguousSession):
            await sessions.recognise([texts])
        assert len(asked) == 1

    async def test_a_group_of_tokens_goes_before_those_behind_it(self, sessions):
        (one, first), (_, second) = await start(sessions), await start(sessions)
        for groups, group in (
            ([[first], [second]], 0),
            ([[], [first], [second]], 1),
            ([["junk"] * 20, ["x.1.y", first, first], [second]], 1),
        ):
            recognised = await sessions.recognise(groups)
            assert (recognised.session.id, recognised.group) == (one.id, group)


@pytest.fixture
async def standing_still(monkeypatch):
    """The event loop's clock, which a test moves: `standing_still(seconds)`."""
    loop = asyncio.get_running_loop()
    now = [loop.time()]
    monkeypatch.setattr(loop, "time", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


class TestKnownSessions:
    async def test_simultaneous_lookups_ask_the_database_once(self, sessions, asked):
        session, text = await start(sessions)
        asked.clear()
        assert await asyncio.gather(*(who(sessions, text) for _ in range(6))) == [session.id] * 6
        assert asked == ["find_session_by_token"]

    async def test_a_known_token_is_known_in_each_of_its_texts(self, sessions, asked, clock):
        session, text = await start(sessions)
        recognised = await sessions.recognise([[text]])
        clock.pass_by(seconds=5)
        renewed = sessions.tokens.text_of(sessions.tokens.renewed(recognised.token))
        assert renewed != text
        asked.clear()
        assert await who(sessions, renewed) == session.id
        assert asked == []

    async def test_a_known_session_is_trusted_for_a_second(self, world, standing_still):
        mine, other = world.worker(), world.worker()
        session, text = await start(mine)
        assert await who(other, text) == session.id
        await ended(mine, text)
        assert await who(mine, text) is None
        assert await who(other, text) == session.id
        standing_still(KNOWN_SECONDS)
        assert await who(other, text) is None

    async def test_an_unknown_token_is_asked_for_again_after_a_second(self, world, standing_still):
        arrival, token = (sessions := world.worker()).begin()
        text = sessions.tokens.text_of(token)
        assert await who(sessions, text) is None
        await sessions.save(arrival)
        standing_still(KNOWN_SECONDS)
        assert await who(sessions, text) == arrival.session.id

    @pytest.mark.parametrize("change", ["end", "use", "join"])
    @pytest.mark.parametrize("fails", [None, "lost"])
    async def test_a_worker_knows_its_own_changes_at_once(self, world, sessions, standing_still, change, fails):
        session, text = await start(sessions)
        target, target_text = await start(sessions)
        code, new = await code_for(sessions, target_text), await rotated(sessions, text)
        assert await who(sessions, text) == session.id
        world.db.fails = [fails]
        if change == "use":  # who only asks is answered, whether or not that could be written down
            assert await who(sessions, new) == session.id
        else:
            with pytest.raises(Unavailable) if fails else nullcontext():
                await {"end": lambda: ended(sessions, text), "join": lambda: joined(sessions, text, code)}[change]()
        assert await who(sessions, text) == (target.id if change == "join" else None)

    async def test_a_worker_knows_a_change_whose_caller_was_cancelled(self, sessions, db, standing_still):
        session, text = await start(sessions)
        assert await who(sessions, text) == session.id
        ending = asyncio.create_task(ended(sessions, text))
        db.gate.close()
        await coming(db.gate.reached)
        db.gate.open()
        await asyncio.sleep(0)
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending
        recorded = await session_records.find_session(db, session.id)
        assert (await who(sessions, text) is None) == (recorded.ended_at is not None)

    async def test_an_expired_session_is_not_known_any_more(self, sessions, clock, standing_still):
        session, text = await start(sessions)
        assert await who(sessions, text) == session.id
        clock.pass_by(seconds=MAX_AGE)
        assert await who(sessions, text) is None

    async def test_a_failure_reaches_all_who_wait_and_is_not_remembered(self, sessions, monkeypatch):
        session, text = await start(sessions)

        async def fails(*arguments):
            raise Unavailable

        with monkeypatch.context() as broken:
            broken.setattr(token_records, "find_session", fails)
            results = await asyncio.gather(*(who(sessions, text) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        assert await who(sessions, text) == session.id

    async def test_a_caller_that_leaves_does_not_cancel_the_lookup_of_others(self, sessions, monkeypatch):
        session, text = await start(sessions)
        begun, go_on = asyncio.Event(), asyncio.Event()
        find = token_records.find_session

        async def slow(*arguments):
            begun.set()
            await go_on.wait()
            return await find(*arguments)

        monkeypatch.setattr(token_records, "find_session", slow)
        first, *others = [asyncio.create_task(who(sessions, text)) for _ in range(3)]
        await coming(begun)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        go_on.set()
        assert await asyncio.gather(*others) == [session.id] * 2

    async def test_a_lookup_that_all_callers_left_ends_quietly(self, sessions, monkeypatch):
        _, text = await start(sessions)
        begun, go_on, failed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))

        async def fails(*arguments):
            begun.set()
            await go_on.wait()
            failed.set()
            raise Unavailable

        with monkeypatch.context() as broken:
            broken.setattr(token_records, "find_session", fails)
            waiting = asyncio.create_task(who(sessions, text))
            await coming(begun)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            go_on.set()
            await coming(failed)
        await asyncio.sleep(0)
        gc.collect()
        assert complaints == []

    async def test_the_number_of_known_sessions_is_bounded(self, sessions, monkeypatch):
        monkeypatch.setattr("app.sessions._KNOWN_AT_MOST", 3)
        started = [await start(sessions) for _ in range(6)]
        for session, text in started + started:
            assert await who(sessions, text) == session.id
        assert len(sessions._known) == 3


class TestLastSeen:
    async def test_a_session_that_is_used_lives_on(self, sessions, db, clock):
        session, text = await start(sessions)
        for _ in range(3):
            clock.pass_by(seconds=MAX_AGE - 1)
            assert await who(sessions, text) == session.id
            await sessions.last_seen.flush()
        recorded = await session_records.find_session(db, session.id)
        assert recorded.last_seen_at == clock()
        assert recorded.expires_at == clock() + MAX_AGE * 1_000_000
        clock.pass_by(seconds=MAX_AGE)
        assert await who(sessions, text) is None

    @pytest.mark.parametrize("age", [1, 20, 600, MAX_AGE])
    async def test_a_session_in_steady_use_lives_whatever_its_age(self, world, age):
        """Its last use is written within a thirtieth of the age."""
        sessions = world.worker(max_age=age)
        session, text = await start(sessions)
        for _ in range(40):
            world.clock.pass_by(seconds=age / 10)
            assert await who(sessions, text) == session.id
            await sessions.last_seen.flush()
        assert sessions.last_seen.flush_seconds <= age / 60
        recorded = await session_records.find_session(world.db, session.id)
        assert recorded.expires_at >= world.clock() + age * 1_000_000 * 29 // 30

    async def test_a_use_that_another_worker_wrote_down_counts_here_at_once(self, world, standing_still):
        """What is remembered for a second may say that the session is over."""
        mine, other = world.worker(max_age=2), world.worker(max_age=2)
        session, text = await start(mine)
        world.clock.pass_by(seconds=1.5)
        assert await who(other, text) == session.id
        assert await who(mine, text) == session.id
        await mine.last_seen.flush()
        world.clock.pass_by(seconds=0.9)
        assert await who(other, text) == session.id

    async def test_last_seen_times_are_written_together_and_nobody_waits(self, sessions, asked, clock):
        started = [await start(sessions) for _ in range(30)]
        clock.pass_by(seconds=SEEN_EVERY_US / 1_000_000)
        asked.clear()
        for _ in range(3):
            for session, text in started:
                assert await who(sessions, text) == session.id
        assert set(asked) == {"find_session_by_token"}
        asked.clear()
        await sessions.last_seen.flush()
        await sessions.last_seen.flush()
        assert asked == ["touch_sessions"]

    async def test_a_last_seen_time_is_written_once_a_minute(self, sessions, asked, clock):
        session, text = await start(sessions)
        clock.pass_by(seconds=SEEN_EVERY_US / 1_000_000 - 1)
        assert await who(sessions, text) == session.id
        asked.clear()
        await sessions.last_seen.flush()
        assert asked == []
        clock.pass_by(seconds=1)
        for _ in range(3):
            assert await who(sessions, text) == session.id
            await sessions.last_seen.flush()
        assert asked.count("touch_sessions") == 1

    async def test_a_last_seen_time_that_could_not_be_written_is_written_with_the_next(self, sessions, db, clock):
        session, text = await start(sessions)
        other, other_text = await start(sessions)
        clock.pass_by(seconds=100)
        assert await who(sessions, text) == session.id
        db.fails = ["away"]
        with pytest.raises(Unavailable):
            await sessions.last_seen.flush()
        clock.pass_by(seconds=100)
        assert await who(sessions, other_text) == other.id
        await sessions.last_seen.flush()
        seen = {each.id: each.last_seen_at for each in await session_records.list_sessions(db, 9)}
        assert seen == {session.id: NOW + 100_000_000, other.id: NOW + 200_000_000}

    async def test_the_writing_of_last_seen_times_survives_failures(self, sessions, monkeypatch):
        monkeypatch.setattr("app.sessions.last_seen.FLUSH_SECONDS", 0)
        failures = [Unavailable(), StorageFull(), KeyError("a fault of ours")]
        written = asyncio.Event()

        async def flush():
            if failures:
                raise failures.pop()
            written.set()

        monkeypatch.setattr(sessions.last_seen, "flush", flush)
        keeping = asyncio.create_task(sessions.last_seen.keep(list))
        await coming(written)
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping

    async def test_a_last_seen_time_does_not_revive_an_ended_session(self, sessions, db, clock):
        session, text = await start(sessions)
        clock.pass_by(seconds=100)
        assert await who(sessions, text) == session.id
        await ended(sessions, text)
        await sessions.last_seen.flush()
        assert (await session_records.find_session(db, session.id)).last_seen_at == NOW
        assert await who(sessions, text) is None


class TestRenewal:
    async def test_a_token_is_renewed_long_before_its_cookie_ends(self, sessions, clock):
        session, text = await start(sessions)
        recognised = await sessions.recognise([[text]])
        clock.pass_by(seconds=DAY)
        assert not sessions.tokens.is_stale(recognised.token)
        clock.pass_by(seconds=1)
        assert sessions.tokens.is_stale(recognised.token)
        renewed = sessions.tokens.renewed(recognised.token)
        assert not sessions.tokens.is_stale(renewed)
        assert await who(sessions, sessions.tokens.text_of(renewed), text) == session.id

    @pytest.mark.parametrize("skew", [-300, 300])
    async def test_workers_whose_clocks_differ_agree_on_renewal(self, world, skew):
        """F30."""
        mine, other = world.worker(), world.worker(clock=Time(NOW + skew * 1_000_000))
        for here, there in ((mine, other), (other, mine)):
            session, text = await start(here)
            recognised = await there.recognise([[text]])
            assert recognised.session == session
            assert not there.tokens.is_stale(recognised.token)
            await there.last_seen.flush()
            code = await code_for(here, text)
            assert await who(there, await joined(there, "", code)) == session.id
            new = await rotated(there, text)
            assert (await who(there, new), await who(there, text)) == (session.id, None)
            assert await who(here, new) == session.id
            recorded = await session_records.find_session(world.db, session.id)
            assert recorded.last_seen_at >= session.last_seen_at


class TestRotating:
    async def test_the_old_token_opens_the_session_until_the_new_one_is_used(self, sessions, clock):
        session, old = await start(sessions)
        new = await rotated(sessions, old)
        assert (await who(sessions, old), await who(sessions, new)) == (session.id, session.id)
        assert (await who(sessions, old), await who(sessions, new)) == (None, session.id)

    async def test_the_old_token_ends_for_another_worker_within_a_second(self, world, standing_still):
        mine, other = world.worker(), world.worker()
        session, old = await start(mine)
        assert await who(other, old) == session.id
        new = await rotated(mine, old)
        assert await who(other, new) == session.id
        assert await who(mine, old) is None  # it had not asked since
        standing_still(KNOWN_SECONDS)
        assert (await who(other, old), await who(mine, new)) == (None, session.id)

    async def test_the_old_token_stays_ended_when_it_was_renewed(self, sessions, clock):
        _, old = await start(sessions)
        recognised = await sessions.recognise([[old]])
        assert await who(sessions, await rotated(sessions, old))
        clock.pass_by(seconds=DAY)
        assert await who(sessions, sessions.tokens.text_of(sessions.tokens.renewed(recognised.token))) is None

    async def test_a_lost_answer_locks_nobody_out(self, sessions, db):
        session, old = await start(sessions)
        for fails in ("lost", "away"):
            db.fails = [fails]
            with pytest.raises(Unavailable):
                await rotated(sessions, old)
            assert await who(sessions, old) == session.id
        new = await rotated(sessions, old)
        assert (await who(sessions, new), await who(sessions, old)) == (session.id, None)

    async def test_a_use_that_cannot_be_recorded_is_recorded_by_the_next(self, sessions, db, standing_still):
        session, old = await start(sessions)
        new = await rotated(sessions, old)
        db.fails = ["full"]
        assert await who(sessions, new) == session.id
        assert await who(sessions, old) == session.id
        standing_still(KNOWN_SECONDS)
        assert await who(sessions, new) == session.id
        assert await who(sessions, old) is None

    async def test_a_token_whose_use_is_not_written_down_leaves_none_before_it_when_it_is_replaced(self, sessions, db):
        """Three in a row: the first must not come back when the second goes."""
        session, first = await start(sessions)
        second = await rotated(sessions, first)
        third = await rotated(sessions, second)
        assert await who(sessions, first) is None
        assert await who(sessions, third) == session.id
        assert (await who(sessions, first), await who(sessions, second)) == (None, None)

    async def test_other_browsers_keep_their_tokens(self, sessions):
        session, text = await start(sessions)
        other = await joined(sessions, "", await code_for(sessions, text))
        assert await who(sessions, await rotated(sessions, text)) == session.id
        assert await who(sessions, other) == session.id

    async def test_the_first_used_of_several_new_tokens_wins(self, sessions):
        session, text = await start(sessions)
        news = await asyncio.gather(*(rotated(sessions, text) for _ in range(5)))
        opened = await asyncio.gather(*(who(sessions, new) for new in news))
        assert session.id in opened
        assert sorted([await who(sessions, new) for new in news], key=str) == [session.id, *[None] * 4]
        assert await who(sessions, text) is None

    async def test_a_token_of_an_ended_session_is_not_replaced(self, sessions):
        _, text = await start(sessions)
        await ended(sessions, text)
        for change in (rotated, ended, code_for):
            with pytest.raises(NoSession):
                await change(sessions, text)

    async def test_a_session_that_joins_another_at_once_takes_the_new_token_along(self, sessions):
        for _ in range(10):
            session, text = await start(sessions)
            _, own = await start(sessions)
            sister = await joined(sessions, "", await code_for(sessions, own))
            assert await who(sessions, sister)
            code = await code_for(sessions, text)
            new, arrived = await asyncio.gather(rotated(sessions, sister), joined(sessions, own, code))
            assert await who(sessions, new) == await who(sessions, arrived) == session.id

    async def test_devices_are_counted_and_a_token_with_those_in_its_place_is_one(self, sessions, db):
        session, text = await start(sessions)
        assert await token_records.count_devices(db, session.id) == 1
        other = await joined(sessions, "", await code_for(sessions, text))
        new = [await rotated(sessions, text) for _ in range(2)]
        assert await token_records.count_devices(db, session.id) == 2
        for each in (other, new[0]):
            assert await who(sessions, each) == session.id
            assert await token_records.count_devices(db, session.id) == 2


class TestEnding:
    async def test_an_ended_session_ends_for_every_browser_and_its_records_stay(self, world, sessions):
        session, text = await start(sessions)
        other = await joined(sessions, "", await code_for(sessions, text))
        code = await code_for(sessions, text)
        upload = await world.upload(session.id)
        await ended(sessions, text)
        assert (await who(sessions, text), await who(sessions, other)) == (None, None)
        with pytest.raises(Forbidden):
            await sessions.linking.join([], code)
        assert await world.history(session.id) == [upload]

    async def test_a_second_end_finds_no_session(self, sessions, db, clock):
        session, text = await start(sessions)
        await ended(sessions, text)
        clock.pass_by(seconds=5)
        with pytest.raises(NoSession):
            await ended(sessions, text)
        assert (await session_records.find_session(db, session.id)).ended_at == NOW

    async def test_an_end_concerns_the_session_that_the_token_opens_now(self, world):
        mine, other = world.worker(), world.worker()
        session, text = await start(mine)
        own, own_text = await start(mine)
        sister = await joined(mine, "", await code_for(mine, own_text))
        assert await who(other, sister) == own.id
        await joined(mine, own_text, await code_for(mine, text))
        await ended(other, sister)
        assert [await who(mine, each) for each in (sister, own_text, text)] == [None] * 3
        assert (await session_records.find_session(world.db, session.id)).ended_at == NOW


class TestJoining:
    async def test_two_browsers_share_one_session_and_one_history(self, world, sessions):
        session, text = await start(sessions)
        own, own_text = await start(sessions)
        uploads = [await world.upload(session.id), await world.upload(own.id)]
        new_text = await joined(sessions, own_text, await code_for(sessions, text))
        assert (await who(sessions, text), await who(sessions, new_text)) == (session.id, session.id)
        assert await who(sessions, own_text) is None
        assert (await world.history(session.id), await world.history(own.id)) == (uploads, [])
        assert (await session_records.find_session(world.db, own.id)).merged_into == session.id

    async def test_a_browser_without_a_session_joins_too(self, sessions):
        session, text = await start(sessions)
        assert await who(sessions, await joined(sessions, "", await code_for(sessions, text))) == session.id
        assert await who(sessions, text) == session.id

    async def test_a_code_is_as_people_type_it(self, sessions):
        session, text = await start(sessions)
        for typed in (str.lower, lambda code: code.replace("-", ""), lambda code: f"  {code.replace('-', ' ')}\n"):
            new = await joined(sessions, "", typed(await code_for(sessions, text)))
            assert await who(sessions, new) == session.id

    @pytest.mark.parametrize("code", ["", "ABCD", "----", "\ud800", "\x00", "x" * 100_000])
    async def test_a_code_that_is_none_is_refused(self, sessions, code):
        _, text = await start(sessions)
        await code_for(sessions, text)
        with pytest.raises(Forbidden):
            await sessions.linking.join([], code)

    async def test_a_code_works_once(self, sessions):
        session, text = await start(sessions)
        code = await code_for(sessions, text)
        results = await asyncio.gather(*(sessions.linking.join([], code) for _ in range(5)), return_exceptions=True)
        [won] = [sessions.tokens.text_of(result.token) for result in results if not isinstance(result, Exception)]
        assert [type(result) for result in results if isinstance(result, Exception)] == [Forbidden] * 4
        assert await who(sessions, won) == session.id
        with pytest.raises(Forbidden):
            await sessions.linking.join([], code)

    async def test_a_code_works_for_ten_minutes(self, sessions, clock):
        session, text = await start(sessions)
        code, expires_at = await sessions.linking.link(token_in(sessions, text))
        late, _ = await sessions.linking.link(token_in(sessions, text))
        clock.pass_by(seconds=LINK_CODE_SECONDS - 1)
        assert await who(sessions, await joined(sessions, "", code)) == session.id
        clock.pass_by(seconds=1)
        assert clock() == expires_at
        with pytest.raises(Forbidden):
            await sessions.linking.join([], late)

    async def test_a_refused_code_changes_nothing(self, world, sessions):
        own, own_text = await start(sessions)
        upload = await world.upload(own.id)
        with pytest.raises(Forbidden):
            await joined(sessions, own_text, "WRONG")
        assert await who(sessions, own_text) == own.id
        assert await world.history(own.id) == [upload]

    async def test_a_session_that_joins_itself_stays_as_it_is(self, world, sessions):
        session, text = await start(sessions)
        upload = await world.upload(session.id)
        new = await joined(sessions, text, await code_for(sessions, text))
        assert (await who(sessions, new), await who(sessions, text)) == (session.id, None)
        assert await world.history(session.id) == [upload]

    async def test_all_browsers_of_a_session_move_with_it(self, sessions):
        session, text = await start(sessions)
        own, own_text = await start(sessions)
        second = await joined(sessions, "", await code_for(sessions, own_text))
        assert await who(sessions, second) == own.id
        await joined(sessions, own_text, await code_for(sessions, text))
        assert await who(sessions, second) == session.id

    async def test_codes_of_a_session_move_with_it(self, sessions):
        session, text = await start(sessions)
        _, own_text = await start(sessions)
        code = await code_for(sessions, own_text)
        await joined(sessions, own_text, await code_for(sessions, text))
        assert await who(sessions, await joined(sessions, "", code)) == session.id

    async def test_chains_of_joins_end_in_one_session_also_for_uploads_in_flight(self, world, sessions):
        """First joins second, second joins third, while an upload of the first is still on its way in."""
        (first, first_text), (second, second_text), (third, third_text) = [await start(sessions) for _ in range(3)]
        uploads = [await world.upload(each.id) for each in (first, second, third)]
        first_text = await joined(sessions, first_text, await code_for(sessions, second_text))
        uploads.append(await world.upload(first.id))
        await joined(sessions, second_text, await code_for(sessions, third_text))
        uploads += [await world.upload(first.id), await world.upload(second.id)]
        assert await world.history(third.id) == uploads
        assert (await world.history(first.id), await world.history(second.id)) == ([], [])
        assert (await who(sessions, first_text), await who(sessions, third_text)) == (third.id, third.id)

    async def test_a_session_that_has_just_expired_or_ended_joins_as_a_new_browser(self, world, sessions, clock):
        """Its uploads stay where they are: nobody who sends a dead token may take them along."""
        session, text = await start(sessions)
        for dies in ("ends", "expires"):
            own, own_text = await start(sessions)
            await world.upload(own.id)
            if dies == "ends":
                await ended(sessions, own_text)
            else:
                clock.pass_by(seconds=MAX_AGE - 1)
                assert await who(sessions, text) == session.id
                await sessions.last_seen.flush()
                clock.pass_by(seconds=1)
            new = await joined(sessions, own_text, await code_for(sessions, text))
            assert await who(sessions, new) == session.id
            assert len(await world.history(own.id)) == 1
        assert await world.history(session.id) == []

    async def test_a_session_that_ended_is_not_joined_and_nothing_is_lost(self, world, sessions):
        _, text = await start(sessions)
        own, own_text = await start(sessions)
        upload = await world.upload(own.id)
        code = await code_for(sessions, text)
        await ended(sessions, text)
        with pytest.raises(Forbidden):
            await joined(sessions, own_text, code)
        assert await who(sessions, own_text) == own.id
        assert await world.history(own.id) == [upload]

    async def test_a_session_that_ends_during_a_join_is_not_joined(self, world, sessions, monkeypatch):
        session, text = await start(sessions)
        own, own_text = await start(sessions)
        code = await code_for(sessions, text)
        take = token_records.take_code

        async def end_then(unit, *arguments):
            taken = await take(unit, *arguments)
            await token_records.end_session(unit, session.id, NOW)
            return taken

        with monkeypatch.context() as moment:
            moment.setattr(token_records, "take_code", end_then)
            for joining in (own_text, ""):
                with pytest.raises(Forbidden):
                    await joined(sessions, joining, code)
        assert await who(sessions, own_text) == own.id

    async def test_a_session_that_has_joined_another_meanwhile_brings_everything(self, world, sessions):
        """What was recognised is a moment old; what counts is whose the token is now."""
        (own, own_text), (_, second_text), (third, third_text) = [await start(sessions) for _ in range(3)]
        upload = await world.upload(own.id)
        sister = await joined(sessions, "", await code_for(sessions, own_text))
        await joined(sessions, own_text, await code_for(sessions, second_text))
        new = await joined(sessions, sister, await code_for(sessions, third_text))
        assert await who(sessions, new) == third.id
        assert await who(sessions, second_text) == third.id
        assert await world.history(third.id) == [upload]

    async def test_two_sessions_that_join_each_other_at_once_end_up_together(self, world, sessions):
        for _ in range(2):
            (first, first_text), (second, second_text) = [await start(sessions) for _ in range(2)]
            uploads = [await world.upload(first.id), await world.upload(second.id)]
            to_first, to_second = await code_for(sessions, first_text), await code_for(sessions, second_text)
            results = await asyncio.gather(
                joined(sessions, first_text, to_second), joined(sessions, second_text, to_first), return_exceptions=True
            )
            assert {type(result) for result in results} <= {str, Forbidden}
            olds = (first_text, second_text)
            news = [old if isinstance(new, Forbidden) else new for old, new in zip(olds, results, strict=True)]
            [together] = {await who(sessions, text) for text in news}
            assert sorted(await world.history(together)) == sorted(uploads)

    async def test_browsers_of_one_session_that_join_at_once_all_arrive(self, world, sessions):
        for _ in range(5):
            session, text = await start(sessions)
            own, own_text = await start(sessions)
            browsers = [own_text] + [await joined(sessions, "", await code_for(sessions, own_text)) for _ in range(2)]
            upload = await world.upload(own.id)
            codes = [await code_for(sessions, text) for _ in browsers]
            joins = [joined(sessions, browser, code) for browser, code in zip(browsers, codes, strict=True)]
            for new in await asyncio.gather(*joins):
                assert await who(sessions, new) == session.id
            assert await world.history(session.id) == [upload]

    async def test_uploads_that_are_recorded_while_a_session_joins_are_never_left_behind(self, world, sessions):
        for _ in range(10):
            session, text = await start(sessions)
            own, own_text = await start(sessions)
            code = await code_for(sessions, text)
            _, *uploads = await asyncio.gather(
                joined(sessions, own_text, code), *(world.upload(own.id) for _ in range(10))
            )
            assert sorted(await world.history(session.id)) == sorted(uploads)
