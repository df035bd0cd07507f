"""F27. The service is told to stop: what was acknowledged is kept, nobody is waited for without end, and it says 0."""

import asyncio
import hashlib
import signal
import sqlite3
from contextlib import asynccontextmanager, closing, suppress

import pytest

from tests.support.load import Load
from tests.support.postgres import Postgres
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Cut, ask, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

TIMES = 10 if TORTURE else 1
CLIENTS = 20
LARGE = 600_000  # bytes; more than waits in memory


@asynccontextmanager
async def stalled_upload(port, headers):
    """An upload that has begun and sends no more; gives the two ends of its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"PUT {UPLOADS}/stalled.bin HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * LARGE}\r\n{lines}\r\n"
    writer.write(head.encode() + bytes(LARGE))
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()


async def staged(running):
    """Wait until something lies in staging."""
    while not list((running.store / "staging").glob("*/*")):  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.01)


def records(running, headers):
    with running.client(headers=headers) as client:
        return {item["filename"]: item for item in client.get(HISTORY, params={"limit": 500}).json()["items"]}


@pytest.mark.parametrize("workers", [1, 2] if TORTURE else [1])
def test_a_stop_under_load_loses_nothing_that_was_acknowledged(service, database_url, workers):
    """Files come as forms, as bodies and in several requests, on new connections and on kept ones."""
    running = service(database_url=database_url, workers=workers)
    headers = running.session()

    async def load_and_stop():
        async with Load(running.port, headers, once=True) as load:
            await load.rounds(3)
            running.send(signal.SIGTERM)
        return load

    for _ in range(TIMES):
        load = asyncio.run(load_and_stop())
        assert running.wait() == 0
        assert running.said("error") == []
        assert list((running.store / "staging").iterdir()) == []
        assert {answer.status for answer in load.refused} <= {503}
        running.start()
        load.all_landed(running)
        headers = running.session()


@pytest.mark.parametrize("workers", [1, 2])
def test_uploads_in_flight_are_finished_and_no_new_one_is_begun(service, workers):
    running = service(workers=workers)
    headers = running.session()

    async def run():
        async with stalled_upload(running.port, headers) as (answer, writer):
            await staged(running)
            running.send(signal.SIGTERM)
            await asyncio.to_thread(running.wait_for, "Shutting down", count=workers)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(bytes(LARGE))
            return (await answer.read()).decode()

    assert asyncio.run(run()).startswith("HTTP/1.1 201 ")
    assert running.wait() == 0
    running.start()
    assert records(running, headers)["stalled.bin"]["sha256"] == hashlib.sha256(bytes(2 * LARGE)).hexdigest()


def test_a_silent_upload_is_refused_and_not_waited_for(service):
    running = service(shutdown_timeout="1s")
    headers = running.session()

    async def run():
        async with stalled_upload(running.port, headers) as (answer, _):
            await staged(running)
            running.send(signal.SIGTERM)
            return (await answer.read()).decode()

    text = asyncio.run(run())
    assert running.wait() == 0
    assert text.startswith("HTTP/1.1 503 ")
    assert '"code":"unavailable"' in text
    assert "retry-after: " in text.lower()
    assert "x-request-id: " in text.lower()
    assert "connection: close" in text.lower()
    assert running.wait_for("stopped")
    assert [event for event in running.events if "Traceback" in str(event)] == []
    assert list((running.store / "staging").iterdir()) == []
    running.start()
    failed = records(running, headers)["stalled.bin"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "unavailable")


def test_the_offset_of_a_resumable_upload_is_kept(service):
    running = service(shutdown_timeout="1s")
    tus = {"Tus-Resumable": "1.0.0"}
    chunk = {**tus, "Content-Type": "application/offset+octet-stream"}
    with running.client() as client:
        url = client.post(UPLOADS, headers={**tus, "Upload-Length": str(2 * LARGE)}).headers["location"]
    head = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * LARGE}\r\nUpload-Offset: 0\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in chunk.items()
    )

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(f"{head}\r\n".encode() + bytes(LARGE))
        while not list((running.store / "partial").iterdir()):  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.01)
        running.send(signal.SIGTERM)
        try:
            return (await reader.read()).decode()
        finally:
            writer.close()

    assert asyncio.run(run()).startswith("HTTP/1.1 503 ")
    assert running.wait() == 0
    running.start()
    with running.client() as client:
        offset = int(client.head(url, headers=tus).headers["upload-offset"])
        assert 0 < offset <= LARGE
        headers = {**chunk, "Upload-Offset": str(offset)}
        assert client.patch(url, headers=headers, content=bytes(2 * LARGE - offset)).status_code == 204


def test_a_download_that_nobody_reads_is_not_waited_for(service):
    """A download that its client does not read."""
    running = service(shutdown_timeout="1s")
    headers = running.session()
    content = bytes(32 * 1024 * 1024)  # more than the sockets between hold

    async def run():
        made = await ask(running.port, "PUT", f"{UPLOADS}/large.bin", headers, content)
        link = made.json()["links"]["content"]
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1)
        writer.write(f"GET {link} HTTP/1.1\r\nHost: x\r\nCookie: {headers['Cookie']}\r\n\r\n".encode())
        await writer.drain()
        while not any("files" in file.parts for file in running.open_files()):  # noqa: ASYNC110  # another's files
            await asyncio.sleep(0.01)
        running.send(signal.SIGTERM)
        status = await asyncio.to_thread(running.wait)
        writer.close()
        return status

    assert asyncio.run(run()) == 0
    assert [event for event in running.events if "Traceback" in str(event)] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)],
)
def test_a_second_signal_does_no_harm(service, first, second):
    """A second SIGTERM changes nothing; a second Ctrl+C does not wait for clients. Either way it is an orderly end."""
    running = service(shutdown_timeout="2s" if second is signal.SIGTERM else "1h")
    headers = running.session()

    async def run():
        async with stalled_upload(running.port, headers):
            await staged(running)
            running.send(first)
            await asyncio.to_thread(running.wait_for, "Shutting down")
            running.send(second)
            return await asyncio.to_thread(running.wait)

    assert asyncio.run(run()) == 0
    assert [event for event in running.events if "Traceback" in str(event)] == []
    assert list((running.store / "staging").iterdir()) == []


@pytest.fixture(scope="module")
def database():
    """A server of our own: this one is hurt."""
    server = Postgres()
    yield server
    server.close()


def test_a_stop_ends_although_the_database_is_frozen(service, database):
    running = service(
        database_url=database.create_database(),
        shutdown_timeout="1s",
        change="from app import server\nserver.LAST_SECONDS = 1.0",
    )
    headers = running.session()

    async def run():
        async with stalled_upload(running.port, headers):
            await staged(running)
            database.freeze()
            running.send(signal.SIGTERM)
            return await asyncio.to_thread(running.wait)

    try:
        assert asyncio.run(run()) == 1
    finally:
        database.thaw()
    assert running.said("critical") == ["shutdown timed out"]


@pytest.mark.parametrize("connection", ["new", "kept"])
def test_a_request_on_its_way_when_the_service_stops_is_answered(service, connection):
    """Its request may be on the way when the connection would be closed; it learns that it was the last."""
    running = service(change="from app.server.connection import Connection\nConnection.LAST_REQUEST_SECONDS = 60")
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        if connection == "kept":
            writer.write(request)
            assert b"connection: close" not in (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readuntil(b"}")
        running.send(signal.SIGTERM)
        await asyncio.to_thread(running.wait_for, "Shutting down")
        writer.write(request)
        answer = (await reader.read()).lower()
        writer.close()
        return answer

    answer = asyncio.run(run())
    assert answer.startswith(b"http/1.1 200 ")
    assert b"connection: close" in answer
    assert running.wait() == 0


LATE = """
import time
from pathlib import Path
from app import server

