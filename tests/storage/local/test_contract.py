"""The local store keeps the contract."""

import errno
import os

import pytest

from app.errors import Unavailable
from app.storage import Mark
from app.storage.local import syscalls
from tests.contracts.storage import MiB, StorageContract, keys, new_key, put
from tests.contracts.unfinished import UnfinishedContract, found
from tests.support.stores import limit, local


class TestLocalStorage(StorageContract, UnfinishedContract):
    @pytest.fixture
    async def storage(self, tmp_path):
        storage = local(tmp_path / "store")
        await storage.prepare()
        yield storage
        await storage.close()

    @pytest.fixture
    async def small(self, tmp_path, monkeypatch):
        limit(monkeypatch, tmp_path / "small", MiB)
        storage = local(tmp_path / "small")
        await storage.prepare()
        yield storage
        await storage.close()

    @pytest.mark.parametrize("case", ["at hand", "content on the disk", "name on the disk", "old kernel"])
    async def test_a_file_is_read_wherever_it_is(self, storage, tmp_path, monkeypatch, case):
        """Only the first can be had without waiting."""
        content = os.urandom(20_000)
        key = await put(storage, content)
        if case == "content on the disk":
            fd = os.open(tmp_path / "store" / "files" / key[-2:] / key, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        elif case != "at hand":
            error = OSError(errno.EAGAIN if case == "name on the disk" else errno.ENOSYS, "not so")

            def refuse(*_, **__):
                raise error

            monkeypatch.setattr(syscalls, "open_cached", refuse)
        stored = await storage.open(key)
        assert (stored.size, await stored.read(0, 30_000)) == (20_000, content)
        await stored.close()

    async def test_a_closed_store_is_unavailable(self, tmp_path):
        storage = local(tmp_path / "closed")
        await storage.prepare()
        key = await put(storage, b"kept")
        await storage.close()
        asked = [storage.open(key), storage.digest(key), storage.remove([key]), storage.set_aside([key]), keys(storage)]
        asked += [storage.make_durable(key), storage.open_unfinished(key, 1, Mark(0)), storage.assemble(key, 1, [])]
        asked += [storage.remove_unfinished([(key, 1)]), found(storage)]
        asked += [storage.missing([key]), storage.strays(), storage.sweep(), storage.free_bytes(), storage.test()]
        for ask in asked:
            with pytest.raises(Unavailable):
                await ask
        with pytest.raises(Unavailable):
            storage.stage(new_key())
        with pytest.raises(Unavailable):
            storage.reserve(1)
        with pytest.raises(Unavailable), storage.alone_at("sweep"):
            pytest.fail("nobody sweeps a closed store")
        assert (tmp_path / "closed" / "files" / key[-2:] / key).read_bytes() == b"kept"
