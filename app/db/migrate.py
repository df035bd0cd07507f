"""Migrations: bring a database's schema to what the code needs, forward only, while others use it.

On PostgreSQL a statement that changes a table locks it exclusively for a moment. Behind a long read, a dump
for instance, it would wait, and everybody else would wait behind it. So each file gives way after half a second, and
is tried again. A file of nothing but indexes blocks nobody: they are built concurrently, as drafts, for as long as
it takes, and are renamed in the short transaction that records the file.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.db.privileges import examine
from app.db.queries import Dialect, Index, Migration, migrations, oldest_code
from app.db.queryable import Queryable, SeparateConnection, Transaction
from app.errors import Unusable, UploadError

log = structlog.stdlib.get_logger("waybill.db")

_TIMEOUT: Final = 600.0  # seconds for one file
_LOCK_SECONDS: Final = 0.4  # a statement waits for a lock, and others behind it; two that start must leave them gaps
_CONFLICTS: Final = {"55P03", "40P01"}  # lock timeout; deadlock
_TURN_SECONDS: Final = 0.1  # until another process that migrates may be done with a file
_PAUSE_SECONDS: Final = 4.0  # after a try that delayed others by up to half a second
_LONG_PAUSE_SECONDS: Final = 40.0


class Pending(NamedTuple):
    """The files that are still to be applied: those that the code needs, and those that only build indexes."""

    needed: list[Migration]
    indexes: list[Migration]

    @property
    def names(self) -> list[str]:
        return [migration.name for migration in sorted([*self.needed, *self.indexes])]


async def pending(db: Db) -> Pending:
    """Find the migrations that are still to be applied; changes nothing.

    A database that has more migrations than this code knows is not behind: old code survives a new schema, unless
    a migration requires newer code.

    Raises:
        Unusable: a file has been edited after it was applied, this code is too old for the schema, the role may not do
            what has to be done, or tables of these names have another owner.
    """
    known = migrations(db.dialect)
    try:
        applied = await _applied(db.unguarded)
    except UploadError:
        raise
    except Exception:  # the role may not even read it
        await examine(db.unguarded, known, {migration.number for migration in known}, db.schema)
        raise
    found = _sorted(db.dialect, applied)
    try:
        await examine(db.unguarded, known, applied.keys(), db.schema)
    except Unusable:
        if await _applied(db.unguarded) == applied:
            raise
        return await pending(db)  # another process has migrated between the two queries
    return found


async def migrate(db: Db, *, now_us: int, indexes: bool = True) -> list[str]:
    """Apply the pending migrations; return the names of the files that were applied here.

    A new database gets everything at once. Without `indexes`, files that only build indexes on tables that
    are in use are left to `keep_building`. Any number of processes may do this at once: each file is applied by one
    of them. A process that dies half-way leaves its file unapplied.

    Raises:
        Unusable: a file was edited after it was applied, this code is too old, or a file cannot be applied.
    """
    applied: list[str] = []
    await pending(db)
    if not await _applied(db):
        everything = [(migration, migration.statements) for migration in migrations(db.dialect)]
        if await _apply(db, everything, now_us):
            applied += [migration.name for migration, _ in everything]
    while needed := (await pending(db)).needed:
        if await _apply(db, [(needed[0], needed[0].statements)], now_us):
            applied.append(needed[0].name)
    pauses = _Pauses("indexes wait for another process", first=_TURN_SECONDS, longest=_PAUSE_SECONDS)
    while indexes and (await pending(db)).indexes:
        try:
            if built := await build_indexes(db, now_us=now_us):
                applied += built
                continue
        except UploadError as error:
            if not _is_conflict(error):
                raise
        await pauses.wait()
    return applied


async def keep_building(db: Db, *, now_us: Callable[[], int]) -> None:
    """Build the indexes that are missing, and try again until none is."""
    pauses = _Pauses("indexes wait for another process", first=_TURN_SECONDS, longest=_LONG_PAUSE_SECONDS)
    while True:
        try:
            if not (await pending(db)).indexes:
                return
            if await build_indexes(db, now_us=now_us()):
                continue
        except (UploadError, Unusable) as error:
            log.warning("indexes not built", reason=str(error))
        except Exception:
            log.exception("indexes not built")
        await pauses.wait()


async def build_indexes(db: Db, *, now_us: int) -> list[str]:
    """Build missing indexes while their tables are in use, and record their files.

    A draft takes as long as the longest open transaction. One whose building was interrupted is dropped and
    begun again, a valid one is used. While another process builds, nothing is done.
    """
    built: list[str] = []
    async with db.aside() as aside:
        lock = await aside.one("lock_index_builds")
        if lock is None or not lock["locked"]:
            return built
        for migration in _sorted(db.dialect, await _applied(aside)).indexes:
            log.info("building indexes", migration=migration.name)
            naming = [await _draft(aside, migration, index) for index in migration.indexes or []]
            if await _apply(db, [(migration, list(filter(None, naming)))], now_us):
                built.append(migration.name)
                log.info("built indexes", migration=migration.name)
    return built


async def _draft(aside: SeparateConnection, migration: Migration, index: Index) -> str | None:
    """Build the index under a draft name; return the statement that remains to be run, or None."""
    if index.on is None:
        return f"DROP INDEX {index.name}"
    if Index(index.name, None) not in (migration.indexes or []) and await _is_whole(aside, index.name):
        return None  # an operator has built it by hand
    draft = f"{index.name}_draft"
    if (whole := await _is_whole(aside, draft)) is False:
        await _execute(aside, migration, f"DROP INDEX CONCURRENTLY {draft}")
    if not whole:
        await _execute(aside, migration, f"CREATE INDEX CONCURRENTLY {draft} ON {index.on}")
    return f"ALTER INDEX {draft} RENAME TO {index.name}"


async def _is_whole(db: Queryable, name: str) -> bool | None:
    """Whether the index is valid (completely built); None when there is no such index."""
    found = await db.one("find_index", name=name)
    return None if found is None else bool(found["whole"])


async def _apply(db: Db, files: list[tuple[Migration, list[str]]], now_us: int) -> bool:
    """Run the files' statements and record them, in one transaction; False when another process has done so.

    A table that others use for more than a second makes it give way, and try again.
    """
    first = files[0][0]

    async def apply(transaction: Transaction) -> bool | None:
        lock = await transaction.one("lock_migrations")
        if lock is None or not lock["locked"]:
            return None
        place = await transaction.one("find_place", schema=db.schema)
        if db.schema is not None and place is not None and not place["is_there"]:
            await _execute(transaction, first, f'CREATE SCHEMA "{db.schema}"')
        await transaction.run("create_migrations")
        if first.number in await _applied(transaction):
            return False
        for migration, statements in files:
            for statement in statements:
                await _execute(transaction, migration, statement)
            await transaction.run(
                "insert_migration",
                number=migration.number,
                name=migration.name,
                checksum=_checksum(migration),
                applied_at_us=now_us,
            )
        return True

    pauses = _Pauses("migration gives way", first=_PAUSE_SECONDS, longest=_PAUSE_SECONDS, migration=first.name)
    while True:
        try:
            if (done := await db.transaction(apply, timeout=_TIMEOUT, lock_timeout=_LOCK_SECONDS)) is not None:
                return done
        except UploadError as error:
            if not _is_conflict(error):
                raise
            await pauses.wait()
        else:
            await asyncio.sleep(_TURN_SECONDS)


async def _execute(where: Transaction | SeparateConnection, migration: Migration, statement: str) -> None:
    try:
        await where.execute(statement)
    except UploadError:
        raise
    except Exception as error:  # the database's own reason, whatever its class
        reason = "; ".join(str(error).splitlines())
        raise Unusable(f"the migration {migration.name} cannot be applied: {reason}") from error


async def _applied(db: Queryable) -> dict[int, tuple[str, str]]:
    """The names and checksums of the files that this database has had."""
    found = await db.one("has_migrations")
    rows = await db.many("list_migrations") if found and found["tables"] else []
    return {row["number"]: (row["name"], row["checksum"]) for row in rows}


def _sorted(dialect: Dialect, applied: dict[int, tuple[str, str]]) -> Pending:
    known = migrations(dialect)
    for name, _ in applied.values():
        if oldest_code(name) > len(known):
            raise Unusable(f"the schema is of a newer version, which must be started instead: it has had {name}")
    for migration in known:
        if migration.number in applied and applied[migration.number][1] != _checksum(migration):
            raise Unusable(f"the migration {migration.name} has been edited after it was applied")
    due = [migration for migration in known if migration.number not in applied]
    # SQLite's readers block nobody, and no index can be built beside a writer.
    optional = [migration for migration in due if dialect == "postgresql" and migration.indexes is not None]
    return Pending([migration for migration in due if migration not in optional], optional)


def _is_conflict(error: UploadError) -> bool:
    """Whether the failure is only a conflict with others, so that another try may succeed."""
    return getattr(error.__cause__, "sqlstate", None) in _CONFLICTS


class _Pauses:
    """Pauses between tries, ever longer, logged ever more rarely: a dump may be in the way for hours."""

    def __init__(self, event: str, *, first: float, longest: float, **fields: str) -> None:
        self._event, self._fields, self._tries = event, fields, 0
        self._seconds, self._longest = first, longest

    async def wait(self) -> None:
        self._tries += 1
        if self._tries & (self._tries - 1) == 0:  # a power of two
            log.warning(self._event, tries=self._tries, **self._fields)
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
        self._seconds = min(self._seconds * 2, self._longest)


def _checksum(migration: Migration) -> str:
    return hashlib.sha256(migration.text.encode()).hexdigest()
