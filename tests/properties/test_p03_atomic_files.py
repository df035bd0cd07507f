"""Property 3. A key is absent or holds a whole upload, whenever you look and however the upload ended."""

import asyncio
import errno
import hashlib
import os
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from app.cancellation import run_to_completion
from app.errors import StorageFull, Unavailable, UploadError
from app.storage import NotStored
from app.storage.local import (
    LocalStorage,
    aio,
    block_writer,
    free_space,
    layout,
    staged,
    syscalls,
    upkeep,
    walk,
)
from app.storage.memory import MemoryStorage
from tests.contracts.storage import content_of
from tests.support.memory import quick_directory
from tests.support.strategies import chunkings

# As large files are made of blocks of a mebibyte, so here of a page, and the tree has few branches: every way that a
# file can take is then a short one.
SHARDS = ["00", "5a", "ff"]
BLOCK = 4096
HELD = 3000
CAPACITY = 60_000

contents = st.builds(content_of, st.integers(0, 200) | st.integers(HELD - 2, HELD + 2) | st.integers(0, 4 * BLOCK + 5))


shards = st.sampled_from(SHARDS)
keys = st.builds(lambda uuid, shard: str(uuid)[:-2] + shard, st.uuids(), shards)


@contextmanager
def small_world():
    with ExitStack() as stack:
        for module in (layout, upkeep, walk):
            stack.enter_context(patch.object(module, "SHARDS", SHARDS))
        stack.enter_context(patch.object(block_writer, "BLOCK_BYTES", BLOCK))
        stack.enter_context(patch.object(block_writer, "_WRITEBACK_BYTES", 2 * BLOCK))
        stack.enter_context(patch.object(staged, "HELD_BYTES", HELD))
        stack.enter_context(patch.object(staged, "POOLED_BLOCKS", 4))
        stack.enter_context(patch.object(free_space, "HELD_BYTES_IN_ALL", 2 * HELD))
        yield


class Fault(NamedTuple):
    """The `at`-th system call of an upload fails, and with it all that follow if it `lasts`."""

    at: int
    number: int
    lasts: bool


faults = st.builds(
    Fault,
    st.integers(1, 8) | st.integers(1, 25),
    st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE]),
    st.booleans(),
)


class World:
    """One request's upload to a directory, while somebody looks after each system call of the store."""

    CALLS = (
        (os, "open"),
        (os, "write"),
        (aio, "begin_write"),
        (os, "fsync"),
        (os, "unlink"),
        (syscalls, "syncfs"),
        (syscalls, "written_back"),
        (syscalls, "rename_new"),
    )

    def __init__(self, root: Path, whole: dict[str, bytes], fault: Fault | None = None) -> None:
        self._root = root
        self._whole = whole
        self._fault = fault
        self._calls = 0
        self.partial: list[str] = []

    def look(self) -> None:
        for key, content in self._whole.items():
            if self.visible(key) and self._path(key).read_bytes() != content:
                self.partial.append(key)

    def visible(self, key: str) -> bool:
        return self._path(key).exists()

    def _path(self, key: str) -> Path:
        return self._root / "files" / key[-2:] / key

    def staged(self) -> list[Path]:
        return [path for path in (self._root / "staging").rglob("*") if path.is_file()]

    @contextmanager
    def watched(self):
        with ExitStack() as stack:
            for owner, name in self.CALLS:
                stack.enter_context(patch.object(owner, name, self._watched(getattr(owner, name))))
            yield

    def _watched(self, real):
        def call(*arguments, **named):
            self._calls += 1
            fault = self._fault
            if fault and (self._calls == fault.at or (fault.lasts and self._calls > fault.at)):
                raise OSError(fault.number, os.strerror(fault.number))
            try:
                return real(*arguments, **named)
            finally:
                self.look()

        return call

    async def upload(self, request, *, owner: str, durability: str, direct: bool, cancelled_after: int | None = None):
        """Let `request` upload to a store in this world, and give what it returned or raised."""
        storage = LocalStorage(self._root, owner=owner, min_free=0, durability=durability)
        await storage.prepare()
        storage._staging.direct &= direct
        with self.watched():
            uploading = asyncio.create_task(request(storage))
            if cancelled_after is not None:
                for _ in range(cancelled_after):
                    await asyncio.sleep(0)
                uploading.cancel()
            [end] = await asyncio.gather(uploading, return_exceptions=True)
        assert (storage.space.held, storage.space.reserved) == (0, 0)
        assert storage._staging.live == set()
        self.look()
        assert self.partial == []
        visible = {key for key in self._whole if self.visible(key)}
        await storage.close()
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
            raise end
        return end, visible


async def send(storage, files: dict[str, list[bytes]], *, lost_after: int | None = None) -> set[str]:
    """Upload all files as one request does; the client may hang up. The keys that are acknowledged."""
    batch, taken = [], 0
    try:
        for key, chunks in files.items():
            file = storage.stage(key)
            batch.append(file)
            for chunk in chunks:
                if taken == lost_after:
                    return set()
                await file.write(chunk)
                taken += 1
            await file.finish()
        return files.keys() - (await storage.publish(batch)).keys()
    except UploadError:
        return set()
    finally:
        await run_to_completion(give_up(batch))


