"""Small uploads: one request brings all bytes, which wait in memory; file, row and record land with a commit group."""

from dataclasses import replace

from app.errors import InProgress, OutcomeUnknown
from app.model import Holder, Resource
from app.resumables.completion import Completion, incoming
from app.resumables.transitions import Holding, verify_held
from app.resumables.writer_lock import Preempted
from app.storage import Staged
from app.uploads.group_commit import Publisher
from app.uploads.resumable_records import Completing


class SmallLandings:
    """Completes small uploads in one transaction."""

    def __init__(self, publisher: Publisher, holding: Holding, completion: Completion, *, counts_quotas: bool) -> None:
        self._publisher = publisher
        self._holding = holding
        self._completion = completion
        self._counts_quotas = counts_quotas

    async def land(self, resource: Resource, held_by: Holder, file: Staged) -> Resource:
        """Complete the small upload `resource`, all bytes of which are in the staged `file`, in one transaction.

            file published → row and record completed

        A crash between the two leaves a file that the next to complete the upload finds, as in `complete`.

        Raises:
            DigestMismatch: the bytes do not have the declared digest.
            Preempted: another request holds the writer lock now.
            OutcomeUnknown: the database went away in the middle; recovery will complete the upload.
            UploadError: it did not land.
        """
        verify_held(resource.digests, file)
        await file.finish()
        completed = replace(resource, holder=None, expires_at=self._holding.remembered_until, ended_as="completed")
        try:
            [upload] = await self._publisher.land(
                [incoming(resource, file)],
                None,
                allowances=(resource.key_hash,) if self._counts_quotas else (),
                completes=Completing(completed, held_by),
            )
        except OutcomeUnknown:
            self._completion.owed.add(resource.key_hash)
            raise
        except InProgress:
            return await self._completion.completed_by_another(resource, Preempted())
        return replace(completed, upload=upload)
