"""The driver of SQLite: one file, many readers, one writer."""

import asyncio
import sqlite3
import threading
from asyncio import Future
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiosqlite
from databases.core import Connection

from app.db.ballast import Ballast
from app.db.driver import Driver, Row
from app.db.queries import Query
from app.db.sqlite_files import Files, Moved
from app.errors import StorageFull, Unavailable, Unusable, UploadError

OLDEST_VERSION: Final = (3, 38, 0)  # the first with ->> in SQL

_OUTAGES: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,  # with a corrupt file, the outcome of a COMMIT is unknown
    sqlite3.SQLITE_NOTADB,
}
_CONFLICTS: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_MISFITS: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_LOST: Final = {"Connection closed", "no active connection"}  # aiosqlite's words for an abandoned connection


class _Connection(sqlite3.Connection):
    """A connection that is durable from its first statement, and refuses commits that would not last."""

    def __init__(self, files: Files, path: str, *args: Any, **kwargs: Any) -> None:
        self._files = files
        self._checked_changes = 0
        try:
            files.opening()
            super().__init__(path, *args, **kwargs)
            self.row_factory = sqlite3.Row
            # In WAL mode anything less than FULL may forget the last commits at a power cut. The file
            # keeps the mode, but it may have been changed while no connection was open. Switching locks the file
            # for a moment and, when another process opens it just then, fails; `Db` tries again.
            self.execute("PRAGMA synchronous = FULL")
            self.execute("PRAGMA foreign_keys = ON")
            [[journal]] = self.execute("PRAGMA journal_mode = WAL")
            if journal != "wal":
                raise Unusable(f"the database file takes no write-ahead log, its journal mode stays {journal!r}")
            self.execute("SELECT 1 FROM sqlite_schema").close()  # opens the log
            files.opened(self, path)
        except (sqlite3.Error, Unusable, Moved) as error:
            with suppress(sqlite3.Error):  # the connection may not even have been opened
                self.close()
            raise _NotOpened(error) from error

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)

    def close(self) -> None:
        self._files.closing(self)
        with suppress(sqlite3.Error):
            # A pending interrupt that met no statement would interrupt the last connection's checkpoint of the log.
            super().execute("SELECT 1").close()
        super().close()

    def check(self) -> None:
        """Raise Moved when a commit on this connection goes where no later start would find it."""
        try:
            self._files.check()
        except Moved:
            if self._files.log_is_lost:
                with suppress(sqlite3.Error):  # else the last connection that closes does it
                    super().execute("PRAGMA wal_checkpoint(FULL)").close()
            raise

    def check_changes(self) -> None:
        """Raise Moved when a commit has gone there since the last check."""
        if self.total_changes != self._checked_changes and not self.in_transaction:
            self.check()
            self._checked_changes = self.total_changes


class _Cursor(sqlite3.Cursor):
    """A cursor that fetches all rows of a statement, once that is complete and its changes will last."""

    connection: _Connection

    def fetchall(self) -> list[Any]:
        rows = super().fetchall()
        self.connection.check_changes()
        return rows


