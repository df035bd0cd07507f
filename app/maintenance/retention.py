"""Retention: the bytes of completed uploads are deleted when their time is over; their records stay."""

import asyncio
from collections.abc import Sequence
from typing import Final

from app.db.database import Db
from app.db.queryable import Transaction
from app.storage import Storage
from app.uploads import records

_AT_ONCE: Final = 500
_PAUSE_SECONDS: Final = 0.01


async def delete_expired(storage: Storage, db: Db, now_us: int) -> int:
    """Delete the bytes of completed uploads whose time is over; return how many. After a crash the next sweep goes on.

    Raises:
        StorageFull, Unavailable: the database takes no change now.
    """
    deleted = 0
    while ids := await records.list_to_delete(db, now_us, _AT_ONCE):

        async def run(transaction: Transaction, ids: Sequence[str] = ids) -> list[str]:
            return await records.delete_uploads(transaction, ids, now_us)

        gone = await db.transaction_that_frees(run)
        await storage.remove(gone)
        deleted += len(gone)
        await asyncio.sleep(_PAUSE_SECONDS)
    return deleted
