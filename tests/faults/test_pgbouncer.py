"""PgBouncer between the service and PostgreSQL: a session for each connection works, anything less is refused."""

import asyncio
from contextlib import closing

import pytest

from app.db.database import Db
from app.errors import Unusable
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres, program
from tests.support.service import HISTORY, UPLOADS, ask, service
from tests.test_cli import apart, refusal, run

__all__ = ["apart", "service"]

pytestmark = pytest.mark.slow


@pytest.fixture
def bouncer(postgres):
    """`bouncer(mode)` starts one."""
    started = []

    def start(mode, **options):
        started.append(PgBouncer(postgres, mode=mode, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


async def test_a_service_behind_session_pooling_serves_as_ever(postgres, bouncer, service):
    running = service(database_url=bouncer("session").url(postgres.create_database()), workers=2)
    headers = running.session()
    made = await asyncio.gather(
        *(ask(running.port, "PUT", f"{UPLOADS}/{n}", headers, b"content") for n in range(20)),
        *(ask(running.port, "GET", f"{HISTORY}?filename={n}&count=true", headers) for n in range(20)),
    )
    assert {answer.status for answer in made} == {200, 201}
    listed = await ask(running.port, "GET", HISTORY, headers)
    assert len(listed.json()["items"]) == 20
    assert (await ask(running.port, "GET", "/health/ready")).status == 200


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_every_command_refuses_less_than_session_pooling_in_a_line(postgres, bouncer, monkeypatch, mode):
    monkeypatch.setenv("WAYBILL_DATABASE_URL", bouncer(mode).url(postgres.create_database()))
    for command in ("check", "serve", "migrate"):
        assert "set pool_mode = session in PgBouncer" in refusal(command)


@pytest.mark.parametrize("size", [1, 3, 30])
async def test_transaction_pooling_is_found_whoever_else_uses_the_pool(postgres, bouncer, size):
    """Others may have the session just then that a look would have met."""
    url = bouncer("transaction", size=size).url(postgres.create_database())
    stop = asyncio.Event()

    async def use():
        while not stop.is_set():
            done = await asyncio.create_subprocess_exec(
                *(program("psql"), "-qX", url, *["-c", "SELECT 1"] * 50), stdout=asyncio.subprocess.DEVNULL
            )
            await done.wait()

    others = [asyncio.create_task(use()) for _ in range(3)]
    for _ in range(5):
        with pytest.raises(Unusable, match="pool_mode = session"):
            await Db(url).open()
    stop.set()
    await asyncio.gather(*others)


@pytest.mark.slow
async def test_a_pooler_that_is_told_to_share_sessions_later_makes_no_mistakes_of_ours(postgres, bouncer, service):
    between = bouncer("session")
    running = service(database_url=between.url(postgres.create_database()))
    headers = running.session()
    between.change("transaction")
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waybill'")
    for _ in range(5):
        answers = await asyncio.gather(
            *(ask(running.port, "GET", f"{HISTORY}?filename={n}&count=true", headers) for n in range(20)),
            *(ask(running.port, "PUT", f"{UPLOADS}/{n}", headers, b"content") for n in range(5)),
        )
        assert {answer.status for answer in answers} <= {200, 201, 503}


def test_a_server_that_is_away_behind_the_pooler_may_come_back(monkeypatch):
    with closing(Postgres()) as server, closing(PgBouncer(server, mode="session")) as between:
        monkeypatch.setenv("WAYBILL_DATABASE_URL", between.url(server.create_database()))
        server.stop()
        assert run("check").exit_code == 69
