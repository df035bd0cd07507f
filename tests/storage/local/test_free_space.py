"""The floor of free space is never passed, and every byte promised or held is accounted for."""

import asyncio
import os
import threading

import pytest

from app.errors import StorageFull
from app.storage.local.free_space import HELD_BYTES_IN_ALL, Space
from tests.contracts.storage import KiB, MiB, content_of, fill, keys, new_key, put, staged
from tests.support.stores import files_in, limit, local, needs_root, tmpfs

GiB = 1024 * MiB


@pytest.fixture
def disk(monkeypatch):
    """A disk whose free bytes, block size and free inodes a test decides."""

    class Disk:
        free, block, inodes = 1000, 1, 10

        def look(self, fd):
            return os.statvfs_result(
                (self.block, self.block, 0, 0, self.free // self.block, 20, 20, self.inodes, 0, 255)
            )

    disk = Disk()
    monkeypatch.setattr(os, "fstatvfs", disk.look)
    return disk


def test_space_kept_free_is_not_available(disk):
    space = Space(min_free=600)
    assert space.free_bytes() == 400
    space.reserve(400)
    with pytest.raises(StorageFull):
        space.reserve(1)
    disk.free = 500
    assert space.free_bytes() == 0


def test_a_store_in_which_no_file_can_be_made_has_no_room_but_open_files_may_grow(disk):
    disk.inodes = 0
    space = Space(min_free=0)
    assert space.free_bytes() == 0
    with pytest.raises(StorageFull):
        space.reserve(1)
    space.begin_write(1000, None)


def test_a_file_system_that_does_not_count_inodes_has_room(monkeypatch):
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result((1, 1, 0, 0, 1000, 0, 0, 0, 0, 255)))
    assert Space(min_free=0).free_bytes() == 1000


def test_simultaneous_writes_keep_the_minimum_free_space_together(disk):
    """Each alone would fit; the disk does not show yet what the others are writing."""
    space = Space(min_free=0)
    let_in, refused = [], []
    here = threading.Barrier(8)

    def write():
        here.wait(30)
        try:
            space.begin_write(300, None)
        except OSError as error:
            refused.append(error.strerror)
        else:
            let_in.append(300)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(let_in), refused) == (3, ["No space left on device"] * 5)
    disk.free = 100
    for size in let_in:
        space.end_write(size)
    space.begin_write(100, None)


def test_a_write_takes_whole_blocks_of_the_disk(disk):
    disk.block, disk.free = 100, 1000
    space = Space(min_free=450)
    claims = [space.begin_write(101, None), space.begin_write(1, None), space.begin_write(200, None)]
    assert claims == [200, 100, 200]
    with pytest.raises(OSError, match="No space"):
        space.begin_write(1, None)
    assert space.begin_write(0, None) == 0
    for claimed in claims:
        space.end_write(claimed)
    assert space.begin_write(500, None) == 500


