"""Quotas: how much a session may keep. Granted before the bytes arrive, settled by the transaction that records them.

    requested → granted, in the database → received → recorded and released, in one transaction

The database counts (`sql/migrations`, `session_totals`), so every process sees the same sum, and no
two uploads get the same last byte. Grants that a crash leaves behind expire, since nobody renews them.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from app.background import every
from app.db.database import Db
from app.errors import UploadError
from app.model import Amount, Clock, Resource
from app.quotas import records
from app.quotas.decisions import Decisions
from app.quotas.groups import GrantGroups, GrantRequest

log = structlog.stdlib.get_logger("waybill.quota")

LEASE_SECONDS: Final = 60.0
_AT_ONCE: Final = 256
STEP_BYTES: Final = 8 * 1024 * 1024
"""An upload of unknown length is granted this much more at a time."""


class Quotas:
    """The quotas of all sessions, for one process; None is no limit. `run` it as long as it is used."""

    def __init__(
        self, db: Db, *, uploads: int | None, size: int | None, holder: str, now_us: Clock, new_id: Callable[[], str]
    ) -> None:
        self.limits = (uploads, size)
        self._db = db
        self._holder = holder
        self._now_us = now_us
        self._new_id = new_id
        self._decisions = Decisions(uploads, size, holder=holder, until_us=self._until_us)
        self._groups = GrantGroups(db, self._decisions.decide)

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
        return await self._groups.ask(
            GrantRequest(allowance_id, session_id, had, wanted, more, until_us, instead_of, answer)
        )

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

    def release(self, allowance_id: str, session_id: str) -> None:
        """Release a grant, soon and without waiting for it."""
        self._groups.release(allowance_id, session_id)

    def left(self, session_id: str) -> tuple[int | None, int | None]:
        """The uploads and bytes that the session had left when last seen; None for those that are not known."""
        return self._decisions.left(session_id)

    async def run(self) -> None:
        """Renew this process's grants, and expire those that nobody renews. Runs until cancelled."""
        await every(LEASE_SECONDS / 4, self._renew, failure="quota grants not renewed", log=log)

    async def _renew(self) -> None:
        self._groups.release_again()
        now_us = self._now_us()
        await records.renew(self._db, self._holder, self._until_us())
        while await records.expire(self._db, now_us, _AT_ONCE) == _AT_ONCE:
            continue

    async def close(self) -> None:
        """Release this process's grants. No upload may be under way any more."""
        await self._groups.close()
        try:
            await records.release_all(self._db, self._holder)
        except UploadError as error:
            log.warning("quota grants not released", expire_in_seconds=LEASE_SECONDS, reason=str(error))

    def _until_us(self) -> int:
        return self._now_us() + int(LEASE_SECONDS * 1_000_000)


class Granted:
    """The grant of one request, which grows as needed; `release` releases what was not recorded."""

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

    def release(self) -> None:
        if self._asked:
            self._quotas.release(self.id, self._session_id)
