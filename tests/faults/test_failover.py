"""Two servers, of which one takes writes: the service finds it, and the other one when it takes its place."""

import asyncio
from contextlib import closing

import pytest

from app.db import migrate
from app.db.database import Db
from app.errors import Unavailable
from app.uploads import records as upload_records
from tests.contracts.records import upload
from tests.support.postgres import Postgres
from tests.support.service import UPLOADS, service
from tests.test_cli import apart, refusal, run

__all__ = ["apart", "service"]


@pytest.fixture
def pair():
    """A primary, its standby, and the URL of a database on both, the standby's address first."""
    with closing(Postgres()) as primary:
        url = primary.create_database()
        with closing(Postgres(standby_of=primary)) as standby:
            both = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
            yield primary, standby, url.replace(f"127.0.0.1:{primary.port}", both)


async def writes(db, number):
    """Write, trying again until the database takes it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await upload_records.insert_uploads(db, [upload(number)])
            except Unavailable:
                continue


@pytest.mark.parametrize("end", ["stop", pytest.param("freeze", marks=pytest.mark.slow)])
async def test_the_server_that_takes_writes_is_found_before_and_after_a_fail_over(pair, end):
    primary, standby, url = pair
    db = Db(url)
    await db.open()
    await migrate.migrate(db, now_us=0)
    await upload_records.insert_uploads(db, [upload(1)])
    await asyncio.to_thread(primary.await_standby)  # replication is asynchronous: what it lacks would be lost, rightly
    getattr(primary, end)()  # one that is frozen keeps its connections, and says nothing to new ones
    await asyncio.to_thread(standby.promote)
    await writes(db, 2)
    await asyncio.gather(*(writes(db, number) for number in range(3, 9)))
    assert await upload_records.count_stored(db) == 8
    await db.close()


@pytest.mark.slow
def test_a_service_goes_on_with_the_server_that_was_promoted(pair, service):
    primary, standby, url = pair
    running = service(database_url=f"{url}?target_session_attrs=read-write", workers=2)
    with running.client() as client:
        assert client.put(f"{UPLOADS}/before", content=b"x").status_code == 201
        primary.stop()
        standby.promote()
        while (status := client.put(f"{UPLOADS}/after", content=b"x").status_code) == 503:
            continue
        assert status == 201


def test_a_pair_of_which_none_takes_writes_is_away(pair, monkeypatch):
    primary, _, url = pair
    primary.stop()
    monkeypatch.setenv("WAYBILL_DATABASE_URL", url)
    done = run("check")
    assert done.exit_code == 69
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("mode", "said"), [("require", "the server has no TLS"), ("verify-full", "root.crt")])
def test_a_server_without_tls_is_distinguished_from_one_that_is_away(postgres, monkeypatch, tmp_path, mode, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WAYBILL_DATABASE_URL", f"{postgres.create_database()}?ssl={mode}")
    for command in ("check", "serve", "migrate"):
        assert said in refusal(command)
