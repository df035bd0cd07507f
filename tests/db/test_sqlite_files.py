"""An SQLite database whose files somebody moved, replaced or removed while they are in use."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing

import pytest

from app.db.database import Db
from app.db.migrate import migrate
from app.errors import Unavailable, root_reason
from app.uploads import records as upload_records
from tests.contracts.records import everything, upload
from tests.support.unreliable import until

POOL = 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "waybill.db"


@asynccontextmanager
async def opened(path):
    """The database, with several connections open and something in its log."""
    db = Db(f"sqlite:///{path}", pool_size=POOL, timeout=20)
    await db.open()
    try:
        await migrate(db, now_us=0)
        await use_all(db)
        await write(db, 1)
        yield db
    finally:
        await db.close()


async def use_all(db):
    """Open every connection that may be."""
    meeting = asyncio.Barrier(POOL)
    await asyncio.gather(*(db._pool.lend(lambda raw: meeting.wait(), writes=False) for _ in range(POOL)))


async def write(db, number):
    await db.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(number)]))


async def stored(path):
    """What a start from now on finds."""
    db = Db(f"sqlite:///{path}", timeout=20)
    await db.open()
    found = {each.id for each in await everything(db)}
    await db.close()
    return found


def replace(path):
    """Restore a backup as somebody does who does not think of the service."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    backup.rename(path)


def remove(*suffixes):
    def deed(path):
        for suffix in suffixes:
            path.with_name(path.name + suffix).unlink()

    return deed


def exchange_the_log(path):
    """As if somebody had restored it with the rest of a backup."""
    log = path.with_name(path.name + "-wal")
    copy = path.with_name("copy-wal")
    copy.write_bytes(log.read_bytes())
    copy.rename(log)


def lead_elsewhere(path):
    """What lies at the path is on another file system, or another directory, from now on."""
    path.rename(path.with_name("moved.db"))
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other)) as target:
        target.execute("CREATE TABLE uploads (id TEXT)")
    path.symlink_to(other)


DEEDS = [replace, lead_elsewhere, exchange_the_log, remove(""), remove("-wal"), remove("-shm"), remove("-wal", "-shm")]
NAMES = ["replaced", "elsewhere", "log replaced", "removed", "log removed", "index removed", "log and index removed"]


@pytest.mark.parametrize("deed", DEEDS, ids=NAMES)
async def test_nothing_is_acknowledged_that_the_next_start_would_not_find(path, deed):
    async with opened(path) as db:
        deed(path)
        for number in range(2, 2 + 2 * POOL):
            with pytest.raises(Unavailable) as refusal:
                await write(db, number)
        assert root_reason(refusal.value).startswith("Moved: ")
        with pytest.raises(Unavailable):
            await upload_records.insert_uploads(db, [upload(90)])
        for ask in (db.ping, lambda: everything(db), lambda: upload_records.try_recording(db)):
            with pytest.raises(Unavailable):
                await ask()


@pytest.mark.parametrize("deed", DEEDS[2:3] + DEEDS[4:], ids=NAMES[2:3] + NAMES[4:])
async def test_records_acknowledged_before_the_log_was_removed_are_found_again(path, deed):
    """SQLite brings it into the file when the last connection closes, if none that has another log is open."""
    async with opened(path) as db:
        deed(path)
        with pytest.raises(Unavailable):
            await write(db, 2)
        with pytest.raises(Unavailable):
            await write(db, 3)
        assert not db._pool._open
        await until(lambda: not db._connections._abandoned)
        with closing(sqlite3.connect(path)) as other:  # nothing of ours is open, whatever becomes of this process
            assert upload(1).id in {row[0] for row in other.execute("SELECT id FROM uploads")}


@pytest.mark.parametrize("ask", ["ping", "everything"])
async def test_a_mere_reader_notices_a_replaced_file_too(path, ask, monkeypatch):
    monkeypatch.setattr("app.db.pool._FRESH_SECONDS", 0.0)
    async with opened(path) as db:
        replace(path)
        with pytest.raises(Unavailable):
            await (db.ping() if ask == "ping" else everything(db))


async def test_a_file_that_was_moved_away_and_is_put_back_is_used_again(path):
    async with opened(path) as db:
        path.rename(path.with_name("away.db"))
        with pytest.raises(Unavailable):
            await write(db, 2)
        with pytest.raises(Unavailable):
            await write(db, 3)
        assert not path.exists()
        path.with_name("away.db").rename(path)
        await write(db, 4)
    assert {upload(1).id, upload(4).id} <= await stored(path)


async def test_a_log_that_sqlite_itself_removes_and_makes_anew_is_no_loss(path):
    """With the last connection of all it goes; with the next one there is another."""
    logs = set()
    for number in range(2, 6):
        db = Db(f"sqlite:///{path}", pool_size=POOL, timeout=20)
        await db.open()
        await migrate(db, now_us=0)
        for _ in range(5):
            await asyncio.gather(*(write(db, 100 * number + each) for each in range(POOL)))
            logs.add(path.with_name(path.name + "-wal").stat().st_ino)
            await asyncio.gather(*(everything(db) for _ in range(POOL)))
            await db._pool._drop_idle()
            (path.with_name("waste")).touch()  # so that the number of the log is not free again at once
            number += 10
        await db.close()
        path.with_name("waste").unlink()


async def test_connections_that_come_and_go_at_once_raise_no_false_alarm(path):
    db = Db(f"sqlite:///{path}", pool_size=8, timeout=60)
    await db.open()
    await migrate(db, now_us=0)

    async def come_and_go(start):
        for number in range(start, start + 10):
            await write(db, number)
            await everything(db)
            await db._pool._drop_idle()

    await asyncio.gather(*(come_and_go(100 * each) for each in range(8)))
    assert len(await everything(db)) == 80
    await db.close()


async def test_a_log_that_another_process_begins_anew_is_no_loss(path):
    """TRUNCATE keeps the file; closing leaves the log alone as long as we have it."""
    async with opened(path) as db:
        for number in range(2, 5):
            code = (
                f"import sqlite3; c = sqlite3.connect({str(path)!r}); "
                "c.execute('PRAGMA wal_checkpoint(TRUNCATE)'); c.execute('DELETE FROM scrubs'); c.commit(); c.close()"
            )
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=True)
            await write(db, number)
    assert len(await stored(path)) == 4


async def test_the_journal_is_a_log_again_whoever_changed_it(path):
    """That can be done only while no connection is open, and costs the last commits at a power cut."""
    async with opened(path) as db:
        await db._pool._drop_idle()
        await until(lambda: not db._connections._abandoned)
        with closing(sqlite3.connect(path, timeout=20)) as other:
            assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        await write(db, 2)
        assert (await db.check())["journal_mode"] == "wal"


async def test_callers_wait_for_open_connections_when_no_more_can_be_opened(path, monkeypatch):
    """A process without a descriptor left cannot open the file once more."""
    db = Db(f"sqlite:///{path}", pool_size=POOL, timeout=20)
    await db.open()
    await migrate(db, now_us=0)

    async def connect(connection):
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(db._driver, "connect", connect)
    await asyncio.gather(*(write(db, number) for number in range(5)), *(everything(db) for _ in range(20)))
    await db.close()


async def test_another_process_cannot_change_the_journal_while_the_service_runs(path):
    async with opened(path) as db:
        with (
            closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("PRAGMA journal_mode = DELETE")
        await write(db, 2)
