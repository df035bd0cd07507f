"""Statements about resumable uploads, one function each.

Every statement can be repeated after a lost answer, with the same result.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import pydantic_core

from app.db.driver import Row
from app.db.queryable import Queryable, Transaction, json_parameter
from app.model import MAX_TIME_US, Digests, Failure, Holder, Protocol, Resource, Status, Upload
from app.quotas import records as quota_records
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.uploads import records as upload_records

_FOR_GOOD: Final = MAX_TIME_US


class FileOf(NamedTuple):
    """The unfinished file that holds an upload's bytes: its `fence`, or None if no file is needed any more."""

    upload_id: str
    fence: int | None
    newest: int


class Waiting(NamedTuple):
    """An upload that still waits for bytes."""

    key_hash: str
    upload_id: str
    expires_at: int


async def insert(transaction: Transaction, resource: Resource, arrival: NewSession | None) -> bool:
    """Insert an upload, with its record in history and its new session, if any; False if its key is taken."""
    if arrival is not None:
        await session_records.insert_sessions(transaction, [arrival])
    if resource.upload is not None:
        await upload_records.insert_uploads(transaction, [resource.upload])
    row = await transaction.one(
        "insert_resumable",
        key_hash=resource.key_hash,
        upload_id=resource.upload_id,
        session_id=resource.session_id,
        protocol=resource.protocol.value,
        filename=resource.filename,
        content_type=resource.content_type,
        created_at_us=resource.created_at,
        length_bytes=resource.length,
        metadata=resource.metadata,
        concat=resource.concat,
        is_part=int(resource.is_part),
        parts=None if resource.parts is None else json_parameter(resource.parts),
        expected_sha256=resource.digests.sha256,
        expected_sha512=resource.digests.sha512,
        expires_at_us=resource.expires_at,
        last_expires_at_us=resource.last_expires_at,
    )
    return row is not None


async def find(db: Queryable, key_hash: str) -> Resource | None:
    """Find an upload, whatever became of it."""
    row = await db.one("find_resumable", key_hash=key_hash)
    return _resource(row) if row else None


async def list_these(db: Queryable, key_hashes: Sequence[str]) -> dict[str, Resource]:
    """Find these uploads, as far as they exist, by their key hashes."""
    rows = await db.many("list_resumables", key_hashes=json_parameter(key_hashes))
    return {row["key_hash"]: _resource(row) for row in rows}


class AcknowledgedFile(NamedTuple):
    """The unfinished file of an upload, with `offset` bytes, and their running digest."""

    upload_id: str
    fence: int
    offset: int
    digest_state: str | None


async def list_unfinished_files(db: Queryable, after_id: str, page_size: int) -> list[AcknowledgedFile]:
    """List the files of uploads that have not ended: a page from behind `after_id`."""
    rows = await db.many("list_unfinished_files", after_id=after_id, page_size=page_size)
    return [
        AcknowledgedFile(row["upload_id"], row["file_fence"], row["offset_bytes"], row["digest_state"]) for row in rows
    ]


async def list_due(db: Queryable, now_us: int, after: Resource | None, page_size: int) -> list[Resource]:
    """List expired uploads that have not ended: a page from behind `after`."""
    after_us, after_key = (0, "") if after is None else (after.expires_at, after.key_hash)
    rows = await db.many(
        "list_due_resumables", now_us=now_us, after_us=after_us, after_key=after_key, page_size=page_size
    )
    return [_resource(row) for row in rows]


async def list_left(db: Queryable, after_key: str, page_size: int) -> list[Resource]:
    """List uploads that are fully received, or being assembled, and have not ended: a page from behind `after_key`."""
    return [_resource(row) for row in await db.many("list_left_resumables", after_key=after_key, page_size=page_size)]


async def list_unfinished(db: Queryable, until_us: int, after: Waiting | None, page_size: int) -> list[Waiting]:
    """List uploads, not parts, that wait for bytes and expire by `until_us`: a page from behind `after`."""
    after_us, after_key = (0, "") if after is None else (after.expires_at, after.key_hash)
    rows = await db.many(
        "list_unfinished_resumables", until_us=until_us, after_us=after_us, after_key=after_key, page_size=page_size
    )
    return [Waiting(row["key_hash"], row["upload_id"], row["expires_at_us"]) for row in rows]


