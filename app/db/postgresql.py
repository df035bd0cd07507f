"""The driver of PostgreSQL: a server that may be away, slow, frozen, or lose a connection at any statement."""

import re
import socket
from asyncio import Future
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import asyncpg
from databases.core import Connection

from app.config.postgresql_url import PostgresqlUrl
from app.db.driver import LOCK_SECONDS, Driver, Row
from app.db.postgresql_hosts import Hosts, tls_fault
from app.db.queries import Query
from app.errors import Locked, StorageFull, Unavailable, Unusable, UploadError

# A role or a database may be set up not to wait for the disk at a commit; what we set on the
# connection outranks that. The server's own settings cannot be changed from here.
_LOOK: Final = """
SELECT current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'local', FALSE)
           ELSE current_setting('synchronous_commit')
       END AS synchronous_commit,
       current_setting('transaction_read_only') = 'on' AS reads_only,
       pg_is_in_recovery() AS is_standby
"""
_INSPECT: Final = """
SELECT current_setting('server_version') AS server,
       current_setting('server_encoding') AS encoding,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       CAST(CASE
           WHEN rolsuper THEN CAST(current_setting('max_connections') AS INTEGER)
           ELSE least(
               CAST(current_setting('max_connections') AS INTEGER)
                   - CAST(current_setting('superuser_reserved_connections') AS INTEGER)
                   - CAST(coalesce(current_setting('reserved_connections', TRUE), '0') AS INTEGER),
               nullif(rolconnlimit, -1),
               nullif(datconnlimit, -1))
       END AS TEXT) AS connections
FROM pg_roles, pg_database
WHERE rolname = session_user
  AND datname = current_database()
"""
_MUST_BE_ON: Final = ("fsync", "full_page_writes")

_DISK_FULL: Final = "53100"
_TOO_MANY: Final = "53300"
_READ_ONLY: Final = "25006"
_CANCELLED: Final = "57014"  # a statement took too long, which does not concern other connections
_CONFLICTS: Final = {"40001", "40P01"}  # serialization failure, deadlock
_LOCKED: Final = "55P03"
_STATEMENT_LOST: Final = {"26000", "42P05"}  # a prepared statement is missing, or exists unexpectedly
_OUTAGES: Final = {"25P03", "25P04", _READ_ONLY, *_STATEMENT_LOST}  # two timeouts of a session; a read-only server
_OUTAGE_CLASSES: Final = {"08", "40", "53", "57", "58"}  # connection, rollback, resources, operator, system
_LOST_CLASSES: Final = {"08", "25", "57"}  # connection, state of the transaction, operator: the connection is lost
_MISFIT_CLASSES: Final = {"28", "3D"}  # no such user, or a wrong password; no such database
_PROTOCOL: Final = "08P01"  # PgBouncer's code for any refusal
_POOLERS_NO: Final = re.compile(r"no such (database|user)|auth|startup parameter|SSL required")
_POOLED: Final = (
    "what stands before PostgreSQL changes the session between transactions, so settings and prepared statements are "
    "lost: set pool_mode = session in PgBouncer for this database, or name PostgreSQL itself in WAYBILL_DATABASE_URL"
)
_LOST: Final = ("connection is closed", "pool is closing", "pool is closed", "released back to the pool")


