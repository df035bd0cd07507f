"""Statements about Idempotency-Keys and their claims, one function each.

A *claim* is one request's hold on a key of its session, until the request is answered or
fails. Every statement can be repeated after a lost answer, with the same result.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import pydantic_core

from app.db.driver import Row
from app.db.queryable import Queryable, Transaction, json_parameter
from app.model import Protocol, Upload

_UNANNOTATED: Final = {"metadata": None, "path": None, "keep_us": None}
"""The columns missing from answers that were stored before uploads had annotations."""


class KeyedRequest(NamedTuple):
    """The properties of a body that its request declares in the headers; None for those that it does not.

    `boundary` is the length of a form's boundary, which stands in the body as often as there
    are files and fields, and once more. `sha256` is not compared while a request is at work.
    """

    protocol: Protocol
    content_type: str
    filename: str | None
    length: int | None
    boundary: int = 0
    sha256: str | None = None

    def may_be(self, other: "KeyedRequest") -> bool:
        """Whether both can be the same request, sent twice."""
        if self[:3] != other[:3] or _differ(self.sha256, other.sha256):
            return False
        if self.boundary == other.boundary or self.length is None or other.length is None:
            return not _differ(self.length, other.length)
        delimiters, rest = divmod(self.length - other.length, self.boundary - other.boundary)
        return rest == 0 and delimiters >= 2


class StoredKey(NamedTuple):
    """The claim on a key: the request that has it, and the uploads that landed, if it is answered."""

    asked: KeyedRequest
    uploads: list[Upload] | None


async def find(db: Queryable, session_id: str, key_hash: str, now_us: int) -> StoredKey | None:
    """Find the claim on a session's key; None if the key is free."""
    row = await db.one("find_idempotency_key", session_id=session_id, key_hash=key_hash, now_us=now_us)
    return _claim(row) if row else None


async def take(
    db: Queryable, session_id: str, key_hash: str, claim_id: str, asked: KeyedRequest, *, now_us: int, until_us: int
) -> bool:
    """Acquire the key for a claim, until `until_us` unless renewed; False if another claim has it."""
    row = await db.one(
        "take_idempotency_key",
        session_id=session_id,
        key_hash=key_hash,
        claim_id=claim_id,
        protocol=asked.protocol.value,
        filename=asked.filename,
        content_type=asked.content_type,
        length_bytes=asked.length,
        boundary_bytes=asked.boundary,
        now_us=now_us,
        expires_at_us=until_us,
    )
    return row is not None


async def renew(db: Queryable, claim_ids: Collection[str], until_us: int) -> None:
    """Renew the claims until `until_us`, as far as they still hold their keys."""
    await db.run("renew_idempotency_keys", claim_ids=json_parameter(list(claim_ids)), expires_at_us=until_us)


async def free(db: Queryable, claim_id: str) -> None:
    """Release the key of a claim whose request failed. An answered claim stays."""
    await db.run("free_idempotency_key", claim_id=claim_id)


async def answer(transaction: Transaction, landed: Mapping[str, Sequence[Upload]], until_us: int) -> set[str]:
    """Record what landed under these claims, until `until_us`; return the claims that were lost.

    If any were lost, nothing of the transaction may be committed.
    """
    rows = [
        {"claim_id": claim_id, "answer": json_parameter([upload.as_row() for upload in uploads])}
        for claim_id, uploads in landed.items()
    ]
    answered = await transaction.many("answer_idempotency_keys", rows=json_parameter(rows), expires_at_us=until_us)
    return landed.keys() - {row["claim_id"] for row in answered}


async def forget(db: Queryable, until_us: int, page_size: int) -> int:
    """Delete claims that expired before `until_us`, a page at most; return how many."""
    return len(await db.many("delete_old_idempotency_keys", until_us=until_us, page_size=page_size))


def _claim(row: Row) -> StoredKey:
    asked = KeyedRequest(
        Protocol(row["protocol"]), row["content_type"], row["filename"], row["length_bytes"], row["boundary_bytes"]
    )
    if row["answer"] is None:
        return StoredKey(asked, None)
    uploads = [Upload.from_row(_UNANNOTATED | upload) for upload in pydantic_core.from_json(row["answer"])]
    if asked.protocol is Protocol.RAW:  # the body was the file: the record has all of these
        asked = asked._replace(length=uploads[0].size, sha256=uploads[0].sha256)
    return StoredKey(asked, uploads)


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other
