"""When sessions were last seen: noted in memory, saved now and then, in one statement for many."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog

from app.background import every
from app.db.queryable import Transaction
from app.model import Clock, Session
from app.sessions import records
from app.sessions.records import Seen

log = structlog.stdlib.get_logger("waybill.sessions")

SEEN_EVERY_US: Final = 60_000_000
"""The resolution of `last_seen`: a session in steady use costs one row write a minute, shared with others."""
FLUSH_SECONDS: Final = 5.0
_SHARE: Final = 60
"""The resolution and the delay are at most this fraction of a short age, so that a use counts within a thirtieth."""


class LastSeen:
    """The uses of sessions that are not saved yet. `change` runs a transaction that changes what tokens open."""

    def __init__(
        self,
        *,
        change: Callable[[Callable[[Transaction], Awaitable[Any]]], Awaitable[Any]],
        max_age_us: int,
        now_us: Clock,
    ) -> None:
        self._change = change
        self._max_age_us = max_age_us
        self._seen_every_us = min(SEEN_EVERY_US, max_age_us // _SHARE)
        self._now_us = now_us
        self._seen: dict[str, Seen] = {}
        self._kept_at_us = 0

    @property
    def flush_seconds(self) -> float:
        """The interval at which `last_seen` is saved."""
        return min(FLUSH_SECONDS, self._max_age_us / 1_000_000 / _SHARE)

    def note(self, session: Session, now_us: int) -> None:
        """Count a use of the session."""
        if now_us - session.last_seen_at >= self._seen_every_us and session.id not in self._seen:
            self._seen[session.id] = Seen(session.id, now_us, now_us + self._max_age_us)

    async def keep(self, in_use: Callable[[], Iterable[str]]) -> None:
        """Save, now and then and in one statement, when sessions were last seen. Runs until cancelled.

        Sessions that `in_use` names, which have uploads under way, count as seen all the time.
        """

        async def save() -> None:
            now_us = self._now_us()
            if now_us - self._kept_at_us >= self._seen_every_us:
                self._kept_at_us = now_us
                for session_id in in_use():
                    self._seen.setdefault(session_id, Seen(session_id, now_us, now_us + self._max_age_us))
            await self.flush()

        await every(self.flush_seconds, save, failure="last use of sessions not saved", log=log)

    async def flush(self) -> None:
        if not self._seen:
            return
        seen, self._seen = self._seen, {}

        async def run(transaction: Transaction) -> None:
            await records.touch_sessions(transaction, list(seen.values()))

        try:
            await self._change(run)
        except BaseException:
            self._seen = seen | self._seen
            raise
