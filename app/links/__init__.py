"""Share links: whoever has such a URL gets the bytes of one upload, until its time is over or it is used up."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.errors import Gone, NotFound, UploadError
from app.links import records
from app.links.records import ShareLink
from app.model import MAX_SIZE, MAX_TIME_US, Clock, Upload

log = structlog.stdlib.get_logger("waybill.links")

_MICROSECOND: Final = timedelta(microseconds=1)


class Wanted(NamedTuple):
    """The bounds of a new link: None for no end, and for any number of downloads."""

    expires_in: timedelta | None = None
    max_downloads: int | None = None
    label: str | None = None


class ShareLinks:
    """The share links of uploads. No link lives longer than `max_age`, if that is given."""

    def __init__(
        self,
        db: Db,
        *,
        max_age: timedelta | None,
        now_us: Clock,
        new_id: Callable[[], str],
        new_key: Callable[[], str],
    ) -> None:
        self._db = db
        self._max_age = max_age
        self._now_us = now_us
        self._new_id = new_id
        self._new_key = new_key

    async def create(self, upload: Upload, wanted: Wanted) -> tuple[ShareLink, str]:
        """Create a link to a completed upload; return it and its key, which is kept nowhere.

        Raises:
            Unavailable, StorageFull: it is not recorded.
        """
        ages = [age for age in (wanted.expires_in, self._max_age) if age is not None]
        now_us, key = self._now_us(), self._new_key()
        link = ShareLink(
            id=self._new_id(),
            upload_id=upload.id,
            label=wanted.label,
            created_at=now_us,
            expires_at=min(now_us + min(ages) // _MICROSECOND, MAX_TIME_US) if ages else None,
            max_downloads=wanted.max_downloads,
            allowed=None if wanted.max_downloads is None else min(wanted.max_downloads * max(upload.size, 1), MAX_SIZE),
            taken=0,
        )
        await records.insert(self._db, link, _hash_of(key))
        return link, key

    async def find(self, key: str) -> ShareLink:
        """Find the link of a key; raises NotFound."""
        link = await records.find(self._db, _hash_of(key))
        if link is None:
            raise NotFound
        return link

    async def take(self, link: ShareLink, wanted: int) -> None:
        """Take so many bytes of a link, or one request of an empty file, before any of them is sent.

        Raises:
            Gone: its time is over, or it does not allow so many any more.
        """
        if not await records.take(self._db, link.id, wanted, self._now_us()):
            raise Gone("the link's time is over, or it is used up")

    async def give_back(self, link: ShareLink, unsent: int) -> None:
        """Give back bytes that were taken and not sent. If that fails, the link has them no more."""
        try:
            await records.give_back(self._db, link.id, unsent)
        except UploadError as error:  # the answer has ended, and nobody waits for this
            log.warning("bytes of a link not given back", link=link.id, bytes=unsent, reason=str(error))

    def require_living(self, link: ShareLink) -> None:
        """Raise Gone if the link's time is over, or it is used up."""
        ended = link.expires_at is not None and link.expires_at <= self._now_us()
        if ended or (link.allowed is not None and link.taken >= link.allowed):
            raise Gone("the link's time is over, or it is used up")

    async def list(self, upload: Upload) -> list[ShareLink]:
        """List the links of an upload, the newest first."""
        return await records.list_of(self._db, upload.id)

    async def revoke(self, upload: Upload, link_id: str) -> None:
        """Revoke a link of an upload; raises NotFound if there is none of this id."""
        if not await records.delete(self._db, link_id, upload.id):
            raise NotFound


def _hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
