"""Connections that break off, stall and lose their answers: every upload of every client ends, whole, and once."""

import asyncio
import io
import random
import zlib
from contextlib import closing
from functools import partial

import aiohttp
import aiotus
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.interop.clients import MIB, Job, all_done, have_landed, in_threads
from tests.interop.test_python_clients import WithWholeAddress
from tests.support.cutting_proxy import FATES, CuttingProxy
from tests.support.service import UPLOADS, Service
from tests.support.tally import TORTURE

pytestmark = pytest.mark.slow

COUNT = 300 if TORTURE else 5
SMALLEST, LARGEST = MIB, (64 if TORTURE else 3) * MIB
REACH = LARGEST // 4  # so that a file breaks off a few times
TOGETHER = 4
ATTEMPTS = 1_000  # more than chance can use up


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Two workers: who comes back may come to the other, while the first one still waits for more."""
    with closing(Service(tmp_path_factory.mktemp("service"), workers=2)) as running:
        yield running.start()


def sizes(chance):
    """As many small files as large ones, by their order of magnitude."""
    return [round(SMALLEST * (LARGEST / SMALLEST) ** chance.random()) for _ in range(COUNT)]


def tus_js(protocol, endpoint, headers, pieces):
    options = {"protocol": protocol, "endpoint": endpoint, "headers": headers, "retryDelays": [10] * ATTEMPTS}
    jobs = [Job(piece, {**options, "metadata": {"filename": piece.name}}) for piece in pieces]
    all_done(jobs, together=TOGETHER)


def tuspy(checksum, endpoint, headers, pieces):
    def send(piece):
        uploader = TusClient(endpoint, headers).uploader(
            file_stream=io.BytesIO(piece.content),
            chunk_size=REACH // 4 if checksum else 16 * MIB,  # with one, nothing is kept of a request that breaks off
            metadata={"filename": piece.name},
            upload_checksum=checksum,
            retries=ATTEMPTS,
            retry_delay=0,
        )
        for _ in range(ATTEMPTS):  # it does not create twice by itself
            try:
                uploader.upload()
            except TusCommunicationError:
                assert uploader.url is None
            else:
                return
        raise AssertionError(f"{piece.name} was never created")

    asyncio.run(in_threads([partial(send, piece) for piece in pieces], together=TOGETHER))


def aiotus_(endpoint, headers, pieces):
    async def send(session, piece, lane):
        async with lane:
            often = aiotus.RetryConfiguration(retry_attempts=ATTEMPTS, max_retry_period_seconds=0.01)
            metadata = {"filename": piece.name.encode()}
            file = io.BytesIO(piece.content)
            # It sends each chunk in one piece, of which aiohttp wants none larger.
            assert await aiotus.upload(endpoint, file, metadata, session, often, chunksize=MIB) is not None

    async def send_all():
        lane = asyncio.Semaphore(TOGETHER)
        async with aiohttp.ClientSession(headers=headers, response_class=WithWholeAddress) as session:
            await asyncio.gather(*(send(session, piece, lane) for piece in pieces))

    asyncio.run(send_all())


CLIENTS = {
    "tus-js-client": (partial(tus_js, "tus-v1"), "tus"),
    "tus-js-client, draft 3": (partial(tus_js, "ietf-draft-03"), "resumable"),
    "tus-js-client, draft 5": (partial(tus_js, "ietf-draft-05"), "resumable"),
    "tuspy": (partial(tuspy, False), "tus"),
    "tuspy with checksums": (partial(tuspy, True), "tus"),
    "aiotus": (aiotus_, "tus"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_every_upload_is_stored_in_full_and_once(running, source, tally, name):
    send, protocol = CLIENTS[name]
    row = tally("connections cut", protocol, "sqlite")
    row.memory_before = running.memory()
    seed = zlib.crc32(name.encode())
    pieces = [source.piece(f"{number}.bin", size) for number, size in enumerate(sizes(random.Random(seed)))]
    headers = running.session()
    with CuttingProxy(running.port, seed=seed, reach=REACH) as proxy:
        send(f"{proxy.url}{UPLOADS}", headers, pieces)
    with running.client(headers=headers) as client:
        row.acknowledged = len(have_landed(client, pieces, protocol))
    row.injected, row.memory_after = sum(proxy.met.values()), running.memory()
    assert row.injected >= COUNT
    assert proxy.met.keys() <= set(FATES)
    assert running.said("error") == []
