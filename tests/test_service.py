"""The built service, end to end: from its start, through all that a client does, to its end, and started again."""

import asyncio
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.errors import Unusable
from tests.support.asgi import Service, serving, settings_in
from tests.support.strategies import form

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
SESSION = "/api/session"


async def test_files_live_from_upload_to_deletion(tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as service:
        client = service.client()
        assert (await client.get("/health/ready")).json()["status"] == "ready"

        body, content_type = form([("q3 report.pdf", "application/pdf", b"%PDF-1.7"), ("notes.txt", None, b"")])
        created = await client.post(UPLOADS, [body[:40], b"", body[40:]], headers={"Content-Type": content_type})
        assert created.status == 201
        report, notes = created.json()["items"]

        page = (await client.get(f"{HISTORY}?count=true")).json()
        assert page["items"] == [notes, report]
        assert page["total"] == 2
        assert (await client.get(report["links"]["content"])).body == b"%PDF-1.7"
        part = await client.get(report["links"]["content"], headers={"Range": "bytes=1-3"})
        assert (part.status, part.body) == (206, b"PDF")

        assert (await client.delete(report["links"]["content"])).status == 204
        (await client.get(report["links"]["content"])).refused(404, "not_found")
        assert (await client.get(report["links"]["self"])).json()["status"] == "deleted"
        assert (await client.get(f"{HISTORY}?status=completed")).json()["items"] == [notes]
        summary = (await client.get(f"{HISTORY}/summary")).json()
        assert summary["by_status"]["deleted"] == {"uploads": 1, "bytes": 8}
        assert service.files() == {notes["id"]: b""}

        phone = service.client()
        code = (await client.post(f"{SESSION}/link")).json()["code"]
        assert (await phone.post(f"{SESSION}/join", f'{{"code": "{code}"}}'.encode())).status == 200
        assert (await phone.put("photo.jpg", b"\xff\xd8")).status == 201
        names = [line.split(b",")[1] for line in (await client.get(f"{HISTORY}?format=csv")).body.splitlines()]
        assert names == [b"filename", b"photo.jpg", b"notes.txt", b"q3 report.pdf"]
        assert (await client.delete(SESSION)).status == 204
        (await phone.get(HISTORY)).refused(401, "no_session")


async def test_accepted_uploads_are_there_after_a_restart(tmp_path: Path, database_url: str) -> None:
    """Also the key that was made at the first start, so the cookies of before are good."""
    settings = settings_in(tmp_path, database_url, secret_keys=())
    async with serving(settings) as service:
        client = service.client()
        record = (await client.put("kept.bin", b"x" * 300_000)).json()
        key = (tmp_path / "store" / "secret.key").read_bytes()
    async with serving(settings) as service:
        again = service.client()
        again.cookies = client.cookies
        assert (await again.get(HISTORY)).json()["items"] == [record]
        assert (await again.get(record["links"]["content"])).body == b"x" * 300_000
        assert (tmp_path / "store" / "secret.key").read_bytes() == key


async def test_two_processes_share_a_store_and_a_database(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.KNOWN_SECONDS", 0.0)  # what one does, the other learns a moment later
    settings = settings_in(tmp_path, database_url)
    async with serving(settings) as one, serving(settings) as two:
        here, there = one.client(), two.client()
        await here.post(SESSION)
        there.cookies = dict(here.cookies)
        await asyncio.gather(*((here, there)[number % 2].put(f"{number}", b"x" * number) for number in range(20)))
        for client in (here, there):
            items = (await client.get(f"{HISTORY}?order=oldest")).json()["items"]
            assert sorted(item["size"] for item in items) == list(range(20))
            for item in items[::5]:
                assert (await client.get(item["links"]["content"])).body == b"x" * item["size"]
        assert (await here.delete(items[0]["links"]["content"])).status == 204
        (await there.get(items[0]["links"]["content"])).refused(404, "not_found")
        assert (await there.post(f"{SESSION}/rotate")).status == 200
        assert (await there.get(HISTORY)).status == 200
        here.cookies, there.cookies = dict(there.cookies), dict(here.cookies)
        assert (await here.get(HISTORY)).status == 200
        (await there.get(HISTORY)).refused(401, "no_session")


@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_uploads_of_many_clients_at_once_all_land(tmp_path: Path, database_url: str, durability: str) -> None:
    async with serving(settings_in(tmp_path, database_url, durability=durability)) as service:
        clients = [service.client() for _ in range(10)]
        await asyncio.gather(*(client.put(f"{number}.0", b"x") for number, client in enumerate(clients)))

        def sent(number: int) -> Any:
            client = clients[number % 10]
            if number % 3:
                return client.put(f"{number % 10}.{number}", b"y" * number * 100)
            body, content_type = form([(f"{number % 10}.{number}", None, b"y" * number * 100)])
            return client.post(UPLOADS, [body[:50], body[50:]], headers={"Content-Type": content_type})

        answers = await asyncio.gather(*(sent(number) for number in range(10, 110)))
        assert [answer.status for answer in answers] == [201] * 100
        for number, client in enumerate(clients):
            items = (await client.get(f"{HISTORY}?limit=500")).json()["items"]
            assert len(items) == 11
            assert {item["filename"].partition(".")[0] for item in items} == {f"{number}"}
        assert len(service.files()) == 110
        assert service.staged() == []


# --- start and end


def open_here(directory: Path) -> set[str]:
    """What this process has open in `directory`."""
    links = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {link for link in links if link.startswith(str(directory))}


async def use(service: Service) -> None:
    client = service.client()
    for size in (0, 10, 300_000, 3_000_000):
        record = (await client.put("a", b"x" * size)).json()
        assert len((await client.get(record["links"]["content"])).body) == size
    await client.put("a", [b"x" * 500_000] * 2, hang_up_after=1)
    await client.get("/health/ready")


@pytest.mark.slow
async def test_a_service_that_has_ended_holds_nothing(tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as service:
        await use(service)
        assert open_here(tmp_path)
    gc.collect()
    assert open_here(tmp_path) == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("waybill-")]
    assert [name for name in ours if not name.startswith("waybill-logs")] == []
    assert service.staged() == []


async def test_a_start_that_fails_says_why_and_holds_nothing(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "store").write_text("a file")
    for _ in range(2):
        with pytest.raises(Unusable, match="store"):
            async with serving(settings_in(tmp_path, database_url)):
                raise AssertionError("it started")
    assert open_here(tmp_path) == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    (tmp_path / "store").unlink()
    async with serving(settings_in(tmp_path, database_url)) as service:
        await use(service)


async def test_a_key_that_cannot_be_read_is_reported_before_anything_is_served(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, secret_keys=())
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "secret.key").write_text("short")
    with pytest.raises(Unusable, match=r"secret\.key holds 5 characters, needs 32 or more"):
        async with serving(settings):
            raise AssertionError("it started")
    assert open_here(tmp_path) == set()
