"""I/O errors: what they meet is refused whole and gone, no flush is repeated, and trust ends until a test."""

import asyncio
import errno
import os

import pytest

from app.errors import StorageFull, Unavailable
from app.storage.local import syscalls
from tests.contracts.storage import MiB, content_of, fill, get, keys, new_key, put, staged
from tests.support.stores import (
    Gate,
    descriptors,
    files_in,
    local,
    needs_root,
    remount,
    thin_disk,
    tmpfs,
    write_at_once,
)

EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
async def storage(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    yield storage
    await storage.close()


class Broken:
    """Every call of a function, from the `at`-th on and `times` long, raises `error`."""

    def __init__(self, monkeypatch, owner, name, *, at=1, times=1, error=EIO, when=lambda *arguments: True):
        self.calls = []
        real = getattr(owner, name)

        def call(*arguments, **named):
            if not when(*arguments):
                return real(*arguments, **named)
            self.calls.append(arguments)
            if at <= len(self.calls) < at + times:
                raise OSError(error.errno, error.strerror)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)


async def refused_whole(storage, root, batch):
    """Every file of the batch is refused and gone, nothing stays open or accounted for, and trust has ended."""
    refused = await storage.publish(batch)
    assert {key: type(error) for key, error in refused.items()} == {file.key: Unavailable for file in batch}
    assert len({id(error) for error in refused.values()}) == len(batch)
    assert await keys(storage) == []
    assert [name for name in files_in(root) if not name.startswith("trash/")] == []
    assert [target for target in descriptors().values() if any(file.key in target for file in batch)] == []
    assert (storage.space.held, storage.space.reserved) == (0, 0)
    with pytest.raises(Unavailable):
        storage.stage(new_key())


async def trusted_again(storage):
    await storage.test()
    assert await get(storage, await put(storage, b"again")) == b"again"


# --- flushing


@pytest.mark.parametrize("sizes", [[10], [2 * MiB], [10, 2 * MiB]])
@pytest.mark.parametrize("at", ["data", "names"])
async def test_a_flush_that_fails_refuses_the_files_and_is_never_repeated(tmp_path, storage, monkeypatch, sizes, at):
    batch = [await staged(storage, content_of(size)) for size in sizes]
    with monkeypatch.context() as broken:
        fsync = Broken(broken, os, "fsync", at=1 if at == "data" else len(sizes) + 1)
        await refused_whole(storage, tmp_path, batch)
        flushed = [fd for [fd] in fsync.calls]
        assert len(flushed) == len(set(flushed)) == (1 if at == "data" else len(sizes) + 1)
    await trusted_again(storage)


@pytest.mark.parametrize("at", ["data", "names"])
async def test_a_flush_of_the_file_system_that_fails_refuses_the_whole_commit_group(tmp_path, storage, monkeypatch, at):
    batch = [await staged(storage, content_of(size, size)) for size in [0, 10, 300_000, 2 * MiB, 5]]
    with monkeypatch.context() as broken:
        syncfs = Broken(broken, syscalls, "syncfs", at=1 if at == "data" else 2)
        fsync = Broken(broken, os, "fsync", at=1000)
        await refused_whole(storage, tmp_path, batch)
        assert len(syncfs.calls) == (1 if at == "data" else 2)
        assert fsync.calls == []
    await trusted_again(storage)


async def test_a_file_is_asked_itself_whether_it_was_written(tmp_path, storage, monkeypatch):
    """The flush of the file system may have told its error to somebody else before."""
    batch = [await staged(storage, content_of(size)) for size in [10, 20, 2 * MiB]]
    with monkeypatch.context() as broken:
        large = batch[2].key
        Broken(broken, syscalls, "written_back", when=lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith(large))
        await refused_whole(storage, tmp_path, batch)
    await trusted_again(storage)


async def test_the_next_commit_group_is_untouched_by_one_that_failed(storage, monkeypatch):
    first = [await staged(storage, content_of(10, seed)) for seed in range(5)]
    second = [await staged(storage, content_of(10, seed)) for seed in range(5)]
    Broken(monkeypatch, syscalls, "syncfs")
    refused, published = await asyncio.gather(storage.publish(first), storage.publish(second))
    assert len(refused) == 5
    assert published == {}
    assert await keys(storage) == sorted(file.key for file in second)


