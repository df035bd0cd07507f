"""W1 to W5: files go in, and afterwards every one must be there, whole, and recorded if the server keeps records."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Final

from bench import bodies, processes
from bench.generator import Generator, Wire
from bench.machine import GiB, KiB
from bench.measuring import Bench, observe
from bench.peer import Peer, Place, Server
from bench.processes import Failed
from bench.work import SLOW_BYTES, Measurement, Work

_WARM_UP: Final = 64
_WARM_BYTES: Final = 16 * KiB
_SAMPLE: Final = 32
_SAMPLE_BYTES: Final = GiB
_ROWS_PATIENCE: Final = 60.0  # seconds
_REST_PATIENCE: Final = 20.0
_AT_REST: Final = 0.02  # CPU seconds in a tenth of a second


def upload(bench: Bench, work: Work, peer: Peer, seen: Measurement) -> None:
    """Do the work once with a fresh server; raises Failed when it did not do it, or not right."""
    generator = bench.load_for(peer)
    first_warm, first_slow = work.files, work.files + _WARM_UP
    sent = dict.fromkeys(range(work.files), work.size) | dict.fromkeys(range(first_warm, first_slow), _WARM_BYTES)
    with bench.home() as home:
        with peer.running(home, bench.tools, bench.cores) as server, ExitStack() as stack:
            place = server.place
            _warm_up(generator, peer, server, first=first_warm)
            processes.forget_peak(*server.pids)
            if work.slow:
                let_finish = stack.enter_context(
                    generator.slow_clients(peer.wire, place.port, count=work.slow, size=SLOW_BYTES, first=first_slow)
                )
                _await_rest(server)
            observe(server, seen, generator, peer.wire, work, debts=lambda: _await_rows(peer, place, len(sent)))
            if work.slow:
                if trouble := let_finish().trouble:
                    raise Failed(f"of the slow clients {trouble}")
                sent |= dict.fromkeys(range(first_slow, first_slow + work.slow), SLOW_BYTES)
            if not seen.failure and peer.rows is not None:
                _await_rows(peer, place, len(sent))
                _check_rows(peer.rows(place), sent, sample=_sample(work))
            if not seen.failure and peer.reads_back is not None:
                _read_back(generator, peer.reads_back, server, sent)
        if not seen.failure and peer.reads_back is None:
            _check_files(peer, place, sent, sample=_sample(work))


def _warm_up(generator: Generator, peer: Peer, server: Server, *, first: int) -> None:
    """A few small uploads, so that nobody is measured while it still loads its code."""
    outcome = generator.run(
        peer.wire, server.place.port, requests=_WARM_UP, connections=8, size=_WARM_BYTES, first=first
    )
    if outcome.trouble:
        raise Failed(f"while it was warmed up: {outcome.trouble}")


def _await_rest(server: Server) -> None:
    """Wait until the server has read what the slow clients have sent: it may still lie in the kernel."""
    deadline = time.monotonic() + _REST_PATIENCE
    before, rests = processes.cpu_seconds(*server.pids), 0
    while rests < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = processes.cpu_seconds(*server.pids)
        before, rests = now, rests + 1 if now - before <= _AT_REST else 0


def _await_rows(peer: Peer, place: Place, number: int) -> None:
    """Wait until a peer that records after it has answered has done so."""
    deadline = time.monotonic() + _ROWS_PATIENCE
    while peer.rows_come_later and peer.rows and len(peer.rows(place)) < number:
        if time.monotonic() > deadline:
            return  # the check of the rows will tell
        time.sleep(0.05)


def _sample(work: Work) -> list[int]:
    """Some of the work's files, evenly spread, whose digests are compared."""
    number = min(work.files, _SAMPLE, max(1, _SAMPLE_BYTES // work.size))
    return [index * work.files // number for index in range(number)]


def _check_files(peer: Peer, place: Place, sent: dict[int, int], *, sample: Sequence[int]) -> None:
    """Every file is there once with its size, and the sampled ones have the right bytes."""
    found: dict[int, Path] = {}
    for path in peer.stored(place):
        try:
            index = bodies.index_of(path)
        except ValueError:
            raise Failed(f"stored a file that was never sent: {path.name}") from None
        if index not in sent or index in found:
            raise Failed(f"stored file {index}, which was not sent, or stored it twice")
        if path.stat().st_size != sent[index]:
            raise Failed(f"stored {path.stat().st_size} bytes of file {index}, which has {sent[index]}")
        found[index] = path
    if missing := sent.keys() - found.keys():
        raise Failed(f"{len(missing)} of {len(sent)} files are not there though their uploads succeeded")
    for index in sample:
        if bodies.digest_of(found[index]) != bodies.digest(index, sent[index]):
            raise Failed(f"stored other bytes than were sent for file {index}")


def _read_back(generator: Generator, wire: Wire, server: Server, sent: Mapping[int, int]) -> None:
    """Every byte of every file is the one that was sent, when the server is asked for it."""
    for size, group in groupby(sorted(sent), key=lambda index: sent[index]):
        indexes = list(group)
        outcome = generator.run(
            wire, server.place.port,
            requests=len(indexes), connections=min(8, len(indexes)), size=size, first=indexes[0], compare=True,
        )  # fmt: skip
        if outcome.trouble:
            raise Failed(f"when its files were read again: {outcome.trouble}")


def _check_rows(rows: Sequence[str | None], sent: dict[int, int], *, sample: Sequence[int]) -> None:
    if len(rows) != len(sent):
        raise Failed(f"has {len(rows)} rows for {len(sent)} files")
    digests = {digest for digest in rows if digest}
    if digests and not {bodies.digest(index, sent[index]) for index in sample} <= digests:
        raise Failed("recorded other digests than the files have")
