"""Landings: the files of one request, which land together, and the stages that landings pass in commit groups."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from app.annotations import NO_ANNOTATIONS, Annotations
from app.errors import Internal, Unavailable, UploadError
from app.model import Failure, Protocol, Resource, Status, Upload
from app.sessions.records import NewSession
from app.storage import Staged
from app.uploads.resumable_records import Completing

log = structlog.stdlib.get_logger("waybill.publish")


@dataclass(slots=True)
class Incoming:
    """One file of a request that is being received."""

    id: str
    session_id: str
    filename: str
    content_type: str
    protocol: Protocol
    created_at: int
    staged: Staged
    annotations: Annotations = NO_ANNOTATIONS
    stays: bool = False
    """Whether it is a resumable upload, which has its record already: after any failure it can be landed again."""

    def completed(self, at: int) -> Upload:
        return self._upload(Status.COMPLETED, sha256=self.staged.sha256, completed_at=max(at, self.created_at))

    def failed(self, error: UploadError) -> Upload:
        return self._upload(Status.FAILED, error=Failure(code=error.code, detail=str(error)))

    def _upload(
        self,
        status: Status,
        *,
        sha256: str | None = None,
        completed_at: int | None = None,
        error: Failure | None = None,
    ) -> Upload:
        return Upload(
            id=self.id,
            session_id=self.session_id,
            filename=self.filename,
            content_type=self.content_type,
            size=self.staged.size,
            sha256=sha256,
            status=status,
            protocol=self.protocol,
            created_at=self.created_at,
            completed_at=completed_at,
            error=error,
            metadata=dict(self.annotations.metadata),
            path=self.annotations.path,
            keep_us=self.annotations.keep_us,
        )


@dataclass(slots=True, eq=False)
class Landing:
    """A landing: the files of one request, or the records of its failure. They land together or not at all."""

    files: Sequence[Incoming]
    arrival: NewSession | None
    done: "asyncio.Future[list[Upload]]"
    uploads: list[Upload] = field(default_factory=list)
    allowances: Sequence[str] = ()
    """The ids of grants of quota, released by the transaction that records the uploads, which count from then on."""
    claim: str | None = None
    """A claim on an Idempotency-Key: the transaction records the uploads under it too, or nothing if it was lost."""
    creates: Resource | None = None
    """A resumable upload that this request creates and completes: the transaction records it, too."""
    completes: Completing | None = None
    """A resumable upload that this request completes: the transaction does that, or nothing if its lock was lost."""
    doubted: bool = False
    """Whether an attempt to record it may have been committed without an answer."""
    patient_until: float | None = None
    """The time, by the loop's clock, until which it waits for locks that others hold."""

    @property
    def session_id(self) -> str:
        return (self.files or self.uploads)[0].session_id

    @property
    def ids(self) -> list[str]:
        """The ids of the files to remove if they do not land."""
        return [file.id for file in self.files if not file.stays]

    @property
    def stays(self) -> bool:
        return any(file.stays for file in self.files)

    def landed(self) -> None:
        if not self.done.done():  # else the request was cancelled; the outcome is in the history
            self.done.set_result(self.uploads)

    def refuse(self, refusal: UploadError) -> None:
        if not self.done.done():
            self.done.set_exception(refusal.copy())  # the same one may be that of others, too


class Stage:
    """A stage of the group commit. Landings that gather while one group is worked on form the next group.

    No group exceeds `most` files by more than one request, none is lost, and no failure of one
    ends the stage.
    """

    def __init__(self, work: Callable[[list[Landing]], Awaitable[None]], *, most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: list[Landing] = []
        self._soon = asyncio.Event()
        self._closing = False

    def check(self) -> None:
        if self._closing:
            raise Unavailable("the service is stopping", retry_after=5)

    def put(self, landing: Landing) -> None:
        """Take a landing in; raises Unavailable once the stage is closed."""
        self.check()
        self.put_back(landing)

    def put_back(self, landing: Landing) -> None:
        """Take in a landing that another stage, or this one, took in before."""
        if not self._waiting:
            self._soon.set()
        self._waiting.append(landing)

    def close(self) -> None:
        """Take no new landings; `run` ends when all that were taken have been worked on."""
        self._closing = True
        self._soon.set()

    async def run(self) -> None:
        while not self._closing or self._waiting:
            await self._soon.wait()
            while self._waiting:
                group = _take(self._waiting, self._most)
                try:
                    await self._work(group)
                except Exception as error:
                    refusal = refusal_of(error)
                    for landing in group:
                        landing.refuse(refusal)
            if not self._closing:
                self._soon.clear()


def refusal_of(error: Exception) -> UploadError:
    """The refusal that a failure amounts to. A bug of ours is logged, once for all requests that it affects."""
    if isinstance(error, UploadError):
        return error
    log.error("uploads failed through a fault of ours", exc_info=error)
    refusal = Internal()
    refusal.__cause__ = error
    return refusal


def _take(waiting: list[Landing], most: int) -> list[Landing]:
    """Take the next group from the waiting landings, in order, until it has enough files."""
    files = count = 0
    for count, landing in enumerate(waiting, 1):  # noqa: B007  # it ends where the group does
        files += len(landing.files) or 1
        if files >= most:
            break
    group = waiting[:count]
    del waiting[:count]
    return group