shutdown = server._Server.shutdown

async def late(self, sockets=None):
    Path("stops").touch()
    while not Path("go").exists():
        time.sleep(0.01)  # the loop stands still: who connects now waits at the socket
    await shutdown(self, sockets)

server._Server.shutdown = late
"""


def test_a_connection_waiting_at_the_socket_is_answered(service):
    """It has a connection, as far as it knows; the kernel would reset it when the socket closes."""
    running = service(change=LATE)
    asked = asyncio.Barrier(CLIENTS + 1)

    async def ask_when_it_stops():
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        answer = await reader.read()
        writer.close()
        return answer

    async def run():
        running.send(signal.SIGTERM)
        await until_there(running.directory / "stops")
        answers = asyncio.gather(*(ask_when_it_stops() for _ in range(CLIENTS)))
        await asked.wait()
        (running.directory / "go").touch()
        return await answers

    assert {answer[:13] for answer in asyncio.run(run())} == {b"HTTP/1.1 200 "}
    assert running.wait() == 0


@pytest.mark.torture
def test_a_connection_on_which_nothing_is_asked_keeps_nobody(service):
    running = service(shutdown_timeout="1h")

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        running.send(signal.SIGTERM)
        assert await reader.read() == b""
        writer.close()

    asyncio.run(run())
    assert running.wait() == 0


# --- in the middle of what cannot be cut short

HELD = """
import os, time
from pathlib import Path
from app import server