async def test_a_flush_for_which_there_is_no_space_does_not_end_the_trust(tmp_path, storage, monkeypatch):
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "over quota")):
        batch = [await staged(storage, b"one"), await staged(storage, b"two")]
        with monkeypatch.context() as broken:
            Broken(broken, os, "fsync", error=error)
            refused = await storage.publish(batch)
        assert {type(error) for error in refused.values()} == {StorageFull}
        assert files_in(tmp_path) == []
        await put(storage, b"next")
        await storage.remove(await keys(storage))


async def test_a_store_without_durability_flushes_nothing(tmp_path, monkeypatch):
    storage = local(tmp_path, durability="fast")
    await storage.prepare()
    with monkeypatch.context() as counted:
        calls = [Broken(counted, os, "fsync"), Broken(counted, os, "fdatasync"), Broken(counted, syscalls, "syncfs")]
        calls.append(Broken(counted, syscalls, "written_back"))
        for count in (1, 2, 3, 50):
            files = [await staged(storage, content_of(2 * MiB if seed == 0 else 9, seed)) for seed in range(count)]
            assert await storage.publish(files) == {}
        assert [call.calls for call in calls] == [[]] * 4
    await storage.close()


async def test_few_files_are_flushed_one_by_one_and_many_at_once(storage, monkeypatch):
    fsync, syncfs = Broken(monkeypatch, os, "fsync", at=1000), Broken(monkeypatch, syscalls, "syncfs", at=1000)
    for count, expected in [(1, (2, 0)), (3, (0, 2)), (100, (0, 2))]:
        fsync.calls.clear()
        syncfs.calls.clear()
        assert await storage.publish([await staged(storage, content_of(9, seed)) for seed in range(count)]) == {}
        assert (len(fsync.calls), len(syncfs.calls)) == expected


async def test_data_is_durable_before_names_and_names_before_the_answer(storage, monkeypatch):
    order = []

    def note(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments, **named: (order.append(name), real(*arguments, **named))[1])

    note(os, "fsync")
    note(syscalls, "syncfs")
    note(syscalls, "rename_new")
    await put(storage, content_of(10))
    assert order == ["fsync", "rename_new", "fsync"]
    order.clear()
    assert await storage.publish([await staged(storage, content_of(10, seed)) for seed in range(3)]) == {}
    assert order == ["syncfs", "rename_new", "rename_new", "rename_new", "syncfs"]


# --- every other step


@pytest.mark.parametrize("size", [10, 2 * MiB])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE, errno.ENODEV])
async def test_a_rename_that_fails_refuses_that_file_alone(tmp_path, storage, monkeypatch, size, number):
    files = [await staged(storage, content_of(size, seed)) for seed in range(4)]
    with monkeypatch.context() as broken:
        error = OSError(number, os.strerror(number))
        Broken(broken, syscalls, "rename_new", error=error, when=lambda old, new: old == files[1].key)
        refused = await storage.publish(files)
    assert {key: type(error) for key, error in refused.items()} == {files[1].key: Unavailable}
    assert len(files_in(tmp_path)) == 3
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await trusted_again(storage)


@pytest.mark.parametrize("call", ["open", "write"])
async def test_a_small_file_that_cannot_be_written_is_refused_alone(tmp_path, storage, monkeypatch, call):
    files = [await staged(storage, content_of(10 + seed, seed)) for seed in range(4)]
    with monkeypatch.context() as broken:
        which = (lambda path, *more: path == files[2].key) if call == "open" else (lambda fd, view: len(view) == 12)
        Broken(broken, os, call, when=which)
        refused = await storage.publish(files)
    assert list(refused) == [files[2].key]
    assert len(files_in(tmp_path)) == 3
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await trusted_again(storage)


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_large_file_whose_write_fails_is_refused_by_the_next_call(tmp_path, storage, monkeypatch, at):
    write_at_once(monkeypatch)
    file = storage.stage(new_key())
    with monkeypatch.context() as broken:
        Broken(broken, os, "write", at=at, times=1000)
        with pytest.raises(Unavailable):
            await fill(file, content_of(4 * MiB + 100), 300_000)
        assert storage._trust.fault is not None
        await file.abort()
    assert files_in(tmp_path) == []
    await trusted_again(storage)


