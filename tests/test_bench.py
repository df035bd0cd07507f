"""The benchmark's own sums: what is aimed at is measured, a ratio is to a sum, an interim response is no answer."""

import json
import socketserver
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bench.aims import AIMS, verdicts
from bench.generator import Generator, draft
from bench.measuring import DIGEST_ALONE
from bench.peers import PEERS
from bench.results import Results
from bench.work import FULL, QUICK, Measurement
from tests.support.tools import needs


@pytest.mark.parametrize("works", [FULL, QUICK], ids=["full", "quick"])
def test_every_aim_names_a_work_and_peers_that_do_it(works):
    doing = {(work.name, peer.name) for work in works for peer in PEERS if peer.takes_part(work)}
    for aim in AIMS:
        named = {(aim.work, aim.peer), *aim.beside} - {("W1", DIGEST_ALONE)}
        assert named <= doing, aim


def results(*seen: Measurement) -> Results:
    return Results("", "", quick=True, repeats=2, machine={}, works=QUICK, measurements=list(seen))


def seen(peer: str, repeat: int, cpu: float, failure: str = "") -> Measurement:
    return Measurement("W1", peer, repeat, failure=failure, requests=1, bytes=1 << 30, seconds=1, server_cpu=cpu)


def test_a_ratio_to_several_is_one_to_their_sum_in_the_same_repeat():
    found = results(
        *(seen("waybill-raw", repeat, cpu) for repeat, cpu in enumerate((1.0, 2.0, 9.0))),
        *(seen(DIGEST_ALONE, repeat, 0.6) for repeat in range(3)),
        *(seen("nginx-1m", repeat, 0.4) for repeat in range(2)),
        seen("nginx-1m", 2, 0.4, failure="it was never there"),
    )
    both = ("W1", DIGEST_ALONE), ("W1", "nginx-1m")
    assert found.ratio("cpu_seconds_per_gib", ("W1", "waybill-raw"), *both) == pytest.approx(1.5)
    [verdict] = [verdict for verdict in verdicts(found) if "SHA-256 alone" in verdict.text]
    assert (verdict.wanted, verdict.holds) == ("≤ 1.05", False)


@pytest.mark.parametrize("works", [FULL, QUICK], ids=["full", "quick"])
def test_results_are_saved_with_their_works(works, tmp_path: Path):
    path = tmp_path / "results.json"
    replace(results(seen("waybill", 0, 1.0)), works=works).save(path)
    saved = json.loads(path.read_text())
    assert [work["name"] for work in saved["works"]] == [work.name for work in works]
    assert saved["measurements"][0]["server_cpu"] == 1.0


class Interim(socketserver.StreamRequestHandler):
    """Answers each upload with a 104 and a 201, together or in pieces."""

    def handle(self) -> None:
        for number in range(3):
            length = 0
            while (line := self.rfile.readline()) not in {b"\r\n", b""}:
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            if not self.rfile.read(length):
                return
            answer = b"HTTP/1.1 104 Upload Resumption Supported\r\nLocation: /here\r\n\r\n"
            answer += b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
            for part in (answer[: number * 40], answer[number * 40 :]):
                self.request.sendall(part)


@needs("gcc")
def test_the_load_takes_an_interim_response_for_no_answer(tmp_path: Path):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Interim) as server:
        threading.Thread(target=server.serve_forever).start()
        generator = Generator(tmp_path, tmp_path, frozenset({0}))
        outcome = generator.run(draft("/%n"), server.server_address[1], requests=3, connections=1, size=1000)
        server.shutdown()
    assert (outcome.completed, outcome.trouble, outcome.connects) == (3, "", 1)
