"""The schema watch: keeps this code from a schema that it cannot use, also one that changes while the service runs."""

from contextlib import suppress
from typing import Final

import structlog

from app.background import every
from app.db import migrate
from app.db.database import Db
from app.errors import Unusable, UploadError

log = structlog.stdlib.get_logger("waybill.db")

_WATCH_SECONDS: Final = 5.0


class SchemaWatch:
    """The schema, examined every few seconds and whenever a statement fails by a mistake.

    While this code cannot use it, every query is refused: so are uploads, and what runs in the
    background neither reads what it would misunderstand nor changes anything.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        db.explain = self.look

    async def look(self) -> str | None:
        """Examine the schema; return why this code cannot use it, None if it can.

        Raises:
            UploadError: the database cannot answer now.
        """
        reason = None
        try:
            if needed := (await migrate.pending(self._db)).needed:
                reason = f"the schema lacks {needed[0].name}: waybill migrate brings it up to date"
        except Unusable as error:
            reason = str(error)
        if reason != self._db.refused:
            self._db.refused = reason
            if reason is not None:
                log.error("schema not usable", reason=reason)
            else:
                log.info("schema usable again")
        return reason

    async def run(self) -> None:
        """Examine the schema every few seconds, until cancelled."""

        async def look() -> None:
            with suppress(UploadError):  # the database is away, which others report
                await self.look()

        await every(_WATCH_SECONDS, look, failure="schema not examined", log=log)