server.LAST_SECONDS = {last_seconds}
flush = os.fsync

def held(fd):
    flush(fd)
    if Path("hold").exists():
        Path("held").touch()
        while Path("hold").exists():
            time.sleep(0.01)

os.fsync = held
"""


async def until_there(path):
    async with asyncio.timeout(PATIENCE):
        while not path.exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ends", ["in time", "never"])
def test_a_stop_in_a_flush_loses_nothing(service, ends):
    """The flush is waited for, and the client has its answer; a disk that hangs does not keep the process."""
    running = service(change=HELD.format(last_seconds=60.0 if ends == "in time" else 0.5), shutdown_timeout="1s")
    headers = running.session()
    hold, held = running.directory / "hold", running.directory / "held"

    async def run():
        hold.touch()
        uploading = asyncio.create_task(ask(running.port, "PUT", f"{UPLOADS}/a.bin", headers, b"hello" * LARGE))
        await until_there(held)
        running.send(signal.SIGTERM)
        await asyncio.to_thread(running.wait_for, "Shutting down")
        if ends == "in time":
            hold.unlink()
            assert (await uploading).status == 201
            return await asyncio.to_thread(running.wait)
        status = await asyncio.to_thread(running.wait)
        with suppress(Cut):
            assert (await uploading).status == 503
        return status

    status = asyncio.run(run())
    assert status == (0 if ends == "in time" else 1)
    hold.unlink(missing_ok=True)
    running.start()
    found = records(running, headers)
    if ends == "in time":
        assert found["a.bin"]["sha256"] == hashlib.sha256(b"hello" * LARGE).hexdigest()
    else:
        assert running.wait_for("swept")["staged_removed"] == 1
        assert found == {}


@pytest.mark.parametrize("ends", ["in time", "never"] if TORTURE else ["in time"])
def test_a_stop_in_a_commit_loses_nothing(service, ends):
    """Another process holds SQLite's lock: until it lets go, or for longer than anybody waits."""
    running = service(shutdown_timeout="30s")
    headers = running.session()

    async def run():
        with closing(sqlite3.connect(running.store / "waybill.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            uploading = asyncio.create_task(ask(running.port, "PUT", f"{UPLOADS}/a.bin", headers, b"hello"))
            while not list((running.store / "files").glob("*/*")):  # noqa: ASYNC110  # it has its name, and no row
                await asyncio.sleep(0.01)
            running.send(signal.SIGTERM)
            await asyncio.to_thread(running.wait_for, "Shutting down")
            if ends == "in time":
                other.execute("ROLLBACK")
            answer = await uploading
            return answer.status, await asyncio.to_thread(running.wait)

    answered, status = asyncio.run(run())
    assert answered == (201 if ends == "in time" else 503)
    assert status == 0 or ends == "never"
    running.start()
    assert [record["status"] for record in records(running, headers).values()] == (
        ["completed"] if ends == "in time" else []
    )