async def give_up(batch) -> None:
    for file in batch:
        await file.abort()


ways = {"owner": keys, "durability": st.sampled_from(["full", "fast"]), "direct": st.booleans()}
bodies = st.dictionaries(keys, contents, min_size=1, max_size=4)


@given(whole=bodies, data=st.data(), lost_after=st.none() | st.integers(0, 12), ways=st.fixed_dictionaries(ways))
def test_an_upload_is_stored_whole_or_not_at_all(whole, data, lost_after, ways):
    files = {key: data.draw(chunkings(body)) for key, body in whole.items()}
    with small_world(), quick_directory() as root:
        world = World(root, whole)
        request = partial(send, files=files, lost_after=lost_after)
        acknowledged, visible = asyncio.run(world.upload(request, **ways))
        complete = lost_after is None or lost_after >= sum(map(len, files.values()))
        assert acknowledged == visible == (whole.keys() if complete else set())
        assert world.staged() == []


@given(whole=bodies, moments=st.integers(0, 40), ways=st.fixed_dictionaries(ways))
def test_an_upload_that_is_cancelled_is_stored_whole_or_not_at_all(whole, moments, ways):
    """F26."""
    files = {key: [body[:100], body[100:]] for key, body in whole.items()}
    with small_world(), quick_directory() as root:
        world = World(root, whole)
        end, visible = asyncio.run(world.upload(partial(send, files=files), cancelled_after=moments, **ways))
        assert visible in (set(), whole.keys())
        assert isinstance(end, asyncio.CancelledError) or end == visible
        assert world.staged() == []


@given(whole=bodies, fault=faults, ways=st.fixed_dictionaries(ways))
def test_an_upload_that_meets_a_fault_is_stored_whole_or_not_at_all(whole, fault, ways):
    files = {key: [body[:100], body[100:]] for key, body in whole.items()}
    with small_world(), quick_directory() as root:
        world = World(root, whole, fault)
        acknowledged, visible = asyncio.run(world.upload(partial(send, files=files), **ways))
        assert visible >= acknowledged
        if not fault.lasts:  # if it does, a refused file cannot be removed any more either: the sweeper will
            assert visible == acknowledged


# --- any sequence of events, against a plain dict


