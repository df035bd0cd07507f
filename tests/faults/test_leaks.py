"""After thousands of clients that broke off, and after minutes of everything at once, all is given back."""

import asyncio
import random
from contextlib import suppress
from urllib.parse import quote, urlsplit

import psutil
import pytest

from tests.faults.ledger import (
    PROTOCOLS,
    RESUMABLE,
    SIZES,
    Ledger,
    answered,
    at_rest,
    content_of,
    form_of,
    name_of,
    new_session,
    nothing_is_left,
)
from tests.support.cutting_proxy import reset
from tests.support.sender import Tus
from tests.support.service import UPLOADS, Cut, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
ABORTS = 10_000 if TORTURE else 60  # on each database, after as many as a tenth of them
SOAK_SECONDS = 180.0 if TORTURE else 0.6
AT_ONCE = 12
WHOLE = 0.03  # so many send everything, and go before the answer comes
GROWTH = 64 * MIB  # of memory, however much was done: blocks to write with are kept, and so are pages of malloc
POOLS = 16  # descriptors that pools of threads and connections may yet open, when more comes at once than before


def request_of(headers, protocol, number, chance):
    """One request that would upload a file."""
    size = chance.randrange(1, chance.choice(SIZES))
    name = name_of(protocol, number, size)
    content = content_of(name)
    method, path, more = "POST", UPLOADS, {}
    if protocol == "form":
        more, content = form_of(name, content)
    elif protocol == "raw":
        method, path = "PUT", f"{UPLOADS}/{quote(name)}"
    else:
        more = RESUMABLE[protocol].create(name, size)
        if protocol == "tus":  # its creation may bring bytes
            more = {**more, "Content-Type": "application/offset+octet-stream"}
    return written(method, path, {**headers, **more}, content)


def written(method, path, headers, content):
    head = {"Host": "x", "Content-Length": str(len(content)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


async def break_off(port, request, chance):
    """Send the request as far as any of its bytes, and hang up: politely or not, at once or a little later."""
    end = len(request) if chance.random() < WHOLE else chance.randrange(1, len(request))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(OSError):  # it may have had enough before
        writer.write(request[:end])
        await writer.drain()
        await asyncio.sleep(chance.choice([0, 0.002]))
    if chance.random() < 0.5:
        reset(writer)
    else:
        writer.close()
    with suppress(OSError):
        await writer.wait_closed()


class Aborts:
    """Many clients that break off, each in its own way."""

    def __init__(self, running, ledger):
        self.running, self.ledger = running, ledger
        self.number = 0

    async def run(self, count):
        headers = await new_session(self.running.port)
        numbers = iter(range(count))
        async with asyncio.TaskGroup() as group:
            for lane in range(AT_ONCE):
                group.create_task(self._lane(headers, numbers, random.Random(lane)))

    async def _lane(self, headers, numbers, chance):
        kept = None  # a resumable upload, whose next bytes break off
        for _ in numbers:
            self.number += 1
            protocol = chance.choice(PROTOCOLS)
            request = request_of(headers, protocol, self.number, chance)
            if protocol == "tus" and chance.random() < 0.7:
                with suppress(Cut):  # one before is still at it
                    kept = kept if kept and chance.random() < 0.9 else await self._created(headers)
                    request = await self._next_bytes(headers, kept)
            await break_off(self.running.port, request, chance)
            self.ledger.rows[protocol].injected += 1

    async def _created(self, headers):
        name = name_of("tus", f"kept-{self.number}", SIZES[-1])
        made = await answered(self.running.port, "POST", UPLOADS, {**headers, **Tus.create(name, SIZES[-1])})
        assert made.status == 201, made
        return urlsplit(made.headers["location"]).path, name

    async def _next_bytes(self, headers, kept):
        path, name = kept
        found = await answered(self.running.port, "HEAD", path, {**headers, **Tus.ask()})
        assert found.status == 200, found
        offset = int(found.headers["upload-offset"])
        return written("PATCH", path, {**headers, **Tus.append(offset, last=True)}, content_of(name)[offset:])


class Use:
    """What the service's process has in use, once nothing is under way."""

    def __init__(self, running):
        process = psutil.Process(running.pid)
        self.descriptors = process.num_fds()
        self.memory = running.memory()
        self.unfinished = [file for file in running.open_files() if {"staging", "partial"} & set(file.parts)]


async def in_use(running):
    await at_rest(running)
    return Use(running)


def compare(ledger, before, after):
    row = next(iter(ledger.rows.values()))
    row.descriptors += len(after.unfinished) + max(0, after.descriptors - before.descriptors - POOLS)
    for each in ledger.rows.values():
        each.memory_before, each.memory_after = before.memory, after.memory
    assert after.memory < before.memory + GROWTH


def test_clients_that_break_off_leave_nothing_behind(service, database_url, tally):
    running = service(database_url=database_url)
    ledger = Ledger.of(tally, "client breaks off", database_url)

    async def run():
        aborts = Aborts(running, ledger)
        await aborts.run(ABORTS // 10)
        before = await in_use(running)
        await aborts.run(ABORTS)
        compare(ledger, before, await in_use(running))
        assert running.said("error") == []
        await nothing_is_left(running, ledger)

    asyncio.run(run())
    ledger.is_clean()


class Soak:
    """Uploads by every way, breaking off, reading and deleting, all at once."""

    def __init__(self, running, ledger):
        self.running, self.ledger = running, ledger
        self.aborts = Aborts(running, ledger)
        self.over = asyncio.Event()
        self.chance = random.Random(0)

    async def run(self, seconds):
        self.over.clear()
        async with asyncio.TaskGroup() as group:
            for number, protocol in enumerate(PROTOCOLS):
                group.create_task(self.visit(protocol, random.Random(number)))
            group.create_task(self.abort())
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), seconds)
            self.over.set()

    async def port(self):
        return self.running.port

    async def visit(self, protocol, chance):
        """Come, send some, look at all of it, delete the half and find the other half."""
        while not self.over.is_set():
            headers = await new_session(self.running.port)
            for _ in range(8):
                self.aborts.number += 1
                name = name_of(protocol, self.aborts.number, chance.randrange(1, chance.choice(SIZES)))
                with suppress(Cut):  # a busy service may say so
                    await self.ledger.send(self.port, headers, name, chance)
            await self.ledger.check(self.running.port, headers)
            await self.ledger.delete(self.running.port, headers, chance)
            await self.ledger.check(self.running.port, headers)

    async def abort(self):
        while not self.over.is_set():
            await self.aborts.run(AT_ONCE)


@pytest.mark.parametrize("database_url", ["sqlite", *(["postgresql"] if TORTURE else [])], indirect=True)
def test_everything_at_once_for_minutes_leaves_nothing_behind(service, database_url, tally):
    running = service(database_url=database_url)
    ledger = Ledger.of(tally, "soak", database_url)

    async def run():
        soak = Soak(running, ledger)
        await soak.run(SOAK_SECONDS / 3)
        before = await in_use(running)
        await soak.run(SOAK_SECONDS * 2 / 3)
        compare(ledger, before, await in_use(running))
        assert running.said("error") == []
        await nothing_is_left(running, ledger)

    asyncio.run(run())
    ledger.is_clean()
