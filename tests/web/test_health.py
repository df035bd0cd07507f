"""Alive? Ready? And at what price."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import asyncpg
import pytest

from app.errors import StorageFull, Unavailable, Unusable
from app.maintenance import records as maintenance_records
from app.maintenance.records import Scrub
from app.uploads import records as upload_records
from tests.support.asgi import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECKS = {"database", "schema", "store", "free_space"}


@pytest.fixture(autouse=True)
def anew(service: Service) -> None:
    """No test sees what an earlier one was told."""
    service.app.state.readiness = None


async def test_a_process_that_serves_is_alive(service: Service) -> None:
    answer = await service.client().get("/health/live")
    assert (answer.status, answer.json()) == (200, {"status": "live"})
    assert answer["cache-control"] == "no-store"
    assert answer.all("set-cookie") == []


async def test_a_sound_service_is_ready_and_leaves_nothing_behind(service: Service) -> None:
    before = service.files()
    answer = await service.client().get("/health/ready")
    assert answer.status == 200
    assert answer.json() == {"status": "ready", "failing": [], "checks": dict.fromkeys(CHECKS, "ok"), "warnings": {}}
    assert answer["cache-control"] == "no-store"
    assert service.files() == before
    head = await service.client().request("HEAD", "/health/ready")
    assert (head.status, head.body, head["content-length"]) == (200, b"", answer["content-length"])


def raises(error: Exception) -> Any:
    async def run(*arguments: Any) -> Any:
        raise error

    return run


async def gives(value: Any) -> Any:
    return value


@pytest.mark.parametrize("failing", sorted(CHECKS))
async def test_a_failing_check_is_named(service: Service, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    state = service.state
    match failing:
        case "database":
            monkeypatch.setattr(state["db"], "ping", raises(Unavailable("the database does not answer")))
        case "schema":
            monkeypatch.setattr(state["schema"], "look", lambda: gives("the schema lacks 0002"))
        case "store":
            monkeypatch.setattr(state["storage"], "test", raises(StorageFull()))
        case "free_space":
            monkeypatch.setattr(state["storage"], "free_bytes", lambda: gives(0))
    answer = await service.client().get("/health/ready")
    assert answer.status == 503
    report = answer.json()
    assert (report["status"], report["failing"]) == ("not ready", [failing])
    assert report["checks"].keys() == CHECKS
    assert {name for name, result in report["checks"].items() if result != "ok"} == {failing}
    assert (await service.client().get("/health/live")).status == 200


async def test_an_edited_schema_is_a_check_that_fails(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("app.db.migrate.pending", raises(Unusable("0001 has been edited")))
        answer = await service.client().get("/health/ready")
    assert (answer.status, answer.json()["checks"]["schema"]) == (503, "0001 has been edited")
    await service.state["schema"].look()


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Somebody holds what the row of an upload needs, in another process as it were."""
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            file.execute("BEGIN EXCLUSIVE")
            yield
            file.execute("ROLLBACK")
        return
    other = await asyncpg.connect(url)
    async with other.transaction():
        await other.execute("LOCK TABLE uploads")
        yield
    await other.close()


async def test_a_lock_that_keeps_uploads_from_being_recorded_is_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = service.state
    with monkeypatch.context() as patch:
        patch.setattr(state["db"]._calls, "_timeout", 1.0)
        async with locked(state["settings"].database_url.get_secret_value()):
            answer = await service.client().get("/health/ready")
            assert (answer.status, answer.json()["checks"]["database"] != "ok") == (503, True)
    service.app.state.readiness = None
    assert (await service.client().get("/health/ready")).status == 200


async def test_a_right_that_was_taken_away_is_not_ready(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_records, "try_recording", raises(RuntimeError("permission denied for table uploads")))
    answer = await service.client().get("/health/ready")
    assert (answer.status, answer.json()["failing"]) == (503, ["database"])
    assert b"permission" not in answer.body


async def test_a_database_that_uploads_have_found_to_be_away_is_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise Unavailable("the database is away")

    monkeypatch.setattr(service.state["ingest"], "check", check)
    answer = await service.client().get("/health/ready")
    assert (answer.status, answer.json()["checks"]["database"]) == (503, "the database is away")


async def test_damage_is_a_warning_and_uploads_are_taken(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A balancer that took the node out for one file would take all other files out with it."""
    db = service.state["db"]
    item = (await service.client().put("a.txt", b"x")).json()
    await upload_records.fail_uploads(db, [item["id"]], "damaged", "the stored file has other bytes than were received")
    await maintenance_records.save_scrub(db, Scrub(1, ended_at_us=2, stopped="1 of 1 records have no file"))
    answer = await service.client().get("/health/ready")
    assert (answer.status, answer.json()["status"], answer.json()["failing"]) == (200, "ready", [])
    assert answer.json()["warnings"] == {
        "stored_files": "lost or damaged: 1; waybill verify names them",
        "scrub": "1 of 1 records have no file",
    }
    await upload_records.repair_uploads(db, [item["id"]])
    await maintenance_records.save_scrub(db, Scrub(1))
    service.app.state.readiness = None
    assert (await service.client().get("/health/ready")).json()["warnings"] == {}


async def test_a_database_that_is_away_warns_of_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_records, "count_damaged", raises(Unavailable()))
    answer = await service.client().get("/health/ready")
    assert (answer.status, answer.json()["warnings"]) == (200, {})


async def test_a_store_without_a_limit_has_space(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.state["storage"], "free_bytes", lambda: gives(None))
    assert (await service.client().get("/health/ready")).status == 200


class HeldTest:
    """Stands in for the store's test: counts, and ends when it may."""

    def __init__(self) -> None:
        self.runs = 0
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        self.began.set()
        await self.may_end.wait()


async def test_frequent_checks_cost_one_flush(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    test = HeldTest()
    monkeypatch.setattr("app.web.health._SHARED_SECONDS", 3600.0)
    monkeypatch.setattr(service.state["storage"], "test", test)
    asked = [asyncio.create_task(service.client().get("/health/ready")) for _ in range(20)]
    await test.began.wait()
    asked[0].cancel()  # who goes takes nothing from the others
    test.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
    assert [(await each).status for each in asked[1:]] == [200] * 19
    assert (await service.client().get("/health/ready")).status == 200
    assert test.runs == 1
    monkeypatch.setattr("app.web.health._SHARED_SECONDS", 0.0)  # its second has passed
    assert (await service.client().get("/health/ready")).status == 200
    assert test.runs == 2


async def test_a_slow_check_is_waited_for_and_not_begun_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = HeldTest()
    monkeypatch.setattr("app.web.health._SHARED_SECONDS", 0.0)
    monkeypatch.setattr(service.state["storage"], "test", test)
    first = asyncio.create_task(service.client().get("/health/ready"))
    await test.began.wait()
    second = asyncio.create_task(service.client().get("/health/ready"))
    await asyncio.sleep(0)
    test.may_end.set()
    assert [(await first).status, (await second).status] == [200, 200]
    assert test.runs == 1


async def test_a_check_that_breaks_is_a_500_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.health._SHARED_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(service.state["storage"], "test", raises(RuntimeError("secret")))
        (await service.client().get("/health/ready")).refused(500, "internal")
    assert (await service.client().get("/health/ready")).status == 200
