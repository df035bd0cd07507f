"""PostgreSQL: a server that may be away, slow, frozen, or lose a connection at any statement."""

from asyncio import Future
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import asyncpg

from app.db.driver import LOCK_SECONDS, Driver, Row
from app.db.queries import Query
from app.errors import Locked, StorageFull, Unavailable, Unusable, UploadError

# What an operator may have turned off, and what the service then could not promise.
_DURABLE: Final = {
    "fsync": {"on"},
    "full_page_writes": {"on"},
    "synchronous_commit": {"on", "local", "remote_write", "remote_apply"},
}

_DISK_FULL: Final = "53100"
_CONFLICTS: Final = {"40001", "40P01"}  # serialization failure, deadlock
_LOCKED: Final = "55P03"
_OUTAGES: Final = {"25P03", "25P04", "25006"}  # time ran out, in two ways; a server that only reads
_OUTAGE_CLASSES: Final = {"08", "40", "53", "57", "58"}  # connection, rollback, resources, operator, system
_MISFIT_CLASSES: Final = {"28", "3D"}  # no such user, or a wrong password; no such database
_LOST: Final = ("connection is closed", "pool is closing", "pool is closed", "released back to the pool")


class PostgresqlDriver(Driver):
    dialect = "postgresql"
    one_writer = False

    def options(self, *, schema: str | None, pool_size: int, timeout: float) -> dict[str, Any]:
        # `databases` ignores all of these in a URL. The server ends a statement before the deadline
        # of `Db` does, so that the connection stays good; the deadline is for a server that is silent.
        return {
            "min_size": 0,
            "max_size": pool_size + 1,  # `Db.aside` takes one more
            "timeout": timeout,
            "max_inactive_connection_lifetime": 0,
            "server_settings": {
                "application_name": "waybill",
                **({} if schema is None else {"search_path": f'"{schema}"'}),
                **_limits(timeout),
            },
        }

    async def inspect(self, raw: asyncpg.Connection) -> dict[str, str]:
        row = await raw.fetchrow(
            "SELECT current_setting('server_version') AS server, current_setting('server_encoding') AS encoding, "
            "current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes, "
            "current_setting('synchronous_commit') AS synchronous_commit"
        )
        facts = dict(row.items())
        for setting, safe in _DURABLE.items():
            if facts[setting] not in safe:
                raise Unusable(f"PostgreSQL's {setting} is {facts[setting]}: what it acknowledges could be lost")
        if facts["encoding"] != "UTF8":
            raise Unusable(f"the database's encoding is {facts['encoding']}, UTF8 is needed")
        return {**facts, "server": f"PostgreSQL {facts['server']}"}

    async def fetch(self, raw: asyncpg.Connection, query: Query, arguments: Mapping[str, Any]) -> list[Row]:
        records = await raw.fetch(query.statement, *[arguments[name] for name in query.order])
        return [dict(record.items()) for record in records]

    async def execute(self, raw: asyncpg.Connection, statement: str) -> None:
        await raw.execute(statement)

    async def begin(self, raw: asyncpg.Connection, timeout: float | None, lock_timeout: float | None = None) -> None:
        limits = {} if timeout is None else _limits(timeout)
        if lock_timeout is not None:
            limits["lock_timeout"] = _milliseconds(lock_timeout)
        await raw.execute("; ".join(["BEGIN", *(f"SET LOCAL {name} = {value}" for name, value in limits.items())]))

    async def lift_limits(self, raw: asyncpg.Connection) -> None:
        await raw.execute("; ".join(f"SET {name} = 0" for name in _limits(0)))

    async def commit(self, raw: asyncpg.Connection) -> None:
        # After a failed statement this would roll back and say so in a word that is no error; `Unit`
        # sees to it that it does not come to that.
        await raw.execute("COMMIT")

    async def recover(self, raw: asyncpg.Connection, error: Exception) -> bool:
        if self.refusal(error) is not None and not isinstance(error, asyncpg.PostgresError):
            return False  # nobody knows what the server is doing; what it has said itself it is done with
        if raw.is_in_transaction():
            await raw.execute("ROLLBACK")
        return self.is_open(raw)

    def is_open(self, raw: asyncpg.Connection) -> bool:
        try:
            return not raw.is_closed()
        except asyncpg.InterfaceError:  # it died, and asyncpg's pool has noticed before us
            return False

    async def abandon(self, raw: asyncpg.Connection) -> "Future[Any] | None":
        with suppress(asyncpg.InterfaceError):  # as above
            raw.terminate()  # also gives the place in asyncpg's own pool back
        return None

    async def close(self, raw: asyncpg.Connection) -> None:
        await raw.close(timeout=1)

    def refusal(self, error: Exception) -> UploadError | None:
        match error:
            case asyncpg.PostgresError(sqlstate=str(state)):
                if state == _DISK_FULL:
                    return StorageFull("this server's database has no space left")
                if state == _LOCKED:
                    return Locked()
                if state in _OUTAGES or state[:2] in _OUTAGE_CLASSES | _MISFIT_CLASSES or self.is_conflict(error):
                    return Unavailable("the database cannot be used now")
            case asyncpg.InterfaceError() if str(error).endswith(_LOST):
                return Unavailable("the connection to the database is lost")
            case asyncpg.InternalClientError():  # a server's last words on an idle connection confuse asyncpg
                return Unavailable("the connection to the database is lost")
            case OSError():  # a TimeoutError is one, too
                return Unavailable("the database does not answer")
        return None

    def is_conflict(self, error: BaseException | None) -> bool:
        # A cached plan is out of date when another process has just migrated; outside of a
        # transaction asyncpg tries again by itself.
        return isinstance(error, asyncpg.InvalidCachedStatementError) or getattr(error, "sqlstate", None) in _CONFLICTS

    def misfit(self, error: BaseException | None) -> str | None:
        state = getattr(error, "sqlstate", None) or ""
        fits = not isinstance(error, asyncpg.ClientConfigurationError) and state[:2] not in _MISFIT_CLASSES
        return None if fits else str(error)


def _limits(timeout: float) -> dict[str, str]:
    """What the server holds a transaction of so many seconds to, even when we are gone."""
    return {
        "lock_timeout": _milliseconds(min(LOCK_SECONDS, timeout * 0.6)),
        "statement_timeout": _milliseconds(timeout * 0.8),
        "idle_in_transaction_session_timeout": _milliseconds(timeout * 2),
    }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
