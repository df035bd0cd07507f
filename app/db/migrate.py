"""Brings a database's tables to what the code needs: forward only, one transaction a file."""

import hashlib
from typing import Final

from app.db import Asks, Db, Unit
from app.db.queries import Dialect, Migration, migrations
from app.errors import Unusable

_TIMEOUT: Final = 600.0  # seconds for one file, and for waiting until another process is done with one


async def migrate(db: Db, *, now_us: int) -> list[str]:
    """Apply what is pending; return the names of the files that were applied here.

    Any number of processes may do this at once: each file is applied by one of them. A process
    that dies half-way leaves its file unapplied.

    Raises:
        Unusable: a file that was applied has been edited since; nothing is applied.
    """
    applied: list[str] = []
    while name := await _next(db, now_us):
        applied.append(name)
    return applied


async def pending(db: Db) -> list[str]:
    """The names of the files that are still to be applied; changes nothing.

    A database that has had more migrations than this code knows is not behind: old code
    survives a new schema.

    Raises:
        Unusable: a file that was applied has been edited since.
    """
    return [migration.name for migration in await _pending(db, db.dialect)]


async def _next(db: Db, now_us: int) -> str | None:
    """Apply the first pending file; its name, or None when there is none left."""
    if not await _pending(db, db.dialect):
        return None  # the usual start: nothing is locked, nothing is written

    async def apply(unit: Unit) -> str | None:
        await unit.many("lock_migrations")
        await unit.run("create_migrations")
        for migration in await _pending(unit, db.dialect):  # again: another process may have been here
            for statement in migration.statements:
                await unit.execute(statement)
            await unit.run(
                "insert_migration",
                number=migration.number,
                name=migration.name,
                checksum=_checksum(migration),
                applied_at_us=now_us,
            )
            return migration.name
        return None

    return await db.transaction(apply, timeout=_TIMEOUT)


async def _pending(asks: Asks, dialect: Dialect) -> list[Migration]:
    found = await asks.one("has_migrations")
    applied = await asks.many("list_migrations") if found and found["tables"] else []
    checksums = {row["number"]: row["checksum"] for row in applied}
    for migration in migrations(dialect):
        if checksums.get(migration.number, _checksum(migration)) != _checksum(migration):
            raise Unusable(f"the migration {migration.name} has been edited after it was applied")
    return [migration for migration in migrations(dialect) if migration.number not in checksums]


def _checksum(migration: Migration) -> str:
    return hashlib.sha256(migration.text.encode()).hexdigest()
