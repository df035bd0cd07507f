"""The local store keeps the contract."""

import pytest

from app.errors import Unavailable
from app.storage import Mark
from tests.contracts.partial import PartialContract, found
from tests.contracts.storage import MiB, StorageContract, keys, new_key, put
from tests.storage.stores import limit, local


class TestLocalStorage(StorageContract, PartialContract):
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

    async def test_a_closed_store_is_unavailable(self, tmp_path):
        storage = local(tmp_path / "closed")
        await storage.prepare()
        key = await put(storage, b"kept")
        await storage.close()
        asked = [storage.open(key), storage.digest(key), storage.remove([key]), storage.set_aside([key]), keys(storage)]
        asked += [storage.make_durable(key), storage.partial(key, 1, Mark(0)), storage.assemble(key, 1, [])]
        asked += [storage.remove_partials([(key, 1)]), found(storage)]
        asked += [storage.missing([key]), storage.strays(), storage.sweep(0), storage.free_bytes(), storage.test()]
        for ask in asked:
            with pytest.raises(Unavailable):
                await ask
        with pytest.raises(Unavailable):
            storage.stage(new_key())
        with pytest.raises(Unavailable):
            storage.reserve(1)
        with pytest.raises(Unavailable), storage.sole_sweeper():
            pytest.fail("nobody sweeps a closed store")
        assert (tmp_path / "closed" / "files" / key[-2:] / key).read_bytes() == b"kept"
