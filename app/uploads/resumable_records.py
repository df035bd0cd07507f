"""Statements about resumable uploads that land in a commit group, one function each. All others: `resumables.records`.

Every statement can be repeated after a lost answer, with the same result.
"""

from collections.abc import Sequence
from typing import NamedTuple

from app.db.queryable import Transaction, json_parameter
from app.model import MAX_TIME_US, Holder, Resource


async def insert_these(transaction: Transaction, resources: Sequence[Resource]) -> None:
    """Insert uploads whose records are in the history already; existing ones stay as they are."""
    rows = [
        {
            "key_hash": resource.key_hash,
            "upload_id": resource.upload_id,
            "session_id": resource.session_id,
            "protocol": resource.protocol.value,
            "filename": resource.filename,
            "content_type": resource.content_type,
            "created_at_us": resource.created_at,
            "length_bytes": resource.length,
            "offset_bytes": resource.offset,
            "metadata": resource.metadata,
            "concat": resource.concat,
            "is_part": int(resource.is_part),
            "expected_sha256": resource.digests.sha256,
            "expected_sha512": resource.digests.sha512,
            "expires_at_us": resource.expires_at,
            "last_expires_at_us": resource.last_expires_at,
            "ended_as": resource.ended_as,
        }
        for resource in resources
    ]
    await transaction.run("insert_resumables", rows=json_parameter(rows))


class Completing(NamedTuple):
    """An upload as it is once its record is completed, and who holds its writer lock until then."""

    resource: Resource
    held_by: Holder


async def complete(transaction: Transaction, completing: Sequence[Completing]) -> set[str]:
    """Complete uploads whose records are completed by the same transaction; return those whose locks are lost.

    Nothing is done to these.
    """
    rows = [
        {
            "key_hash": resource.key_hash,
            "held_by": held_by.fence,
            "held_by_id": held_by.id,
            "length_bytes": resource.length,
            "expected_sha256": resource.digests.sha256,
            "expected_sha512": resource.digests.sha512,
            "expires_at_us": min(resource.expires_at, MAX_TIME_US),
        }
        for resource, held_by in completing
    ]
    done = await transaction.many("complete_resumables", rows=json_parameter(rows))
    return {resource.key_hash for resource, _ in completing}.difference(row["key_hash"] for row in done)
