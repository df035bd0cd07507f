"""What a careful developer writes so that an answer means a whole, durable, digested and recorded file."""

import asyncio
import hashlib
import os
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor

TABLE = (
    "CREATE TABLE uploads (id TEXT PRIMARY KEY, filename TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL)"
)
INSERT = "INSERT INTO uploads (id, filename, size, sha256) VALUES (?, ?, ?, ?)"


class Rows:
    """One connection, used by one thread; every insertion is flushed."""

    def __init__(self, database):
        self._thread = ThreadPoolExecutor(1)
        self._connection = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(TABLE)

    async def insert(self, *values):
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.execute, INSERT, values)


class Upload:
    """A file that gets its name when all of it is on the disk."""

    def __init__(self, directory, filename):
        self.id, self.size = str(uuid.uuid4()), 0
        self._directory, self._filename = directory, filename
        self._digest = hashlib.sha256()
        self._temporary = f"{directory}/.{self.id}"
        self._file = open(self._temporary, "xb")  # noqa: SIM115  # open for as long as the body comes

    def write(self, chunk):
        self._digest.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)

    async def finish(self, rows):
        await asyncio.to_thread(self._publish)
        await rows.insert(self.id, self._filename, self.size, self._digest.hexdigest())
        return {"id": self.id, "size": self.size, "sha256": self._digest.hexdigest()}

    def _publish(self):
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._temporary, f"{self._directory}/{self.id}")
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self):
        """Remove what came of an upload that broke off."""
        self._file.close()
        os.unlink(self._temporary)
