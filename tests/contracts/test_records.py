"""The records on both databases; what they promise stands in the contract."""

import pytest

from app.db.database import Db
from app.db.migrate import migrate
from tests.contracts.records import RecordsContract


class TestRecords(RecordsContract):
    @pytest.fixture
    async def db(self, database_url):
        db = Db(database_url)
        await db.open()
        await migrate(db, now_us=0)
        yield db
        assert db.slots() == (8, 8)
        await db.close()
