"""Idempotency keys: a request that is sent twice lands once.

A claim on the key is acquired before the body is read. The transaction that records the uploads
records them under the claim too, so both are there or neither is. A claim is renewed as long
as its request is at work; a process that dies leaves claims that expire and can be acquired by
others, and a request whose claim was lost commits nothing.
"""

import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog

from app.background import every
from app.db.database import Db
from app.errors import IdempotencyMismatch, KeyInUse, OutcomeUnknown, UploadError
from app.idempotency import records
from app.idempotency.records import KeyedRequest
from app.metrics import Metrics
from app.model import Clock, Upload

log = structlog.stdlib.get_logger("waybill.once")

LEASE_SECONDS: Final = 15.0
"""A key whose process died becomes free after this long."""


class IdempotencyKeys:
    """The claims on keys of one process, which shares the database with others."""

    def __init__(self, db: Db, metrics: Metrics, *, now_us: Clock, new_id: Callable[[], str]) -> None:
        self._db = db
        self._metrics = metrics
        self._now_us = now_us
        self._new_id = new_id
        self._live: set[str] = set()

    async def begin(self, session_id: str, key: str, asked: KeyedRequest) -> "KeyClaim | list[Upload]":
        """Acquire a claim on the session's key, to be entered at once; or return the uploads that landed under it.

        Raises:
            IdempotencyMismatch: the key stands for another request than this one.
            KeyInUse: that request is still at work.
            Unavailable: the database is away.
        """
        key_hash = hashed(key)
        for _ in range(2):  # the claim may be released between the two queries
            now_us = self._now_us()
            found = await records.find(self._db, session_id, key_hash, now_us)
            if found is not None:
                if not asked.may_be(found.asked):
                    self._metrics.keyed["mismatch"].add()
                    raise IdempotencyMismatch
                if found.uploads is None:
                    break
                self._metrics.keyed["replayed"].add()
                return found.uploads
            claim_id = self._new_id()
            until_us = self._until(now_us)
            if await records.take(self._db, session_id, key_hash, claim_id, asked, now_us=now_us, until_us=until_us):
                self._metrics.keyed["first"].add()
                return KeyClaim(self, claim_id)
        self._metrics.keyed["in_progress"].add()
        raise KeyInUse

    async def renew(self) -> None:
        """Renew the claims of this process as long as their requests are at work. Runs until cancelled."""

        async def renew_live() -> None:
            if self._live:
                await records.renew(self._db, self._live, self._until(self._now_us()))

        await every(LEASE_SECONDS / 3, renew_live, failure="key claims not renewed", log=log)

    def _until(self, now_us: int) -> int:
        return now_us + int(LEASE_SECONDS * 1_000_000)

    # Called by KeyClaim.

    def hold(self, claim_id: str) -> None:
        self._live.add(claim_id)

    async def release(self, claim_id: str, error: BaseException | None) -> None:
        """Release the key of a request that failed, unless it is not known yet whether it failed."""
        self._live.discard(claim_id)
        if error is None or isinstance(error, OutcomeUnknown):
            return
        try:
            await records.free(self._db, claim_id)
        except UploadError as problem:
            log.warning("key claim not released", reason=str(problem))


class KeyClaim:
    """One request's claim on its key; uploads that land with its `id` land once. Enter it, land, leave it."""

    def __init__(self, once: IdempotencyKeys, claim_id: str) -> None:
        self.id = claim_id
        self._once = once

    async def __aenter__(self) -> Self:
        self._once.hold(self.id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._once.release(self.id, error)


def hashed(key: str) -> str:
    """The hash of a key, which is all that the database stores of it."""
    return hashlib.sha256(key.encode()).hexdigest()