class StorageMachine(RuleBasedStateMachine):
    """What a store shows, whatever is done to it, is what a dict would show."""

    uploads = Bundle("uploads")
    finished = Bundle("finished")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[str, bytes] = {}
        self.aside: dict[str, bytes] = {}
        self.expected: dict[object, bytearray] = {}
        self.reservations: list = []
        self.resources = ExitStack()
        self.made = 0

    def make(self, owner):
        raise NotImplementedError

    @initialize(shard=shards)
    def open(self, shard):
        self.storage = self.make(self.new_key(shard))
        self.runner.run(self.storage.prepare())

    def new_key(self, shard: str) -> str:
        self.made += 1
        return f"{self.made:08x}-0000-4000-8000-0000000000{shard}"

    def teardown(self):
        if hasattr(self, "storage"):
            self.runner.run(self.storage.close())
        self.runner.close()
        self.resources.close()

    # --- uploads

    @rule(target=uploads, shard=shards, promised=st.none() | st.integers(0, 3 * BLOCK))
    def begin(self, shard, promised):
        reservation = None
        if promised is not None:
            try:
                reservation = self.storage.reserve(promised)
            except StorageFull:
                return multiple()
            self.reservations.append(reservation)
        file = self.storage.stage(self.new_key(shard), reservation)
        self.expected[file] = bytearray()
        return file

    @rule(target=uploads, file=consumes(uploads), block=contents)
    def write(self, file, block):
        if not self.goes_on(file, file.write(block)):
            return multiple()
        self.expected[file] += block
        return file

    @rule(target=finished, file=consumes(uploads))
    def finish(self, file):
        if not self.goes_on(file, file.finish()):
            return multiple()
        assert file.sha256 == hashlib.sha256(self.expected[file]).hexdigest()
        assert file.size == len(self.expected[file])
        return file

    def goes_on(self, file, step) -> bool:
        """Do a step of an upload; whether the upload may go on then."""
        try:
            self.runner.run(step)
        except StorageFull:
            self.give_up(file)
            return False
        except Unavailable:
            assert file not in self.expected  # the store was closed meanwhile
            return False
        assert file in self.expected
        return True

    @rule(batch=st.lists(consumes(finished), max_size=5))
    def publish(self, batch):
        refused = self.runner.run(self.storage.publish(batch))
        assert {type(error) for error in refused.values()} <= {StorageFull, Unavailable}
        for file in batch:
            content = self.expected.pop(file, None)
            assert (content is None) == isinstance(refused.get(file.key), Unavailable)
            if file.key not in refused:
                self.model[file.key] = bytes(content)

    @rule(file=consumes(finished))
    def publish_and_go_away(self, file):
        async def publish():
            task = asyncio.create_task(self.storage.publish([file]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return await self.storage.missing([file.key])

        content = self.expected.pop(file, None)
        if not self.runner.run(publish()):
            self.model[file.key] = bytes(content)

    @rule(file=consumes(uploads) | consumes(finished))
    def give_up(self, file):
        self.expected.pop(file, None)
        self.runner.run(file.abort())
        self.runner.run(file.abort())

    @rule(file=consumes(uploads), block=contents, moments=st.integers(0, 10))
    def give_up_while_writing(self, file, block, moments):
        async def hang_up():
            task = asyncio.create_task(file.write(block))
            for _ in range(moments):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            await file.abort()

        self.expected.pop(file, None)
        self.runner.run(hang_up())

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def release(self, data):
        self.reservations.pop(data.draw(st.integers(0, len(self.reservations) - 1))).release()

    # --- published files

    @precondition(lambda self: self.model)
    @rule(data=st.data(), start=st.integers(0, 5 * BLOCK), length=st.integers(0, 5 * BLOCK))
    def read(self, data, start, length):
        key = data.draw(st.sampled_from(sorted(self.model)))

        async def read():
            stored = await self.storage.open(key)
            try:
                return stored.size, await stored.read(start, length)
            finally:
                await stored.close()

        content = self.model[key]
        assert self.runner.run(read()) == (len(content), content[start : start + length])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), aside=st.booleans())
    def take_away(self, data, aside):
        gone = data.draw(st.sets(st.sampled_from(sorted(self.model)), min_size=1))
        self.runner.run((self.storage.set_aside if aside else self.storage.remove)([*gone, self.new_key("5a")]))
        for key in gone:
            content = self.model.pop(key)
            if aside:
                self.aside[key] = content

    @rule(everything=st.booleans())
    def sweep(self, everything):
        async def sweep():
            aside = await self.storage.aside()
            assert {file.key for file in aside} == self.aside.keys()
            if everything:
                assert await self.storage.remove_aside(aside) == len(self.aside)
                self.aside.clear()
            return await self.storage.sweep()

        assert self.runner.run(sweep()) == 0

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def put_back(self, data):
        back = data.draw(st.sets(st.sampled_from(sorted(self.aside)), min_size=1))
        sizes = self.runner.run(self.storage.put_back([*back, self.new_key("5a")]))
        assert sizes == {key: len(self.aside[key]) for key in back}
        for key in back:
            self.model[key] = self.aside.pop(key)

    @rule()
    def test(self):
        try:
            self.runner.run(self.storage.test())
        except StorageFull:
            assert self.runner.run(self.storage.free_bytes()) < BLOCK

    # --- what must hold after every step

    @invariant()
    def only_published_files_are_visible(self):
        async def walked():
            return [found async for found_there in self.storage.walk(0) for found in found_there]

        if hasattr(self, "storage"):
            found = self.runner.run(walked())
            assert {file.key: file.size for file in found} == {key: len(body) for key, body in self.model.items()}
            assert len(found) == len(self.model)

    @invariant()
    def every_file_is_whole(self):
        for key, content in self.model.items():
            assert self.runner.run(self.storage.digest(key)) == (len(content), hashlib.sha256(content).hexdigest())

    @invariant()
    def what_is_on_its_way_in_is_not_stored(self):
        for file in self.expected:
            with pytest.raises(NotStored):
                self.runner.run(self.storage.open(file.key))


class MemoryMachine(StorageMachine):
    def make(self, owner):
        return MemoryStorage(CAPACITY)


class LocalMachine(StorageMachine):
    """The same on a directory, which is also left and found again, with a disk that seems to hold little."""

    def make(self, owner):
        self.resources.enter_context(small_world())
        self.root = self.resources.enter_context(quick_directory())
        self.resources.enter_context(patch.object(os, "fstatvfs", self.look))
        return LocalStorage(self.root, owner=owner, min_free=0)

    def look(self, fd):
        used = sum(path.lstat().st_size for path in self.root.rglob("*") if path.is_file())
        return os.statvfs_result((1, 1, 0, 0, CAPACITY - used, 10, 10, 10, 0, 255))

    @rule(shard=shards)
    def start_again(self, shard):
        """What was on its way in is gone, and takes no more bytes; whatever else there was is there."""
        self.runner.run(self.storage.close())
        self.expected.clear()
        self.reservations.clear()
        self.storage = LocalStorage(self.root, owner=self.new_key(shard), min_free=0)
        self.runner.run(self.storage.prepare())
        assert os.listdir(self.root / "staging") == [self.storage._directories.owner]


TestAnySequenceOnMemory = MemoryMachine.TestCase
TestAnySequenceOnMemory.settings = settings(stateful_step_count=60)

TestAnySequenceOnDisk = pytest.mark.slow(LocalMachine.TestCase)
TestAnySequenceOnDisk.settings = settings(stateful_step_count=20, suppress_health_check=list(HealthCheck))
