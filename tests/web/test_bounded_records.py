"""Refused and empty requests do not grow the database for ever."""

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.maintenance.sweep import Sweeper
from app.model import Failure, Protocol, Session, Status, Upload
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.storage.memory import MemoryStorage
from app.uploads import ingest
from app.uploads import records as upload_records
from tests.support.asgi import Client, Service, serving, settings_in
from tests.support.unreliable import opened
from tests.web.test_uploads import UPLOADS, listed, send_form

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_US = 86_400_000_000


async def refused_form(client: Client, files: int) -> None:
    names = [*(f"{number}.txt" for number in range(files)), "x" * 256]
    (await send_form(client, [(name, None, b"x") for name in names])).refused(400, "bad_filename")


async def test_a_refused_form_leaves_few_records(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    await refused_form(client, 50)
    assert len(await listed(client)) == ingest.MAX_FAILED_OF_REQUEST


async def test_a_session_has_so_many_failed_uploads_and_no_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MAX_FAILED_OF_SESSION", 25)
    client = service.client()
    await client.post("/api/session")
    for _ in range(4):
        await refused_form(client, 50)
    assert len(await listed(client)) == 30  # three requests, the third of which began below the bound
    assert (await client.put("a", b"x")).status == 201


async def test_a_disk_below_the_minimum_free_space_takes_no_needless_row(tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url, min_free_space=2**60)) as service:
        client = service.client()
        (await client.post("/api/session")).refused(507, "storage_full")
        (await send_form(client, [("a", None, b"x")])).refused(507, "storage_full")
        (await client.put("empty", b"")).refused(507, "storage_full")
        (await client.put("a", b"x")).refused(507, "storage_full")
        for headers in ({"Upload-Defer-Length": "1"}, {"Upload-Length": "0"}, {"Upload-Length": "5"}):
            made = await client.post(UPLOADS, headers={"Tus-Resumable": "1.0.0", **headers})
            made.refused(507, "storage_full")
        db = service.state["db"]
        assert await session_records.list_sessions(db, 10) == []


def upload(number: int, created_at: int, status: Status, **more: Any) -> Upload:
    fields: dict[str, Any] = {
        "id": f"00000000-0000-7000-8000-{number:012d}",
        "session_id": "mine",
        "filename": "a",
        "content_type": None,
        "size": 1,
        "sha256": None,
        "status": status,
        "protocol": Protocol.TUS,
        "created_at": created_at,
        "completed_at": None,
        "error": Failure(code="too_large", detail="x") if status is Status.FAILED else None,
    }
    return Upload(**{**fields, **more})


async def test_uploads_that_never_completed_are_forgotten_after_a_while(database_url: str) -> None:
    now = 1_000 * DAY_US
    old, recent = now - 8 * DAY_US, now - 6 * DAY_US
    whole = {"sha256": "0" * 64, "completed_at": old}
    kept = [
        upload(1, recent, Status.FAILED),
        upload(2, recent, Status.EXPIRED),
        upload(3, old, Status.FAILED, **whole, error=Failure(code="lost", detail="x")),
        upload(4, old, Status.DELETED, **whole),
        upload(5, old, Status.UPLOADING),
    ]
    gone = [upload(6, old, Status.FAILED), upload(7, old, Status.EXPIRED)]
    async with AsyncExitStack() as stack:
        db = await opened(database_url)
        stack.push_async_callback(db.close)
        await db.transaction(lambda unit: upload_records.insert_uploads(unit, [*kept, *gone]))
        sweeper = Sweeper(MemoryStorage(), db, now_us=lambda: now, retain_failed_seconds=7 * 86_400)
        await sweeper.once()
        found = await upload_records.list_these(db, [each.id for each in (*kept, *gone)])
    assert found.keys() == {each.id for each in kept}


async def test_a_session_that_never_uploaded_ends_a_day_after_its_last_use(database_url: str) -> None:
    now = int(time.time() * 1_000_000)
    seen = {"fresh": now - DAY_US // 2, "idle": now - 2 * DAY_US, "failed": now - 2 * DAY_US, "used": now - 2 * DAY_US}
    async with AsyncExitStack() as stack:
        db = await opened(database_url)
        stack.push_async_callback(db.close)
        arrivals = [
            NewSession(
                Session(id=name, created_at=at, last_seen_at=at, expires_at=now + 20 * DAY_US), f"token of {name}"
            )
            for name, at in seen.items()
        ]
        await db.transaction(lambda unit: session_records.insert_sessions(unit, arrivals))
        rows = [
            upload(1, now - 2 * DAY_US, Status.FAILED, session_id="failed"),
            upload(2, now - 2 * DAY_US, Status.DELETED, session_id="used", sha256="0" * 64, completed_at=now),
        ]
        await db.transaction(lambda unit: upload_records.insert_uploads(unit, rows))
        await Sweeper(MemoryStorage(), db, now_us=lambda: now).once()
        live = {session.id for session in await session_records.list_sessions(db, 10) if session.ended_at is None}
    assert live == {"fresh", "used"}
