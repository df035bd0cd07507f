"""Pulling of files: fetched from where they broke off, compared with their digest, and only then given their names."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from app.client.display import Audience
from app.client.failures import ConnectionBroken, TransferFailed
from app.client.outcomes import Outcome
from app.client.pushing import first
from app.client.transport import Attempts, Reply, Transport
from app.errors import UploadError
from app.protocols.filenames import relative_path, safe_filename
from app.protocols.headers import declared_digests, disposition_filename, etag

_BLOCK: Final = 1024 * 1024
_MOST_STARTS: Final = 3
_EXISTS: Final = "another file has this name; --force replaces it"


class RemoteFile(NamedTuple):
    """A file to fetch. `name` is its path here, below the folder that files go to."""

    url: str
    headers: Mapping[str, str]
    name: str
    size: int
    sha256: str
    id: str | None


def of_record(record: Mapping[str, Any], url: str, headers: Mapping[str, str]) -> RemoteFile:
    """The file of a record of the history."""
    name = _local(record["path"] or "") or safe_filename(record["filename"])
    return RemoteFile(url, headers, name, record["size"], record["sha256"], record["id"])


async def of_link(transport: Transport, url: str) -> RemoteFile:
    """The file that a share link gives."""
    reply = await transport.ask("HEAD", url, {})
    if reply.status != 200:
        raise TransferFailed(f"http_{reply.status}", f"the link gives nothing (status {reply.status})")
    digest = declared_digests("Repr-Digest", [reply.headers.get("Repr-Digest", "")]).sha256
    if digest is None:
        raise TransferFailed("bad_answer", "the link's server says no digest")
    name = disposition_filename(reply.headers.get("Content-Disposition", "attachment")) or safe_filename("")
    return RemoteFile(url, {}, name, int(reply.headers["Content-Length"]), digest, None)


def _local(path: str) -> str | None:
    """The path as it is safe below a folder, whatever the server says."""
    try:
        return relative_path(path)
    except UploadError as error:
        raise TransferFailed("bad_answer", f"the record's path: {error}") from None


class Pull:
    """A pull into a folder. With `force` it replaces files of the same name."""

    def __init__(self, transport: Transport, folder: Path, audience: Audience, *, parallel: int, force: bool) -> None:
        self._transport, self._folder, self._audience = transport, folder, audience
        self._parallel, self._force = parallel, force

    async def all(self, wanted: list[RemoteFile]) -> list[Outcome]:
        """Fetch the files; the outcomes of those that failed."""
        self._audience.planned(len(wanted), sum(each.size for each in wanted))
        failed: list[Outcome] = []
        lane = iter(wanted)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._parallel):
                    group.create_task(self._lane(lane, failed))
        except BaseExceptionGroup as errors:
            raise first(errors) from None
        return failed

    async def _lane(self, wanted: Iterator[RemoteFile], failed: list[Outcome]) -> None:
        for each in wanted:
            path = str(self._folder / each.name)
            self._audience.begun(path, each.size)
            try:
                fetched = await self._one(each, Path(path))
                outcome = Outcome(path, "fetched" if fetched else "unchanged", each.size, each.id, each.sha256)
            except TransferFailed as error:
                outcome = Outcome(path, "failed", each.size, each.id, code=error.code, detail=str(error))
            except OSError as error:
                why = error.strerror or str(error)
                outcome = Outcome(path, "failed", each.size, each.id, code="not_written", detail=why)
            if outcome.fate == "failed":
                failed.append(outcome)
            self._audience.ended(outcome)

    async def _one(self, wanted: RemoteFile, path: Path) -> bool:
        """Fetch a file; False if it is there already."""
        part = path.with_name(f".{sha256(f'{path.name} {wanted.sha256}'.encode()).hexdigest()[:16]}.part")
        file = await asyncio.to_thread(self._opened, wanted, path, part)
        if file is None:
            return False
        with file:
            await self._fill(file, wanted, str(path))
            await asyncio.to_thread(_publish, file, part, path, force=self._force)
        return True

    def _opened(self, wanted: RemoteFile, path: Path, part: Path) -> BinaryIO | None:
        """The file that takes the bytes until they are complete, for us alone; None if all are there already."""
        if path.exists():
            if path.is_file() and _digest(path) == wanted.sha256:
                return None
            if not self._force:
                raise TransferFailed("exists", _EXISTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(part, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise TransferFailed("in_progress", "another command is fetching it") from None
        return file

    async def _fill(self, file: BinaryIO, wanted: RemoteFile, shown: str) -> None:
        """Fetch what is missing of the file, until it has the digest that it should have."""
        for _ in range(_MOST_STARTS):
            download = _Download(self._transport, file, wanted, lambda at: self._audience.moved(shown, at))
            if await download.run() == wanted.sha256:
                return
            file.truncate(0)  # what an earlier run left, or what came, is not the file
        raise TransferFailed("digest_mismatch", "the bytes do not have the digest of the record")


class _Download:
    """One file on its way here, with the digest of what has come."""

    def __init__(self, transport: Transport, file: BinaryIO, wanted: RemoteFile, moved: Any) -> None:
        self._transport, self._file, self._wanted, self._moved = transport, file, wanted, moved
        self._hash = sha256()
        self._have = 0

    async def run(self) -> str:
        """Fetch what is missing, however often that breaks off; the digest of all."""
        await asyncio.to_thread(self._read_what_is_there)
        attempts = Attempts(self._transport)
        while self._have < self._wanted.size:
            before = self._have
            try:
                refused = await self._fetch()
                if refused is not None:
                    if not refused.is_temporary:
                        raise refused.refused()
                    await attempts.failed(refused)
            except ConnectionBroken as error:
                if self._have > before:
                    attempts.progressed()
                await attempts.failed(error)
        return self._hash.hexdigest()

    def _read_what_is_there(self) -> None:
        if os.fstat(self._file.fileno()).st_size > self._wanted.size:
            self._file.truncate(0)
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
            self._have += len(block)

    async def _fetch(self) -> Reply | None:
        """Ask for the rest and take it; the answer if it is a refusal."""
        headers = dict(self._wanted.headers)
        if self._have:
            headers |= {"Range": f"bytes={self._have}-", "If-Range": etag(self._wanted.sha256)}
        async with self._transport.stream("GET", self._wanted.url, headers) as (answer, moved):
            if answer.status not in (200, 206):
                return Reply(answer.status, answer.headers, await answer.read())
            if answer.status == 200 and self._have:
                self._begin_again()
            async for block in answer.content.iter_any():
                moved()
                self._take(block)
        return None

    def _begin_again(self) -> None:
        self._file.seek(0)
        self._file.truncate(0)
        self._hash, self._have = sha256(), 0

    def _take(self, block: bytes) -> None:
        if self._have + len(block) > self._wanted.size:
            raise TransferFailed("bad_answer", "the server sends more than the file has")
        self._file.write(block)
        self._hash.update(block)
        self._have += len(block)
        self._moved(self._have)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _publish(file: BinaryIO, part: Path, path: Path, *, force: bool) -> None:
    """Make the bytes durable, then give them their name in one step; only `force` replaces a file that is there."""
    file.flush()
    os.fsync(file.fileno())
    if force:
        part.replace(path)
    else:
        try:
            os.link(part, path)
        except FileExistsError:
            raise TransferFailed("exists", _EXISTS) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or path.exists():
                raise
            part.rename(path)  # a file system without links
        else:
            part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
