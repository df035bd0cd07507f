"""Statements about share links, one function each. Every one but `take` and `give_back` can be repeated."""

from typing import Final, NamedTuple

from app.db.driver import Row
from app.db.queryable import Queryable

_MOST: Final = 1000


class ShareLink(NamedTuple):
    """A share link. Times are microseconds.

    `taken` counts the bytes that were sent, of an empty file the requests; `allowed` is how many there
    may be, None for any number.
    """

    id: str
    upload_id: str
    label: str | None
    created_at: int
    expires_at: int | None
    max_downloads: int | None
    allowed: int | None
    taken: int

    def downloads(self, size: int) -> int:
        """How many downloads of the file, of this size, the sent bytes amount to, rounded up."""
        return -(-self.taken // max(size, 1))


async def insert(db: Queryable, link: ShareLink, key_hash: str) -> None:
    """Insert a link, which the hash of its key will find."""
    await db.run(
        "insert_share_link",
        id=link.id,
        key_hash=key_hash,
        upload_id=link.upload_id,
        label=link.label,
        created_at_us=link.created_at,
        expires_at_us=link.expires_at,
        max_downloads=link.max_downloads,
        allowed=link.allowed,
    )


async def find(db: Queryable, key_hash: str) -> ShareLink | None:
    """Find a link by the hash of its key."""
    row = await db.one("find_share_link", key_hash=key_hash)
    return _link(row) if row else None


async def list_of(db: Queryable, upload_id: str) -> list[ShareLink]:
    """List the newest 1,000 links of an upload, the newest first."""
    return [_link(row) for row in await db.many("list_share_links", upload_id=upload_id, page_size=_MOST)]


async def take(db: Queryable, link_id: str, wanted: int, now_us: int) -> bool:
    """Take so many bytes of a link; False if it does not allow them all."""
    return bool(await db.many("take_of_share_link", id=link_id, wanted=wanted, now_us=now_us))


async def give_back(db: Queryable, link_id: str, unsent: int) -> None:
    """Give back bytes that were taken and not sent."""
    await db.run("give_back_to_share_link", id=link_id, unsent=unsent)


async def delete(db: Queryable, link_id: str, upload_id: str) -> bool:
    """Delete a link of an upload; False if there is none."""
    return bool(await db.many("delete_share_link", id=link_id, upload_id=upload_id))


async def forget_expired(db: Queryable, expired_before_us: int, page_size: int) -> int:
    """Delete links that expired before then, a page at most; return how many."""
    return len(await db.many("delete_old_share_links", expired_before_us=expired_before_us, page_size=page_size))


def _link(row: Row) -> ShareLink:
    return ShareLink(
        id=row["id"],
        upload_id=row["upload_id"],
        label=row["label"],
        created_at=row["created_at_us"],
        expires_at=row["expires_at_us"],
        max_downloads=row["max_downloads"],
        allowed=row["allowed"],
        taken=row["taken"],
    )