class _NotOpened(Exception):
    """The connection could not be opened, for the given reason. The thread that was to serve it is about to end."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason, self.thread = reason, threading.current_thread()


class SqliteDriver(Driver):
    dialect = "sqlite"
    one_writer = True

    def __init__(self) -> None:
        self._files = Files()
        self._reserve: Ballast | None = None
        self._doubts = False

    def options(self, *, schema: str | None, pool_size: int, timeout: float) -> dict[str, Any]:
        # SQLite sleeps in its thread while another process writes, and nothing wakes it. Short
        # sleeps, with `Db` trying again until its own deadline, keep it responsive.
        return {"factory": partial(_Connection, self._files), "timeout": min(timeout / 4, 1.0)}

    async def connect(self, connection: Connection) -> None:
        try:
            await super().connect(connection)
        except _NotOpened as error:
            # aiosqlite does not join its thread, which must not outlive an event loop that ends next.
            await asyncio.to_thread(error.thread.join)
            raise error.reason from None

    async def look(self, raw: Any) -> bool:
        await raw._execute(
            raw._conn.check
        )  # in the connection's thread, so that closing, which removes files, comes before or after
        return True

    def concerns_all(self, error: BaseException) -> bool:
        return isinstance(error, Moved)

    def is_crowded(self, error: BaseException | None) -> bool:
        return _code(error) == sqlite3.SQLITE_CANTOPEN  # the process has no descriptors left, most likely

    async def inspect(self, raw: aiosqlite.Connection) -> dict[str, str]:
        if sqlite3.sqlite_version_info < OLDEST_VERSION:
            raise Unusable(f"SQLite {sqlite3.sqlite_version} is too old, 3.38 or newer is needed")
        journal, synchronous = await _value(raw, "PRAGMA journal_mode"), await _value(raw, "PRAGMA synchronous")
        if synchronous != 2:
            raise Unusable(f"SQLite's synchronous is {synchronous}, 2 (FULL) is needed")
        return {"server": f"SQLite {sqlite3.sqlite_version}", "journal_mode": journal, "synchronous": "FULL"}

    @property
    def lacks_room(self) -> bool:
        return self._reserve is None or not self._reserve.is_whole

    async def keep_room(self, raw: aiosqlite.Connection) -> None:
        if self._reserve is None:
            path = await _value(raw, "SELECT file FROM pragma_database_list WHERE name = 'main'")
            self._reserve = Ballast(Path(f"{path}-reserve"))
        await asyncio.to_thread(self._reserve.fill)

    def make_room(self) -> bool:
        return self._reserve is not None and self._reserve.give()

    async def fetch(self, raw: aiosqlite.Connection, query: Query, arguments: Mapping[str, Any]) -> list[Row]:
        try:
            rows = list(await raw.execute_fetchall(query.statement, arguments))
        except sqlite3.OperationalError as error:
            if query.writes or not str(error).startswith("Could not decode"):
                raise
            # SQLite keeps text that is no UTF-8 if an operator stores it. One such row must not
            # hide the others; as surrogates it reaches the model, which refuses that row alone.
            raw.text_factory = _lenient
            try:
                rows = list(await raw.execute_fetchall(query.statement, arguments))
            finally:
                raw.text_factory = str
        if not rows:
            return []
        names = rows[0].keys()
        return [dict(zip(names, row, strict=True)) for row in rows]

    async def execute(self, raw: aiosqlite.Connection, statement: str) -> None:
        await raw.execute_fetchall(statement)

    async def begin(self, raw: aiosqlite.Connection, timeout: float | None, lock_timeout: float | None = None) -> None:
        # A deferred BEGIN that reads first and writes later fails at once when another process wrote
        # in between, whatever the busy timeout is.
        await raw.execute_fetchall("BEGIN IMMEDIATE")

    async def commit(self, raw: aiosqlite.Connection) -> None:
        # Not raw.commit(), which raises no error when SQLite has already rolled back by itself.
        await raw.execute_fetchall("COMMIT")

    async def recover(self, raw: aiosqlite.Connection, error: Exception) -> bool:
        await raw.rollback()  # runs in the connection's thread; does nothing without a transaction
        return self.refusal(error) is None or self.is_conflict(error) or _code(error) == sqlite3.SQLITE_FULL

    @property
    def doubts(self) -> bool:
        return self._doubts

    async def settle(self, raw: aiosqlite.Connection) -> None:
        """Checkpoint the whole log into the database's file, and restart the log.

        A commit whose flush failed is complete in the log: once that is opened again it looks like
        any other, and repeating it changes and flushes nothing. But behind a part of the log that
        never reached the disk, later commits would be lost with it. Nor can another flush be trusted.
        """
        self._doubts = False  # another connection may be abandoned meanwhile
        try:
            [[busy, _, _]] = await raw.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise _busy()
        except BaseException:
            self._doubts = True
            raise

    def is_open(self, raw: aiosqlite.Connection) -> bool:
        return True  # there is no server that could hang up

    async def abandon(self, raw: aiosqlite.Connection) -> "Future[Any] | None":
        self._doubts = True  # the outcome of its last flush will never be known
        await raw.interrupt()  # its statement ends soon; closing, the last act of its thread, then rolls back
        return raw.stop()

    async def close(self, raw: aiosqlite.Connection) -> None:
        await raw.close()

    def refusal(self, error: Exception) -> UploadError | None:
        if isinstance(error, ValueError) and str(error) in _LOST:
            return Unavailable("the connection to the database is lost")
        if isinstance(error, Moved):
            return Unavailable("the file of the database was moved, replaced or removed")
        code = _code(error)
        if code == sqlite3.SQLITE_FULL:
            return StorageFull("this server's database has no space left")
        if code in _CONFLICTS:
            return Unavailable("the database is busy")
        return Unavailable("the database cannot be used now") if code in _OUTAGES else None

    def is_conflict(self, error: BaseException | None) -> bool:
        return _code(error) in _CONFLICTS

    def misfit(self, error: BaseException | None) -> str | None:
        return str(error) if _code(error) in _MISFITS else None


def _code(error: BaseException | None) -> int | None:
    """SQLite's primary result code, which is the low byte of the extended ones."""
    return (
        error.sqlite_errorcode & 0xFF
        if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode")
        else None
    )


def _busy() -> sqlite3.Error:
    """SQLite's error for a busy database; a checkpoint only returns it as a row."""
    error = sqlite3.OperationalError("the log is in use")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def _lenient(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


async def _value(raw: aiosqlite.Connection, statement: str) -> Any:
    [row] = await raw.execute_fetchall(statement)
    return row[0]
