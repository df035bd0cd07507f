"""Disks that are full: the upload that does not fit is refused, and everything else goes on; promise 16."""

import os
import subprocess
from contextlib import closing, suppress

import pytest

from tests.faults.guest import CHUNK, FORM, KIB, MIB, WAYS, Baseline, Guest, Halfway, content_of, figures, is_success
from tests.support.sender import TUS
from tests.support.service import UPLOADS, Service
from tests.support.stores import mounted, needs_root, tmpfs
from tests.support.tally import TORTURE
from tests.support.tools import tool

pytestmark = [pytest.mark.slow, needs_root]

LARGE = 20 * MIB  # bytes; more than any of the disks holds


def fill(root):
    """Use what is left of a disk, to the last byte; returns what takes it up."""
    taken = root / "somebody-else"
    with taken.open("ab", buffering=0) as file:
        for size in (MIB, 4 * KIB, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return taken


def taken_but_for_a_little(taken):
    os.truncate(taken, taken.stat().st_size - 2 * MIB)


def refused_for_space(answer):
    assert answer.status_code == 507, answer.text
    assert answer.json()["code"] == "storage_full"


# --- the store's disk


@pytest.mark.parametrize("database", ["beside it", "elsewhere"] if TORTURE else ["beside it"])
def test_an_upload_that_proves_too_large_is_refused_and_the_others_finish(tmp_path, database):
    """F1: full in the middle of a body whose length nobody told."""
    settings = {} if database == "beside it" else {"database_url": f"sqlite:///{tmp_path}/waybill.db"}
    with tmpfs(tmp_path / "volume", "12m") as root, closing(Service(root, **settings)) as running:
        guest = Guest(running.start())
        guest.goes_on()
        before, free = Baseline(running), figures(running)["waybill_storage_free_bytes"]
        with Halfway(guest, 2 * MIB) as other:
            other.send(MIB)
            other.staged()
            for way in WAYS:
                refused_for_space(guest.send(way, content_of(LARGE), declared=False))
            assert other.answer().status == 201
        before.is_back()
        assert figures(running)["waybill_storage_free_bytes"] > free - 3 * MIB
        assert guest.get("/health/ready").status_code == 200
        refused = [item["error"]["code"] for item in guest.history() if item["status"] == "failed"]
        assert refused == ["storage_full"] * 2
        guest.goes_on()
        assert running.stop() == 0


def test_a_resumable_upload_refused_by_a_full_disk_goes_on_when_there_is_space(tmp_path):
    """F1: its offset does not tell of it, and its file keeps no space for it."""
    with tmpfs(tmp_path / "volume", "12m") as root, closing(Service(root)) as running:
        guest = Guest(running.start())
        content = content_of(6 * MIB)
        with guest.client() as client:
            made = client.post(UPLOADS, headers=TUS | {"Upload-Length": str(len(content))})
            url = made.headers["location"]
            half = client.patch(url, content=content[:MIB], headers=TUS | CHUNK | {"Upload-Offset": "0"})
            assert half.headers["upload-offset"] == str(MIB)
            taken = fill(root)
            taken_but_for_a_little(taken)
            refused_for_space(guest.append(url, content, MIB, declared=False))
            refused_for_space(guest.append(url, content, MIB))
            fill(root)
            assert client.head(url, headers=TUS).headers["upload-offset"] == str(MIB)
            [partial] = (running.store / "partial").iterdir()
            assert partial.stat().st_size == MIB
            taken.unlink()
            assert guest.append(url, content, MIB).headers["upload-offset"] == str(len(content))
        [item] = guest.history()
        guest.acknowledge(item, content)
        guest.finds_all()


def test_a_length_that_does_not_fit_is_refused_before_the_body_is_asked_for(tmp_path):
    """F2: 507 instead of 100 Continue, and what was promised to nobody is free for the next."""
    with tmpfs(tmp_path / "volume", "12m") as root, closing(Service(root)) as running:
        guest = Guest(running.start())
        before = Baseline(running)
        with guest.client() as client:
            refused_for_space(client.post(UPLOADS, headers=TUS | {"Upload-Length": str(LARGE)}))
            made = client.post(UPLOADS, headers=TUS | {"Upload-Defer-Length": "1"})
        asked = [
            (f"PUT {UPLOADS}/a.bin", {}),
            (f"POST {UPLOADS}", FORM),
            (f"PATCH {made.headers['location']}", TUS | CHUNK | {"Upload-Offset": "0"}),
        ]
        for start, headers in asked * 2:
            with Halfway(guest, LARGE, start=start, headers=headers | {"Expect": "100-continue"}) as upload:
                said = upload.said()
            assert (said.status, said.code) == (507, "storage_full")
        assert [event["received"] for event in running.events if event.get("status") == 507] == [0] * 7
        assert [item["status"] for item in guest.history()] == ["uploading"]
        before.is_back()
        for way in WAYS if TORTURE else ["raw"]:
            assert is_success(guest.send(way, content_of(8 * MIB)))
            guest.finds_all()
            assert guest.delete(next(iter(guest.acknowledged))).status_code == 204


def test_a_disk_without_inodes_serves_and_deletes_files_and_then_takes_new_ones(tmp_path):
    """F3: there are bytes, but no file can be made."""
    with tmpfs(tmp_path / "volume", "12m", "nr_inodes=400") as root, closing(Service(root)) as running:
        guest = Guest(running.start())
        guest.goes_on()
        before = Baseline(running)
        taken = []
        with suppress(OSError):
            while True:
                (root / f"somebody-else-{len(taken)}").touch()
                taken.append(root / f"somebody-else-{len(taken)}")
        for way in WAYS:
            for size in (1, MIB):
                refused_for_space(guest.send(way, content_of(size)))
                refused_for_space(guest.send(way, content_of(size), declared=False))
        assert guest.get("/health/ready").json()["failing"] == ["store", "free_space"]
        before.is_back()
        guest.finds_all()
        for way in WAYS:  # who deletes can send
            assert guest.delete(next(iter(guest.acknowledged))).status_code == 204
            assert is_success(guest.send(way, b"again")), way
            refused_for_space(guest.send(way, b"again"))
        guest.finds_all()
        for path in taken:
            path.unlink()
        guest.goes_on()


# --- the database's disk


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"] if TORTURE else ["tmpfs"])
def test_files_are_deleted_on_a_disk_that_is_full_to_the_last_byte(tmp_path, kind):
    """F4: the database lies there too, and to delete is to write first. The space comes to others each time."""
    with volume(tmp_path, kind) as root, closing(Service(root)) as running:
        guest = Guest(running.start())
        with guest.client() as client:
            made = client.post(UPLOADS, headers=TUS | {"Upload-Length": str(MIB)})
            unfinished = made.headers["location"]
            client.patch(unfinished, content=bytes(MIB // 2), headers=TUS | CHUNK | {"Upload-Offset": "0"})
        for number in range(4):
            assert is_success(guest.send("raw", content_of(100 if number % 2 else 300 * KIB, number)))
        before, settled = Baseline(running), guest.history()
        fill(root)
        for way in WAYS:
            refused_for_space(guest.send(way, b"x"))
        assert guest.get("/health/ready").json()["failing"][0] == "store"
        for upload_id in list(guest.acknowledged):
            fill(root)
            assert guest.delete(upload_id).status_code == 204
            guest.finds_all()
        taken = fill(root)
        with guest.client() as client:
            assert client.delete(unfinished, headers=TUS).status_code == 204
        assert [item["id"] for item in guest.history()] == [item["id"] for item in settled]
        taken.unlink()
        guest.goes_on()
        before.is_back()


def test_the_ballast_is_restored_once_there_is_space(tmp_path):
    """F4: by the next deletion, and by the next start."""
    with tmpfs(tmp_path / "volume", "12m") as root, closing(Service(root)) as running:
        guest = Guest(running.start())
        reserve = running.store / "waybill.db-reserve"
        whole = reserve.stat().st_size
        for number in range(6):
            assert is_success(guest.send("raw", content_of(100 * KIB, number)))
        ids = list(guest.acknowledged)
        taken = fill(root)
        assert guest.delete(ids[0]).status_code == 204
        assert reserve.stat().st_size < whole
        taken.unlink()
        assert guest.delete(ids[1]).status_code == 204
        assert reserve.stat().st_size == whole
        taken = fill(root)
        assert guest.delete(ids[2]).status_code == 204
        taken.unlink()
        assert running.stop() == 0
        running.start()
        assert reserve.stat().st_size == whole
        guest.finds_all()


def test_an_upload_that_cannot_be_recorded_is_refused_and_its_bytes_go(tmp_path):
    """F1, of the database's own disk: SQLite says that it is full, and the store has all the space it wants."""
    with tmpfs(tmp_path / "volume", "4m") as root:
        database_url = f"sqlite:///{root}/waybill.db"
        with closing(Service(tmp_path / "service", database_url=database_url)) as running:
            guest = Guest(running.start())
            guest.goes_on()
            before = Baseline(running)
            taken = fill(root)
            for way in WAYS:
                for size in (10, 300 * KIB, 3 * MIB):
                    refused_for_space(guest.send(way, content_of(size)))
            guest.finds_all()
            assert guest.delete(next(iter(guest.acknowledged))).status_code == 204
            before.is_back()
            taken.unlink()
            guest.goes_on()


# --- quotas


def test_a_quota_is_a_full_disk(tmp_path):
    """F5: EDQUOT, of which looking at the free space says nothing beforehand."""
    with volume(tmp_path, "btrfs") as root:
        for command in ("quota enable", "subvolume create", "qgroup limit 8M"):
            target = root if command == "quota enable" else root / "store"
            subprocess.run([tool("btrfs"), *command.split(), str(target)], check=True, capture_output=True)
        settings = {"database_url": f"sqlite:///{tmp_path}/waybill.db", "storage_dir": root / "store"}
        with closing(Service(tmp_path / "service", **settings)) as running:
            running.store = root / "store"
            guest = Guest(running.start())
            guest.goes_on()
            before = Baseline(running)
            for way in WAYS:
                for declared in (True, False):
                    refused_for_space(guest.send(way, content_of(LARGE), declared=declared))
            before.is_back()
            # Until then it counts what has gone.
            subprocess.run([tool("btrfs"), "filesystem", "sync", str(root)], check=True)
            assert guest.get("/health/ready").status_code == 200
            guest.goes_on()
            assert running.stop() == 0


def volume(tmp_path, kind):
    """A file system of this kind, of its least size."""
    if kind == "tmpfs":
        return tmpfs(tmp_path / "volume", "12m")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, SIZES[kind] * MIB)
    subprocess.run([tool(f"mkfs.{kind}"), "-q", str(image)], check=True)
    return mounted(tmp_path / "volume", "-o", "loop", source=str(image))


SIZES = {"ext4": 24, "xfs": 300, "btrfs": 128}
