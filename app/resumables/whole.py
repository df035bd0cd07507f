"""Whole creations: a request creates a small upload and brings all of its bytes, so that both land in one transaction.

The bytes wait in memory, and the upload is created when they are there. If the body breaks off, the caller
creates the upload as every other, with the bytes that came.
"""

import asyncio
from collections.abc import AsyncIterable, Sequence
from dataclasses import replace
from typing import Final

from app.annotations import NO_ANNOTATIONS
from app.errors import OutcomeUnknown
from app.model import Resource
from app.resumables.creation import Creations, Description
from app.resumables.transitions import Holding
from app.uploads.ingest import Ingest, Ingestion, Visitor

WHOLE_BYTES: Final = 256 * 1024
"""An upload of up to this size may wait in memory for its last byte."""

Blocks = Sequence[bytes | memoryview]


class Interrupted(Exception):
    """The upload was not created: nothing of the request is left but these `blocks`, and the `reason`."""

    def __init__(self, blocks: Blocks, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.blocks = blocks
        self.reason = reason


class WholeCreations:
    """Creates small uploads along with all of their bytes."""

    def __init__(self, ingest: Ingest, creations: Creations, holding: Holding) -> None:
        self._ingest = ingest
        self._creations = creations
        self._holding = holding

    async def create(
        self, visitor: Visitor, description: Description, body: AsyncIterable[bytes]
    ) -> tuple[Resource, str]:
        """Create an upload of the body, which has the declared length; return it, completed, and its key.

        Raises:
            Interrupted: the body broke off, or it could not land.
            OutcomeUnknown: the database went away in the middle; the history will show the outcome.
            UploadError: refused before the body; see `Creations.create` and `Ingest.request`.
        """
        resource, key = self._creations.begin(visitor, description)
        ingestion = self._ingest.request(visitor=visitor, protocol=description.protocol, declared=description.length)
        async with ingestion:
            try:
                await self._receive(ingestion, resource, body)
            except (Exception, asyncio.CancelledError) as error:
                interrupted = Interrupted(ingestion.held, error)
            else:
                blocks = ingestion.held
                try:
                    return await self._land(ingestion, resource), key
                except OutcomeUnknown:
                    raise
                except Exception as error:  # no cancellation, which does not stop it
                    interrupted = Interrupted(blocks, error)
        raise interrupted

    async def _receive(self, ingestion: Ingestion, resource: Resource, body: AsyncIterable[bytes]) -> None:
        await ingestion.begin_file(
            resource.filename,
            resource.content_type,
            digests=resource.digests,
            annotations=NO_ANNOTATIONS if resource.upload is None else resource.upload.annotations,
            upload_id=resource.upload_id,
        )
        async for block in body:
            await ingestion.write(block)
        await ingestion.end_file()

    async def _land(self, ingestion: Ingestion, resource: Resource) -> Resource:
        completed = replace(
            resource,
            offset=resource.length or 0,
            expires_at=self._holding.remembered_until,
            ended_as="completed",
        )
        [upload] = await ingestion.publish(completed)
        return replace(completed, upload=upload)
