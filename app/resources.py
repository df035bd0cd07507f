"""What is said to the database of uploads that come in several requests, one function each.

As in `records`: saying something twice, after an answer got lost, leaves what saying it once leaves.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import pydantic_core

from app import records, usage
from app.db import Asks, Row, Unit
from app.model import MAX_TIME_US, Failure, Protocol, Resource, Status, Upload
from app.records import NewSession

_FOR_GOOD: Final = MAX_TIME_US


class FileOf(NamedTuple):
    """Which partial file holds an upload's bytes: `fence`, or none that is needed any more."""

    upload_id: str
    fence: int | None
    newest: int


async def insert(unit: Unit, resource: Resource, arrival: NewSession | None) -> None:
    """Record a new one, with its record in history and the session that comes with it."""
    if arrival is not None:
        await records.insert_sessions(unit, [arrival])
    if resource.upload is not None:
        await records.insert_uploads(unit, [resource.upload])
    await unit.run(
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
        parts=None if resource.parts is None else _json(resource.parts),
        expected_sha256=resource.expected_sha256,
        expires_at_us=resource.expires_at,
        last_expires_at_us=resource.last_expires_at,
    )


async def find(asks: Asks, key_hash: str) -> Resource | None:
    """One of them, whatever became of it."""
    row = await asks.one("find_resumable", key_hash=key_hash)
    return _resource(row) if row else None


async def list_these(asks: Asks, key_hashes: Sequence[str]) -> dict[str, Resource]:
    """Those of these that are there, by their key hashes."""
    rows = await asks.many("list_resumables", key_hashes=_json(key_hashes))
    return {row["key_hash"]: _resource(row) for row in rows}


async def list_due(asks: Asks, now_us: int, page_size: int) -> list[Resource]:
    """Those that have not ended and whose time is over."""
    return [_resource(row) for row in await asks.many("list_due_resumables", now_us=now_us, page_size=page_size)]


async def list_left(asks: Asks, until_us: int, page_size: int) -> list[Resource]:
    """Those that have all their bytes, or parts, and yet did not end; so old that they would expire by then."""
    return [_resource(row) for row in await asks.many("list_left_resumables", until_us=until_us, page_size=page_size)]


async def list_waiting(asks: Asks, part: Resource) -> list[Resource]:
    """Those that are made of `part`, among others, and have not ended."""
    return [_resource(row) for row in await asks.many("list_waiting_resumables", key_hash=part.key_hash)]


async def list_files(asks: Asks, upload_ids: Sequence[str]) -> dict[str, FileOf]:
    """Which file holds the bytes of each of these uploads; of those that are not known nothing is said."""
    rows = await asks.many("list_partials", ids=_json(upload_ids))
    return {
        row["upload_id"]: FileOf(row["upload_id"], row["file_fence"] if row["ended_as"] is None else None, row["fence"])
        for row in rows
    }


async def claim(asks: Asks, key_hash: str, *, holds: bool) -> tuple[int, int | None] | None:
    """The caller's number, as the newest that wants it, and its holder's: the same, if `holds` and it was free."""
    row = await asks.one("claim_resumable", key_hash=key_hash, holds=int(holds))
    return (row["fence"], row["holder"]) if row else None


async def pass_on(asks: Asks, key_hash: str, fence: int, *, holds: bool) -> bool:
    """Whoever holds it does no longer; the caller does, if `holds`. False if the caller is not the newest any more."""
    row = await asks.one("pass_resumable", key_hash=key_hash, fence=fence, holder=fence if holds else None)
    return row is not None


async def commit(unit: Unit, resource: Resource, held_by: int) -> bool:
    """Offset, digest, length, file, holder and expiry are as `resource` says; False, and nothing done, if not held."""
    row = await unit.one(
        "commit_resumable",
        key_hash=resource.key_hash,
        held_by=held_by,
        holder=resource.holder,
        file_fence=resource.file_fence,
        offset_bytes=resource.offset,
        digest_state=resource.digest_state,
        length_bytes=resource.length,
        expires_at_us=resource.expires_at,
    )
    if row is None:
        return False
    if not resource.is_part:
        status = Status.PROCESSING if resource.is_final else Status.UPLOADING
        await unit.run("advance_upload", upload_id=resource.upload_id, size_bytes=resource.offset, status=status.value)
    return True


async def release(asks: Asks, key_hash: str, held_by: int) -> None:
    """It is free again, if the caller still held it."""
    await asks.run("release_resumable", key_hash=key_hash, held_by=held_by)


async def renew(asks: Asks, key_hashes: Sequence[str], expires_at_us: int) -> None:
    """These are needed until then, as far as they may live so long."""
    await asks.run("renew_resumables", key_hashes=_json(key_hashes), expires_at_us=expires_at_us)


async def end(
    unit: Unit,
    resource: Resource,
    ended_as: Literal["completed", "cancelled", "expired", "failed"],
    *,
    remembered_until_us: int,
    error: Failure | None = None,
    due_us: int = _FOR_GOOD,
) -> bool:
    """It has ended so, unless it had before or is not due by then; its record, if it was not complete, says why."""
    row = await unit.one(
        "end_resumable",
        key_hash=resource.key_hash,
        ended_as=ended_as,
        expires_at_us=min(remembered_until_us, MAX_TIME_US),
        due_us=due_us,
    )
    await usage.give_back(unit, [resource.key_hash])
    if row is not None and ended_as != "completed" and not resource.is_part:
        await unit.run(
            "end_upload",
            upload_id=resource.upload_id,
            status=(Status.EXPIRED if error is None else Status.FAILED).value,
            error_code=error.code if error else None,
            error_detail=error.detail if error else None,
        )
    return row is not None


async def forget_ended(asks: Asks, now_us: int) -> int:
    """Those that ended and need not be remembered any longer go; how many."""
    return len(await asks.many("delete_ended_resumables", now_us=now_us))


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
        expected_sha256=row["expected_sha256"],
        file_fence=row["file_fence"],
        fence=row["fence"],
        holder=row["holder"],
        expires_at=row["expires_at_us"],
        last_expires_at=row["last_expires_at_us"],
        ended_as=row["ended_as"],
        upload=None if row["status"] is None else Upload.from_row({**row, "id": row["upload_id"]}),
    )


def _json(value: object) -> str:
    return pydantic_core.to_json(value).decode()