async def test_a_write_error_that_was_ignored_never_becomes_a_file(tmp_path, storage, monkeypatch):
    """The block after the lost one may well be written: what is not whole gets no name."""
    write_at_once(monkeypatch)
    file = storage.stage(new_key())
    content = content_of(5 * MiB)
    with monkeypatch.context() as broken:
        Broken(broken, os, "write", at=2)
        for at in range(0, len(content), MiB):
            try:
                await file.write(content[at : at + MiB])
            except Unavailable:
                continue
        with pytest.raises(Unavailable):
            await file.finish()
    assert list(await storage.publish([file])) == [file.key]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("size", [10, 2 * MiB])
async def test_a_fault_of_ours_refuses_one_file_and_settles_the_commit_group(tmp_path, storage, monkeypatch, size):
    files = [await staged(storage, content_of(size, seed)) for seed in range(3)]

    def ours(old, new, **directories):
        if old == files[1].key:
            raise KeyError("a fault of ours")
        real(old, new, **directories)

    real = syscalls.rename_new
    monkeypatch.setattr(syscalls, "rename_new", ours)
    refused = await storage.publish(files)
    assert {key: type(error) for key, error in refused.items()} == {files[1].key: Unavailable}
    assert len(files_in(tmp_path)) == 2
    assert storage.space.held == 0
    storage.stage(new_key())  # the store is not to blame


async def test_a_close_that_fails_refuses_the_file(tmp_path, storage, monkeypatch):
    """Some network file systems tell of an error only then."""
    file = await staged(storage, content_of(2 * MiB))
    real = type(file._file).close

    def close(self):
        real(self)
        raise EIO

    monkeypatch.setattr(type(file._file), "close", close)
    assert list(await storage.publish([file])) == [file.key]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_lack_of_descriptors_or_memory_refuses_but_does_not_end_the_trust(storage, monkeypatch, number):
    small = await staged(storage, b"small")
    with monkeypatch.context() as broken:
        Broken(broken, os, "open", times=1000, error=OSError(number, os.strerror(number)))
        large = storage.stage(new_key())
        with pytest.raises(Unavailable):
            await large.write(content_of(2 * MiB))
        assert list(await storage.publish([small])) == [small.key]
    await large.abort()
    await put(storage, b"next")


async def test_a_file_too_large_for_the_file_system_is_refused_without_a_limit_that_nobody_knows(
    tmp_path, storage, monkeypatch
):
    write_at_once(monkeypatch)
    file = storage.stage(new_key())
    with monkeypatch.context() as broken:
        Broken(broken, os, "write", at=3, times=1000, error=OSError(errno.EFBIG, "File too large"))
        with pytest.raises(StorageFull, match="cannot store a file of"):
            await fill(file, content_of(5 * MiB), MiB)
    await file.abort()
    assert files_in(tmp_path) == []
    storage.stage(new_key())


async def test_a_file_that_cannot_be_removed_is_still_closed(tmp_path, storage, monkeypatch):
    before = len(descriptors())
    with monkeypatch.context() as broken:
        Broken(broken, os, "unlink", times=1000, error=OSError(errno.EROFS, "Read-only file system"))
        aborted, published = await staged(storage, content_of(2 * MiB)), await staged(storage, content_of(2 * MiB))
        await aborted.abort()
        Broken(broken, syscalls, "rename_new")
        assert list(await storage.publish([published])) == [published.key]
    assert len(descriptors()) == before
    assert files_in(tmp_path) == sorted(
        f"staging/{storage._directories.owner}/{file.key}" for file in (aborted, published)
    )


# --- asking


async def test_a_store_that_cannot_be_asked_is_unavailable(storage, monkeypatch):
    key, large = await put(storage, b"hello"), await put(storage, content_of(2 * MiB))
    stored = await storage.open(large)
    with monkeypatch.context() as broken:
        for name in ("open", "pread", "stat", "unlink", "utime"):
            Broken(broken, os, name, times=1000)
        Broken(broken, syscalls, "open_cached", times=1000)
        asked = [storage.open(key), storage.digest(key), stored.read(0, 10), storage.missing([key]), storage.sweep()]
        asked += [storage.remove([key]), storage.set_aside([key]), storage.strays(), keys(storage)]
        for ask in asked:
            with pytest.raises(Unavailable):
                await ask
    assert await stored.read(0, 10) == content_of(10)
    await stored.close()
    assert await keys(storage) == sorted([key, large])


