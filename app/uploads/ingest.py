"""Ingest, the write path of one request: stage, count, digest, and hand over to be published."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import structlog

from app.annotations import NO_ANNOTATIONS, Annotations
from app.cancellation import run_to_completion
from app.errors import (
    DigestMismatch,
    Internal,
    NoFile,
    OutcomeUnknown,
    RateLimited,
    StorageFull,
    TooLarge,
    TooManyFiles,
    Unavailable,
    UploadError,
)
from app.model import UNDECLARED, Clock, Digests, Protocol, Resource, Upload
from app.quotas import STEP_BYTES, Granted, Quotas
from app.sessions.records import NewSession
from app.storage import Reservation, Storage
from app.uploads.group_commit import Publisher
from app.uploads.landing import Incoming

log = structlog.stdlib.get_logger("waybill.ingest")

MAX_FAILED_OF_REQUEST: Final = 10
"""How many files of a failed request are put into the history: the last ones, which show the reason."""
MAX_FAILED_OF_SESSION: Final = 1000
"""How many failed uploads a session's history may have; further ones are only logged until older ones are deleted."""
_SMALL_BYTES: Final = 64 * 1024
_FILES_A_TURN: Final = 64
_RECORDED: Final = nullcontext()
"""Stands for `_arriving` when the visitor's session is recorded already."""


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """The limits of one request, and of all together."""

    file_bytes: int
    files: int
    requests_at_once: int
    requests_at_once_of_session: int | None = None


@dataclass(slots=True)
class Visitor:
    """The sender of a request: its session's id, and the session itself until it is recorded."""

    session_id: str
    arrival: NewSession | None = None


