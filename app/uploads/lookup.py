"""Look-ups of single records, of which many at once share a query."""

import asyncio
from typing import Final

from app.db.database import Db
from app.errors import Unavailable, UploadError
from app.model import Upload
from app.sessions import records as session_records
from app.uploads import records

_AT_ONCE: Final = 100

_Asked = tuple[str, "asyncio.Future[Upload | None]"]


class Lookup:
    """Finds uploads by their ids.

    While one query runs, further look-ups gather for the next one: no answer is older than its
    look-up, and one that shares its query with 63 others costs a fifth of one alone.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        self._asked: list[_Asked] = []
        self._answering: asyncio.Task[None] | None = None

    async def find(self, session_id: str, upload_id: str) -> Upload | None:
        """Find an upload of a session; None if there is none, or its row is broken.

        Raises:
            Unavailable: the database is away.
        """
        future: asyncio.Future[Upload | None] = asyncio.get_running_loop().create_future()
        self._asked.append((upload_id, future))
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer(), name="waybill-lookup")
        upload = await future
        if upload is None or upload.session_id == session_id:
            return upload
        # The upload may be on its way here, from a session that has joined this one.
        owner = await session_records.find_session(self._db, upload.session_id)
        return (
            upload.model_copy(update={"session_id": session_id}) if owner and owner.merged_into == session_id else None
        )

    async def _answer(self) -> None:
        asked: list[_Asked] = []
        try:
            while self._asked:
                asked, self._asked = self._asked[:_AT_ONCE], self._asked[_AT_ONCE:]
                found = await records.list_these(self._db, {upload_id for upload_id, _ in asked})
                for upload_id, future in asked:
                    if not future.done():  # else the request was cancelled
                        future.set_result(found.get(upload_id))
        except Exception as error:
            # Look-ups that arrived meanwhile fail, too: they would only wait as long again.
            for _, future in asked + self._asked:
                if not future.done():
                    future.set_exception(Unavailable(str(error)) if isinstance(error, UploadError) else error)
            self._asked = []
        finally:
            self._answering = None
