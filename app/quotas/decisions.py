"""Decisions on quota: what a request is granted, given what its session has and what is granted already."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from app.db.queryable import Transaction
from app.errors import QuotaExceeded
from app.model import Amount
from app.quotas import records
from app.quotas.groups import GrantRequest
from app.quotas.records import Allowance
from app.sessions import totals_records

_REMEMBERED: Final = 10_000


class Decisions:
    """The decisions of one process, the `holder` of what it grants until `until_us()`; None is no limit."""

    def __init__(self, uploads: int | None, size: int | None, *, holder: str, until_us: Callable[[], int]) -> None:
        self._limits = (uploads, size)
        self._holder = holder
        self._until_us = until_us
        self._left: OrderedDict[str, tuple[int | None, int | None]] = OrderedDict()

    def left(self, session_id: str) -> tuple[int | None, int | None]:
        """The uploads and bytes that the session had left when last seen; None for those that are not known."""
        return self._left.get(session_id, (None, None))

    async def decide(self, transaction: Transaction, requests: list[GrantRequest]) -> list[Amount | QuotaExceeded]:
        """Lock the totals of the sessions, decide the requests one after the other, and record what is granted."""
        have = await totals_records.lock(transaction, {each.session_id for each in requests})
        unknown = {other for each in requests for other in (*each.instead_of, *([each.id] if each.had is None else []))}
        known = await records.granted(transaction, sorted(unknown)) if unknown else {}
        answers: list[Amount | QuotaExceeded] = []
        grants: dict[str, Allowance] = {}
        lease_us = self._until_us()
        used = dict(have.values())
        for each in requests:
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

    def _answer(
        self, request: GrantRequest, has: Amount, known: dict[str, Amount]
    ) -> tuple[Amount | QuotaExceeded, Amount]:
        """Decide a request; return the grant, or the refusal, and what the session has then."""
        had = known.get(request.id, Amount(0, 0)) if request.had is None else request.had
        others = sum(known[other].size for other in set(request.instead_of) if other in known)
        uploads, size = max(request.wanted.uploads, had.uploads), max(request.wanted.size - others, had.size)
        most_uploads, most_size = self._limits
        if most_uploads is not None and uploads > had.uploads and has.uploads - had.uploads + uploads > most_uploads:
            return QuotaExceeded(has.uploads, uploads - had.uploads, most_uploads, "uploads"), has
        if most_size is not None:
            left = most_size - has.size
            if size > had.size and size - had.size > left:
                return QuotaExceeded(has.size, size - had.size, most_size, "bytes"), has
            size += max(0, min(request.more, left - (size - had.size)))
        return Amount(uploads, size), Amount(has.uploads - had.uploads + uploads, has.size - had.size + size)

    def _remember(self, session_id: str, has: Amount) -> None:
        uploads, size = self._limits
        self._left[session_id] = (
            None if uploads is None else max(0, uploads - has.uploads),
            None if size is None else max(0, size - has.size),
        )
        self._left.move_to_end(session_id)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
