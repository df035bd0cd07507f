"""What every storage backend must do with files that come in several requests. As for `StorageContract`."""

import asyncio
import hashlib

import pytest

from app.errors import StorageFull, Unavailable
from app.storage import InUse, Mark, NotStored, Storage, Unfinished
from tests.contracts.storage import NOT_KEYS, KiB, MiB, content_of, get, keys, new_key, put, staged

# Where a request may end and the next one go on: at, beside and far from every border.
OFFSETS = [0, 1, 63, 64, 4095, 4096, 4097, 256 * KiB, 256 * KiB + 1, MiB - 1, MiB, MiB + 4096, 2 * MiB + 511]


async def append(partial: Unfinished, content: bytes, step: int = 100_003) -> None:
    for at in range(0, len(content), step):
        await partial.write(content[at : at + step])


async def kept(storage: Storage, content: bytes, *, key: str | None = None, fence: int = 1) -> tuple[str, int, Mark]:
    """A partial file that nobody has open."""
    key = key or new_key()
    partial = await storage.open_unfinished(key, fence, Mark(0))
    await append(partial, content)
    mark = await partial.checkpoint()
    await partial.detach()
    return key, fence, mark


async def complete(storage: Storage, key: str, fence: int, mark: Mark, rest: bytes = b"") -> bytes:
    """Send the rest and publish; what is stored then."""
    partial = await storage.open_unfinished(key, fence, mark)
    await append(partial, rest)
    await partial.finish()
    assert await storage.publish([partial]) == {}
    content = await get(storage, key)
    assert (partial.size, partial.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return content


async def found(storage: Storage, grace_seconds: float = 0) -> list[tuple[str, int, int, bool]]:
    return sorted([tuple(file) async for slice_ in storage.walk_unfinished(grace_seconds) for file in slice_])


class UnfinishedContract:
    # --- going on

    @pytest.mark.parametrize("cut", OFFSETS)
    async def test_a_file_that_comes_in_two_requests_is_as_if_it_came_in_one(self, storage, cut):
        content = content_of(3 * MiB + 77)
        key, fence, mark = await kept(storage, content[:cut])
        assert mark.offset == cut
        assert await complete(storage, key, fence, mark, content[cut:]) == content
        assert await found(storage) == []

    @pytest.mark.parametrize("step", [1, 999, 70_000, 300_000])
    async def test_any_number_of_requests_and_checkpoints_make_one_file(self, storage, step):
        content, mark, key = content_of(10 * step + 5), Mark(0), new_key()
        for begin in range(0, len(content), 3 * step):
            partial = await storage.open_unfinished(key, 1, mark)
            for at in range(begin, min(begin + 3 * step, len(content)), step):
                await partial.write(content[at : at + step])
                mark = await partial.checkpoint()
                assert mark.offset == partial.size == min(at + step, len(content))
            await partial.detach()
        assert await complete(storage, key, 1, mark) == content

    @pytest.mark.parametrize("size", [0, 10, 3 * MiB + 1])
    async def test_a_file_that_comes_in_one_request_is_published(self, storage, size):
        assert await complete(storage, new_key(), 1, Mark(0), content_of(size)) == content_of(size)

    async def test_a_mark_whose_digest_is_not_known_or_not_its_own_serves_as_well(self, storage):
        content = content_of(2 * MiB + 5)
        for cut in (1, 64, MiB + 3):
            _, _, other = await kept(storage, content_of(cut + 64, seed=2))
            for state in (None, "", "nonsense", other.digest_state):
                key, fence, mark = await kept(storage, content[:cut])
                assert await complete(storage, key, fence, Mark(mark.offset, state), content[cut:]) == content

    async def test_an_unfinished_file_is_invisible_before_it_is_published(self, storage):
        key, fence, mark = await kept(storage, content_of(MiB))
        partial = await storage.open_unfinished(key, fence, mark)
        await partial.finish()
        assert await keys(storage) == []
        assert await storage.missing([key]) == [key]
        with pytest.raises(NotStored):
            await storage.open(key)
        assert await storage.publish([partial]) == {}
        assert await keys(storage) == [key]

    async def test_a_checkpoint_without_new_bytes_is_the_one_before(self, storage):
        partial = await storage.open_unfinished(new_key(), 1, Mark(0))
        assert (await partial.checkpoint()).offset == 0
        await partial.write(b"hello")
        assert await partial.checkpoint() == await partial.checkpoint()
        await partial.detach()

    # --- what is kept, and what is not

    @pytest.mark.parametrize("more", [0, 1, 300 * KiB, 3 * MiB])
    @pytest.mark.parametrize("cut", [0, 5, MiB + 5])
    async def test_bytes_up_to_the_mark_are_kept_and_those_behind_are_cut_off(self, storage, cut, more):
        content = content_of(cut + 9)
        key, fence, mark = await kept(storage, content[:cut])
        partial = await storage.open_unfinished(key, fence, mark)
        await append(partial, content_of(more, seed=2))
        await partial.detach()
        assert await complete(storage, key, fence, mark, content[cut:]) == content

    @pytest.mark.parametrize("behind", [0, 7])
    async def test_opening_confirms_before_bytes_behind_the_mark_are_cut_off(self, storage, behind):
        key, fence, mark = await kept(storage, b"hello" + bytes(behind))
        asked = []

        async def confirm():
            asked.append(None)
            with pytest.raises(InUse):
                await storage.open_unfinished(key, fence, mark)
            if len(asked) == 1:
                raise Unavailable("it counts for somebody")

        if behind:
            with pytest.raises(Unavailable, match="somebody"):
                await storage.open_unfinished(key, fence, Mark(5), confirm=confirm)
            assert [size for *_, size, _ in await found(storage)] == [5 + behind]
        await (await storage.open_unfinished(key, fence, Mark(5), confirm=confirm)).detach()
        assert [size for *_, size, _ in await found(storage)] == [5]
        assert len(asked) == (2 if behind else 0)

    async def test_a_file_is_opened_at_an_earlier_mark(self, storage):
        content, marks, key = content_of(3 * MiB), [], new_key()
        partial = await storage.open_unfinished(key, 1, Mark(0))
        for at in range(0, len(content), MiB // 2 + 1):
            marks.append(await partial.checkpoint())
            await partial.write(content[at : at + MiB // 2 + 1])
        await partial.checkpoint()
        await partial.detach()
        for mark in reversed(marks):
            await (await storage.open_unfinished(key, 1, mark)).detach()
            assert [size for *_, size, _ in await found(storage)] == [mark.offset]

    @pytest.mark.parametrize("begin", [0, 5, MiB + 5])
    @pytest.mark.parametrize("wrong", [1, 300 * KiB, 3 * MiB + 1])
    async def test_a_writer_may_go_back_to_a_mark_and_on_from_there(self, storage, begin, wrong):
        content = content_of(begin + 2 * MiB + 300)
        key, fence, first = await kept(storage, content[:begin])
        partial = await storage.open_unfinished(key, fence, first)
        for checked in (False, True):
            await append(partial, content_of(wrong, seed=2))
            if checked:
                await partial.checkpoint()
            await partial.back_to(first)
            assert partial.size == begin
        assert await partial.checkpoint() == first
        await append(partial, content[begin : begin + MiB])
        second = await partial.checkpoint()
        await append(partial, content_of(wrong, seed=3))
        await partial.back_to(second)
        await append(partial, content[begin + MiB :])
        await partial.finish()
        assert partial.sha256 == hashlib.sha256(content).hexdigest()
        assert await storage.publish([partial]) == {}
        assert await get(storage, key) == content

    async def test_a_cancelled_write_keeps_a_prefix_of_its_bytes(self, storage):
        content = content_of(8 * MiB)
        for moments in (0, 1, 2, 5):
            key = new_key()
            partial = await storage.open_unfinished(key, 1, Mark(0))
            writing = asyncio.create_task(append(partial, content, 3 * MiB))
            for _ in range(moments):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.wait([writing])
            mark = await partial.checkpoint()
            assert partial.size == mark.offset
            await partial.detach()
            assert await complete(storage, key, 1, mark) == content[: mark.offset]

    async def test_a_file_that_is_absent_or_ends_before_the_mark_is_not_stored(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        longer = (await kept(storage, b"hello!"))[2]
        for wrong in [(key, fence, longer), (key, fence, Mark(6)), (key, fence + 1, mark), (new_key(), fence, mark)]:
            with pytest.raises(NotStored):
                await storage.open_unfinished(*wrong)
        assert await complete(storage, key, fence, mark) == b"hello"

    async def test_an_abort_keeps_the_file_too(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        partial = await storage.open_unfinished(key, fence, mark)
        await partial.abort()
        await partial.detach()
        assert await complete(storage, key, fence, mark, b" again") == b"hello again"

    async def test_closing_the_store_releases_its_unfinished_files(self, storage):
        partial = await storage.open_unfinished(new_key(), 1, Mark(0))
        await partial.write(content_of(2 * MiB))
        await storage.close()
        for ask in (partial.write(b"more"), partial.checkpoint(), partial.back_to(Mark(0)), partial.finish()):
            with pytest.raises(Unavailable):
                await ask
        await partial.detach()

    # --- one at a time

    async def test_an_unfinished_file_is_open_once_at_a_time(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        partial = await storage.open_unfinished(key, fence, mark)
        for _ in range(2):
            with pytest.raises(InUse):
                await storage.open_unfinished(key, fence, mark)
        other = await storage.open_unfinished(key, fence + 1, Mark(0))
        await other.detach()
        await partial.write(b" world")
        await partial.detach()
        assert await complete(storage, key, fence, mark, b" again") == b"hello again"

    async def test_a_refused_opening_changes_nothing(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        partial = await storage.open_unfinished(key, fence, mark)
        for at in (mark, Mark(0)):
            with pytest.raises(InUse):
                await storage.open_unfinished(key, fence, at)
        await partial.write(b" world")
        await partial.finish()
        assert await storage.publish([partial]) == {}
        assert await get(storage, key) == b"hello world"

    # --- publishing

    @pytest.mark.parametrize("size", [5, 2 * MiB])
    async def test_an_unfinished_file_that_is_refused_stays(self, storage, size):
        taken = await put(storage, b"first")
        key, fence, mark = await kept(storage, content_of(size), key=taken)
        partial = await storage.open_unfinished(key, fence, mark)
        await partial.finish()
        assert list(await storage.publish([partial])) == [taken]
        assert await get(storage, taken) == b"first"
        await storage.remove([taken])
        assert await complete(storage, key, fence, mark, b"on") == content_of(size) + b"on"

    async def test_an_unfinished_file_is_not_published_and_stays(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        partial, other = await storage.open_unfinished(key, fence, mark), await staged(storage, b"other")
        assert list(await storage.publish([partial, other])) == [key]
        assert await keys(storage) == [other.key]
        assert await complete(storage, key, fence, mark, b" again") == b"hello again"

    async def test_all_kinds_of_files_are_published_together(self, storage):
        contents, batch = {}, []
        for number, size in enumerate([0, 5, 300 * KiB, 2 * MiB + 3]):
            content = content_of(size, number)
            key, fence, mark = await kept(storage, content[: size // 2])
            partial = await storage.open_unfinished(key, fence, mark)
            await append(partial, content[size // 2 :])
            await partial.finish()
            batch += [partial, await staged(storage, content)]
            contents |= {partial.key: content, batch[-1].key: content}
        assert await storage.publish(batch) == {}
        assert {key: await get(storage, key) for key in await keys(storage)} == contents

    async def test_a_file_takes_no_bytes_once_finished_and_no_abort_once_published(self, storage):
        for size in (10, 2 * MiB):
            partial = await storage.open_unfinished(new_key(), 1, Mark(0))
            await append(partial, content_of(size))
            await partial.finish()
            for ask in (partial.write(b"more"), partial.checkpoint(), partial.back_to(Mark(0))):
                with pytest.raises(Unavailable):
                    await ask
            assert await storage.publish([partial]) == {}
            await partial.detach()
            assert await get(storage, partial.key) == content_of(size)

    @pytest.mark.parametrize("size", [5, 2 * MiB])
    async def test_a_preempted_writer_publishes_nothing(self, storage, size):
        content = content_of(size)
        key, fence, mark = await kept(storage, content)
        old = await storage.open_unfinished(key, fence, mark)
        await old.write(b"of the old writer")
        copied = await storage.assemble(key, fence + 1, [(key, fence, mark)])
        await storage.remove_unfinished([(key, fence)])
        await old.write(b"also")
        await old.checkpoint()
        await old.finish()
        assert list(await storage.publish([old])) == [key]
        assert await complete(storage, key, fence + 1, copied, b"new") == content + b"new"
        assert await get(storage, await put(storage, b"other")) == b"other"

    # --- making one from others

    @pytest.mark.parametrize("sizes", [[], [0], [5], [3 * MiB + 1], [1, 0, 2], [MiB + 5, 4096, 2 * MiB, 300 * KiB + 1]])
    async def test_parts_are_concatenated_in_their_order(self, storage, sizes):
        contents = [content_of(size, seed) for seed, size in enumerate(sizes)]
        parts = [await kept(storage, content) for content in contents]
        key, without_file = new_key(), (new_key(), 1, Mark(0))
        mark = await storage.assemble(key, 1, [without_file, *parts])
        assert mark.offset == sum(sizes)
        assert await complete(storage, key, 1, mark, b"end") == b"".join(contents) + b"end"
        assert [size for *_, size, _ in await found(storage)] == [len(contents[seed]) for seed in order_of(parts)]

    @pytest.mark.parametrize("offset", [0, 5, MiB + 5])
    async def test_a_part_counts_up_to_its_mark(self, storage, offset):
        content = content_of(2 * MiB)
        key, fence, _ = await kept(storage, content)
        state = (await kept(storage, content[:offset]))[2].digest_state
        for mark in (Mark(offset), Mark(offset, state)):
            target = new_key()
            made = await storage.assemble(target, 1, [(key, fence, mark)] * 2)
            assert await complete(storage, target, 1, made) == content[:offset] * 2

    async def test_a_file_that_lies_under_the_name_is_left_alone(self, storage):
        """It may be somebody else's: after a fail-over that lost commits a number is drawn twice."""
        part, (key, fence, mark) = await kept(storage, b"new"), await kept(storage, b"old")
        with pytest.raises(InUse):
            await storage.assemble(key, fence, [part])
        assert await complete(storage, key, fence, mark) == b"old"

    async def test_a_part_that_is_missing_or_short_leaves_nothing(self, storage):
        whole, key = await kept(storage, content_of(2 * MiB)), new_key()
        for wrong in [(new_key(), 1, Mark(1)), (*whole[:2], Mark(2 * MiB + 1))]:
            with pytest.raises(NotStored):
                await storage.assemble(key, 1, [whole, wrong])
            assert [name for name, *_ in await found(storage)] == [whole[0]]

    # --- looking over them, and removing

    async def test_all_unfinished_files_are_listed(self, storage):
        assert await found(storage) == []
        names = [(await kept(storage, content_of(size), fence=size))[:2] for size in range(30)]
        open_one = await storage.open_unfinished(*names[0], Mark(0))
        assert await found(storage) == sorted((key, size, size, True) for key, size in names)
        assert not any(settled for *_, settled in await found(storage, 3600))
        await open_one.detach()
        await storage.remove_unfinished([(new_key(), 1), *names[:10], *names[:10]])
        assert await found(storage) == sorted((key, size, size, True) for key, size in names[10:])

    async def test_a_sweep_leaves_unfinished_files_alone(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        assert await storage.sweep() == 0
        assert await complete(storage, key, fence, mark) == b"hello"

    @pytest.mark.parametrize("size", [10, 3 * MiB])
    async def test_opening_an_unfinished_file_that_was_set_aside_puts_it_back(self, storage, size):
        content = content_of(size)
        key, fence, mark = await kept(storage, content)
        await storage.set_unfinished_aside([(key, fence), (new_key(), 1)])
        assert await found(storage) == []
        assert [(file.key, file.fence) for file in await storage.aside()] == [(key, fence)]
        assert await complete(storage, key, fence, mark, b"more") == content + b"more"
        assert await storage.aside() == []

    async def test_a_part_that_was_set_aside_is_concatenated_all_the_same(self, storage):
        parts = [await kept(storage, content_of(300 * KiB, seed)) for seed in range(2)]
        await storage.set_unfinished_aside([(key, fence) for key, fence, _ in parts])
        whole = new_key()
        mark = await storage.assemble(whole, 1, parts)
        assert await complete(storage, whole, 1, mark) == content_of(300 * KiB, 0) + content_of(300 * KiB, 1)

    @pytest.mark.parametrize(("offset", "stays"), [(0, True), (99, True), (100, False), (200, False)])
    async def test_an_ended_file_is_set_aside_if_it_holds_more_than_is_recorded(self, storage, offset, stays):
        key, fence, mark = await kept(storage, content_of(100))
        await storage.end_unfinished(key, fence, offset)
        await storage.end_unfinished(new_key(), 1, offset)
        assert await found(storage) == []
        assert [file.key for file in await storage.aside()] == [key] * stays
        await storage.remove_unfinished([(key, fence)])
        assert await storage.aside() == []
        with pytest.raises(NotStored):
            await storage.open_unfinished(key, fence, mark)

    async def test_a_removed_unfinished_file_is_gone(self, storage):
        key, fence, mark = await kept(storage, b"hello")
        await storage.remove_unfinished([(key, fence)])
        with pytest.raises(NotStored):
            await storage.open_unfinished(key, fence, mark)
        assert await complete(storage, key, fence, Mark(0), b"anew") == b"anew"

    @pytest.mark.parametrize("key", NOT_KEYS)
    async def test_only_a_key_names_an_unfinished_file(self, storage, key):
        with pytest.raises(ValueError, match="text"):
            await storage.open_unfinished(key, 1, Mark(0))
        with pytest.raises(ValueError, match="text"):
            await storage.assemble(key, 1, [])
        assert await found(storage) == []

    # --- space

    @pytest.mark.parametrize("ending", ["detached", "back"])
    async def test_the_space_of_an_aborted_file_can_be_used_again(self, small, ending):
        key, fence, mark = await kept(small, content_of(100 * KiB))
        for _ in range(5):
            partial = await small.open_unfinished(key, fence, mark)
            await append(partial, content_of(700 * KiB))
            if ending == "back":
                await partial.back_to(mark)
                await append(partial, content_of(700 * KiB))
                await partial.checkpoint()
            await partial.detach()
        await (await small.open_unfinished(key, fence, mark)).detach()
        assert await small.free_bytes() == 924 * KiB
        await small.remove_unfinished([(key, fence)])
        assert await small.free_bytes() == MiB

    async def test_bytes_of_an_unfinished_file_come_out_of_its_reservation(self, small):
        reservation = small.reserve(700 * KiB)
        with pytest.raises(StorageFull):
            small.reserve(324 * KiB + 1)
        partial = await small.open_unfinished(new_key(), 1, Mark(0), reservation)
        await append(partial, content_of(500 * KiB))
        await partial.checkpoint()
        small.reserve(324 * KiB).release()
        with pytest.raises(StorageFull):
            small.reserve(324 * KiB + 1)
        await partial.detach()
        reservation.release()
        small.reserve(524 * KiB).release()

    @pytest.mark.parametrize("known", [True, False])
    async def test_a_full_store_refuses_and_what_has_a_mark_stays(self, small, known):
        content = content_of(600 * KiB)
        key, fence, mark = await kept(small, content)
        partial = await small.open_unfinished(key, fence, mark)
        with pytest.raises(StorageFull):
            await fill_up(partial)
        with pytest.raises(Unavailable):
            await partial.write(b"more")
        with pytest.raises(Unavailable):
            await partial.checkpoint()
        await partial.detach()
        with pytest.raises(StorageFull):
            await small.assemble(new_key(), 1, [(key, fence, mark if known else Mark(mark.offset))])
        assert [(name, settled) for name, *_, settled in await found(small)] == [(key, True)]
        assert await complete(small, key, fence, mark, b"on") == content + b"on"


def order_of(parts: list[tuple[str, int, Mark]]) -> list[int]:
    return sorted(range(len(parts)), key=lambda number: parts[number][0])


async def fill_up(partial: Unfinished) -> None:
    while True:
        await partial.write(content_of(200 * KiB, 2))
        await partial.checkpoint()