class PostgresqlDriver(Driver):
    dialect = "postgresql"
    one_writer = False
    longest_idle = 300.0  # firewalls forget a silent connection, some of them after this long

    def __init__(self, url: PostgresqlUrl) -> None:
        self._url = url
        self._hosts: Hosts
        self._silence = 0.0

    def options(self, *, schema: str | None, pool_size: int, timeout: float) -> dict[str, Any]:
        self._silence = timeout * 0.6
        # The server ends a statement before the deadline of `Db` does, so that the connection stays good; the
        # deadline is for a server that is silent.
        settings = {} if schema is None else {"search_path": f'"{schema}"'}
        self._hosts = Hosts(self._url, timeout=timeout, settings={**settings, **_limits(timeout)})
        return {
            "min_size": 0,
            "max_size": pool_size + 1,  # `Db.aside` takes one more
            "max_inactive_connection_lifetime": 0,
            "connect": self._connect,
        }

    async def _connect(self, *_: Any, loop: Any, connection_class: Any, record_class: Any, **__: Any) -> Any:
        """Open a connection for asyncpg's pool; the arguments that `databases` derives from the URL are ignored."""
        return await self._hosts.connect(loop=loop, connection_class=connection_class, record_class=record_class)

    async def connect(self, connection: Connection) -> None:
        await super().connect(connection)
        _expect_answers(connection.raw_connection, self._silence)

    async def look(self, raw: asyncpg.Connection) -> bool:
        found = await raw.fetchrow(_LOOK)
        for setting in _MUST_BE_ON:
            if found[setting] != "on":
                raise Unusable(f"PostgreSQL's {setting} is {found[setting]}: what it acknowledges could be lost")
        if found["is_standby"]:  # a standby may have fallen behind, so not even reading from it is right
            raise Unavailable("the database is a standby")
        return not found["reads_only"]

    async def inspect(self, raw: asyncpg.Connection) -> dict[str, str]:
        if not await self._hosts.gives_sessions(raw):
            raise Unusable(_POOLED)
        row = await raw.fetchrow(_INSPECT)
        facts = dict(row.items())
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
        # After a failed statement a COMMIT would roll back without an error; `Transaction`
        # never commits then.
        await raw.execute("COMMIT")

    async def recover(self, raw: asyncpg.Connection, error: Exception) -> bool:
        if self.refusal(error) is not None and not isinstance(error, asyncpg.PostgresError):
            return False  # nobody knows what the server is doing; only after an error of its own it has finished
        if _state(error)[:2] in _LOST_CLASSES:
            return False
        if raw.is_in_transaction():
            await raw.execute("ROLLBACK")
        return self.is_open(raw)

    def is_open(self, raw: asyncpg.Connection) -> bool:
        try:
            return not raw.is_closed()
        except asyncpg.InterfaceError:  # the connection died, and asyncpg's pool has noticed before us
            return False

    async def abandon(self, raw: asyncpg.Connection) -> "Future[Any] | None":
        with suppress(asyncpg.InterfaceError):  # as above
            raw.terminate()  # also releases its slot in asyncpg's own pool
        return None

    async def close(self, raw: asyncpg.Connection) -> None:
        await raw.close(timeout=1)

    def concerns_all(self, error: BaseException) -> bool:
        match error:
            case asyncpg.PostgresError(sqlstate=str(state)):
                return state == _READ_ONLY or (state[:2] in {"08", "57"} and state != _CANCELLED)
            case asyncpg.InterfaceError() | asyncpg.InternalClientError() | OSError():  # a TimeoutError is one, too
                return True
        return False

    def is_crowded(self, error: BaseException | None) -> bool:
        return _state(error) == _TOO_MANY

    def refusal(self, error: Exception) -> UploadError | None:
        match error:
            case asyncpg.PostgresError(sqlstate=str(state)):
                if state == _DISK_FULL:
                    return StorageFull("this server's database has no space left")
                if state == _LOCKED:
                    return Locked()
                if state == _READ_ONLY:
                    return Unavailable("the database is read-only")
                if state in _OUTAGES or state[:2] in _OUTAGE_CLASSES | _MISFIT_CLASSES or self.is_conflict(error):
                    return Unavailable("the database cannot be used now")
            case asyncpg.InterfaceError() if str(error).endswith(_LOST):
                return Unavailable("the connection to the database is lost")
            case asyncpg.InternalClientError():  # asyncpg misreads a server's last message on an idle connection
                return Unavailable("the connection to the database is lost")
            case OSError():  # a TimeoutError is one, too
                return Unavailable("the database does not answer")
        return None

    def is_conflict(self, error: BaseException | None) -> bool:
        # A cached plan is out of date when another process has just migrated; outside of a
        # transaction asyncpg tries again by itself.
        return isinstance(error, asyncpg.InvalidCachedStatementError) or _state(error) in _CONFLICTS

    def misfit(self, error: BaseException | None) -> str | None:
        state = _state(error)
        if fault := tls_fault(error):
            return fault
        if state in _STATEMENT_LOST or "pooling mode" in str(error):
            return _POOLED
        is_misfit = (
            isinstance(error, asyncpg.ClientConfigurationError)
            or state[:2] in _MISFIT_CLASSES
            or (state == _PROTOCOL and _POOLERS_NO.search(str(error)))
        )
        return " ".join(str(error).splitlines()) if is_misfit else None


def _state(error: BaseException | None) -> str:
    """The SQLSTATE of an error, or an empty text."""
    return getattr(error, "sqlstate", None) or ""


def _expect_answers(raw: asyncpg.Connection, seconds: float) -> None:
    """Have the kernel end the connection when the peer acknowledges nothing for so long, also while it is idle."""
    link: socket.socket = raw._transport.get_extra_info("socket")
    if link.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 3),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", round(seconds * 1000)),
    ):
        if hasattr(socket, option):  # not every system has each of them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _limits(timeout: float) -> dict[str, str]:
    """The server's own limits for a transaction of so many seconds, which hold even when this process is gone."""
    return {
        "lock_timeout": _milliseconds(min(LOCK_SECONDS, timeout * 0.6)),
        "statement_timeout": _milliseconds(timeout * 0.8),
        "idle_in_transaction_session_timeout": _milliseconds(timeout * 2),
    }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
