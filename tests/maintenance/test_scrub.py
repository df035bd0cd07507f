"""Damage is found by reading, marked when it can be believed, and mended when it is gone; nothing is destroyed."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from app.errors import Unavailable
from app.maintenance import records as maintenance_records
from app.maintenance import scrub
from app.maintenance.records import Scrub
from app.maintenance.scrub import FILE_COST, PASS_SECONDS, Scrubber
from app.metrics import Metrics
from app.model import DAMAGED, LOST, Damage, Status
from app.storage import Replaced, Unreadable, Withheld
from app.uploads import records as upload_records
from tests.maintenance.test_sweep import files, key, local, put, put_file, statuses
from tests.support.stores import ROOT
from tests.support.unreliable import NOW, Store, Time, opened, until

QUICK = 2**60  # bytes a second
HOUR = 3600


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def scrubber(store, db, time, metrics):
    return Scrubber(store, db, rate=QUICK, now_us=time, metrics=metrics)


def figure(metrics, name, *labels):
    [found] = [dict(reading.values)[labels] for reading in metrics.read() if reading.family.name == f"waybill_{name}"]
    return found[0]


def alter(store, *numbers):
    for number in numbers:
        store._files[key(number)] = b"0123456780"


def changed_at(path):
    try:
        return path.lstat().st_ctime_ns
    except FileNotFoundError:
        return None


async def errors(db, *numbers):
    found = await upload_records.list_these(db, [key(number) for number in numbers])
    return [found[key(number)].error and found[key(number)].error.code for number in numbers]


class TestDamage:
    @pytest.mark.parametrize(
        ("how", "damage", "code"),
        [
            (lambda path: path.write_bytes(b"0123456780"), Damage.ALTERED, DAMAGED),
            (lambda path: os.truncate(path, 9), Damage.RESIZED, DAMAGED),
            (lambda path: os.truncate(path, 11), Damage.RESIZED, DAMAGED),
            (lambda path: path.unlink(), Damage.MISSING, LOST),
            (lambda path: (path.unlink(), path.symlink_to(path.with_name(key(2)))), Damage.REPLACED, DAMAGED),
            (lambda path: (path.unlink(), os.mkfifo(path)), Damage.REPLACED, DAMAGED),
            (lambda path: (path.unlink(), path.mkdir()), Damage.REPLACED, DAMAGED),
        ],
        ids=["flipped", "cut", "grown", "gone", "link", "pipe", "directory"],
    )
    async def test_damage_is_found_and_marked_and_the_rest_is_sound(
        self, tmp_path, db, time, metrics, how, damage, code
    ):
        async with local(tmp_path / "store") as storage:
            await put(storage, db, 1, 2, 3)
            path = tmp_path / "store" / "files" / "01" / key(1)
            path.chmod(0o600)
            how(path)
            left = changed_at(path)
            done = await Scrubber(storage, db, rate=QUICK, now_us=time, metrics=metrics).once()
            assert (done.files, done.found, done.stopped, done.whole_at_us) == (3, 1, None, NOW)
            assert await statuses(db, 1, 2, 3) == ["failed", "completed", "completed"]
            assert await errors(db, 1) == [code]
            assert [figure(metrics, "damage_found_total", each) for each in Damage] == [
                each is damage for each in Damage
            ]
            assert figure(metrics, "damaged_uploads") == 1
            assert changed_at(path) == left  # what is left of it, nobody has touched

    @pytest.mark.parametrize(("times", "marked"), [(1, False), (2, False), (3, False), (4, True)])
    async def test_a_file_is_marked_that_stays_unreadable_after_others_were_read(
        self, store, db, scrubber, monkeypatch, times, marked
    ):
        """It is read twice at once, and twice again behind the others: a path to the disk may have been away."""
        refusals = [Unreadable()] * times

        async def digest(upload_id, pace=None):
            if upload_id == key(1) and refusals:
                raise refusals.pop()
            return await Store.digest(store, upload_id, pace)

        monkeypatch.setattr(store, "digest", digest)
        await put(store, db, 1, 2)
        done = await scrubber.once()
        assert (done.files, done.stopped) == (2, None)
        assert await errors(db, 1, 2) == [DAMAGED if marked else None, None]

    async def test_a_file_that_may_not_be_read_is_reported_and_not_marked(
        self, store, db, scrubber, monkeypatch, metrics
    ):
        async def digest(upload_id, pace=None):
            if upload_id == key(2):
                raise Withheld
            return await Store.digest(store, upload_id, pace)

        monkeypatch.setattr(store, "digest", digest)
        await put(store, db, 1, 2, 3, 4)
        done = await scrubber.once()
        assert (done.files, done.found, done.stopped) == (4, 1, None)
        assert await errors(db, 1, 2, 3, 4) == [None] * 4
        assert figure(metrics, "damage_found_total", Damage.WITHHELD) == 1
        assert figure(metrics, "damaged_uploads") == 0

    async def test_an_undamaged_file_is_repaired_by_the_next_pass(self, store, db, scrubber, time, metrics):
        await put(store, db, 1, 2, 3)
        whole = store._files[key(1)]
        alter(store, 1)
        await scrubber.once()
        assert await statuses(db, 1) == ["failed"]
        store._files[key(1)] = whole
        time.pass_by(seconds=PASS_SECONDS)
        done = await scrubber.once()
        assert (done.files, done.found) == (3, 0)
        assert await statuses(db, 1) == ["completed"]
        assert (figure(metrics, "mended_total"), figure(metrics, "damaged_uploads")) == (1, 0)

    async def test_a_file_that_stays_damaged_is_found_once(self, store, db, scrubber, time, metrics):
        await put(store, db, 1, 2, 3)
        alter(store, 1)
        for _ in range(3):
            await scrubber.once()
            time.pass_by(seconds=PASS_SECONDS)
        assert figure(metrics, "damage_found_total", Damage.ALTERED) == 1
        assert figure(metrics, "damaged_uploads") == 1

    async def test_a_file_deleted_meanwhile_is_no_damage(self, db, time, metrics):
        class Busy(Store):
            async def digest(self, upload_id, pace=None):
                if upload_id == key(1):
                    await upload_records.delete_upload(db, "mine", key(1), NOW)
                    await self.remove([key(1)])
                return await super().digest(upload_id, pace)

        store = Busy()
        await put(store, db, 1, 2)
        done = await Scrubber(store, db, rate=QUICK, now_us=time, metrics=metrics).once()
        assert (done.found, await statuses(db, 1, 2)) == (0, ["deleted", "completed"])
        assert figure(metrics, "damage_found_total", Damage.MISSING) == 0


class TestImplausibleDamage:
    """The wrong directory or the wrong database: what cannot be believed is told, and nothing is marked."""

    async def test_many_missing_files_are_not_marked(self, store, db, scrubber, metrics):
        await put(store, db, *range(1, 31))
        await store.remove([key(number) for number in range(20, 31)])
        alter(store, 1)
        done = await scrubber.once()
        assert done.stopped == "11 of 30 records have no file; is this their directory?"
        assert done.whole_at_us is None
        assert set(await statuses(db, *range(1, 31))) == {"completed"}
        assert figure(metrics, "scrubs_total", "stopped") == 1
        assert figure(metrics, "damaged_uploads") == 0
        assert await files(store) == list(range(1, 20))

    async def test_an_empty_directory_marks_nothing_however_few_files_it_had(self, store, db, scrubber):
        await put(store, db, 1)
        await store.remove([key(1)])
        assert (await scrubber.once()).stopped == "1 of 1 records have no file; is this their directory?"
        assert await statuses(db, 1) == ["completed"]

    @pytest.mark.skipif(not ROOT, reason="needs root, to give files to somebody else")
    @pytest.mark.parametrize(("given", "of"), [(1, 1), (2, 3), (9, 10), (10, 10), (10, 19)])
    async def test_files_of_another_owner_are_not_marked(self, tmp_path, db, time, given, of):
        """As by a restore with other ids; every byte is right."""
        async with local(tmp_path / "store") as storage:
            await put(storage, db, *range(1, of + 1))
            for number in range(1, given + 1):
                os.chown(tmp_path / "store" / "files" / key(number)[-2:] / key(number), 12345, 12345)
            done = await Scrubber(storage, db, rate=QUICK, now_us=time).once()
            assert (
                done.stopped == f"{given} of the {of} files that were looked at cannot be had; are they ours to read?"
            )
            assert set(await statuses(db, *range(1, of + 1))) == {"completed"}

    async def test_large_files_of_a_small_store_are_judged_together(self, store, db, scrubber, monkeypatch):
        """However long each takes: the first ones that cannot be had are no majority of all."""
        monkeypatch.setattr(scrub, "_JUDGE_SECONDS", -1)
        withheld = [key(number) for number in range(1, 7)]

        async def digest(upload_id, pace=None):
            if upload_id in withheld:
                raise Replaced
            return await Store.digest(store, upload_id, pace)

        monkeypatch.setattr(store, "digest", digest)
        await put(store, db, *range(1, 12))
        assert (await scrubber.once()).stopped.startswith("6 of the 11 files that were looked at cannot be had")
        assert set(await statuses(db, *range(1, 12))) == {"completed"}
        await put(store, db, 12)
        assert (await Scrubber(store, db, rate=QUICK, now_us=Time(NOW + HOUR * 10**6)).once()).stopped is None
        assert await statuses(db, *range(1, 13)) == ["failed"] * 6 + ["completed"] * 6

    async def test_one_altered_file_is_marked_though_it_is_all_there_is(self, store, db, scrubber):
        """Its digest proves it, and nobody may be given other bytes than were sent."""
        await put(store, db, 1)
        alter(store, 1)
        assert (await scrubber.once()).stopped is None
        assert await statuses(db, 1) == ["failed"]

    async def test_many_damaged_files_are_not_marked(self, store, db, scrubber):
        await put(store, db, *range(1, 31))
        alter(store, *range(1, 12))
        assert (await scrubber.once()).stopped.startswith("11 of the 30 files that were looked at are damaged")
        assert set(await statuses(db, *range(1, 31))) == {"completed"}

    async def test_a_plausible_number_of_damaged_files_is_marked(self, store, db, scrubber):
        await put(store, db, *range(1, 31))
        alter(store, *range(1, 11))
        assert (await scrubber.once()).stopped is None
        assert await statuses(db, *range(1, 31)) == ["failed"] * 10 + ["completed"] * 20

    async def test_the_count_goes_over_the_whole_pass_and_over_restarts(self, store, db, time, monkeypatch):
        monkeypatch.setattr(scrub, "_AT_ONCE", 6)
        await put(store, db, *range(1, 31))
        alter(store, *range(1, 16))

        class Ends(Exception):
            pass

        async def ends(upload_id, pace=None):
            if upload_id == key(7):
                raise Ends
            return await Store.digest(store, upload_id, pace)

        with monkeypatch.context() as patch:
            patch.setattr(store, "digest", ends)
            with pytest.raises(Ends):
                await Scrubber(store, db, rate=QUICK, now_us=time).once()
        assert await statuses(db, 6, 7) == ["failed", "completed"]
        assert await maintenance_records.find_scrub(db) == Scrub(NOW, key(6), files=6, found=6)
        done = await Scrubber(store, db, rate=QUICK, now_us=time).once()
        assert done.stopped.startswith("12 of the 12 files")
        assert await statuses(db, 6, 7, 12) == ["failed", "completed", "completed"]

    async def test_a_stopped_pass_is_tried_again_an_hour_later(self, store, db, scrubber, time):
        await put(store, db, *range(1, 31))
        kept = dict(store._files)
        store._files.clear()
        assert (await scrubber.once()).stopped is not None
        store._files.update(kept)
        assert (await scrubber.once()).stopped is not None
        time.pass_by(seconds=HOUR)
        done = await scrubber.once()
        assert (done.stopped, done.files, done.whole_at_us) == (None, 30, time())


class TestPasses:
    async def test_a_pass_goes_on_after_a_restart(self, store, db, time, monkeypatch):
        monkeypatch.setattr(scrub, "_AT_ONCE", 2)
        read = []

        async def digest(upload_id, pace=None):
            read.append(upload_id)
            if len(read) == 4:
                raise Unavailable
            return await Store.digest(store, upload_id, pace)

        monkeypatch.setattr(store, "digest", digest)
        await put(store, db, *range(1, 6))
        with pytest.raises(Unavailable):
            await Scrubber(store, db, rate=QUICK, now_us=time).once()
        done = await Scrubber(store, db, rate=QUICK, now_us=time).once()
        assert (done.files, done.began_at_us, done.whole_at_us) == (5, NOW, NOW)
        assert read == [key(number) for number in (1, 2, 3, 4, 3, 4, 5)]

    async def test_one_pass_runs_a_day(self, store, db, scrubber, time, metrics):
        await put(store, db, 1)
        first = await scrubber.once()
        time.pass_by(seconds=PASS_SECONDS - 1)
        assert await scrubber.once() == first
        time.pass_by(seconds=1)
        assert (await scrubber.once()).began_at_us == time()
        assert figure(metrics, "scrubs_total", "done") == figure(metrics, "scrubbed_files_total") == 2
        assert figure(metrics, "scrubbed_bytes_total") == 20
        assert figure(metrics, "scrub_whole_timestamp_seconds") == time() / 1_000_000

    async def test_a_clock_that_is_set_back_does_not_stop_the_scrub(self, store, db, scrubber, time):
        await scrubber.once()
        time.now_us -= 1
        assert (await scrubber.once()).began_at_us == time()

    async def test_a_long_pass_judges_and_saves_its_progress(self, store, db, scrubber, monkeypatch):
        monkeypatch.setattr(scrub, "_JUDGE_SECONDS", -1)
        saved = []
        save = maintenance_records.save_scrub

        async def save_scrub(db, state):
            saved.append(state.files)
            await save(db, state)

        monkeypatch.setattr(maintenance_records, "save_scrub", save_scrub)
        await put(store, db, 1, 2, 3)
        await scrubber.once()
        assert saved == [1, 2, 3, 3]

    async def test_the_progress_of_a_pass_is_shown(self, store, db, scrubber, metrics):
        await put(store, db, 1, 2, 3, 4)
        assert figure(metrics, "scrub_progress_ratio") == 0
        await scrubber.once()
        assert figure(metrics, "scrub_progress_ratio") == 1

    async def test_foreign_files_are_reported_and_left(self, tmp_path, db, time, metrics, monkeypatch):
        monkeypatch.setattr("app.maintenance.verify._GRACE_SECONDS", 0)
        async with local(tmp_path / "store") as storage:
            await put(storage, db, 1, 2)
            await put_file(storage, 3)
            for name in ("files/01/README", "partial/README", "trash/README", "staging/README"):
                (tmp_path / "store" / name).write_bytes(b"")
            await Scrubber(storage, db, rate=QUICK, now_us=time, metrics=metrics).once()
            assert figure(metrics, "files_without_record") == 1
            assert figure(metrics, "foreign_names") == 4
            assert await files(storage) == [1, 2, 3]
            assert len(await storage.strays()) == 4


class Sleeps:
    """Stands in for the passing of time: `asyncio.sleep` returns at once, and the loop's clock has moved."""

    def __init__(self, monkeypatch):
        self.loop = asyncio.get_running_loop()
        self.passed = 0.0
        self._sleep = asyncio.sleep
        monkeypatch.setattr(self.loop, "time", lambda: self.passed, raising=False)
        monkeypatch.setattr("app.maintenance.scrub.asyncio.sleep", self)

    async def __call__(self, seconds):
        self.passed += max(0.0, seconds)