async def list_made_of_parts(db: Queryable, after_key: str, until_us: int, page_size: int) -> list[Resource]:
    """List concatenations that have not ended and would expire by `until_us`: a page from behind `after_key`."""
    rows = await db.many("list_made_of_parts", after_key=after_key, until_us=until_us, page_size=page_size)
    return [_resource(row) for row in rows]


async def list_ready(db: Queryable, after_key: str, page_size: int) -> list[tuple[str, bool]]:
    """List concatenations without a holder, from behind `after_key`, and whether all parts have stopped growing."""
    rows = await db.many("list_ready_resumables", after_key=after_key, page_size=page_size)
    return [(row["key_hash"], bool(row["ready"])) for row in rows]


async def count_waiting(transaction: Transaction, session_id: str) -> int:
    """Count a session's concatenations that have not ended."""
    row = await transaction.one("count_waiting_concatenations", session_id=session_id)
    return int(row["waiting"]) if row else 0


async def count_concatenations(transaction: Transaction, parts: Sequence[str]) -> int:
    """Count the concatenations, completed ones included, of each of these parts; return the highest count."""
    row = await transaction.one("count_concatenations", part_key_hashes=json_parameter(parts))
    return int(row["concatenations"]) if row else 0


async def list_waiting(db: Queryable, part: Resource) -> list[Resource]:
    """List the concatenations that include `part` and have not ended."""
    return [_resource(row) for row in await db.many("list_waiting_resumables", key_hash=part.key_hash)]


async def list_files(db: Queryable, upload_ids: Sequence[str]) -> dict[str, FileOf]:
    """Find the file of each of these uploads; unknown ones are left out."""
    rows = await db.many("list_files_of_uploads", ids=json_parameter(upload_ids))
    return {
        row["upload_id"]: FileOf(row["upload_id"], row["file_fence"] if row["ended_as"] is None else None, row["fence"])
        for row in rows
    }


async def acquire(db: Queryable, key_hash: str, *, holder_id: str | None, now_us: int) -> int | None:
    """Draw a fencing token as the newest request for the lock; with `holder_id`, acquire the lock if it is free."""
    row = await db.one("acquire_resumable", key_hash=key_hash, holder_id=holder_id, now_us=now_us)
    return row["fence"] if row else None


async def acquire_these(transaction: Transaction, holder_ids: Mapping[str, str], now_us: int) -> None:
    """Draw fencing tokens for these key hashes, as `acquire` does, each for its holder id."""
    rows = [{"key_hash": key_hash, "holder_id": holder_id} for key_hash, holder_id in holder_ids.items()]
    await transaction.run("acquire_resumables", rows=json_parameter(rows), now_us=now_us)


async def preempt(db: Queryable, key_hash: str, fence: int, *, holder_id: str | None, now_us: int) -> bool:
    """Preempt the holder; with `holder_id`, acquire the lock. False if the caller is not the newest any more."""
    row = await db.one("preempt_resumable", key_hash=key_hash, fence=fence, holder_id=holder_id, now_us=now_us)
    return row is not None


async def see(db: Queryable, key_hash: str, held_by: Holder, now_us: int) -> bool:
    """Record that the holder is at work; False if it has lost the lock."""
    row = await db.one("see_resumable", key_hash=key_hash, held_by=held_by.fence, held_by_id=held_by.id, now_us=now_us)
    return row is not None


