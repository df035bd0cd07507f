"""One upload and two workers: the newest request has it, whichever of them gets it, and every offset is exact."""

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import httpx
import psutil
import pytest

from tests.faults.test_workers import one_client_each
from tests.interop.clients import MIB, Growth, everything, have_landed, source
from tests.support.sender import Tus
from tests.support.service import PATIENCE, UPLOADS, Service

__all__ = ["source"]

pytestmark = pytest.mark.slow

SENT = 3 * MIB
ON_DISK = 2 * MIB  # so much of it is sure to be written when nothing more comes
REFUSED = (409, 423, 503)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    with ExitStack() as opened:
        url = f"sqlite:///{directory}/waybill.db"
        if request.param == "postgresql":
            server = request.getfixturevalue("postgres")
            url = server.create_database()
            opened.callback(server.drop_database, url)
        yield opened.enter_context(closing(Service(directory, workers=2, database_url=url))).start()


@pytest.fixture
def headers(running):
    return running.session()


class Upload:
    """One upload at the service, of which any client may ask and to which any may append."""

    def __init__(self, client, headers, piece):
        self.piece, self.content, self._headers = piece, piece.content, headers
        made = client.post(UPLOADS, headers=self._with(Tus.create(piece.name, piece.size)))
        assert made.status_code == 201
        self.url = made.headers["location"]

    def _with(self, headers):
        return {**self._headers, **headers}

    def ask(self, client):
        return client.head(self.url, headers=self._with(Tus.ask()))

    def offset(self, client):
        answer = self.ask(client)
        assert answer.status_code == 200
        return int(answer.headers["upload-offset"])

    def append(self, client, offset, end=None, content=None):
        headers = self._with(Tus.append(offset, last=False))
        if content is not None:  # it comes in pieces
            headers["Content-Length"] = str(len(self.content) - offset)
        return client.patch(self.url, headers=headers, content=content or self.content[offset:end])

    def append_rest(self, client, offset):
        answer = self.append(client, offset)
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(self.content)))


class Stalled:
    """A request that has sent a part of its body and nothing since; use it as a context manager."""

    def __init__(self, upload, client, running, content=None):
        self._content, self._written = content or upload.content, Growth(running)
        self._go = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._answer = self._pool.submit(upload.append, client, 0, content=self._pieces())

    def __enter__(self):
        while self._written() < ON_DISK:
            assert not self._answer.done()
            self._go.wait(0.01)
        return self

    def __exit__(self, *_):
        self._go.set()
        self._pool.shutdown()

    def _pieces(self):
        yield self._content[:SENT]
        self._go.wait(PATIENCE)
        yield self._content[SENT:]

    def go_on(self):
        self._go.set()

    def is_refused(self):
        """Let it go on, and see that it gets nowhere."""
        self.go_on()
        try:
            answer = self._answer.result(PATIENCE)
        except httpx.TransportError:
            return  # hung up on, which says the same
        assert answer.status_code in REFUSED


def test_asking_for_the_offset_ends_the_writer_at_the_other_worker(running, headers, source):
    with one_client_each(running) as (one, other):
        upload = Upload(one, headers, source.piece("file.bin", 8 * MIB))
        with Stalled(upload, one, running) as stalled:
            offset = upload.offset(other)
            assert offset == SENT  # all that came was kept
            stalled.is_refused()
            assert upload.offset(other) == offset
            upload.append_rest(other, offset)
    with running.client(headers=headers) as client:
        have_landed(client, [upload.piece], "tus")
    assert running.said("error") == []


def test_sending_ends_the_writer_at_the_other_worker(running, headers, source):
    with one_client_each(running) as (one, other):
        upload = Upload(one, headers, source.piece("file.bin", 8 * MIB))
        with Stalled(upload, one, running) as stalled:
            answer = upload.append(other, 0, MIB)  # it knows of nothing that came since
            assert (answer.status_code, answer.json()["code"]) == (409, "offset_mismatch")
            assert upload.offset(other) == SENT
            stalled.is_refused()
            upload.append_rest(other, SENT)
    with running.client(headers=headers) as client:
        have_landed(client, [upload.piece], "tus")


class Race:
    """Clients that know nothing of each other send one file. What any of them was told holds for all."""

    def __init__(self, upload):
        self.upload = upload
        self.told = 0
        self.won = set()
        self._lock = threading.Lock()

    def run(self, client, seed):
        chance = random.Random(seed)
        while True:
            at_least = self.told
            answer = self.upload.ask(client)
            if answer.status_code == 503:  # somebody has come in between
                assert answer.headers["retry-after"]
                continue
            offset = int(answer.headers["upload-offset"])
            assert offset >= at_least
            self._hear(offset)
            if offset == len(self.upload.content):
                return
            end = min(offset + chance.randrange(1, 300_000), len(self.upload.content))
            answer = self.upload.append(client, offset, end)
            if answer.status_code == 204:
                assert answer.headers["upload-offset"] == str(end)
                self._hear(end)
                with self._lock:
                    assert offset not in self.won
                    self.won.add(offset)
            else:
                assert answer.status_code in REFUSED

    def _hear(self, offset):
        with self._lock:
            self.told = max(self.told, offset)


def test_one_of_many_simultaneous_writers_wins_each_time(running, headers, source):
    """F24."""
    with one_client_each(running) as clients, ThreadPoolExecutor(2) as pool:
        upload = Upload(clients[0], headers, source.piece("file.bin", 4 * MIB))
        race = Race(upload)
        for ended in [pool.submit(race.run, client, seed) for seed, client in enumerate(clients)]:
            ended.result(PATIENCE)
    assert race.told == len(upload.content)
    with running.client(headers=headers) as client:
        [record] = have_landed(client, [upload.piece], "tus")
        assert record["filename"] == "file.bin"
    assert running.said("error") == []


@pytest.mark.parametrize("fate", ["frozen", "killed"])
def test_a_worker_that_does_not_release_the_writer_lock_is_preempted(running, headers, source, fate):
    """F23. A frozen one may wake up at any time, with more to write, and must find that it has lost the upload."""
    with one_client_each(running) as (one, other):
        upload = Upload(one, headers, source.piece("file.bin", 16 * MIB))
        of_another = source.piece("another.bin", 16 * MIB).content  # so that it is seen whose bytes count
        with Stalled(upload, one, running, of_another) as stalled:
            worker = psutil.Process(running.pids[0])
            worker.suspend() if fate == "frozen" else worker.kill()
            offset = upload.offset(other)
            assert 0 <= offset <= SENT
            middle = offset + 2 * SENT  # further than the other came
            assert upload.append(other, offset, middle).headers["upload-offset"] == str(middle)
            stalled.go_on()
            if fate == "frozen":
                worker.resume()
            stalled.is_refused()
            assert upload.offset(other) == middle
            upload.append_rest(other, middle)
    if fate == "killed":
        running.wait_for("Application startup complete.", count=3)
    running.look_for_workers()
    with running.client(headers=headers) as client:
        [record] = everything(client)
        kept = of_another[:offset] + upload.content[offset:]
        assert record["sha256"] == hashlib.sha256(kept).hexdigest()
        assert client.get(record["links"]["content"]).content == kept
