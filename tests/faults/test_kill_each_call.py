"""kill -9 at each system call of an upload that changes a file or says something, in each of its threads. F18."""

import asyncio
import random
import re
import subprocess
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.ledger import Address, Ledger, name_of, new_session, nothing_is_left
from tests.support.service import Cut, service
from tests.support.tally import TORTURE
from tests.support.tools import needs, tool

__all__ = ["service"]

pytestmark = [pytest.mark.slow, needs("strace")]

FAULT = "kill -9 at each call"
CALLS = (
    "openat,close,write,writev,pwrite64,pwritev,fsync,fdatasync,io_submit,io_getevents,sync_file_range,syncfs,ftruncate,fallocate,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,utimensat,sendto,sendmsg"
)
SMALL, LARGE, PIECES = 3_000, 2_500_000, 400_000  # kept in memory, written in three blocks; a resumable one's requests
UPLOADS = [("form", SMALL), ("raw", LARGE), ("tus", PIECES), ("resumable", PIECES)]
ALL = [(database, *upload) for database in ("sqlite", "postgresql") for upload in UPLOADS]
SOME = [("sqlite", "tus", PIECES), ("postgresql", "form", LARGE)]
FEW = 2  # of all points of an upload
# The same thread is to make the same calls each time: there is one in a pool then, none waits for its like, and the
# kernel knows it by its name.
ONE_THREAD_OF_A_KIND = """
import ctypes, threading
from concurrent.futures import ThreadPoolExecutor as Pool
made, ran = Pool.__init__, threading.Thread.run
def run(self):
    ctypes.CDLL(None).prctl(15, self.name.encode())
    ran(self)
threading.Thread.run = run
Pool.__init__ = lambda self, workers=None, *more, **named: made(self, 1, *more, **named)
"""


@contextmanager
def strace(targets, log, *options):
    """Follow processes or threads until the end of the block, or their own."""
    command = [tool("strace"), *(f"--attach={target}" for target in targets), "--output", log, *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracing:
        try:
            for _ in targets:
                assert " attached" in tracing.stderr.readline()
            yield
        finally:
            tracing.terminate()


def threads_of(pid):
    """The threads of a process by their names, less the numbers in them."""
    threads = defaultdict(list)
    for task in Path(f"/proc/{pid}/task").iterdir():
        threads[re.sub(r"\d.*", "", (task / "comm").read_text().strip())].append(int(task.name))
    return threads


class Victim:
    """The service, and one who sends to it."""

    def __init__(self, running, ledger, directory):
        self.running, self.ledger = running, ledger
        self.address = Address(running)
        self.log = directory / "trace"
        self.session = {}
        self.count = 0

    async def begin(self):
        self.session = await new_session(self.running.port)

    async def send(self, protocol, size):
        self.count += 1
        name = name_of(protocol, self.count, size)
        with suppress(Cut):
            await self.ledger.send(self.address.port, self.session, name, random.Random(0), pieces=PIECES)

    async def warm_up(self, protocol, size):
        """So often that every thread and connection is there; returns the threads by what kind they are."""
        for _ in range(3):
            await self.send(protocol, size)
        return threads_of(self.running.pid)

    async def points(self, protocol, size):
        """Every call that an upload makes: what kind of thread makes it, its name, and which of its like it is."""
        kinds = {thread: kind for kind, threads in (await self.warm_up(protocol, size)).items() for thread in threads}
        with strace([self.running.pid], self.log, "--follow-forks", f"--trace={CALLS}"):
            await self.send(protocol, size)
        counted, found = Counter(), []
        for thread, call in re.findall(r"^(\d+) +(\w+)\(", self.log.read_text(), re.MULTILINE):
            if kind := kinds.get(int(thread)):  # not one that has just come into being
                counted[thread, call] += 1
                found.append((kind, call, counted[thread, call]))
        return found

    async def strike(self, protocol, size, point):
        """Send one more and kill the service at this call; whether it came to that."""
        kind, call, when = point
        threads = (await self.warm_up(protocol, size))[kind]
        with strace(threads, "/dev/null", f"--trace={call}", f"--inject={call}:signal=KILL:when={when}"):
            sending = asyncio.create_task(self.send(protocol, size))
            while not sending.done() and not self.running.ended:
                await asyncio.wait((sending,), timeout=0.005)
            for _ in range(20):  # it may be struck right after its answer
                if self.running.ended:
                    break
                await asyncio.sleep(0.01)
        died = self.running.ended
        if died:
            async with self.address.closed():
                await asyncio.to_thread(self.running.wait)
                await asyncio.to_thread(self.running.start)
        await sending  # a resumable one goes on
        return died


@pytest.mark.parametrize(("database_url", "protocol", "size"), ALL if TORTURE else SOME, indirect=["database_url"])
def test_acknowledged_uploads_survive_a_kill_at_every_call(service, database_url, tally, tmp_path, protocol, size):
    running = service(database_url=database_url, database_pool_size=2, change=ONE_THREAD_OF_A_KIND)
    ledger = Ledger.of(tally, FAULT, database_url, (protocol,))
    victim = Victim(running, ledger, tmp_path)

    async def run():
        await victim.begin()
        points = await victim.points(protocol, size)
        assert {"openat", "fsync"} <= {call for _, call, _ in points}
        for point in points if TORTURE else random.sample(points, FEW):
            await victim.begin()
            if await victim.strike(protocol, size, point):
                ledger.injected()
            await ledger.check(running.port, victim.session)
        assert running.said("error") == []
        await nothing_is_left(running, ledger)

    asyncio.run(run())
    ledger.is_clean()
    assert ledger.rows[protocol].injected