class TestPace:
    async def test_no_more_than_the_rate_and_a_file_costs_beside_its_bytes(self, monkeypatch):
        sleeps = Sleeps(monkeypatch)
        pace = scrub._Pace(1000)
        for count in (500, 0, 1500, 100):
            await pace(count)
        assert sleeps.passed == pytest.approx(2.1)
        sleeps.passed += 100  # a slow disk: nothing of this is made up for
        for _ in range(3):
            await pace(1000)
        assert sleeps.passed == pytest.approx(105.1)

    async def test_every_block_and_every_file_is_paced(self, tmp_path, db, time):
        paced = []

        async def pace(count):
            paced.append(count)

        async with local(tmp_path / "store") as storage:
            await put(storage, db, 1, 2)
            scrubber = Scrubber(storage, db, rate=QUICK, now_us=time)
            scrubber._pace = pace
            await scrubber.once()
        assert paced[:4] == [10, FILE_COST, 10, FILE_COST]


class TestRun:
    @asynccontextmanager
    async def running(self, scrubber):
        task = asyncio.create_task(scrubber.run())
        yield task
        task.cancel()
        await asyncio.wait((task,))

    @pytest.mark.slow
    async def test_one_process_scrubs_and_another_takes_over(self, tmp_path, db, monkeypatch):
        monkeypatch.setattr(scrub, "LOOK_SECONDS", 0.001)
        monkeypatch.setattr(scrub, "PASS_SECONDS", 0)
        ones, others = Metrics(), Metrics()

        def passes(metrics):
            return figure(metrics, "scrubs_total", "done")

        async with local(tmp_path / "store", 1) as mine, local(tmp_path / "store", 2) as theirs:
            await put(mine, db, 1)
            one = Scrubber(mine, db, rate=QUICK, now_us=Time(), metrics=ones)
            other = Scrubber(theirs, db, rate=QUICK, now_us=Time(), metrics=others)
            async with self.running(one):
                await until(lambda: passes(ones) > 0)
                async with self.running(other):
                    before = passes(ones)
                    await until(lambda: passes(ones) > before + 1)
                    assert passes(others) == 0
            async with self.running(other):
                await until(lambda: passes(others) > 0)

    async def test_a_failing_pass_is_tried_again(self, store, db, time, metrics, monkeypatch):
        monkeypatch.setattr(scrub, "LOOK_SECONDS", 0.001)
        failures = [Unavailable(), RuntimeError("a fault of ours")]
        walk = store.strays

        async def strays():
            if failures:
                raise failures.pop(0)
            return await walk()

        monkeypatch.setattr(store, "strays", strays)
        async with self.running(Scrubber(store, db, rate=QUICK, now_us=time, metrics=metrics)):
            await until(lambda: figure(metrics, "scrubs_total", "done") == 1)
        assert figure(metrics, "scrubs_total", "failed") == 2


async def test_the_owner_of_a_damaged_upload_can_delete_it(store, db, scrubber):
    await put(store, db, 1, 2)
    alter(store, 1)
    await scrubber.once()
    assert not await upload_records.delete_upload(db, "somebody else's", key(1), NOW)
    assert await upload_records.delete_upload(db, "mine", key(1), NOW)
    assert await statuses(db, 1) == [Status.DELETED]
    assert await upload_records.count_damaged(db) == 0
