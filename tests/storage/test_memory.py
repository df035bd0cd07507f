"""The memory store keeps the contract."""

import pytest

from app.storage.memory import MemoryStorage
from tests.contracts.storage import MiB, StorageContract
from tests.contracts.unfinished import UnfinishedContract


class TestMemoryStorage(StorageContract, UnfinishedContract):
    @pytest.fixture
    def storage(self):
        return MemoryStorage()

    @pytest.fixture
    def small(self):
        return MemoryStorage(MiB)