class Ingest:
    """Receives files, request by request."""

    def __init__(
        self,
        storage: Storage,
        publisher: Publisher,
        *,
        limits: IngestLimits,
        quotas: Quotas | None = None,
        now_us: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self.limits = limits
        self.quotas = quotas
        self._storage = storage
        self._publisher = publisher
        self.metrics = publisher.metrics
        self._now_us = now_us
        self._new_id = new_id
        self._live: dict[object, str | None] = {}
        self._live_of: Counter[str] = Counter()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.metrics.live_uploads.read = lambda: len(self._live)

    def request(
        self, *, visitor: Visitor, protocol: Protocol, declared: int | None = None, claim: str | None = None
    ) -> "Ingestion":
        """Receive the files of one request; on exit without `publish`, they are discarded.

        `declared` is the length of the body, when it is known: that much space is reserved,
        so that a disk that is too small refuses the request before its body. With a
        `claim` the files land once, see `IdempotencyKeys`.

        Entering it raises:
            StorageFull: the declared bytes do not fit above the minimum of free space.
            RateLimited: the session has too many requests under way.
            QuotaExceeded: the session's quota does not hold it.
            Unavailable: the service stops, the database is away, or too many requests are under way.
        """
        return Ingestion(self, visitor, protocol, declared, claim)

    async def close(self, grace_seconds: float) -> None:
        """Take no new requests; wait for those under way, but no longer than the grace."""
        self._closing = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("uploads are still under way at the end of the grace", uploads=len(self._live))

    def check(self) -> None:
        """Raise Unavailable while received uploads could not be recorded."""
        self._publisher.check()

    def sessions_in_use(self) -> set[str]:
        """The sessions that have requests under way, however long these take."""
        return {session_id for session_id in self._live.values() if session_id is not None}

    def landings_of(self, session_ids: Container[str]) -> list[object]:
        """The requests of these sessions that are under way."""
        return [landing for landing, session_id in self._live.items() if session_id in session_ids]

    def under_way(self, session_id: str) -> int:
        """The number of a session's requests that are under way; 0 if there is no limit on it."""
        return self._live_of[session_id]

    def admit(self, landing: object, declared: int | None) -> Reservation:
        if self._closing:
            raise Unavailable("the service is stopping", retry_after=5)
        if len(self._live) >= self.limits.requests_at_once:
            raise Unavailable("too many uploads are under way")
        self._publisher.check()
        reservation = self._storage.reserve(declared or 0)  # without free space not even an empty file is accepted
        if not self._live:
            self._idle.clear()
        self._live[landing] = None
        return reservation

    def count(self, landing: object, session_id: str) -> None:
        """Count a landing for its session; raises RateLimited if that has too many, Locked while others hold it."""
        self._publisher.check_session(session_id)
        most = self.limits.requests_at_once_of_session
        if most is not None:
            if self._live_of[session_id] >= most:
                raise RateLimited(most)
            self._live_of[session_id] += 1
        self._live[landing] = session_id

    def dismiss(self, landing: object) -> None:
        session_id = self._live.pop(landing, None)
        if session_id is not None and session_id in self._live_of:  # only counted if there is a limit
            self._live_of[session_id] -= 1
            if not self._live_of[session_id]:
                del self._live_of[session_id]
        if not self._live:
            self._idle.set()

    def begin(
        self,
        landing: "Ingestion",
        filename: str,
        content_type: str,
        annotations: Annotations,
        upload_id: str | None = None,
    ) -> Incoming:
        upload_id = self._new_id() if upload_id is None else upload_id
        return Incoming(
            id=upload_id,
            session_id=landing.visitor.session_id,
            filename=filename,
            content_type=content_type,
            protocol=landing.protocol,
            created_at=self._now_us(),
            staged=self._storage.stage(upload_id, landing.reservation),
            annotations=annotations,
        )

    async def land(self, landing: "Ingestion", files: list[Incoming], creates: Resource | None = None) -> list[Upload]:
        allowances = () if landing.granted is None else (landing.granted.id,)
        with _arriving(landing.visitor, self._now_us()) if landing.visitor.arrival else _RECORDED as arrival:
            return await self._publisher.land(
                files, arrival, allowances=allowances, claim=landing.claim, creates=creates
            )

    async def record_failure(self, landing: "Ingestion", files: list[Incoming], error: UploadError) -> None:
        """Put the failure into the history, if possible; the client gets the refusal in any case."""
        try:
            self._storage.reserve(0).release()  # records of failures must not grow on a full disk
            if landing.visitor.arrival is None:
                failed = await self._publisher.count_failed(landing.visitor.session_id)
                if failed >= MAX_FAILED_OF_SESSION:
                    log.info("failed uploads not recorded", session_id=landing.visitor.session_id, recorded=failed)
                    return
            with _arriving(landing.visitor, self._now_us()) if landing.visitor.arrival else _RECORDED as arrival:
                await self._publisher.record([file.failed(error) for file in files[-MAX_FAILED_OF_REQUEST:]], arrival)
        except StorageFull:
            log.warning("failed uploads not recorded: the disk is full", code=error.code)
        except OutcomeUnknown:
            log.warning("a failed upload comes into the history when the database is back", code=error.code)
        except Exception as problem:
            log.error("a failed upload is not in the history", code=error.code, reason=repr(problem))


@contextmanager
def _arriving(visitor: Visitor, now_us: int) -> Iterator[NewSession | None]:
    """Yield the visitor's new session, seen now, to be recorded along; then it counts as recorded, unless that failed.

    If the outcome is unknown, the client gets its token nevertheless: if the session was not
    recorded the token opens none, and if it was, no other token would ever open it.
    """
    try:
        yield visitor.arrival.seen(now_us) if visitor.arrival else None
    except OutcomeUnknown:
        visitor.arrival = None
        raise
    visitor.arrival = None


class Ingestion:
    """The ingestion of one request's files. Enter it, feed it, `publish` it, leave it."""

    def __init__(
        self, ingest: Ingest, visitor: Visitor, protocol: Protocol, declared: int | None, claim: str | None
    ) -> None:
        self.visitor = visitor
        self.protocol = protocol
        self.claim = claim
        self.reservation: Reservation | None = None
        self.granted: Granted | None = None
        self._ingest = ingest
        self._received = ingest.metrics.received[protocol]
        self._began = ingest.metrics.stopwatch()
        self._declared = declared
        self._files: list[Incoming] = []
        self._before = 0  # bytes of the files before the current one
        self._current: Incoming | None = None
        self._expected = UNDECLARED
        self._sha512: Any = None
        self._handed_over = False

    async def __aenter__(self) -> Self:
        self.reservation = self._ingest.admit(self, self._declared)
        try:
            self._ingest.count(self, self.visitor.session_id)
            if self._ingest.quotas is not None:
                self.granted = self._ingest.quotas.request(self.visitor.session_id)
                # The share of files in a form is not known before it arrives.
                await self.granted.need(1, 0 if self.protocol is Protocol.FORM else self._declared or 0)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._handed_over:  # after a hang-up, a refusal or a cancellation
                await run_to_completion(self._abort(error))
        finally:
            self._leave()

    def _leave(self) -> None:
        if self.granted is not None and not self._handed_over:
            self.granted.release()
        if self.reservation is not None:
            self.reservation.release()
        self._ingest.dismiss(self)

    @property
    def receiving(self) -> bool:
        """Whether a file has been begun and not ended."""
        return self._current is not None

    @property
    def sizes(self) -> list[int]:
        """The bytes that each file has so far, in the files' order."""
        return [file.staged.size for file in self._files]

    @property
    def held(self) -> Sequence[bytes | memoryview]:
        """The bytes so far of the last file, as far as they are in memory."""
        return (self._files[-1].staged.held() or ()) if self._files else ()

    async def begin_file(
        self,
        filename: str,
        content_type: str,
        *,
        digests: Digests = UNDECLARED,
        annotations: Annotations = NO_ANNOTATIONS,
        upload_id: str | None = None,
    ) -> None:
        """Begin the next file, under a new id unless one is given. Its bytes must have the `digests`.

        Raises:
            TooManyFiles: the request has more files than allowed.
        """
        if len(self._files) >= self._ingest.limits.files:
            raise TooManyFiles(len(self._files) + 1, self._ingest.limits.files)
        if len(self._files) % _FILES_A_TURN == _FILES_A_TURN - 1:
            await asyncio.sleep(0)  # a block of the body can hold a thousand small files: let other tasks run
        self._current = self._ingest.begin(self, filename, content_type, annotations, upload_id)
        self._expected = digests
        self._sha512 = None if digests.sha512 is None else hashlib.sha512()
        self._files.append(self._current)

    async def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes of the file that was begun; raises TooLarge, StorageFull, Unavailable."""
        assert self._current is not None
        staged = self._current.staged
        self._received.add(len(block))
        size = staged.size + len(block)
        if size > self._ingest.limits.file_bytes:
            raise TooLarge(size, self._ingest.limits.file_bytes)
        if self.granted is not None:
            await self.granted.need(len(self._files), self._before + size, more=self._yet_to_come(self._before + size))
        if self._sha512 is not None:
            self._sha512.update(block)
        await staged.write(block)

    def _yet_to_come(self, size: int) -> int:
        """The quota to request in advance. None for a small form, whose length includes the bytes around its files."""
        if self._declared is None:
            return STEP_BYTES
        return max(0, self._declared - size) if self._declared > _SMALL_BYTES else 0

    async def end_file(self) -> None:
        """End the file that was begun; raises DigestMismatch when its digest is not the declared one."""
        assert self._current is not None
        staged, self._current = self._current.staged, None
        if self.granted is not None:  # quota for an empty file was not requested yet
            await self.granted.need(len(self._files), self._before + staged.size)
        self._before += staged.size
        await staged.finish()
        sha256, sha512 = self._expected
        if sha256 is not None and staged.sha256 != sha256:
            raise DigestMismatch(sha256, staged.sha256)
        if sha512 is not None and self._sha512 is not None and self._sha512.hexdigest() != sha512:
            raise DigestMismatch(sha512, self._sha512.hexdigest(), "sha-512")

    def annotate(self, annotations: Annotations) -> None:
        """Give all files so far this metadata and this time to keep them; their paths stay."""
        if annotations != NO_ANNOTATIONS:
            for file in self._files:
                file.annotations = annotations._replace(path=file.annotations.path)

    async def publish(self, creates: Resource | None = None) -> list[Upload]:
        """Make all files visible, complete and durable, and return their records; or none of them.

        A resumable upload that the request `creates` is recorded along with its file.

        Raises:
            NoFile: the request had no file.
            UploadError: see Publisher.land.
        """
        assert self._current is None
        if not self._files:
            raise NoFile
        metrics = self._ingest.metrics
        metrics.stages["receive"].observe(metrics.stopwatch() - self._began)
        # From here on the files belong to the publisher: it goes on when we are cancelled, and
        # settles an unknown outcome. A failure recorded by us could contradict its record.
        self._handed_over = True
        try:
            return await self._ingest.land(self, self._files, creates)
        except OutcomeUnknown:
            raise
        except UploadError:
            self._handed_over = False
            raise

    async def _abort(self, error: BaseException | None) -> None:
        for file in self._files:
            try:
                await file.staged.abort()
            except Exception:
                log.exception("a staged file stays until this process ends", upload=file.id)
        if self._files and error is not None:
            await self._ingest.record_failure(self, self._files, _reported(error))


def _reported(error: BaseException) -> UploadError:
    """The refusal by which a failure is reported to the client and the history."""
    if isinstance(error, UploadError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Unavailable("the service stopped before the upload was complete")
    return Internal()
