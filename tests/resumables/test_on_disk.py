"""Uploads that come in several requests, to two processes with one directory."""

import asyncio
import os
import shutil
from contextlib import AsyncExitStack

import pytest

from app.errors import OutcomeUnknown, Unavailable
from app.model import Digests, Protocol
from app.resumables import Preempted
from app.storage.local import LocalStorage
from tests.support.resumables import World, Writer, sha


class TestDirectory:
    """On a disk, where two processes are two owners of one directory."""

    @pytest.fixture
    async def world(self, database_url, tmp_path):
        async with AsyncExitStack() as stack:
            world = World(database_url, None, stack)

            async def worker(**more):
                storage = LocalStorage(tmp_path / "store", owner=world.new_id(), min_free=0)
                await storage.prepare()
                stack.push_async_callback(storage.close)
                world.storage = storage
                return await World.worker(world, **more)

            world.worker = worker
            yield world

    @pytest.mark.parametrize("size", [10, 300_000, 900_000])
    async def test_an_upload_goes_on_in_another_process(self, world, size):
        first, second = await world.worker(), await world.worker()
        content = (bytes(range(251)) * (size // 251 + 1))[:size]
        key = await first.create(len(content), protocol=Protocol.RESUMABLE, digests=Digests(sha(content)))
        async with Writer(first, key, 0, content[: size // 3]) as writer:
            assert await second.offset(key) == size // 3
            with pytest.raises(Preempted):
                await writer.task
        await second.append(key, size // 3, content[size // 3 : size // 2])
        done = await first.append(key, size // 2, content[size // 2 :])
        assert await second.content(done.upload_id) == content
        assert await second.unfinished() == []

    async def test_an_upload_goes_on_after_a_restart_at_the_acknowledged_offset(self, world, monkeypatch):
        monkeypatch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.1)
        first = await world.worker()
        key = await first.create(900_000)
        await first.append(key, 0, bytes(400_000))
        async with Writer(first, key, 400_000, bytes(300_000)):
            first.db.away = True  # what came last is never committed, as if the process had been killed
        second = await world.worker()
        assert await second.offset(key) == 400_000
        done = await second.append(key, 400_000, bytes(500_000))
        assert (done.upload.sha256, done.file_fence) == (
            sha(bytes(900_000)),
            0,
        )  # nobody had the file: no copy was needed

    async def test_a_frozen_process_cannot_touch_an_upload_after_its_preemption(self, world, monkeypatch):
        """F23."""
        monkeypatch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.1)
        frozen, worker = await world.worker(), await world.worker()
        monkeypatch.setattr(frozen.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        key = await frozen.create(900_000)
        await frozen.append(key, 0, bytes(400_000))
        async with Writer(frozen, key, 400_000, b"x" * 400_000) as writer:
            kept = await worker.append(key, 400_000, bytes(100_000))
            writer.more.put_nowait(b"x" * 100_000)
            writer.more.put_nowait(None)
            with pytest.raises((Preempted, Unavailable)):
                await writer.task
        done = await worker.append(key, 500_000, bytes(400_000))
        assert (done.upload.sha256, kept.file_fence > 0) == (sha(bytes(900_000)), True)
        assert await worker.content(done.upload_id) == bytes(900_000)
        worker.resumes._parts.expiry._grace_seconds = 0
        await worker.resumes.sweep()
        assert await worker.unfinished() == []

    async def test_parts_are_concatenated(self, world):
        worker = await world.worker()
        keys = []
        for letter in (b"a", b"b", b"c"):
            keys.append(await worker.create(300_001, is_part=True))
            await worker.append(keys[-1], 0, letter * 300_001)
        whole, _ = await worker.concatenate(*keys)
        content = b"".join(letter * 300_001 for letter in (b"a", b"b", b"c"))
        assert (whole.completed, whole.upload.sha256) == (True, sha(content))
        assert await worker.content(whole.upload_id) == content

    @pytest.mark.parametrize("size", [3, 700_000])
    async def test_a_crash_between_file_and_record_is_repaired(self, world, size):
        worker = await world.worker()
        key = await worker.create(size)
        worker.db.fails = [None, None, *["away"] * 50]  # claimed, committed
        with pytest.raises(OutcomeUnknown):
            await worker.append(key, 0, bytes(size))
        worker.db.fails = []
        other = await world.worker()
        done = await other.resumes.find(key, "mine", newest=True)
        assert (done.completed, done.upload.sha256) == (True, sha(bytes(size)))
        assert await other.unfinished() == []

    @pytest.mark.parametrize("left", [os.link, shutil.copyfile], ids=["the same file", "a copy"])
    @pytest.mark.parametrize("size", [3, 700_000])
    async def test_a_published_file_is_not_published_again(self, world, tmp_path, size, left):
        """Where a rename is a link and an unlink, a crash leaves both names; who goes on in a copy may be too late."""
        worker = await world.worker()
        key = await worker.create(size)
        worker.db.fails = [None, None, *["away"] * 50]  # claimed, committed
        with pytest.raises(OutcomeUnknown):
            await worker.append(key, 0, bytes(size))
        worker.db.fails = []
        [published] = (tmp_path / "store" / "files").glob("??/*")
        partial = tmp_path / "store" / "partial" / f"{published.name}.0"
        left(published, partial)
        partial.chmod(0o600)
        before = published.stat()
        other = await world.worker()
        done = await other.resumes.find(key, "mine", newest=True)
        assert (done.completed, done.upload.sha256) == (True, sha(bytes(size)))
        assert await other.content(done.upload_id) == bytes(size)
        assert (published.stat().st_ino, published.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        other.resumes._parts.expiry._grace_seconds = 0
        assert (await other.resumes.sweep()).files_removed == 1
        assert await other.content(done.upload_id) == bytes(size)

    @pytest.mark.parametrize("publish", [os.rename, os.link])
    async def test_a_database_that_is_older_than_the_files_learns_that_an_upload_is_complete(
        self, world, tmp_path, publish
    ):
        """As after a backup of it was restored: nothing of what was complete is cut off or called lost."""
        worker = await world.worker()
        key = await worker.create(6)
        upload_id = (await worker.append(key, 0, b"abc")).upload_id
        partial = tmp_path / "store" / "partial" / f"{upload_id}.0"
        with partial.open("ab") as file:
            file.write(b"def")
        publish(partial, tmp_path / "store" / "files" / upload_id[-2:] / upload_id)
        with pytest.raises(Unavailable, match="complete"):
            await worker.append(key, 3, b"def")
        found = await worker.resumes.find(key, "mine", newest=True)
        assert (found.completed, found.offset, found.upload.sha256) == (True, 6, sha(b"abcdef"))
        assert await worker.content(upload_id) == b"abcdef"
        assert (await worker.append(key, 6)).completed
