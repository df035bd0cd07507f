"""The hosts of a PostgreSQL URL: connections to the one that is fit, with a session's settings."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from app.config.postgresql_url import PostgresqlUrl

_SHORTEST_SECONDS: Final = 1.0
_TLS: Final = {"true": True, "false": False}
_NEXT: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
_ROUNDS: Final = 8


class Hosts:
    """The hosts of a URL. The one that was fit last is tried first, and each gets its share of the time.

    So a silent host does not keep callers from the others.
    """

    def __init__(self, url: PostgresqlUrl, *, timeout: float, settings: Mapping[str, str]) -> None:
        self._url, self._timeout = url, timeout
        self._settings = "; ".join(f"SET {name} = {value}" for name, value in settings.items())
        self._latest = 0

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect to a host that is fit, with the session's settings.

        The settings are set by statements: a pooler, such as PgBouncer, refuses them among the startup parameters.
        """
        failure: Exception | None = None
        async with asyncio.timeout(self._timeout):
            for turn in range(len(self._url.hosts)):
                at = (self._latest + turn) % len(self._url.hosts)
                try:
                    raw = await self._open(*self._url.hosts[at], options)
                except _NEXT as error:
                    failure = error if failure is None or tls_fault(error) else failure
                else:
                    self._latest = at
                    return raw
        assert failure is not None
        raise failure

    async def _open(self, host: str, port: int, options: Mapping[str, Any]) -> asyncpg.Connection:
        url = self._url
        raw = await asyncpg.connect(
            host=host,
            port=port,
            user=url.user,
            password=url.password,
            database=url.database,
            ssl=_TLS.get(url.ssl, url.ssl) if url.ssl else None,
            target_session_attrs=url.target,
            timeout=max(self._timeout / len(url.hosts), _SHORTEST_SECONDS),
            server_settings={"application_name": "waybill"},
            **options,
        )
        try:
            await raw.execute(self._settings)
        except BaseException:
            raw.terminate()
            raise
        return raw

    async def gives_sessions(self, raw: asyncpg.Connection) -> bool:
        """Whether each connection keeps one session of the server for as long as it is open, also through a pooler.

        Where the session has another process id than the connection was given, there is a pooler. Then two
        connections must never share one session, nor get another one after a transaction. That is checked several
        times, while the other one is in a transaction, since others may use the same pool.
        """
        if (first := await _session(raw)) == raw.get_server_pid():
            return True
        other = await self.connect()
        try:
            second = await _session(other)
            for _ in range(_ROUNDS):
                if first == second or await _session(raw) != first:
                    return False
                await raw.execute("BEGIN")
                found = await _session(other)
                await raw.execute("ROLLBACK")
                if found != second:
                    return False
        finally:
            await other.close(timeout=1)
        return True


async def _session(raw: asyncpg.Connection) -> int:
    """The id of the process that serves this connection's transaction; the connection's own may be a pooler's."""
    async with raw.transaction():
        found: int = await raw.fetchval("SELECT pg_backend_pid()")
    return found


def tls_fault(error: BaseException | None) -> str | None:
    """The problem with TLS, if `error` is one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error.reason}"
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return "the server has no TLS, which ssl= in the URL demands: turn ssl on in PostgreSQL, or say ssl=disable"
    return None
