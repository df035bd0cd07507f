"""Sent files, remembered in the user's cache directory: what has arrived, and what is under way.

A file is known by its path, its digest and the session that has it, whatever the address of the service. Its *identity*
(size and times) spares reading a file again that has not changed since.
"""

import asyncio
import fcntl
import os
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, Self

import platformdirs

from app.client.failures import Misused

_VERSION: Final = 1
_LOOK_AGAIN: Final = 0.1
_SCHEMA: Final = """
CREATE TABLE sent (
    session TEXT NOT NULL,
    path BLOB NOT NULL,
    digest TEXT NOT NULL,
    identity TEXT NOT NULL,
    id TEXT,
    PRIMARY KEY (session, path, digest)
) WITHOUT ROWID;
CREATE TABLE unfinished (
    session TEXT NOT NULL,
    path BLOB NOT NULL,
    identity TEXT NOT NULL,
    url TEXT NOT NULL,
    PRIMARY KEY (session, path)
) WITHOUT ROWID;
CREATE TABLE secret (value BLOB NOT NULL);
"""


class Arrived(NamedTuple):
    """A file that the service has: its digest, and its upload's id where the service gave one."""

    digest: str
    id: str | None


class Sent:
    """The memory of one session's files. Use it as a context manager.

    Every change is committed at once, so that it outlives the death of the process.
    """

    def __init__(self, session: str, directory: Path | None = None) -> None:
        self._session = session
        self._directory = directory or platformdirs.user_cache_path("waybill")

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / "push.db"
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        # A power cut may take the last commits along: then a file is offered again, by the same key.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._create(path)
        [(self._secret,)] = self._db.execute("SELECT value FROM secret")
        self._locks = os.open(self._directory / "push.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        os.close(self._locks)

    def _create(self, path: Path) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        [(version,)] = self._db.execute("PRAGMA user_version")
        if version > _VERSION:
            self._db.close()
            raise Misused(f"{path} was written by a newer version of waybill")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO secret VALUES (?)", [os.urandom(16)])
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.execute("COMMIT")

    def all_of(self, path: bytes) -> dict[str, Arrived]:
        """All that has arrived from this path, by the identity that the file had then."""
        found = self._db.execute(
            "SELECT identity, digest, id FROM sent WHERE session = ? AND path = ?", (self._session, path)
        )
        return {known_as: Arrived(digest, upload_id) for known_as, digest, upload_id in found}

    def equal(self, path: bytes, digest: str, identity: str) -> Arrived | None:
        """Return what has arrived from this path with this digest, and note the identity that it has now."""
        row = self._db.execute(
            "UPDATE sent SET identity = ? WHERE session = ? AND path = ? AND digest = ? RETURNING digest, id",
            (identity, self._session, path, digest),
        ).fetchone()
        return row and Arrived(*row)

    def arrived(self, path: bytes, identity: str, arrived: Arrived) -> None:
        """Remember a file that the service has."""
        self._db.execute(
            "INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)",
            (self._session, path, arrived.digest, identity, arrived.id),
        )

    def unfinished(self, path: bytes) -> tuple[str, str] | None:
        """The identity and the upload's URL of a file that is under way."""
        row: tuple[str, str] | None = self._db.execute(
            "SELECT identity, url FROM unfinished WHERE session = ? AND path = ?", (self._session, path)
        ).fetchone()
        return row

    def begun(self, path: bytes, identity: str, url: str) -> None:
        """Remember the URL of an upload that has begun."""
        self._db.execute("INSERT OR REPLACE INTO unfinished VALUES (?, ?, ?, ?)", (self._session, path, identity, url))

    def forget_unfinished(self, path: bytes) -> None:
        """Forget an upload that cannot go on."""
        self._db.execute("DELETE FROM unfinished WHERE session = ? AND path = ?", (self._session, path))

    def key(self, path: bytes, digest: str) -> str:
        """The Idempotency-Key of a file: the same for every try, so that a lost answer stores nothing twice."""
        named = b"\0".join((self._secret, self._session.encode(), path, digest.encode()))
        return sha256(named).hexdigest()

    async def hold(self, path: bytes) -> None:
        """Wait until no other process sends this file, and keep others from it until `release`."""
        place = _place(path)
        while True:  # two processes that wait for a file of the other each would be a deadlock to the kernel
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                return

    def release(self, path: bytes) -> None:
        """Let other processes send this file."""
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _place(path))


def _place(path: bytes) -> int:
    """The byte of the lock file that stands for a path: 2 of 62 bits' worth of paths would have to meet."""
    return int.from_bytes(sha256(path).digest()[:8], "big") >> 2
