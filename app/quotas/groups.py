"""Grant groups: many requests for quota are answered by one transaction, while further ones gather for the next.

    requested → gathered → decided together → answered

A session that is locked by others leaves its group, and is answered when the lock is released.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import Locked, QuotaExceeded, Unavailable, UploadError
from app.model import Amount
from app.quotas import records

log = structlog.stdlib.get_logger("waybill.quota")

_AT_ONCE: Final = 256
_SEARCH_SECONDS: Final = 1.0
"""How long a group may be delayed by the search for its locked sessions."""


@dataclass(slots=True, eq=False)
class GrantRequest:
    """A request for a grant of `wanted` in all, and up to `more` bytes beyond, as far as they are left."""

    id: str
    session_id: str
    had: Amount | None
    """The amount that is granted already; None when only the database knows."""
    wanted: Amount
    more: int
    until_us: int | None
    """The end of the grant; None for as long as this process receives the upload."""
    instead_of: Sequence[str]
    answer: "asyncio.Future[Amount]"


class _Group(NamedTuple):
    """The work of one transaction: requests, and grants to release, by their ids, with their sessions."""

    requests: list[GrantRequest]
    released: dict[str, str]

    def split(self, sessions: Collection[str]) -> "tuple[_Group, _Group]":
        """Split the group into the work for these sessions and the rest."""
        parts = _Group([], {}), _Group([], {})
        for each in self.requests:
            parts[each.session_id not in sessions].requests.append(each)
        for allowance_id, session_id in self.released.items():
            parts[session_id not in sessions].released[allowance_id] = session_id
        return parts

    @property
    def sessions(self) -> list[str]:
        return sorted({each.session_id for each in self.requests}.union(self.released.values()))


Decide = Callable[[Transaction, list[GrantRequest]], Awaitable[list[Amount | QuotaExceeded]]]


class GrantGroups:
    """The requests and releases of one process. `decide` answers requests, in the transaction that grants them."""

    def __init__(self, db: Db, decide: Decide) -> None:
        self._db = db
        self._decide = decide
        self._requests: list[GrantRequest] = []
        self._released: dict[str, str] = {}
        self._answering: asyncio.Task[None] | None = None
        self._locked: dict[str, asyncio.Task[None]] = {}

    def ask(self, request: GrantRequest) -> "asyncio.Future[Amount]":
        """Return the request's answer: the grant, once it is committed, or QuotaExceeded or Unavailable."""
        self._requests.append(request)
        self._attend()
        return request.answer

    def release(self, allowance_id: str, session_id: str) -> None:
        """Release a grant, soon and without waiting for it."""
        self._released[allowance_id] = session_id
        self._attend()

    def release_again(self) -> None:
        """Try again to release grants that could not be released, if there are any."""
        if self._released:
            self._attend()

    async def close(self) -> None:
        """Wait until what was asked is answered."""
        if answering := {*self._locked.values(), *filter(None, (self._answering,))}:
            await asyncio.wait(answering)

    def _attend(self) -> None:
        if self._answering is None:
            self._answering = asyncio.create_task(self._attend_to_all(), name="waybill-quotas")

    async def _attend_to_all(self) -> None:
        try:
            while self._requests or self._released:
                later, now = _Group(self._requests, self._released).split(self._locked)
                requests, self._requests = now.requests[:_AT_ONCE], now.requests[_AT_ONCE:] + later.requests
                self._released = later.released
                requests = [each for each in requests if not each.answer.done()]  # others were cancelled
                if not (requests or now.released):
                    break  # the remaining requests wait for a lock
                if not await self._attend_to(_Group(requests, now.released)):
                    break  # `release_again`, or the next request, tries again
        finally:
            self._answering = None

    async def _attend_to(self, group: _Group, search_until: float | None = None) -> bool:
        """Answer a group; False if the database is away. The group is bisected until locked sessions have left it."""
        now = asyncio.get_running_loop().time()
        search_until = now + _SEARCH_SECONDS if search_until is None else search_until
        try:
            await self._answer_all(group, lock_timeout=LOCK_SECONDS)
        except Locked:
            sessions = group.sessions
            if len(sessions) == 1 or now >= search_until:
                self._wait_for(group)
                return True
            parts = group.split(set(sessions[: len(sessions) // 2]))
            return all([await self._attend_to(part, search_until) for part in parts])
        except Exception as error:
            if not isinstance(error, UploadError):
                log.error("quota not granted", exc_info=error)
            waiting, self._requests = self._requests, []
            self._refuse(group, waiting)
            return False
        return True

    async def _answer_all(self, group: _Group, *, lock_timeout: float | None) -> None:
        """Commit the releases and the grants of a group, and answer its requests."""

        async def release(transaction: Transaction) -> None:
            await records.release(transaction, group.released)

        async def run(transaction: Transaction) -> list[Amount | QuotaExceeded]:
            return await self._decide(transaction, group.requests)

        # One after the other: each locks the totals of its sessions in their order.
        if group.released:
            await self._db.transaction(release, lock_timeout=lock_timeout)
        answers = await self._db.transaction(run, lock_timeout=lock_timeout) if group.requests else []
        for each, answer in zip(group.requests, answers, strict=True):
            if each.answer.done():
                continue  # cancelled meanwhile: the caller releases the grant
            if isinstance(answer, QuotaExceeded):
                each.answer.set_exception(answer)
            else:
                each.answer.set_result(answer)

    def _wait_for(self, group: _Group) -> None:
        """Answer a group when the locks that it needs are released, or refuse it; others go on."""

        async def run() -> None:
            try:
                await self._answer_all(group, lock_timeout=None)
            except Exception as error:
                if not isinstance(error, UploadError):
                    log.error("quota not granted", exc_info=error)
                same, others = _Group(self._requests, {}).split(group.sessions)
                self._requests = others.requests
                self._refuse(group, same.requests)
            finally:
                for session_id in group.sessions:
                    del self._locked[session_id]
                if self._requests:
                    self._attend()

        self._locked |= dict.fromkeys(group.sessions, asyncio.create_task(run(), name="waybill-quotas-locked"))

    def _refuse(self, group: _Group, waiting: list[GrantRequest]) -> None:
        """Refuse the group's requests and those that wait for the same answer; releases are left to the next group."""
        self._released = group.released | self._released
        for each in group.requests + waiting:
            if not each.answer.done():
                each.answer.set_exception(Unavailable("the session's quota cannot be asked for"))
