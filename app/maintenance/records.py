"""Statements about maintenance: the progress of the scrub."""

from typing import NamedTuple

from app.db.queryable import Queryable


class Scrub(NamedTuple):
    """The progress of a pass of the scrub over all stored files, or its outcome.

    `files` uploads were read, up to `after_id`, and `found` of them turned out damaged.
    `whole_at_us` is when a pass last ended without being `stopped`.
    """

    began_at_us: int
    after_id: str = ""
    files: int = 0
    found: int = 0
    ended_at_us: int | None = None
    stopped: str | None = None
    whole_at_us: int | None = None


async def find_scrub(db: Queryable) -> Scrub | None:
    """Find the scrub's progress; None if it never began."""
    row = await db.one("find_scrub")
    return Scrub(**row) if row else None


async def save_scrub(db: Queryable, scrub: Scrub) -> None:
    """Save the scrub's progress."""
    await db.run("save_scrub", **scrub._asdict())
