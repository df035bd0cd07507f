"""The memory store keeps the contract."""

import pytest

from app.storage.memory import MemoryStorage
from tests.contracts.partial import PartialContract
from tests.contracts.storage import MiB, StorageContract


class TestMemoryStorage(StorageContract, PartialContract):
    @pytest.fixture
    def storage(self):
        return MemoryStorage()

    @pytest.fixture
    def small(self):
        return MemoryStorage(MiB)