async def commit(transaction: Transaction, resource: Resource, held_by: Holder) -> bool:
    """Commit offset, digest, length, file and expiry of `resource`, and release the lock if it has no holder.

    False, with nothing done, if `held_by` does not hold the lock.
    """
    row = await transaction.one(
        "commit_resumable",
        key_hash=resource.key_hash,
        held_by=held_by.fence,
        held_by_id=held_by.id,
        holds=int(resource.holder is not None),
        file_fence=resource.file_fence,
        offset_bytes=resource.offset,
        digest_state=resource.digest_state,
        length_bytes=resource.length,
        expected_sha256=resource.digests.sha256,
        expected_sha512=resource.digests.sha512,
        expires_at_us=resource.expires_at,
    )
    if row is None:
        return False
    if not resource.is_part:
        status = Status.PROCESSING if resource.is_final else Status.UPLOADING
        await transaction.run(
            "advance_upload", upload_id=resource.upload_id, size_bytes=resource.offset, status=status.value
        )
    return True


async def release(db: Queryable, key_hash: str, held_by: Holder) -> None:
    """Release the lock, if the caller still holds it."""
    await db.run("release_resumable", key_hash=key_hash, held_by=held_by.fence, held_by_id=held_by.id)


async def lock(transaction: Transaction, seen: Resource) -> bool:
    """Whether the upload is as it was `seen`; if so, it is locked until the transaction ends."""
    row = await transaction.one(
        "lock_resumable",
        key_hash=seen.key_hash,
        holder=seen.holder.fence if seen.holder else 0,
        holder_id=(seen.holder.id or "") if seen.holder else "",
        file_fence=seen.file_fence,
        offset_bytes=seen.offset,
    )
    return row is not None


async def renew(db: Queryable, key_hashes: Sequence[str], expires_at_us: int) -> None:
    """Extend the expiry of these uploads to `expires_at_us`, as far as their maximum age allows."""
    await db.run("renew_resumables", key_hashes=json_parameter(key_hashes), expires_at_us=expires_at_us)


async def end(
    transaction: Transaction,
    resource: Resource,
    ended_as: Literal["completed", "cancelled", "expired", "failed"],
    *,
    remembered_until_us: int,
    error: Failure | None = None,
    due_us: int = _FOR_GOOD,
) -> bool:
    """End an upload, unless it has ended or is not due; the record of one that was not completed says why."""
    row = await transaction.one(
        "end_resumable",
        key_hash=resource.key_hash,
        ended_as=ended_as,
        expires_at_us=min(remembered_until_us, MAX_TIME_US),
        due_us=due_us,
    )
    if row is not None and ended_as != "completed" and not resource.is_part:
        await transaction.run(
            "end_upload",
            upload_id=resource.upload_id,
            status=(Status.EXPIRED if error is None else Status.FAILED).value,
            error_code=error.code if error else None,
            error_detail=error.detail if error else None,
        )
    await quota_records.release(transaction, [resource.key_hash])
    return row is not None


async def forget_ended(db: Queryable, now_us: int, page_size: int) -> int:
    """Delete ended uploads whose time to be remembered is over, a page at most; return how many."""
    return len(await db.many("delete_ended_resumables", now_us=now_us, page_size=page_size))


def _resource(row: Row) -> Resource:
    return Resource(
        key_hash=row["key_hash"],
        upload_id=row["upload_id"],
        session_id=row["session_id"],
        protocol=Protocol(row["protocol"]),
        filename=row["filename"],
        content_type=row["content_type"],
        created_at=row["created_at_us"],
        length=row["length_bytes"],
        offset=row["offset_bytes"],
        digest_state=row["digest_state"],
        metadata=row["metadata"],
        concat=row["concat"],
        is_part=bool(row["is_part"]),
        parts=None if row["parts"] is None else tuple(pydantic_core.from_json(row["parts"])),
        digests=Digests(row["expected_sha256"], row["expected_sha512"]),
        file_fence=row["file_fence"],
        fence=row["fence"],
        holder=None if row["holder"] is None else Holder(row["holder"], row["holder_id"]),
        holder_seen_at=row["holder_seen_us"],
        expires_at=row["expires_at_us"],
        last_expires_at=row["last_expires_at_us"],
        ended_as=row["ended_as"],
        upload=None
        if row["status"] is None
        else Upload.from_row({**row, "id": row["upload_id"], "metadata": row["upload_metadata"]}),
    )
