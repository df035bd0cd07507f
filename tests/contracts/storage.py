"""What every storage backend must do. A backend's test is a class with two fixtures: `storage` and `small`."""

import asyncio
import hashlib
import uuid

import pytest

from app.errors import StorageFull, Unavailable
from app.storage import NotStored, Staged, Storage

KiB, MiB = 1024, 1024 * 1024

_KEY = "0193a1f0-0000-7000-8000-00000000000a"
NOT_KEYS = [
    "",
    "ab",
    "0" * 36,
    _KEY.upper(),
    _KEY + "\n",
    _KEY[:-1] + "\0",
    f"../{_KEY}",
    f"{_KEY}/",
    "../../etc/passwd",
]

# Below, at and above every size at which a backend could change its ways, with ends that fit no block.
SIZES = [0, 1, 4095, 4096, 4097, 256 * KiB - 1, 256 * KiB, 256 * KiB + 1]
SIZES += [MiB - 1, MiB, MiB + 1, MiB + 4096, 2 * MiB, 2 * MiB + 511, 3 * MiB + 4097]


def new_key() -> str:
    return str(uuid.uuid4())


def content_of(size: int, seed: int = 1) -> bytes:
    """Bytes of which no two stretches are the same, so that a lost or doubled block shows."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


async def staged(storage: Storage, content: bytes, *, step: int = 64 * KiB, key: str | None = None, reservation=None):
    """A finished staged file."""
    file = storage.stage(key or new_key(), reservation)
    await fill(file, content, step)
    return file


async def fill(file: Staged, content: bytes, step: int) -> None:
    for at in range(0, len(content), step):
        await file.write(content[at : at + step])
    await file.finish()


async def put(storage: Storage, content: bytes, **how) -> str:
    file = await staged(storage, content, **how)
    assert await storage.publish([file]) == {}
    return file.key


async def get(storage: Storage, key: str) -> bytes:
    stored = await storage.open(key)
    try:
        return await stored.read(0, stored.size + 1)
    finally:
        await stored.close()


async def keys(storage: Storage) -> list[str]:
    return sorted([found.key async for slice_ in storage.walk(0) for found in slice_])


class StorageContract:
    """`storage` has room for everything here, `small` for a mebibyte."""

    # --- publishing

    @pytest.mark.parametrize("size", [10, 256 * KiB, 3 * MiB])
    async def test_nothing_is_visible_before_it_is_published(self, storage, size):
        file = await staged(storage, content_of(size))
        assert await keys(storage) == []
        assert await storage.missing([file.key]) == [file.key]
        with pytest.raises(NotStored):
            await storage.open(file.key)
        assert await storage.publish([file]) == {}
        assert await keys(storage) == [file.key]

    @pytest.mark.parametrize("size", SIZES)
    async def test_a_file_comes_out_as_it_went_in(self, storage, size):
        content = content_of(size)
        file = await staged(storage, content, step=100_003)
        assert (file.size, file.sha256) == (size, hashlib.sha256(content).hexdigest())
        assert await storage.publish([file]) == {}
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert await get(storage, file.key) == content
        assert await storage.digest(file.key) == (size, file.sha256)

    @pytest.mark.parametrize("step", [1000, 256 * KiB, MiB, 3 * MiB])
    async def test_block_boundaries_do_not_change_a_file(self, storage, step):
        content = content_of(2 * MiB + 12345)
        assert await get(storage, await put(storage, content, step=step)) == content

    async def test_bytes_in_memory_can_be_had_back(self, storage):
        content = content_of(9000)
        file = storage.stage(new_key())
        assert b"".join(file.held()) == b""
        for at in (0, 10, 30):
            await file.write(content[at : at + 20] if at else content[:10])
        await file.write(content[50:])
        assert b"".join(file.held()) == content
        assert storage.has_memory(1)
        await file.abort()
        assert file.held() is None

    async def test_a_file_that_has_a_record_already_is_published_as_others(self, storage):
        file = storage.stage(new_key(), has_record=True)
        await fill(file, b"abc", 2)
        assert await storage.publish([file]) == {}
        assert await get(storage, file.key) == b"abc"

    async def test_empty_blocks_are_ignored(self, storage):
        file = storage.stage(new_key())
        for block in (b"", b"he", b"", b"llo", b""):
            await file.write(block)
        await file.finish()
        assert await storage.publish([file]) == {}
        assert await get(storage, file.key) == b"hello"

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
    async def test_a_commit_group_is_published_together(self, storage, count):
        sizes = [size for _, size in zip(range(count), [0, 300 * KiB, *range(1, 2000, 20)], strict=False)]
        files = [await staged(storage, content_of(size, seed)) for seed, size in enumerate(sizes)]
        assert await storage.publish(files) == {}
        assert await keys(storage) == sorted(file.key for file in files)
        for seed, (file, size) in enumerate(zip(files, sizes, strict=True)):
            assert await get(storage, file.key) == content_of(size, seed)

    async def test_uploads_side_by_side_do_not_mix(self, storage):
        contents = [content_of(size, seed) for seed, size in enumerate([10, 300 * KiB, 2 * MiB + 1] * 8)]
        stored = await asyncio.gather(*(put(storage, content) for content in contents))
        assert [await get(storage, key) for key in stored] == contents

    @pytest.mark.parametrize("size", [10, 2 * MiB])
    async def test_no_file_is_ever_replaced(self, storage, size):
        first = await put(storage, b"first")
        same = await staged(storage, content_of(size), key=first)
        other = await staged(storage, b"other")
        assert list(await storage.publish([same, other])) == [first]
        assert await get(storage, first) == b"first"
        assert await keys(storage) == sorted([first, other.key])

    @pytest.mark.parametrize("size", [0, 10, 3 * MiB + 1])
    async def test_a_staged_file_that_is_not_finished_is_not_published(self, storage, size):
        unfinished, finished = storage.stage(new_key()), await staged(storage, b"finished")
        await unfinished.write(content_of(size))
        assert list(await storage.publish([unfinished, finished])) == [unfinished.key]
        assert await keys(storage) == [finished.key]

    async def test_a_finished_file_takes_no_more_bytes(self, storage):
        for size in (10, 2 * MiB):
            file = await staged(storage, content_of(size))
            with pytest.raises(Unavailable):
                await file.write(b"more")
            assert await storage.publish([file]) == {}
            assert await get(storage, file.key) == content_of(size)

    async def test_a_cancelled_caller_does_not_stop_a_publication(self, storage):
        files = [await staged(storage, content_of(100, seed)) for seed in range(5)]
        publishing = asyncio.create_task(storage.publish(files))
        await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
        for file in files:
            await file.abort()  # what a request does that is cancelled
        assert await keys(storage) == sorted(file.key for file in files)

    # --- giving up

    @pytest.mark.parametrize("size", [0, 10, 300 * KiB, MiB])
    async def test_an_aborted_file_leaves_nothing(self, small, size):
        for _ in range(3):
            file = small.stage(new_key())
            await file.write(content_of(size))
            await file.abort()
            await file.abort()
            assert await small.free_bytes() == MiB
        assert await keys(small) == []

    async def test_a_file_may_be_aborted_before_its_first_byte_and_after_its_last(self, storage):
        await storage.stage(new_key()).abort()
        await (await staged(storage, content_of(2 * MiB))).abort()
        assert await keys(storage) == []

    async def test_a_file_may_be_aborted_while_it_is_written(self, storage):
        file = storage.stage(new_key())
        writing = asyncio.create_task(file.write(content_of(8 * MiB)))
        await asyncio.sleep(0)
        await asyncio.gather(file.abort(), file.abort())
        await asyncio.wait([writing])
        assert await storage.publish([file]) != {}
        assert await keys(storage) == []

    async def test_an_ended_file_takes_no_more_bytes(self, storage):
        for size in (10, 2 * MiB):
            published = await staged(storage, content_of(size))
            aborted = await staged(storage, content_of(size))
            await storage.publish([published])
            await aborted.abort()
            for file in (published, aborted):
                with pytest.raises(Unavailable):
                    await file.write(b"more")
                with pytest.raises(Unavailable):
                    await file.finish()
            assert await get(storage, published.key) == content_of(size)

    async def test_a_published_file_cannot_be_aborted(self, storage):
        file = await staged(storage, b"kept")
        await storage.publish([file])
        await file.abort()
        assert await get(storage, file.key) == b"kept"

    async def test_an_aborted_file_is_not_published(self, storage):
        given_up, kept = await staged(storage, b""), await staged(storage, b"kept")
        await given_up.abort()
        assert list(await storage.publish([given_up, kept])) == [given_up.key]
        assert await keys(storage) == [kept.key]

    async def test_closing_the_store_aborts_files_in_flight(self, storage):
        small, large = storage.stage(new_key()), storage.stage(new_key())
        await small.write(b"a")
        await large.write(content_of(3 * MiB))
        await storage.close()
        await storage.close()
        for file in (small, large):
            with pytest.raises(Unavailable):
                await file.write(b"more")
            with pytest.raises(Unavailable):
                await file.finish()
            await file.abort()
            assert list(await storage.publish([file])) == [file.key]

    # --- reading

    @pytest.mark.parametrize("size", [100, 3 * MiB])
    async def test_any_range_can_be_read(self, storage, size):
        content = content_of(size)
        stored = await storage.open(await put(storage, content))
        assert stored.size == size
        for offset, length in [
            (0, 1),
            (0, size),
            (7, 50),
            (size - 1, 1),
            (size - 10, 100),
            (size, 5),
            (size + 5, 5),
            (3, 0),
        ]:
            assert await stored.read(offset, length) == content[offset : offset + length]
        await stored.close()
        await stored.close()

    @pytest.mark.parametrize("key", [str(uuid.UUID(int=7)), *NOT_KEYS])
    async def test_an_absent_key_is_not_stored(self, storage, key):
        await put(storage, b"something else")
        with pytest.raises(NotStored):
            await storage.open(key)
        with pytest.raises(NotStored):
            await storage.digest(key)
        assert await storage.missing([key]) == [key]

    @pytest.mark.parametrize("key", NOT_KEYS)
    async def test_only_a_key_can_be_staged_and_no_other_name_reaches_a_file(self, storage, key):
        stored = await put(storage, b"kept")
        with pytest.raises(ValueError, match="key"):
            storage.stage(key)
        await storage.remove([key])
        await storage.set_aside([key])
        assert await keys(storage) == [stored]

    @pytest.mark.parametrize("size", [0, 10, 3 * MiB])
    async def test_a_file_that_another_process_published_can_be_made_durable(self, storage, size):
        key = await put(storage, content_of(size))
        await storage.make_durable(key)
        assert await get(storage, key) == content_of(size)
        for absent in (new_key(), *NOT_KEYS):
            with pytest.raises(NotStored):
                await storage.make_durable(absent)

    # --- removing

    @pytest.mark.parametrize("size", [10, 3 * MiB])
    async def test_a_removed_file_is_gone_except_for_its_open_readers(self, storage, size):
        content = content_of(size)
        gone, kept = await put(storage, content), await put(storage, b"kept")
        stored = await storage.open(gone)
        await storage.remove([new_key(), gone, gone])
        assert await keys(storage) == [kept]
        with pytest.raises(NotStored):
            await storage.open(gone)
        assert await stored.read(1, size) == content[1:]
        await stored.close()

    async def test_a_file_set_aside_is_met_by_no_walk_and_removed_on_demand(self, storage):
        aside, kept = await put(storage, b"aside"), await put(storage, b"kept")
        await storage.set_aside([new_key(), aside])
        assert await keys(storage) == [kept]
        found = await storage.aside()
        assert [(file.key, file.fence, file.left) for file in found] == [(aside, None, False)]
        assert await storage.sweep() == 0
        assert await storage.remove_aside(found) == 1
        assert await storage.remove_aside(found) == 0
        assert await keys(storage) == [kept]
        assert await storage.missing([aside, kept]) == [aside]

    @pytest.mark.parametrize("ask", ["open", "digest", "missing", "make_durable", "put_back"])
    async def test_opening_a_key_puts_back_the_file_that_was_set_aside(self, storage, ask):
        content = content_of(300 * KiB)
        aside = await put(storage, content)
        await storage.set_aside([aside])
        answer = await getattr(storage, ask)(aside if ask in {"open", "digest", "make_durable"} else [aside])
        if ask in {"missing", "put_back"}:
            assert answer == {"missing": [], "put_back": {aside: len(content)}}[ask]
        elif ask == "open":
            await answer.close()
        assert await keys(storage) == [aside]
        assert await get(storage, aside) == content
        assert await storage.put_back([aside, new_key()]) == {}

    async def test_removing_a_key_removes_the_file_that_was_set_aside_too(self, small):
        aside = await put(small, content_of(MiB))
        await small.set_aside([aside])
        await small.remove([aside])
        assert await small.missing([aside]) == [aside]
        assert await small.aside() == []
        small.reserve(MiB).release()

    async def test_a_sweep_leaves_live_uploads_alone(self, storage):
        small, large = await staged(storage, b"small"), await staged(storage, content_of(2 * MiB))
        assert await storage.sweep() == 0
        assert await storage.publish([small, large]) == {}
        assert await get(storage, large.key) == content_of(2 * MiB)

    # --- looking over everything

    async def test_a_walk_meets_every_published_file_once(self, storage):
        sizes = {await put(storage, content_of(size)): size for size in range(0, 600, 10)}
        await staged(storage, b"not yet")
        met = [found async for slice_ in storage.walk(0) for found in slice_]
        assert {found.key: found.size for found in met} == sizes
        assert len(met) == len(sizes)
        assert all(found.settled for found in met)
        assert not any([found.settled async for slice_ in storage.walk(3600) for found in slice_])

    async def test_several_walks_at_once_meet_every_file_each(self, storage):
        files = [await staged(storage, b"x", key=f"{number:08x}-0000-4000-8000-00000000000a") for number in range(500)]
        assert await storage.publish(files) == {}
        expected = sorted(file.key for file in files)
        assert await asyncio.gather(*(keys(storage) for _ in range(6))) == [expected] * 6

    async def test_files_may_come_and_go_during_a_walk(self, storage):
        lasting = [await put(storage, b"lasting") for _ in range(20)]
        going = [await put(storage, b"going") for _ in range(20)]
        met = []
        async for slice_ in storage.walk(0):
            met += [found.key for found in slice_]
            await storage.remove(going)
            await put(storage, b"coming")
        assert set(lasting) <= set(met)
        assert len(met) == len(set(met))

    async def test_missing_lists_the_keys_that_are_absent(self, storage):
        there, absent = await put(storage, b"there"), new_key()
        assert await storage.missing([absent, there]) == [absent]
        assert await storage.missing([]) == []
        assert await storage.strays() == []

    async def test_one_caller_at_a_time_holds_the_singleton_lock(self, storage):
        with storage.alone_at("sweep") as first, storage.alone_at("scrub") as other_work:
            with storage.alone_at("sweep") as second:
                assert (first, other_work, second) == (True, True, False)
            with storage.alone_at("sweep") as third:
                assert third is False
        with storage.alone_at("sweep") as fourth:
            assert fourth is True

    # --- space

    async def test_reservations_are_counted_exactly(self, small):
        first = small.reserve(600 * KiB)
        with pytest.raises(StorageFull):
            small.reserve(424 * KiB + 1)
        second = small.reserve(424 * KiB)
        with pytest.raises(StorageFull):
            small.reserve(1)
        second.release()
        second.release()
        third = small.reserve(424 * KiB)
        first.release()
        third.release()
        small.reserve(MiB).release()

    async def test_a_reservation_shrinks_as_its_bytes_are_written(self, small):
        reservation = small.reserve(600 * KiB)
        file = await staged(small, content_of(400 * KiB), reservation=reservation)
        small.reserve(424 * KiB).release()  # what the file has and what is promised to it make no more than 600 KiB
        with pytest.raises(StorageFull):
            small.reserve(424 * KiB + 1)
        assert await small.publish([file]) == {}
        reservation.release()
        small.reserve(624 * KiB).release()
        with pytest.raises(StorageFull):
            small.reserve(624 * KiB + 1)

    async def test_space_reserved_for_one_upload_is_taken_by_no_other(self, small):
        reservation = small.reserve(700 * KiB)
        greedy = small.stage(new_key())
        with pytest.raises(StorageFull):
            await fill(greedy, content_of(600 * KiB), 200 * KiB)
        await greedy.abort()
        content = content_of(700 * KiB)
        assert await get(small, await put(small, content, reservation=reservation)) == content

    async def test_an_upload_may_exceed_its_reservation_as_far_as_there_is_room(self, small):
        reservation = small.reserve(100 * KiB)
        await put(small, content_of(900 * KiB), reservation=reservation)
        reservation.release()
        small.reserve(124 * KiB).release()

    @pytest.mark.parametrize("step", [1000, 256 * KiB, 2 * MiB])
    async def test_a_full_store_refuses_one_upload_and_serves_the_others(self, small, step):
        kept = await put(small, b"kept")
        other = await staged(small, b"other")
        file = small.stage(new_key())
        with pytest.raises(StorageFull):
            await fill(file, content_of(2 * MiB), step)
        await file.abort()
        assert await small.publish([other]) == {}
        assert await get(small, await put(small, content_of(300 * KiB))) == content_of(300 * KiB)
        assert await get(small, kept) == b"kept"
        await small.test()

    async def test_the_space_of_a_removed_file_can_be_used_again(self, small):
        for _ in range(4):
            await small.remove([await put(small, content_of(700 * KiB))])
            small.reserve(MiB).release()

    # --- the store itself

    async def test_a_store_can_be_prepared_and_tested_again_while_it_is_used(self, storage):
        kept = await put(storage, b"kept")
        file = storage.stage(new_key())
        await file.write(content_of(2 * MiB))
        await asyncio.gather(*(storage.prepare() for _ in range(3)), *(storage.test() for _ in range(3)))
        await file.finish()
        assert await storage.publish([file]) == {}
        assert await keys(storage) == sorted([kept, file.key])
