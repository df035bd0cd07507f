"""Wire: the requests that send files, by Waybill's own API and by tus, each built here and nowhere else."""

import mimetypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from app.client.failures import ConnectionBroken, TransferFailed
from app.client.sent import Arrived
from app.client.target import Target
from app.client.transport import Attempts, Blocks, Reply, Transport
from app.protocols import annotations, tus
from app.protocols.headers import declared_digests, digest_field

_RECORD = re.compile(r'</(?:[^>]*/)?history/([0-9a-f-]{36})>; *rel="describedby"')

_PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_OF_A_HEADER = re.compile(r"[a-z][a-z0-9._-]*")


class Wire:
    """The requests to one server. `metadata` and `expires_in` go with every file."""

    def __init__(
        self, transport: Transport, target: Target, *, metadata: Mapping[str, str], expires_in: str | None
    ) -> None:
        self._transport = transport
        self.target = target
        self._metadata, self._expires_in = metadata, expires_in

    @property
    def takes_whole_files(self) -> bool:
        """Whether one request can carry a file. Names of metadata that no header can have, go by tus alone."""
        return self.target.is_waybill and all(map(_OF_A_HEADER.fullmatch, self._metadata))

    def attempts(self) -> Attempts:
        """The tries of one file."""
        return Attempts(self._transport)

    async def put(self, name: str, content: bytes, digest: str, key: str) -> Arrived:
        """Send a file in one request, which is repeated until it is answered: by its key it is stored once."""
        headers = {
            **self.target.headers,
            "Content-Type": _kind(name),
            "Repr-Digest": digest_field(digest),
            "Idempotency-Key": f'"{key}"',
        }
        if self._metadata:
            headers["Waybill-Metadata"] = annotations.metadata_field(self._metadata)
        if self._expires_in:
            headers["Waybill-Expires-In"] = self._expires_in
        url = f"{self.target.uploads}/{quote(os.fsencode(name))}"
        attempts = self.attempts()
        while True:
            try:
                reply = await self._transport.once("PUT", url, headers, content)
            except ConnectionBroken as error:
                await attempts.failed(error)
                continue
            if reply.status == 201:
                arrived = _recorded(reply.json(), digest)
                if "Idempotent-Replayed" not in reply.headers or await self.holds(arrived):
                    return arrived
                headers["Idempotency-Key"] = f'"{os.urandom(16).hex()}"'  # deleted there since
                continue
            if not (reply.is_temporary or is_spoilt(reply)):
                raise reply.refused()
            await attempts.failed(reply)

    async def holds(self, arrived: Arrived) -> bool:
        """Whether the service has this file still."""
        if arrived.id is None:
            return False
        url = f"{self.target.base}/api/ingestion/history/{arrived.id}"
        reply = await self._transport.ask("GET", url, self.target.headers)
        if reply.status == 404:
            return False
        if reply.status != 200:
            raise reply.refused()
        record = reply.json()
        return bool(record["status"] == "completed" and record["sha256"] == arrived.digest)

    async def create(self, name: str, length: int | None) -> str:
        """Create a resumable upload; its URL, as it is kept. With no length, the last request says it."""
        pairs = {"filename": os.fsencode(name.rpartition("/")[2]), "filetype": _kind(name).encode()}
        if "/" in name:
            pairs["relativePath"] = os.fsencode(name)
        if self._expires_in:
            pairs["expires_in"] = self._expires_in.encode()
        pairs |= {key: value.encode() for key, value in self._metadata.items()}
        size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
        headers = {**self._headers, **size, "Upload-Metadata": tus.metadata_field(pairs)}
        reply = await self._transport.ask("POST", self.target.uploads, headers, b"")
        if reply.status != 201 or "Location" not in reply.headers:
            raise reply.refused()
        return self.target.kept(reply.headers["Location"])

    async def append(
        self, url: str, offset: int, size: int, body: bytes | Blocks, *, length: int | None = None, digest: str = ""
    ) -> Reply:
        """Append bytes to a resumable upload, once. Its last bytes bring the digest of the whole, and its length."""
        headers = {
            **self._headers,
            "Content-Type": tus.CHUNK,
            "Upload-Offset": str(offset),
            "Content-Length": str(size),
        }
        if length is not None:
            headers["Upload-Length"] = str(length)
        if digest and self.target.is_waybill:
            headers["Repr-Digest"] = digest_field(digest)
        return await self._transport.once("PATCH", self.target.upload(url), headers, body)

    async def head(self, url: str) -> Reply:
        """Ask how far a resumable upload is."""
        return await self._transport.ask("HEAD", self.target.upload(url), self._headers)

    async def cancel(self, url: str) -> None:
        """Cancel a resumable upload; if the answer fails to come, the server forgets it by itself."""
        with suppress(ConnectionBroken):
            await self._transport.once("DELETE", self.target.upload(url), self._headers)

    def landed(self, reply: Reply, digest: str) -> Arrived | None:
        """Return what the last answer about a completed upload says, None if it is yet to become a file.

        Raises TransferFailed if the service has other bytes.
        """
        if not self.target.is_waybill:
            return Arrived(digest, None)
        stored = declared_digests("Repr-Digest", [reply.headers.get("Repr-Digest", "")])
        record = _RECORD.search(reply.headers.get("Link", ""))
        if stored.sha256 is None or record is None:
            return None
        if stored.sha256 != digest:
            raise _other_bytes(stored.sha256, digest)
        return Arrived(digest, record[1])

    @property
    def _headers(self) -> Mapping[str, str]:
        return {**self.target.headers, "Tus-Resumable": tus.VERSION}


def is_spoilt(reply: Reply) -> bool:
    """Whether the bytes arrived otherwise than they were sent."""
    return reply.status == 460 or (reply.status == 400 and reply.code == "digest_mismatch")


def _kind(name: str) -> str:
    kind, packed = mimetypes.guess_type(name)
    return (kind if packed is None else _PACKED.get(packed)) or "application/octet-stream"


def _recorded(record: dict[str, Any], digest: str) -> Arrived:
    if record["sha256"] != digest:
        raise _other_bytes(record["sha256"], digest)
    return Arrived(digest, record["id"])


def _other_bytes(stored: str, digest: str) -> TransferFailed:
    return TransferFailed("digest_mismatch", f"the service has stored {stored}, and not {digest}")
