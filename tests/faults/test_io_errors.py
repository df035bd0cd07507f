"""Calls that fail: nothing of what they concern is acknowledged or visible, and nothing is taken until a test passes.

Promise 4. The calls are made to fail by strace, in the service as it runs.
"""

import hashlib
import os
from contextlib import closing

import pytest

from tests.faults.guest import CHUNK, KIB, MIB, WAYS, Baseline, Guest, Halfway, content_of, eventually, is_success
from tests.faults.tracing import NAMED_THREADS, traced
from tests.support.sender import TUS
from tests.support.service import HISTORY, UPLOADS, Service
from tests.support.stores import needs_root, remount, thin_disk, tmpfs
from tests.support.tally import TORTURE
from tests.support.tools import needs

pytestmark = [pytest.mark.slow, needs("strace")]

PUBLISHES = "waybill-publish"


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """At a service that all tests here share, since each leaves it as it was."""
    with closing(Service(tmp_path_factory.mktemp("service"), change=NAMED_THREADS)) as running:
        guest = Guest(running.start())
        guest.goes_on()
        yield guest


def refused(answer):
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "unavailable"
    assert 0 < int(answer.headers["retry-after"]) <= 5


def mistrusts(guest):
    """No upload is taken, by whatever way; files are served."""
    for way in WAYS:
        refused(guest.send(way, b"no matter what"))
    guest.finds_all()


def trusts_again(guest, before, **left):
    """Whoever asks whether it is ready, a second after others, has the store tested; then everything is as ever."""
    eventually(lambda: guest.get("/health/ready").status_code == 200 and is_success(guest.send("raw", b"x")))
    before.is_back(**left)
    guest.goes_on("raw")


def flushed_once(story):
    """No file and no directory was flushed again after that had failed."""
    flushed = [line.split("<")[1].split(">")[0] for line in story.calls("fsync")]
    failed = [line.split("<")[1].split(">")[0] for line in story.injected if "fsync(" in line]
    assert [flushed.count(path) for path in failed] == [1] * len(failed)


ONE = [("fsync", 1), ("fsync", 2), ("write", 1), ("openat", 1), ("renameat2", 1)]
SEVERAL = [("syncfs", 1), ("syncfs", 2), ("sync_file_range", 2), ("write", 3), ("renameat2", 3)]
SEVERAL += [("openat", 2), ("write", 2), ("sync_file_range", 1), ("sync_file_range", 3), ("renameat2", 2)]
if not TORTURE:
    ONE, SEVERAL = ONE[:3], SEVERAL[:1] + SEVERAL[4:5]


@pytest.mark.parametrize("way", ["form", "raw"] if TORTURE else ["raw"])
@pytest.mark.parametrize(("call", "at"), ONE)
def test_a_file_that_meets_an_error_before_it_has_its_name_is_refused(guest, way, call, at):
    """F6: at its creation, its write, its flush, its rename, or the flush of its directory."""
    before = Baseline(guest.running)
    inject = f"inject={call}:error=EIO:when={at}"
    with traced(guest.running, "-e", inject, thread=PUBLISHES, trace=f"fsync,{call}") as story:
        refused(guest.send(way, content_of(100)))
        mistrusts(guest)
    assert len(story.injected) == 1
    flushed_once(story)
    failed = [item for item in guest.history() if item["status"] == "failed"]
    assert failed[-1]["error"]["code"] == "unavailable"
    trusts_again(guest, before)


@pytest.mark.parametrize(("call", "at", "files"), [("mknodat", 1, 1), ("openat", 4, 3)])
def test_a_note_of_what_is_under_way_that_cannot_be_made_refuses_no_upload(guest, call, at, files):
    """The sweep believes less then, and not more. For several files the list is opened behind them."""
    before = Baseline(guest.running)
    inject = f"inject={call}:error=EIO:when={at}"
    with traced(guest.running, "-e", inject, thread=PUBLISHES, trace=call) as story:
        assert is_success(guest.send_form(*(content_of(100, seed) for seed in range(files))))
    assert len(story.injected) == 1
    guest.running.wait_for("what is under way could not be listed")
    before.is_back()