# --- trust


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename_new"])
async def test_a_test_that_fails_leaves_nothing_and_restores_nothing(tmp_path, storage, monkeypatch, call):
    batch = [await staged(storage, b"x")]
    with monkeypatch.context() as broken:
        Broken(broken, os, "fsync")
        await refused_whole(storage, tmp_path, batch)
    with monkeypatch.context() as broken:
        Broken(broken, syscalls if call == "rename_new" else os, call, times=1000)
        with pytest.raises(Unavailable):
            await storage.test()
    assert files_in(tmp_path) == []
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await trusted_again(storage)
    assert len(files_in(tmp_path)) == 1


async def test_an_old_error_meets_the_test_of_the_store_and_no_innocent_commit_group(tmp_path, storage, monkeypatch):
    """A write that failed for one file is told once more, to whoever flushes the file system next."""
    batch = [await staged(storage, b"x")]
    with monkeypatch.context() as broken:
        Broken(broken, os, "fsync")
        await refused_whole(storage, tmp_path, batch)
    Broken(monkeypatch, syscalls, "syncfs")
    with pytest.raises(Unavailable):
        await storage.test()
    await storage.test()
    assert await storage.publish([await staged(storage, content_of(9, seed)) for seed in range(5)]) == {}


async def test_a_test_restores_no_trust_that_was_lost_while_it_ran(storage, monkeypatch):
    first, second = await staged(storage, b"first"), await staged(storage, b"second")
    with monkeypatch.context() as broken:
        Broken(broken, syscalls, "rename_new", when=lambda old, new: old == first.key)
        await storage.publish([first])
    with monkeypatch.context() as patched:
        gate = Gate(
            patched, os, "fsync", when=lambda fd: storage._directories.owner in os.readlink(f"/proc/self/fd/{fd}")
        )
        testing = asyncio.create_task(storage.test())
        await gate.reached()
        storage._trust.restore(storage._trust.fault)
        storage._trust.refusal(EIO, second.key, 6)  # what another thread may have met meanwhile
        gate.open()
        await testing
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await second.abort()
    await trusted_again(storage)


async def test_uploads_in_flight_may_succeed_while_no_new_one_is_taken(tmp_path, storage, monkeypatch):
    under_way = storage.stage(new_key())
    await under_way.write(content_of(2 * MiB))
    failing = await staged(storage, b"x")
    with monkeypatch.context() as broken:
        Broken(broken, os, "fsync")
        await storage.publish([failing])
    await under_way.finish()
    assert await storage.publish([under_way]) == {}
    with pytest.raises(Unavailable):
        storage.stage(new_key())


# --- real ones


@needs_root
async def test_a_file_system_that_becomes_read_only_refuses_uploads_and_serves_files(tmp_path):
    with tmpfs(tmp_path / "volume", "16m") as root:
        storage = local(root)
        await storage.prepare()
        key = await put(storage, content_of(2 * MiB))
        remount(root, "ro")
        held = await staged(storage, b"held")
        assert [type(error) for error in (await storage.publish([held])).values()] == [Unavailable]
        with pytest.raises(Unavailable):
            await storage.test()
        with pytest.raises(Unavailable):
            await storage.remove([key])
        assert await get(storage, key) == content_of(2 * MiB)
        remount(root, "rw")
        await trusted_again(storage)
        await storage.close()


@needs_root
@pytest.mark.parametrize("kind", ["small", "large", "large through the page cache"])
async def test_a_disk_that_really_fails_refuses_the_file(tmp_path, kind):
    """Writes to the page cache succeed and the flush of the batch does not; a direct write fails by itself."""
    with thin_disk(tmp_path) as root:
        storage = local(root)
        await storage.prepare()
        storage._staging.direct &= kind == "large"
        size, count = (200_000, 200) if kind == "small" else (8 * MiB, 5)
        batch, met = [], []
        for seed in range(count):
            file = storage.stage(new_key())
            try:
                await fill(file, content_of(size, seed), MiB)
            except (Unavailable, StorageFull) as error:
                met.append(error)
                await file.abort()
            else:
                batch.append(file)
        refused = await storage.publish(batch)
        met += refused.values()
        assert {type(error) for error in met} <= {Unavailable, StorageFull}
        assert await storage.missing(list(refused)) == list(refused)
        assert met
        if kind != "large":
            assert len(refused) == len(batch)
        # Which of the two the kernel tells is its choice; only one of them is a fault of the store.
        assert (storage._trust.fault is not None) == any(isinstance(error, Unavailable) for error in met)
        await storage.close()
