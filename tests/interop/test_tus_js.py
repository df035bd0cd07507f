"""tus-js-client, the client that most others are made of, in each of its ways and each of its protocols."""

import json
from contextlib import contextmanager

import pytest

from tests.interop.clients import MIB, Job, TusJs, all_done, everything, have_landed
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service import UPLOADS, service

__all__ = ["service"]

PROTOCOLS = {"tus-v1": "tus", "ietf-draft-03": "resumable", "ietf-draft-05": "resumable"}
CHUNK = 256 * 1024


class Visitor:
    """A session, and the uploads of it."""

    def __init__(self, running, url=None):
        self.headers = running.session()
        self.endpoint = f"{url or running.url}{UPLOADS}"

    def job(self, piece, *, options=None, **more):
        given = {
            "endpoint": self.endpoint,
            "headers": self.headers,
            "metadata": {"filename": piece.name, "filetype": "text/plain"},
            "retryDelays": [20] * 100,
        }
        return Job(piece, given | (options or {}), **more)


@pytest.fixture
def visitor(running):
    return Visitor(running)


@pytest.fixture
def client(running, visitor):
    with running.client(headers=visitor.headers) as client:
        yield client


SIZES = {"nothing": 0, "one byte": 1, "small": 1_000, "chunks and no rest": 2 * CHUNK, "chunks and a rest": MIB + 1}
WAYS = {
    "plain": ({}, False),
    "in chunks": ({"chunkSize": CHUNK}, False),
    "with data in the creation": ({"uploadDataDuringCreation": True}, False),
    "with data in the creation, in chunks": ({"uploadDataDuringCreation": True, "chunkSize": CHUNK}, False),
    "by another method": ({"overridePatchMethod": True}, False),
    "of deferred length": ({"uploadLengthDeferred": True, "chunkSize": CHUNK}, True),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_way_of_sending_stores_every_size(client, visitor, source, protocol):
    jobs = []
    for way, (options, stream) in WAYS.items():
        for size, length in SIZES.items():
            if stream and length % CHUNK == 0:
                continue  # on Node the client itself waits for ever at the end of such a stream
            piece = source.piece(f"{size} {way}.txt", length)
            jobs.append(visitor.job(piece, options={**options, "protocol": protocol}, stream=stream))
    ends = all_done(jobs)
    records = have_landed(client, [job.piece for job in jobs], PROTOCOLS[protocol])
    assert {record["content_type"] for record in records} == {"text/plain"}
    assert len(everything(client)) == len(jobs)
    if protocol != "tus-v1":  # the last answer is the target's own: the record
        bodies = {name: json.loads(end["body"]) for name, end in ends.items() if end["body"]}
        assert {record["filename"]: record for record in records}.items() >= bodies.items()
        assert bodies


def test_a_file_sent_in_parallel_is_one_file(client, visitor, source):
    sizes = {"in-threes.bin": (3, 5 * MIB + 1), "in-sevens.bin": (7, MIB), "in-twos.bin": (2, 3)}
    jobs = [
        visitor.job(source.piece(name, size), options={"parallelUploads": parts, "chunkSize": MIB})
        for name, (parts, size) in sizes.items()
    ]
    all_done(jobs)
    have_landed(client, [job.piece for job in jobs], "tus")
    assert len(everything(client)) == len(jobs)


def test_a_name_of_any_kind_arrives(client, visitor, source):
    piece = source.piece("Übersicht 第1版 — \"q\" 'a'.pdf", 10)
    all_done([visitor.job(piece)])
    have_landed(client, [piece], "tus")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_upload_that_is_aborted_and_terminated_is_gone(client, visitor, source, protocol):
    piece = source.piece("terminated.bin", 16 * MIB)
    job = visitor.job(piece, options={"protocol": protocol}, hang_up_at=1, terminate=True)
    with TusJs([job]) as tus_js:
        url = tus_js.wait_for("stopped")["url"]
    headers = {"Tus-Resumable": "1.0.0"} if protocol == "tus-v1" else {}
    assert client.head(url, headers=headers).status_code in (404, 410)
    [record] = everything(client)
    assert (record["status"], record["error"]["code"]) == ("failed", "gone")
    assert (record["sha256"], record["links"]["content"]) == (None, None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.slow
def test_another_process_goes_on_where_one_hung_up(client, visitor, source, tmp_path, protocol):
    piece = source.piece("resumed.bin", 16 * MIB)
    options = {"protocol": protocol, "urlStorage": str(tmp_path / "urls"), "chunkSize": MIB}
    with TusJs([visitor.job(piece, options=options, hang_up_at=3 * MIB)]) as tus_js:
        url = tus_js.wait_for("stopped")["url"]
    job = visitor.job(piece, options=options, pause_at=0)
    with TusJs([job]) as tus_js:
        waiting = tus_js.wait_for("waiting")
        assert waiting["url"] == url
        assert waiting["offset"] >= 2 * MIB
        tus_js.go(piece)
        assert tus_js.ends()[piece.name]["event"] == "done"
    have_landed(client, [piece], PROTOCOLS[protocol])
    assert len(everything(client)) == 1


@contextmanager
def behind_an_address_that_stays(running):
    with CuttingProxy(running.port, seed=0, reach=None) as proxy:
        yield proxy


@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.slow
def test_uploads_go_on_after_a_restart(service, source, end):
    running = service()
    with behind_an_address_that_stays(running) as proxy:
        visitor = Visitor(running, proxy.url)
        jobs = [
            visitor.job(
                source.piece(f"{protocol}.bin", 4 * MIB),
                options={"protocol": protocol, "chunkSize": CHUNK, **options},
                pause_at=MIB,
            )
            for protocol, options in [
                ("tus-v1", {}),
                ("ietf-draft-03", {}),
                ("ietf-draft-05", {"uploadDataDuringCreation": True}),
            ]
        ]
        with TusJs(jobs) as tus_js:
            for _ in jobs:
                assert tus_js.wait_for("waiting")["offset"] == MIB
            if end == "stopped":
                assert running.stop() == 0
            else:
                running.kill()
            running.start()
            proxy.upstream_port = running.port
            for job in jobs:
                tus_js.go(job.piece)
            assert {news["event"] for news in tus_js.ends().values()} == {"done"}
    with running.client(headers=visitor.headers) as client:
        for job in jobs:
            have_landed(client, [job.piece], PROTOCOLS[job.options["protocol"]])
        assert len(everything(client)) == len(jobs)
    assert running.stop() == 0
