"""D1: files come out, and every byte of every answer is compared."""

import json
from pathlib import Path

from bench import bodies, processes
from bench.client import ask, new_session
from bench.generator import Generator, Wire, get
from bench.measuring import Bench, observe
from bench.peer import Peer, Server
from bench.processes import Failed
from bench.work import Measurement, Work


def download(bench: Bench, work: Work, peer: Peer, seen: Measurement) -> None:
    """Ask for every file once, uncounted, so that all servers read from the page cache; then again."""
    serves_a_directory = peer.rows is None
    with bench.home() as home:
        if serves_a_directory:
            _lay_out(home / "files", work)
        with peer.running(home, bench.tools, bench.cores) as server:
            if serves_a_directory:
                wire, paths = peer.wire, [f"/{index:08d}" for index in range(work.files)]
            else:
                wire, paths = _fill(bench.generator, peer, server, work)
            for _ in range(2):
                processes.forget_peak(*server.pids)
                observe(server, seen, bench.generator, wire, work, paths=paths)


def _lay_out(directory: Path, work: Work) -> None:
    directory.mkdir()
    for index in range(work.files):
        with (directory / f"{index:08d}").open("wb") as file:
            file.writelines(bodies.content(index, work.size))


def _fill(generator: Generator, peer: Peer, server: Server, work: Work) -> tuple[Wire, list[str]]:
    """Upload the files in one session; how to ask for them, and where each one is."""
    session = new_session(server.place.port)
    uploaded = generator.run(
        peer.wire.with_field(session.field), server.place.port,
        requests=work.files, connections=work.connections, size=work.size,
    )  # fmt: skip
    if uploaded.trouble:
        raise Failed(f"while it was filled: {uploaded.trouble}")
    _, listing = ask(server.place.port, "GET", "/api/ingestion/history?format=ndjson", session.field)
    records = [json.loads(line) for line in listing.splitlines()]
    links = {int(record["filename"].removesuffix(".bin")): record["links"]["content"] for record in records}
    return get("%p", session.field), [links[index] for index in range(work.files)]