def test_a_disk_with_plenty_of_space_is_not_asked_for_every_file(disk, monkeypatch):
    looks = []
    look = disk.look
    monkeypatch.setattr(os, "fstatvfs", lambda fd: (looks.append(fd), look(fd))[1])
    disk.free = 3 * GiB
    space = Space(min_free=GiB // 2)
    for _ in range(10):
        space.end_write(space.begin_write(KiB, space.reserve(KiB)))
    assert len(looks) == 1
    disk.free = GiB // 2
    space.reserve(GiB)  # it was there a moment ago
    for _ in range(2):
        with pytest.raises(StorageFull):
            space.reserve(GiB)  # so near the floor nothing is taken for granted
    assert len(looks) == 3


def test_bytes_written_since_the_last_measurement_count(disk):
    disk.free = 3 * GiB
    space = Space(min_free=0)
    for _ in range(2):
        space.end_write(space.begin_write(GiB, None))
    disk.free = GiB
    with pytest.raises(OSError, match="No space"):
        space.begin_write(GiB + 1, None)


def test_a_reservation_is_kept_for_its_upload(disk):
    space = Space(min_free=0)
    mine, other = space.reserve(400), space.reserve(500)
    with pytest.raises(OSError, match="No space"):
        space.begin_write(101, None)
    space.begin_write(400, mine)
    disk.free -= 400
    space.end_write(400)
    assert (mine.left, other.left, space.reserved) == (0, 500, 500)
    with pytest.raises(OSError, match="No space"):
        space.begin_write(101, mine)
    space.begin_write(600, other)
    assert (other.left, space.reserved) == (0, 0)


def test_a_reservation_is_no_more_than_the_disk_has(disk):
    """Another program may take what was promised. Then the floor counts, first come, first served."""
    space = Space(min_free=100)
    mine, other = space.reserve(400), space.reserve(500)
    disk.free = 600
    space.begin_write(400, mine)
    disk.free = 200
    space.end_write(400)
    with pytest.raises(OSError, match="No space"):
        space.begin_write(101, other)
    space.begin_write(100, other)


def test_memory_for_small_files_is_bounded_and_comes_back():
    space = Space(min_free=0)
    assert space.hold(HELD_BYTES_IN_ALL - 1)
    assert not space.hold(2)
    assert space.hold(1)
    space.release_memory(HELD_BYTES_IN_ALL)
    assert space.hold(HELD_BYTES_IN_ALL)


async def test_small_files_that_find_no_memory_go_to_disk(tmp_path, monkeypatch):
    storage = local(tmp_path)
    await storage.prepare()
    monkeypatch.setattr("app.storage.local.free_space.HELD_BYTES_IN_ALL", 1000)
    files = [await staged(storage, content_of(400, seed)) for seed in range(6)]
    assert len([name for name in files_in(tmp_path) if name.startswith("staging/")]) == 4
    assert storage.space.held == 800
    assert await storage.publish(files[:3]) == {}
    for file in files[3:]:
        await file.abort()
    assert storage.space.held == 0
    assert await keys(storage) == sorted(file.key for file in files[:3])
    await storage.close()


async def test_bytes_that_come_one_by_one_cost_no_more_memory_than_their_number(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    file = storage.stage(new_key())
    for _ in range(5000):
        await file.write(b"ab")
        await file.write(b"")
    assert storage.space.held == 10_000
    assert [len(block) for block in file._held.blocks] == [10_000]
    await file.abort()
    await storage.close()


@pytest.mark.parametrize("size", [100, 200 * KiB, 3 * MiB])
async def test_nothing_stays_accounted_for_however_uploads_end(tmp_path, monkeypatch, size):
    limit(monkeypatch, tmp_path, 10 * MiB)
    storage = local(tmp_path)
    await storage.prepare()
    one, two = storage.reserve(size), storage.reserve(size)
    published = await staged(storage, content_of(size), reservation=one)
    aborted = await staged(storage, content_of(size), reservation=two)
    assert await storage.publish([published]) == {}
    refused = await staged(storage, content_of(size), key=published.key)
    assert await storage.publish([refused]) != {}
    await aborted.abort()
    full = storage.stage(new_key())
    with pytest.raises(StorageFull):
        await fill(full, content_of(11 * MiB), MiB)
    await full.abort()
    one.release()
    two.release()
    assert (storage.space.reserved, storage.space.held) == (0, 0)
    assert await storage.free_bytes() == 10 * MiB - size
    storage.reserve(10 * MiB - size)
    assert files_in(tmp_path) == [f"files/{published.key[-2:]}/{published.key}"]
    await storage.close()


# --- real disks that are really full


@pytest.fixture
async def tiny(tmp_path):
    """A store on a file system of 6 MiB; yields its root too."""
    with tmpfs(tmp_path / "volume", "6m"):
        storage = local(tmp_path / "volume")
        await storage.prepare()
        yield storage, tmp_path / "volume"
        await storage.close()


def free_on(root) -> int:
    state = os.statvfs(root)
    return state.f_bavail * state.f_frsize


@needs_root
@pytest.mark.parametrize("direct", [True, False])
async def test_a_full_disk_costs_the_upload_that_filled_it_and_no_other(tiny, direct):
    storage, root = tiny
    storage._staging.direct &= direct
    before = free_on(root)
    other, held = storage.stage(new_key()), await staged(storage, b"held")
    await other.write(content_of(MiB))
    greedy = storage.stage(new_key())
    with pytest.raises(StorageFull):
        await fill(greedy, content_of(8 * MiB), 300 * KiB)
    await greedy.abort()
    await other.write(content_of(MiB, 2))
    await other.finish()
    assert await storage.publish([other, held]) == {}
    await put(storage, content_of(100 * KiB))
    await storage.remove(await keys(storage))
    assert free_on(root) == before
    assert (storage.space.reserved, storage.space.held) == (0, 0)


@needs_root
async def test_a_commit_group_that_does_not_fit_is_published_as_far_as_it_does(tiny):
    storage, root = tiny
    files = [await staged(storage, content_of(200 * KiB, seed)) for seed in range(40)]
    refused = await storage.publish(files)
    assert {type(error) for error in refused.values()} == {StorageFull}
    published = [file.key for file in files if file.key not in refused]
    assert len(published) >= 28
    assert await keys(storage) == sorted(published)
    assert len(files_in(root)) == len(published)
    await storage.remove(published)
    assert await keys(storage) == []


@needs_root
async def test_the_disk_itself_may_refuse_what_the_count_allowed(tiny, monkeypatch):
    """Between the look at the disk and the write another program may have taken the space."""
    storage, root = tiny
    before = free_on(root)
    monkeypatch.setattr(Space, "begin_write", lambda *arguments: None)
    monkeypatch.setattr(Space, "end_write", lambda *arguments: None)
    large = storage.stage(new_key())
    with pytest.raises(StorageFull):
        await fill(large, content_of(8 * MiB), MiB)
    await large.abort()
    refused = await storage.publish([await staged(storage, content_of(256 * KiB, seed)) for seed in range(40)])
    assert {type(error) for error in refused.values()} == {StorageFull}
    await storage.remove(await keys(storage))
    assert files_in(root) == []
    assert free_on(root) == before - 4096  # the list of what is under way


@needs_root
@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_the_minimum_free_space_is_always_kept(tmp_path, durability):
    with tmpfs(tmp_path / "volume", "24m"):
        root = tmp_path / "volume"
        storage = local(root, min_free=8 * MiB, durability=durability)
        await storage.prepare()
        for round_ in range(3):
            large = [storage.stage(new_key()) for _ in range(6)]
            small = [await staged(storage, content_of(200 * KiB, seed)) for seed in range(40)]
            filling = [fill(file, content_of(5 * MiB), 512 * KiB) for file in large]
            ended = await asyncio.gather(storage.publish(small), *filling, return_exceptions=True)
            assert free_on(root) >= 8 * MiB
            assert any(isinstance(end, StorageFull) for end in ended)
            for file in large:
                await file.abort()
            assert await storage.free_bytes() == free_on(root) - 8 * MiB
            await storage.remove(await keys(storage))
            assert files_in(root) == [], round_
        await storage.close()


@needs_root
async def test_a_store_without_inodes_refuses_new_files_and_serves_the_old(tmp_path):
    with tmpfs(tmp_path / "volume", "6m", "nr_inodes=300"):
        storage = local(tmp_path / "volume")
        await storage.prepare()
        growing = storage.stage(new_key())
        await growing.write(content_of(MiB))
        files = [await staged(storage, b"x") for _ in range(100)]
        refused = await storage.publish(files)
        assert {type(error) for error in refused.values()} == {StorageFull}
        assert await storage.free_bytes() == 0
        large = storage.stage(new_key())
        with pytest.raises(StorageFull):
            await large.write(content_of(MiB))
        await large.abort()
        await growing.write(content_of(MiB))
        await growing.finish()
        assert await storage.publish([growing]) == {}
        await storage.remove(await keys(storage))
        assert await storage.publish([await staged(storage, b"again")]) == {}
        await storage.close()


@needs_root
async def test_a_service_starts_on_a_full_disk_so_that_files_can_be_deleted(tmp_path):
    with tmpfs(tmp_path / "volume", "6m"):
        storage = local(tmp_path / "volume")
        await storage.prepare()
        key = await put(storage, content_of(2 * MiB))
        await storage.close()
        storage = local(tmp_path / "volume", min_free=5 * MiB)
        await storage.prepare()
        assert await storage.free_bytes() == 0
        with pytest.raises(StorageFull):
            await storage.test()
        refused = await storage.publish([await staged(storage, b"more")])
        assert [type(error) for error in refused.values()] == [StorageFull]
        assert len(files_in(tmp_path / "volume")) == 1
        await storage.remove([key])
        await storage.test()
        await put(storage, b"more")
        await storage.close()
