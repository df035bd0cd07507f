"""The local store keeps the contract, and keeps to its own directory."""

import pytest

from tests.contracts.storage import MiB, StorageContract
from tests.storage.stores import limit, local


class TestLocalStorage(StorageContract):
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
