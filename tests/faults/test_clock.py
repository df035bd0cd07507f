"""F30. Clocks that jump, and services whose clocks differ: nobody is logged out, and no upload changes hands over it.

Each service is given a clock that is as far off as a file says. What it measures it measures all the same: who holds an
upload is decided by numbers in its row, and how long is waited for it by a clock that nobody sets.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psutil
import pytest

from tests.faults.test_resumable_workers import SENT, Race, Stalled, Upload
from tests.interop.clients import MIB, everything, have_landed, source
from tests.support.service import PATIENCE, UPLOADS, service
from tests.support.tally import TORTURE

__all__ = ["service", "source"]

pytestmark = pytest.mark.slow

MINUTE = 60
HOUR = 60 * MINUTE
JUMPS = [(HOUR, -HOUR), (-HOUR, HOUR)]
CHANGE = """
import time
from pathlib import Path

real, file = time.time_ns, Path({file!r})
time.time_ns = lambda: real() + int(file.read_text()) * 10**9
time.time = lambda: time.time_ns() / 1e9
"""


class Clock:
    """A service's clock, which is some seconds off."""

    def __init__(self, file, off=0):
        self._file = file
        self.change = CHANGE.format(file=str(file))
        self.off(off)

    def off(self, seconds):
        draft = self._file.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.rename(self._file)


def is_off_by(answer):
    """How far the clock is off by which an upload was just made."""
    made = datetime.fromisoformat(answer.json()["created_at"])
    return (made - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("jumps", JUMPS if TORTURE else JUMPS[:1])
def test_a_clock_that_jumps_ends_no_session_and_no_upload(service, tmp_path, source, jumps):
    """Sessions and uploads that may wait for three hours outlive a jump of two, whichever way it goes."""
    clock = Clock(tmp_path / "clock")
    running = service(change=clock.change, session_max_age="3h", upload_idle_time="3h")
    headers = running.session()
    piece = source.piece("file.bin", 3 * MIB)
    with running.client(headers=headers) as client:
        upload = Upload(client, headers, piece)
        for number, jump in enumerate([0, *jumps]):
            clock.off(jump)
            sent = client.put(f"{UPLOADS}/{number}", content=b"hello")
            assert sent.status_code == 201
            assert is_off_by(sent) == pytest.approx(jump, abs=PATIENCE)
            assert sent.json()["completed_at"] >= sent.json()["created_at"]
            end = (number + 1) * MIB
            assert upload.append(client, number * MIB, end).headers["upload-offset"] == str(end)
            assert upload.offset(client) == end
            assert client.get("/api/session").status_code == 200
        have_landed(client, [piece], "tus")
        assert {record["filename"] for record in everything(client)} == {"file.bin", "0", "1", "2"}
        clock.off(jumps[-1] + 4 * HOUR)
        assert client.get("/api/session").status_code == 401
    assert running.said("error") == []
    assert running.stop() == 0


@pytest.fixture
def pair(service, database_url, tmp_path):
    """Two services on one store and database, one of which is five minutes slow and the other as much fast."""
    clocks = [Clock(tmp_path / f"clock-{off}", off) for off in (-5 * MINUTE, 5 * MINUTE)]
    shared = {"database_url": database_url, "storage_dir": tmp_path / "store", "session_max_age": "1h"}
    return [service(change=clock.change, **shared) for clock in clocks]


def test_services_whose_clocks_differ_know_the_same_sessions(pair):
    for one, other in (pair, reversed(pair)):
        headers = one.session()
        with one.client() as here, other.client() as there:
            assert there.get("/api/session", headers=headers).status_code == 200
            made = there.put(f"{UPLOADS}/a", content=b"hello", headers=headers)
            assert made.status_code == 201
            assert here.get(made.json()["links"]["content"], headers=headers).content == b"hello"
            rotated = there.post("/api/session/rotate", headers=headers)
            new = {"Cookie": f"waybill_session={rotated.cookies['waybill_session']}"}
            there.cookies.clear()
            assert here.get("/api/session", headers=new).status_code == 200
            here.cookies.clear()
            assert here.delete("/api/session", headers=new).status_code == 204
            here.cookies.clear()
            assert here.get("/api/session", headers=new).status_code == 401


@pytest.mark.torture
def test_services_whose_clocks_differ_hold_an_upload_one_at_a_time(pair, source):
    """They race for each piece of it; then one is frozen with the upload in its hands, and must not have it back."""
    headers = pair[0].session()
    with pair[0].client() as one, pair[1].client() as other, ThreadPoolExecutor(2) as pool:
        race = Race(Upload(one, headers, source.piece("race.bin", 2 * MIB)))
        for ended in [pool.submit(race.run, client, seed) for seed, client in enumerate([one, other])]:
            ended.result(PATIENCE)
        upload = Upload(one, headers, source.piece("file.bin", 16 * MIB))
        of_another = source.piece("another.bin", 16 * MIB).content
        with Stalled(upload, one, pair[0], of_another) as stalled:
            frozen = psutil.Process(pair[0].pid)
            frozen.suspend()
            offset = upload.offset(other)
            assert upload.append(other, offset, offset + 2 * SENT).status_code == 204
            stalled.go_on()
            frozen.resume()
            stalled.is_refused()
            upload.append_rest(other, offset + 2 * SENT)
    with pair[1].client(headers=headers) as client:
        landed = {record["filename"]: record["sha256"] for record in everything(client)}
    kept = hashlib.sha256(of_another[:offset] + upload.content[offset:]).hexdigest()
    assert landed == {"race.bin": race.upload.piece.sha256, "file.bin": kept}
    assert [each.stop() for each in pair] == [0, 0]
