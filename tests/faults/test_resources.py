"""Memory and descriptors run out: what was acknowledged stays, what is under way finishes, and the rest is told so."""

import asyncio
import hashlib
import os
import resource
import signal
import socket
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.guest import KIB, MIB, Baseline, Guest, Halfway, content_of, eventually
from tests.interop.clients import everything
from tests.support.service import PATIENCE, UPLOADS, Cut, Service, ask, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

# --- memory

CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def memory_cgroup(name):
    """A control group for memory, of the first or the second version, and the file that holds its limit."""
    for parent, limit in ((CGROUPS / "memory", "memory.limit_in_bytes"), (CGROUPS, "memory.max")):
        group = parent / f"waybill-{name}"
        with suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                break
            group.rmdir()
    else:
        pytest.skip("needs root and a control group for memory, which can be made below /sys/fs/cgroup")
    try:
        yield group, group / limit
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"] if TORTURE else ["sqlite"], indirect=True)
def test_acknowledged_uploads_survive_a_kill_for_want_of_memory(tmp_path, database_url):
    """F28: many uploads are held in memory when there is no more of it."""
    with (
        memory_cgroup(os.getpid()) as (group, limit),
        closing(Service(tmp_path / "service", database_url=database_url)) as running,
    ):
        running.change = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
        guest = Guest(running.start())
        limit.write_text(str(running.memory() + 24 * MIB))
        acknowledged, enough = {}, asyncio.Event()

        async def upload(number):
            """One small file after the other, until the service has gone."""
            with suppress(Cut):
                while True:
                    content = content_of(1000, number * 100_000 + len(acknowledged))
                    answer = await ask(running.port, "PUT", f"{UPLOADS}/a", guest.session, content)
                    if answer.status == 201:
                        acknowledged[answer.json()["id"]] = hashlib.sha256(content).hexdigest()
                    if len(acknowledged) >= 20:
                        enough.set()

        async def hold():
            """Never ends by itself: the last byte does not come."""

            async def pieces():
                yield bytes(250 * KIB)
                await asyncio.Event().wait()

            with suppress(Cut):
                await ask(running.port, "PUT", f"{UPLOADS}/held", guest.session, pieces(), length=251 * KIB)

        async def load():
            async with asyncio.TaskGroup() as group:
                clients = [group.create_task(upload(number)) for number in range(4)]
                await enough.wait()
                holding = [group.create_task(hold()) for _ in range(400)]
                await asyncio.wait(clients)
                for task in holding:
                    task.cancel()

        asyncio.run(load())
        assert running.wait() == -signal.SIGKILL
        running.change = ""
        running.start()
        with guest.client() as client:
            completed = {item["id"]: item["sha256"] for item in everything(client) if item["status"] == "completed"}
            assert acknowledged.items() <= completed.items()
            for upload_id, digest in completed.items():
                served = client.get(f"/api/ingestion/files/{upload_id}").content
                assert hashlib.sha256(served).hexdigest() == digest
            assert client.put(f"{UPLOADS}/again", content=b"again").status_code == 201
        Baseline(running).is_back()


# --- descriptors

FEW = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))\n"


@contextmanager
def connections(running):
    """`more(n)` opens so many, on which nothing is said."""
    with ExitStack() as opened:

        def more(count):
            for _ in range(count):
                opened.enter_context(socket.create_connection(("127.0.0.1", running.port), PATIENCE))

        yield more


def does_not_spin(running):
    """Between two ticks of the service's own it computes for a small part of the time."""
    process = psutil.Process(running.pid)

    def used():
        times = process.cpu_times()
        return times.user + times.system

    began, before = time.monotonic(), used()
    eventually(lambda: time.monotonic() - began >= 1)
    assert used() - before < (time.monotonic() - began) / 2


def test_connections_over_the_limit_are_refused_and_the_others_finish(service):
    """F29: so many may be open that each of them can still have a file."""
    guest = Guest(service(change=FEW))
    guest.goes_on()
    before = Baseline(guest.running)
    with ExitStack() as under_way, connections(guest.running) as more:
        held = [under_way.enter_context(Halfway(guest, 200 * KIB + number)) for number in range(4)]
        large = [under_way.enter_context(Halfway(guest, 2 * MIB + number)) for number in range(4)]
        for upload in (*held, *large):
            upload.send(100 * KIB)
        while (answer := guest.send("raw", b"x")).status_code == 201:
            more(1)
            assert len(guest.acknowledged) < 200
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert 0 < int(answer.headers["retry-after"]) <= 5
        more(400)  # most of them are let go of at once
        assert len(os.listdir(f"/proc/{guest.running.pid}/fd")) < 380
        does_not_spin(guest.running)
        assert [upload.answer().status for upload in (*held, *large)] == [201] * 8
    before.is_back()
    guest.goes_on()
    assert guest.running.said("error") == []
    assert guest.running.stop() == 0


def test_a_service_without_descriptors_loses_nothing_and_does_not_spin(service):
    """F29: what has its file goes on; what has none is refused; connections that cannot be accepted are not tried in
    a loop."""
    guest = Guest(service())
    guest.goes_on()
    before = Baseline(guest.running)
    limits = resource.prlimit(guest.running.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as under_way, connections(guest.running) as more:
        held = under_way.enter_context(Halfway(guest, 200 * KIB))
        held.send(100 * KIB)
        large = under_way.enter_context(Halfway(guest, 2 * MIB))
        large.send(MIB)
        large.staged()
        used = max(map(int, os.listdir(f"/proc/{guest.running.pid}/fd"))) + 1
        resource.prlimit(guest.running.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        more(50)  # which take those in between, if there are any
        does_not_spin(guest.running)
        assert held.answer().code == "unavailable"
        assert large.answer().status == 201
        resource.prlimit(guest.running.pid, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: reaches(guest))
    guest.goes_on()
    before.is_back()
    assert guest.running.stop() == 0


def reaches(guest):
    try:
        return guest.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False
