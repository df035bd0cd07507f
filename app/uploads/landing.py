"""What lands together: a file on its way in, the files of one request, and the stages that requests pass in batches."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from app.errors import Internal, Unavailable, UploadError
from app.model import Failure, Protocol, Status, Upload
from app.storage import Staged
from app.uploads.records import NewSession

log = structlog.stdlib.get_logger("waybill.publish")


@dataclass(slots=True)
class Incoming:
    """One file of a request on its way in."""

    id: str
    session_id: str
    filename: str
    content_type: str
    protocol: Protocol
    created_at: int
    staged: Staged
    stays: bool = False
    """It came in several requests and has its record already: whatever its landing meets, it can be landed again."""

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
        )


@dataclass(slots=True, eq=False)
class Landing:
    """The files of one request, or the records of its failure: they land together or not at all."""

    files: Sequence[Incoming]
    arrival: NewSession | None
    done: "asyncio.Future[list[Upload]]"
    uploads: list[Upload] = field(default_factory=list)
    allowances: Sequence[str] = ()
    """Of the session's quota; given back by the transaction that records the uploads, which are counted then."""
    claim: str | None = None
    """On an Idempotency-Key: the same transaction records under it what landed, or nothing when it was passed over."""
    doubted: bool = False
    """An attempt to record it may have been committed, though nobody heard of it."""
    patient_until: float | None = None
    """Until then, by the loop's clock, it waits for whoever has locked what it needs."""

    @property
    def session_id(self) -> str:
        return (self.files or self.uploads)[0].session_id

    @property
    def ids(self) -> list[str]:
        """Those of the files that go when they do not land."""
        return [file.id for file in self.files if not file.stays]

    @property
    def stays(self) -> bool:
        return any(file.stays for file in self.files)

    def landed(self) -> None:
        if not self.done.done():  # else its request was cancelled; the outcome is in the history
            self.done.set_result(self.uploads)

    def refuse(self, refusal: UploadError) -> None:
        if not self.done.done():
            self.done.set_exception(refusal)


class Stage:
    """One step of the way. What has gathered while a batch was worked on is the next batch.

    No batch is larger than `most` files by more than one request, none is lost, and none
    can end the stage.
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
        """Take a landing in; raises Unavailable when none is taken any more."""
        self.check()
        self._waiting.append(landing)
        self._soon.set()

    def put_back(self, landing: Landing) -> None:
        """Take in what another stage, or this one, took in before."""
        self._waiting.append(landing)
        self._soon.set()

    def close(self) -> None:
        """Take nothing new; `run` ends when all that was taken has been worked on."""
        self._closing = True
        self._soon.set()

    async def run(self) -> None:
        while not self._closing or self._waiting:
            await self._soon.wait()
            while self._waiting:
                batch = _take(self._waiting, self._most)
                try:
                    await self._work(batch)
                except Exception as error:
                    refusal = refusal_of(error)
                    for landing in batch:
                        landing.refuse(refusal)
            if not self._closing:
                self._soon.clear()


def refusal_of(error: Exception) -> UploadError:
    """The refusal that a failure amounts to. What is ours to fix goes to the log, once for all whom it hits."""
    if isinstance(error, UploadError):
        return error
    log.error("uploads failed through a fault of ours", exc_info=error)
    refusal = Internal()
    refusal.__cause__ = error
    return refusal


def _take(waiting: list[Landing], most: int) -> list[Landing]:
    """Take the next batch from those who wait: whole landings, in order, until it holds enough files."""
    files = count = 0
    while count < len(waiting) and files < most:
        files += max(1, len(waiting[count].files))
        count += 1
    batch = waiting[:count]
    del waiting[:count]
    return batch
