"""Many listeners over several workers, cut again and again, beside uploads of every protocol: each hears all, once."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from random import Random
from typing import Any

import pytest

from tests.support.load import Load, form, raw, tus
from tests.support.service import HISTORY, PATIENCE, Service, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

EVENTS = "/api/ingestion/events"
SESSIONS, OF_EACH, ROUNDS = 25, 8, 1


class Listener:
    """A client that reads events, is cut off at random, and comes back behind the last event that it took."""

    def __init__(self, running: Service, headers: dict[str, str], chance: Random) -> None:
        self.heard: list[tuple[str, str]] = []
        self.resets = 0
        self.connected = asyncio.Event()
        self._running, self._headers, self._chance = running, headers, chance
        self._position: str | None = None

    async def listen(self) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                async with aclosing(self._events(self._chance.randrange(1, 100))) as events:
                    async for fields in events:
                        self._take(fields)
            await asyncio.sleep(self._chance.random() / 10)  # as a client waits before it comes back

    def _take(self, fields: dict[str, str]) -> None:
        self._position = fields.get("id", self._position)
        self.resets += fields.get("event") == "reset"
        if "data" in fields and fields["event"] not in {"reset", "upload.progress"}:
            record = json.loads(fields["data"])
            self.heard.append((record["id"], fields["event"].removeprefix("upload.")))

    async def _events(self, most: int) -> AsyncGenerator[dict[str, str], None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._running.port)
        try:
            back = {} if self._position is None else {"Last-Event-ID": self._position}
            lines = "".join(f"{name}: {value}\r\n" for name, value in {**self._headers, **back}.items())
            writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return  # as many streams as a worker may have: the ends of some are still on their way
            self.connected.set()
            fields: dict[str, str] = {}
            async with aclosing(_lines(reader)) as lines_of_body:
                async for line in lines_of_body:
                    if line:
                        name, _, value = line.partition(": ")
                        fields[name] = value
                        continue
                    yield fields
                    most -= "data" in fields
                    fields = {}
                    if most == 0:
                        return
        finally:
            writer.transport.abort()


async def _lines(reader: asyncio.StreamReader) -> AsyncGenerator[str, None]:
    """Lines of a chunked body."""
    text = ""
    while size := int(await reader.readline(), 16):
        text += (await reader.readexactly(size + 2))[:-2].decode()
        *whole, text = text.split("\n")
        for line in whole:
            yield line


def history(running: Service, headers: dict[str, str]) -> list[dict[str, Any]]:
    with running.client(headers=headers) as client:
        answer = client.get(HISTORY, params={"format": "ndjson", "order": "oldest"})
        return [json.loads(line) for line in answer.text.splitlines()]


def test_two_hundred_listeners_of_two_workers_miss_nothing_and_hear_nothing_twice(service, database_url):
    running = service(database_url=database_url, workers=2)
    sessions = [running.session() for _ in range(SESSIONS)]
    listeners = [
        [Listener(running, headers, Random(f"{at} {number}")) for number in range(OF_EACH)]
        for at, headers in enumerate(sessions)
    ]

    async def run() -> None:
        tasks = [asyncio.create_task(each.listen()) for of_one in listeners for each in of_one]
        async with asyncio.timeout(PATIENCE):
            for of_one in listeners:
                for each in of_one:
                    await each.connected.wait()
        async with AsyncExitStack() as stack:
            loads = [
                await stack.enter_async_context(Load(running.port, headers, (raw, form, tus))) for headers in sessions
            ]
            await asyncio.gather(*(load.rounds(ROUNDS) for load in loads))
        expected = [await asyncio.to_thread(history, running, headers) for headers in sessions]
        async with asyncio.timeout(PATIENCE):
            for of_one, records in zip(listeners, expected, strict=True):
                for each in of_one:
                    while len(each.heard) < 2 * len(records):  # noqa: ASYNC110  # others do it
                        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for of_one, records in zip(listeners, expected, strict=True):
            assert {record["status"] for record in records} == {"completed"}
            for each in of_one:
                assert each.resets == 0
                assert sorted(each.heard) == sorted(
                    (record["id"], kind) for record in records for kind in ("created", "completed")
                )
                for record in records:
                    assert each.heard.index((record["id"], "created")) < each.heard.index((record["id"], "completed"))

    asyncio.run(run())
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.said("error") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_open_streams_keep_nobody_from_stopping(service, workers):
    running = service(workers=workers, shutdown_timeout="10min")  # longer than the test waits
    listeners = [Listener(running, running.session(), Random(number)) for number in range(6)]

    async def run() -> None:
        tasks = [asyncio.create_task(each.listen()) for each in listeners]
        async with asyncio.timeout(PATIENCE):
            for each in listeners:
                await each.connected.wait()
        running.send(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait) == 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(run())
    assert running.said("error") == []


def test_a_listener_that_has_closed_its_connection_holds_no_place(service):
    """Its FIN is no wish for the rest of an answer that has no end: a page may be loaded again at any time."""
    running = service()
    headers = running.session()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    async def run() -> None:
        for _ in range(3 * OF_EACH):
            async with asyncio.timeout(PATIENCE):
                while True:
                    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readline()  # the first block: nothing unread turns the close into a reset
                    writer.close()
                    if head.startswith(b"HTTP/1.1 200"):
                        break

    asyncio.run(run())
    with running.client() as client:
        assert any("waybill_event_streams 0" in client.get("/metrics").text for _ in range(2000))
    running.stop()