@pytest.mark.parametrize(("call", "at"), SEVERAL)
def test_files_of_a_form_in_which_one_meets_an_error_do_not_land(guest, call, at):
    """F6: a form lands whole or not at all, whichever of its files it was."""
    before = Baseline(guest.running)
    inject = f"inject={call}:error=EIO:when={at}"
    with traced(guest.running, "-e", inject, thread=PUBLISHES, trace=f"fsync,syncfs,{call}") as story:
        refused(guest.send_form(*(content_of(100, seed) for seed in range(3))))
        mistrusts(guest)
    assert len(story.injected) == 1
    if call == "syncfs":
        assert len(story.calls("syncfs")) == at
    trusts_again(guest, before)


@pytest.mark.parametrize("sent", [MIB, 2 * MIB, 3 * MIB + 5] if TORTURE else [2 * MIB])
def test_a_large_file_whose_write_fails_is_refused(guest, sent):
    """F6: at the write after so many bytes, the last one through the page cache among them."""
    before = Baseline(guest.running)
    with Halfway(guest, 3 * MIB + 5 * KIB) as upload:
        upload.send(sent)
        staged = str(upload.staged())
        with traced(guest.running, "-P", staged, "-e", "inject=write:error=EIO:when=1") as story:
            assert upload.answer().code == "unavailable"
            mistrusts(guest)
        assert story.injected
        assert story.calls("fsync") == []
    trusts_again(guest, before)


RESUMABLE = ["fsync file", "fsync directory", "write", "renameat2"] if TORTURE else ["fsync file"]


@pytest.mark.parametrize("fault", RESUMABLE)
@pytest.mark.parametrize("begun", [0, MIB] if TORTURE else [MIB])
def test_a_resumable_upload_that_meets_an_error_goes_on_from_its_last_offset(guest, begun, fault):
    """F6: no offset is told that such a call was to make durable, and none is taken back."""
    if fault == "fsync directory" and begun:
        pytest.skip("the name is durable already")
    before = Baseline(guest.running)
    content = content_of(2 * MIB + 7, seed=begun)
    with guest.client() as client:
        made = client.post(UPLOADS, headers=TUS | {"Upload-Length": str(len(content))})
        url = made.headers["location"]
        if begun:
            client.patch(url, content=content[:begun], headers=TUS | CHUNK | {"Upload-Offset": "0"})
        upload_id = guest.history()[-1]["id"]
        partial = guest.running.store / "partial"
        about = partial if fault == "fsync directory" else partial / f"{upload_id}.0"
        call = fault.split()[0]
        options = ["-P", str(about), "-e", f"inject={call}:error=EIO"]
        if call == "renameat2":
            options = ["-e", f"inject={call}:error=EIO"]
        with traced(guest.running, *options, trace=f"fsync,{call}") as story:
            refused(guest.append(url, content, begun))
            told = int(client.head(url, headers=TUS).headers.get("upload-offset", begun))
            assert told in ({begun, len(content)} if call == "renameat2" else {begun})
            if call == "fsync":
                flushed_once(story)
        assert story.injected
        eventually(lambda: guest.get("/health/ready").status_code == 200 and is_success(guest.send("raw", b"x")))
        left = int(client.head(url, headers=TUS).headers["upload-offset"])
        if left < len(content):
            assert guest.append(url, content, left).headers["upload-offset"] == str(len(content))
    guest.acknowledge(guest.get(f"{HISTORY}/{upload_id}").json(), content)
    trusts_again(guest, before)


def test_the_service_is_not_ready_while_every_flush_fails_and_ready_when_none_does(guest):
    """F6: an orchestrator sees it, and is told when it has passed."""
    before = Baseline(guest.running)
    store = str(guest.running.store)
    with traced(guest.running, "-e", "inject=fsync:error=EIO") as story:
        refused(guest.send("raw", b"x"))
        eventually(lambda: guest.get("/health/ready").json()["failing"] == ["store"])
        mistrusts(guest)
        flushed_once(story)
        assert all(store in line for line in story.injected)
    trusts_again(guest, before)


