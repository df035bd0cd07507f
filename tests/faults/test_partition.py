"""The network between service and PostgreSQL goes, in both directions, without a word: silence, and late deliveries.

The server itself works on, and so does another service on the same store that still reaches it.
"""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.test_commit import CONTENT, outcome
from tests.faults.test_database_outage import POOL, all_slots_are_free, outage
from tests.faults.test_resumable_workers import SENT, Stalled, Upload
from tests.interop.clients import MIB, everything, source
from tests.support.load import raw
from tests.support.partition import Partition
from tests.support.service import service

__all__ = ["service", "source"]

pytestmark = pytest.mark.slow


@pytest.fixture
def database_url(postgres):
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def way(postgres):
    with Partition(postgres.port) as way:
        yield way


@pytest.mark.torture
def test_uploads_are_refused_during_a_partition_and_taken_afterwards(service, database_url, way):
    """F25. As if PostgreSQL were away: refused in time, full service once it is back, every connection."""
    running = service(database_url=way.leads(database_url), database_pool_size=POOL)
    outage(running, way.cut, way.heal)
    assert running.stop() == 0


def test_a_commit_that_arrives_late_is_found_or_undone(service, database_url, way):
    """F25, F14. The client was told that the outcome is open by then; record and file agree about what it was."""
    running = service(database_url=way.leads(database_url), database_pool_size=POOL)
    headers = running.session()
    running.wait_for("swept")  # or the COMMIT that is cut may be one of its
    way.cut_before = b"COMMIT"
    [answer] = asyncio.run(raw(running.port, headers, "a.bin", CONTENT))
    assert (answer.status, answer.json()["code"]) == (503, "unavailable")
    assert way.is_cut.is_set()
    way.heal()
    running.wait_for("settled what was in doubt")
    assert outcome(running, headers) in {"completed", "failed"}
    all_slots_are_free(running)
    assert running.stop() == 0


def test_a_worker_that_is_cut_off_holds_no_writer_lock(service, database_url, way, source):
    """F25. Another service takes over what one was receiving; what that one brings and commits later counts no more."""
    cut_off = service(database_url=way.leads(database_url))
    other = service(database_url=database_url, storage_dir=cut_off.store)
    headers = cut_off.session()
    with cut_off.client() as client, other.client() as taking_over, ThreadPoolExecutor(1) as pool:
        upload = Upload(client, headers, source.piece("file.bin", 16 * MIB))
        of_another = source.piece("another.bin", 16 * MIB).content  # so that it is seen whose bytes count
        with Stalled(upload, client, cut_off, of_another) as stalled:
            way.cut()
            offset = upload.offset(taking_over)
            assert 0 <= offset <= SENT
            middle = offset + 2 * SENT
            assert upload.append(taking_over, offset, middle).headers["upload-offset"] == str(middle)
            stalled.go_on()
            refused = pool.submit(stalled.is_refused)
            way.heal()
            refused.result()
            assert upload.offset(taking_over) == middle
            assert upload.offset(client) == middle
            upload.append_rest(client, middle)
    with other.client(headers=headers) as client:
        [record] = everything(client)
        kept = of_another[:offset] + upload.content[offset:]
        assert record["sha256"] == hashlib.sha256(kept).hexdigest()
        assert client.get(record["links"]["content"]).content == kept
    assert [cut_off.stop(), other.stop()] == [0, 0]
