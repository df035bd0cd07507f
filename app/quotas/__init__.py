"""Quotas: how much a session may keep. Granted before the bytes arrive, settled by the transaction that records them.

    requested → granted, in the database → received → recorded and released, in one transaction

The database counts (`sql/migrations`, `session_totals`), so every process sees the same sum, and no
two uploads get the same last byte. Grants that a crash leaves behind expire, since nobody renews them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from app.background import every
from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import Locked, QuotaExceeded, Unavailable, UploadError
from app.model import Amount, Clock, Resource
from app.quotas import records
from app.quotas.records import Allowance
from app.sessions import totals_records

log = structlog.stdlib.get_logger("waybill.quota")

LEASE_SECONDS: Final = 60.0
_LEASE_US: Final = int(LEASE_SECONDS * 1_000_000)
_AT_ONCE: Final = 256
_REMEMBERED: Final = 10_000
_SEARCH_SECONDS: Final = 1.0
"""How long a group may be delayed by the search for its locked sessions."""
STEP_BYTES: Final = 8 * 1024 * 1024
"""An upload of unknown length is granted this much more at a time."""


@dataclass(slots=True, eq=False)
class _Asked:
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

    asked: list[_Asked]
    returned: dict[str, str]

    def split(self, sessions: Collection[str]) -> "tuple[_Group, _Group]":
        """Split the group into the work for these sessions and the rest."""
        parts = _Group([], {}), _Group([], {})
        for each in self.asked:
            parts[each.session_id not in sessions].asked.append(each)
        for allowance_id, session_id in self.returned.items():
            parts[session_id not in sessions].returned[allowance_id] = session_id
        return parts

    @property
    def sessions(self) -> list[str]:
        return sorted({each.session_id for each in self.asked}.union(self.returned.values()))


class Quotas:
    """The quotas of all sessions, for one process; None is no limit.

    While one transaction runs, further requests gather for the next one. `run` it as long as it is used.
    """

    def __init__(
        self, db: Db, *, uploads: int | None, size: int | None, holder: str, now_us: Clock, new_id: Callable[[], str]
    ) -> None:
        self.limits = (uploads, size)
        self._db = db
        self._holder = holder
        self._now_us = now_us
        self._new_id = new_id
        self._asked: list[_Asked] = []
        self._returned: dict[str, str] = {}
        self._answering: asyncio.Task[None] | None = None
        self._locked: dict[str, asyncio.Task[None]] = {}
        self._left: OrderedDict[str, tuple[int | None, int | None]] = OrderedDict()

    def request(self, session_id: str) -> "Granted":
        """Make the grant of one request, which is empty at first."""
        return Granted(self, session_id, self._new_id())

    async def grant(
        self,
        allowance_id: str,
        session_id: str,
        *,
        uploads: int,
        size: int,
        more: int = 0,
        had: Amount | None = None,
        until_us: int | None = None,
        instead_of: Sequence[str] = (),
    ) -> Amount:
        """Grant so much in all, and up to `more` bytes beyond; what the grants `instead_of` hold counts towards it.

        Without `until_us` the grant lasts until it is released, or this process ends.

        Raises:
            QuotaExceeded: the session has not so much left; nothing is changed.
            Unavailable: the database is away.
        """
        answer: asyncio.Future[Amount] = asyncio.get_running_loop().create_future()
        wanted = Amount(uploads, size)
        self._asked.append(_Asked(allowance_id, session_id, had, wanted, more, until_us, instead_of, answer))
        self._attend()
        return await answer

    async def grant_to(self, resource: Resource, size: int, *, more: int = 0, is_new: bool = False) -> int:
        """Grant so much in all to a resumable upload; return the bytes it then has. Raises: see `grant`.

        The parts of a concatenation count towards it; a part is no upload of its own. An upload that `is_new`
        keeps its grant only if the transaction that records it adopts the grant.
        """
        granted = await self.grant(
            resource.key_hash,
            resource.session_id,
            uploads=0 if resource.is_part else 1,
            size=size,
            more=more,
            until_us=None if is_new else resource.last_expires_at,
            instead_of=resource.parts or (),
        )
        return granted.size

    def give_back(self, allowance_id: str, session_id: str) -> None:
        """Release a grant, soon and without waiting for it."""
        self._returned[allowance_id] = session_id
        self._attend()

    def left(self, session_id: str) -> tuple[int | None, int | None]:
        """The uploads and bytes that the session had left when last seen; None for those that are not known."""
        return self._left.get(session_id, (None, None))

    async def run(self) -> None:
        """Renew this process's grants, and expire those that nobody renews. Runs until cancelled."""
        await every(LEASE_SECONDS / 4, self._renew, failure="quota grants not renewed", log=log)

    async def _renew(self) -> None:
        if self._returned:
            self._attend()
        now_us = self._now_us()
        await records.renew(self._db, self._holder, now_us + _LEASE_US)
        while await records.expire(self._db, now_us, _AT_ONCE) == _AT_ONCE:
            continue

    async def close(self) -> None:
        """Release this process's grants. No upload may be under way any more."""
        if answering := {*self._locked.values(), *filter(None, (self._answering,))}:
            await asyncio.wait(answering)
        try:
            await records.give_back_all(self._db, self._holder)
        except UploadError as error:
            log.warning("what was granted is free in a minute", reason=str(error))

    def _attend(self) -> None:
        if self._answering is None:
            self._answering = asyncio.create_task(self._attend_to_all(), name="waybill-quotas")

    async def _attend_to_all(self) -> None:
        try:
            while self._asked or self._returned:
                later, now = _Group(self._asked, self._returned).split(self._locked)
                asked, self._asked = now.asked[:_AT_ONCE], now.asked[_AT_ONCE:] + later.asked
                self._returned = later.returned
                asked = [each for each in asked if not each.answer.done()]  # others were cancelled
                if not (asked or now.returned):
                    break  # the remaining requests wait for a lock
                if not await self._attend_to(_Group(asked, now.returned)):
                    break  # `run`, or the next request, tries again
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
                log.error("quotas cannot be granted", exc_info=error)
            waiting, self._asked = self._asked, []
            self._refuse(group, waiting)
            return False
        return True

    async def _answer_all(self, group: _Group, *, lock_timeout: float | None) -> None:

        async def give_back(transaction: Transaction) -> None:
            await records.give_back(transaction, group.returned)

        async def run(transaction: Transaction) -> list[Amount | QuotaExceeded]:
            return await self._decide(transaction, group.asked)

        # One after the other: each locks the totals of its sessions in their order.
        if group.returned:
            await self._db.transaction(give_back, lock_timeout=lock_timeout)
        answers = await self._db.transaction(run, lock_timeout=lock_timeout) if group.asked else []
        for each, answer in zip(group.asked, answers, strict=True):
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
                    log.error("quotas cannot be granted", exc_info=error)
                same, others = _Group(self._asked, {}).split(group.sessions)
                self._asked = others.asked
                self._refuse(group, same.asked)
            finally:
                for session_id in group.sessions:
                    del self._locked[session_id]
                if self._asked:
                    self._attend()

        self._locked |= dict.fromkeys(group.sessions, asyncio.create_task(run(), name="waybill-quotas-locked"))

    def _refuse(self, group: _Group, waiting: list[_Asked]) -> None:
        """Refuse the group's requests and those that wait for the same answer; releases are left to the next group."""
        self._returned = group.returned | self._returned
        for each in group.asked + waiting:
            if not each.answer.done():
                each.answer.set_exception(Unavailable("the session's quota cannot be asked for"))

    async def _decide(self, transaction: Transaction, asked: list[_Asked]) -> list[Amount | QuotaExceeded]:
        have = await totals_records.lock(transaction, {each.session_id for each in asked})
        unknown = {other for each in asked for other in (*each.instead_of, *([each.id] if each.had is None else []))}
        known = await records.granted(transaction, sorted(unknown)) if unknown else {}
        answers: list[Amount | QuotaExceeded] = []
        grants: dict[str, Allowance] = {}
        lease_us = self._now_us() + _LEASE_US
        used = dict(have.values())
        for each in asked:
            owner_id = have[each.session_id].owner_id
            answer, used[owner_id] = self._answer(each, used[owner_id], known)
            answers.append(answer)
            if isinstance(answer, Amount):
                known[each.id] = answer
                holder, until_us = (self._holder, lease_us) if each.until_us is None else (None, each.until_us)
                grants[each.id] = Allowance(each.id, owner_id, holder, *answer, until_us)
        if grants:
            await records.grant(transaction, list(grants.values()))
        for session_id, (owner_id, _) in have.items():
            self._remember(session_id, used[owner_id])
        return answers

    def _answer(self, asked: _Asked, has: Amount, known: dict[str, Amount]) -> tuple[Amount | QuotaExceeded, Amount]:
        """Decide a request; return the grant, or the refusal, and what the session has then."""
        had = known.get(asked.id, Amount(0, 0)) if asked.had is None else asked.had
        others = sum(known[other].size for other in set(asked.instead_of) if other in known)
        uploads, size = max(asked.wanted.uploads, had.uploads), max(asked.wanted.size - others, had.size)
        most_uploads, most_size = self.limits
        if most_uploads is not None and uploads > had.uploads and has.uploads - had.uploads + uploads > most_uploads:
            return QuotaExceeded(has.uploads, uploads - had.uploads, most_uploads, "uploads"), has
        if most_size is not None:
            left = most_size - has.size
            if size > had.size and size - had.size > left:
                return QuotaExceeded(has.size, size - had.size, most_size, "bytes"), has
            size += max(0, min(asked.more, left - (size - had.size)))
        return Amount(uploads, size), Amount(has.uploads - had.uploads + uploads, has.size - had.size + size)

    def _remember(self, session_id: str, has: Amount) -> None:
        uploads, size = self.limits
        self._left[session_id] = (
            None if uploads is None else max(0, uploads - has.uploads),
            None if size is None else max(0, size - has.size),
        )
        self._left.move_to_end(session_id)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)


class Granted:
    """The grant of one request, which grows as needed; `give_back` releases what was not recorded."""

    def __init__(self, quotas: Quotas, session_id: str, allowance_id: str) -> None:
        self.id = allowance_id
        self._quotas = quotas
        self._session_id = session_id
        self._has = Amount(0, 0)
        self._asked = False

    async def need(self, uploads: int, size: int, *, more: int = 0) -> None:
        """Extend the grant to so much in all; raises QuotaExceeded, Unavailable: see `Quotas.grant`."""
        if uploads > self._has.uploads or size > self._has.size:
            self._asked = True
            self._has = await self._quotas.grant(
                self.id, self._session_id, uploads=uploads, size=size, more=more, had=self._has
            )

    def give_back(self) -> None:
        if self._asked:
            self._quotas.give_back(self.id, self._session_id)
