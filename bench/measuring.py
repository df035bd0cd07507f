"""One measurement at a time: a place at rest, a server, the load, and what both used."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from bench import processes
from bench.generator import Generator, Wire, form
from bench.machine import Cores, GiB, flush, settle
from bench.peer import Peer, Place, Server
from bench.work import Measurement, Work


@dataclass(frozen=True)
class Bench:
    """What every measurement needs: a place for data, where the peers are installed, cores, and the load."""

    data: Path
    tools: Path
    cores: Cores
    generator: Generator
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @contextmanager
    def home(self) -> Iterator[Path]:
        """An empty directory on a file system at rest; taken away afterwards."""
        settle(GiB + GiB // 4)
        home = self.data / f"{next(self._numbers)}"
        home.mkdir()
        try:
            yield home
        finally:
            shutil.rmtree(home)

    def load_for(self, peer: Peer) -> Generator:
        """The load on its own core, or wherever there is room where the server needs that one too."""
        if peer.cores > 1 and self.cores.load & self.cores.for_server(peer.cores):
            return self.generator.spread_over(self.cores.everyone)
        return self.generator


DIGEST_ALONE: Final = "sha256"
"""Stands where a peer's name stands, for what no server can do without that digests."""
_DIGEST: Final = """
import hashlib, sys, time
block, sha256, began = bytes(range(256)) * 4096, hashlib.sha256(), time.process_time()
for _ in range(int(sys.argv[1]) // len(block)):
    sha256.update(block)
print(time.process_time() - began)
"""


def observe(server: Server, seen: Measurement, generator: Generator, wire: Wire, work: Work, *,
            paths: Sequence[str] = (), debts: Callable[[], None] = lambda: None) -> None:  # fmt: skip
    """Run the load, and note what it and the server used until the server's `debts`, too, were paid.

    Then have the kernel write out what the server left to it, and note how long that took.
    """
    busy, used = processes.machine_busy_seconds(), processes.cpu_seconds(*server.pids)
    outcome = generator.run(
        wire, server.place.port,
        requests=work.files, connections=work.connections, size=work.size, paths=paths, compare=bool(paths),
    )  # fmt: skip
    debts()
    seen.server_cpu = processes.cpu_seconds(*server.pids) - used
    seen.load_cpu = outcome.cpu_seconds
    seen.flush_seconds = flush(server.place.home)
    seen.other_cpu = max(0.0, processes.machine_busy_seconds() - busy - seen.server_cpu - seen.load_cpu)
    seen.peak_rss = processes.peak_rss(*server.pids[:1])  # a database's shared memory would count many times
    seen.requests, seen.bytes = outcome.completed, outcome.completed * work.size
    seen.seconds, seen.p50_ms, seen.p99_ms = outcome.seconds, outcome.p50_ms, outcome.p99_ms
    seen.failure = outcome.trouble


def ceiling(bench: Bench, work: Work) -> Measurement:
    """What the load generator does against a server that reads, throws away and answers."""
    seen = Measurement(work.name, "sink", 0)
    port = processes.free_port()
    with bench.home() as home, processes.running(
        [str(bench.generator.sink), f"port={port}"], bench.cores.server,
        port=port, log=home / "sink.log", environment={}, directory=home,
    ) as (pid, ready_seconds):  # fmt: skip
        server = Server(Place(home, port, bench.tools), (pid,), ready_seconds)
        observe(server, seen, bench.generator, form("/"), work)
    return seen


def digest_alone(bench: Bench, work: Work, repeat: int) -> Measurement:
    """SHA-256 of as many bytes as the work has, on the server's core, by the Python that runs Waybill."""
    size = work.files * work.size
    command = [sys.executable, "-c", _DIGEST, str(size)]
    process = processes.start(command, bench.cores.server, stdout=subprocess.PIPE)
    said, _ = process.communicate()
    used = float(said)
    return Measurement(work.name, DIGEST_ALONE, repeat, requests=work.files, bytes=size, seconds=used, server_cpu=used)