def test_a_record_that_cannot_be_flushed_is_not_acknowledged_and_settled_later(guest):
    """F6, of SQLite's own flush: what looks committed then is made sure of before anything builds on it."""
    before = Baseline(guest.running)
    known = {item["id"] for item in guest.history()}
    log = str(guest.running.store / "waybill.db-wal")
    flushes = "fsync,fdatasync"  # which of them is a matter of how SQLite was built
    with traced(guest.running, "-P", log, "-e", f"inject={flushes}:error=EIO", trace=flushes) as story:
        refused(guest.send("raw", b"x"))
        refused(guest.send("form", b"x"))
        assert story.injected

    def settled():
        new = [item for item in guest.history() if item["id"] not in known]
        guest.acknowledged |= {item["id"]: item["sha256"] for item in new if item["status"] == "completed"}
        return new != [] and is_success(guest.send("raw", b"x"))

    eventually(settled)
    trusts_again(guest, before)


# --- disks that really fail


def elsewhere(tmp_path):
    return {"database_url": f"sqlite:///{tmp_path}/waybill.db"}


@needs_root
def test_a_disk_that_loses_writes_loses_no_acknowledged_upload(tmp_path):
    """F7: ext4 says ok to the second flush of data that it has lost. Here there is no second one, and it is asked for
    nothing that it did not flush at first."""
    with thin_disk(tmp_path) as root, closing(Service(root, **elsewhere(tmp_path))) as running:
        guest = Guest(running.start())
        failed = []
        for number in range(60):
            way = WAYS[number % 3]
            # Small ones go through the page cache, so that it is their flush that fails; large ones past it.
            answer = guest.send(way, content_of(4 * MIB if number % 4 == 3 else 200 * KIB, number))
            if not is_success(answer):
                failed.append(answer.status_code)
                guest.get("/health/ready")  # a test that passes, by chance, brings nothing back
            if len(failed) == 6:
                break
        assert len(failed) == 6
        assert set(failed) <= {503, 507}
        if 503 in failed:  # else the disk has said each time that it is full
            running.wait_for("the store failed")
        for path in (running.store / "files").glob("*/*"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk itself is asked
        completed = {item["id"] for item in guest.history() if item["status"] == "completed"}
        assert completed == guest.acknowledged.keys()
        for upload_id, digest in guest.acknowledged.items():
            served = guest.get(f"/api/ingestion/files/{upload_id}")
            assert hashlib.sha256(served.content).hexdigest() == digest
        for item in guest.history():
            if item["id"] not in guest.acknowledged:
                assert guest.get(f"/api/ingestion/files/{item['id']}").status_code == 404


@needs_root
def test_a_store_that_becomes_read_only_is_read_and_taken_back_when_it_can_be_written(tmp_path):
    """F11: without a restart."""
    with tmpfs(tmp_path / "volume", "16m") as root, closing(Service(root, **elsewhere(tmp_path))) as running:
        guest = Guest(running.start())
        guest.goes_on()
        before = Baseline(running)
        with guest.client() as client:
            made = client.post(UPLOADS, headers=TUS | {"Upload-Length": "10"})
            url, upload_id = made.headers["location"], guest.history()[-1]["id"]
        remount(root, "ro")
        for size in (10, 2 * MIB):
            for way in WAYS:
                refused(guest.send(way, content_of(size)))
        refused(guest.append(url, b"0123456789"))
        eventually(lambda: guest.get("/health/ready").json()["failing"] == ["store"])
        mistrusts(guest)
        remount(root, "rw")
        eventually(lambda: guest.get("/health/ready").status_code == 200)
        assert guest.append(url, b"0123456789").headers["upload-offset"] == "10"
        guest.acknowledge(guest.get(f"{HISTORY}/{upload_id}").json(), b"0123456789")
        guest.goes_on()
        before.is_back()
        assert running.stop() == 0
