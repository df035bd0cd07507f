"""Dumps: a copy of the whole database, taken while it is in use, and loaded into an empty one.

async with dump.reader(url, db) as reader:        # sees the database as it is at this moment, until it is left
    await reader.copy(to=path)                    # exactly that
    ... await records.list_stored(reader.connection, ...)
"""

import asyncio
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from app.config import postgresql_url
from app.db.database import Db
from app.db.queryable import SeparateConnection
from app.errors import Unavailable, Unusable


class Reader(ABC):
    """The database as it was at one moment, visible while the reader is entered."""

    def __init__(self, aside: SeparateConnection) -> None:
        self.connection = aside

    @abstractmethod
    async def copy(self, to: Path) -> None:
        """Write the whole database into a new file, which the caller makes durable."""


@asynccontextmanager
async def reader(db: Db, url: str) -> AsyncIterator[Reader]:
    """Open a reader that sees the database as it is at this moment."""
    async with db.aside() as aside:
        is_file = db.dialect == "sqlite"
        await aside.execute("BEGIN" if is_file else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await aside.one("has_migrations")  # the first query fixes the moment
        yield _SqliteReader(aside) if is_file else _PostgresqlReader(aside, url)


def filename(dialect: str) -> str:
    """The file name of the copy of a database of this dialect."""
    return "waybill.db" if dialect == "sqlite" else "waybill.dump"


async def require_empty(url: str, schema: str | None, copy: Path) -> None:
    """Raise Unusable unless the copy fits the database at `url`: of the same kind, and empty."""
    is_file = url.startswith("sqlite:")
    if is_file != (copy.name == filename("sqlite")):
        raise Unusable(f"{copy.name} is the copy of another kind of database than WAYBILL_DATABASE_URL names")
    if is_file:
        _require_no_file(_path(url))
    else:
        await _require_no_tables(url, schema, copy)


async def put(url: str, schema: str | None, copy: Path) -> None:
    """Load the copy into an empty database; durable when this returns.

    Raises:
        Unusable: the database is not empty, or of another kind, or a program is missing.
        Unavailable: the copy could not be loaded; nothing of it is there.
    """
    await require_empty(url, schema, copy)
    if url.startswith("sqlite:"):
        await asyncio.to_thread(_put_file, _path(url), copy)
    else:
        await _put_dump(url, copy)


# SQLite.


class _SqliteReader(Reader):
    async def copy(self, to: Path) -> None:
        raw: Any = self.connection.raw
        os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(to, isolation_level=None, check_same_thread=False)) as target:
            await raw.backup(target)
            await asyncio.to_thread(_check_file, target)


def _check_file(copied: sqlite3.Connection) -> None:
    copied.execute("PRAGMA journal_mode = DELETE")  # the copy is this one file, without a log
    [[found]] = copied.execute("PRAGMA quick_check(1)").fetchall()
    if found != "ok":
        raise Unavailable(f"the copy of the database is not sound: {found}")


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path)[1:])


def _require_no_file(path: Path) -> None:
    for existing in (path, *(path.with_name(path.name + end) for end in ("-wal", "-journal"))):
        if existing.exists():
            raise Unusable(f"{existing} is there already; a backup is restored into an empty database only")


def _put_file(path: Path, copy: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.restoring")
    draft.unlink(missing_ok=True)
    with open(copy, "rb") as source, open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)
        target.flush()
        os.fsync(target.fileno())
    os.link(draft, path)  # never replaces
    draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# PostgreSQL's own programs copy it. They find the connection's parameters in their environment, where no list of
# processes shows a password.


_VERSION: Final = "SELECT current_setting('server_version_num')::int / 10000"


class _PostgresqlReader(Reader):
    def __init__(self, aside: SeparateConnection, url: str) -> None:
        super().__init__(aside)
        self._url = url

    async def copy(self, to: Path) -> None:
        raw: Any = self.connection.raw
        await _check_version("pg_dump", await raw.fetchval(_VERSION))
        moment, schema = await raw.fetchrow("SELECT pg_export_snapshot(), current_schema()")
        os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        await _run(
            "pg_dump", self._url, "--format=custom", f"--snapshot={moment}", f"--schema={schema}",
            "--no-owner", "--no-privileges", "--no-password", f"--file={to}",
        )  # fmt: skip
        await _run("pg_restore", self._url, "--list", str(to))  # check that the dump can be read


async def _require_no_tables(url: str, schema: str | None, copy: Path) -> None:
    listed = [line.split() for line in await _contents(url, copy)]
    tables = [(words[4], words[5]) for words in listed if words[3:4] == ["TABLE"]]
    if not tables:
        raise Unusable(f"{copy} holds no tables")
    dumped = tables[0][0]
    db = Db(url, schema=schema, pool_size=2)
    try:
        await db.open()
        async with db.aside() as aside:
            raw: Any = aside.raw
            await _check_version("pg_restore", await raw.fetchval(_VERSION))
            current = await raw.fetchval("SELECT current_schema()") or schema
            if current != dumped:
                raise Unusable(f"the copy's tables are in the schema {dumped}, and here they would be in {current}")
            for named, table in tables:
                if await raw.fetchval("SELECT to_regclass(format('%I.%I', $1::text, $2::text))", named, table):
                    raise Unusable(
                        f"the table {table} is there already; a backup is restored into an empty database only"
                    )
    finally:
        await db.close()


async def _put_dump(url: str, copy: Path) -> None:
    # The dump must not create the schema: it exists, except our own one in a new database.
    wanted = [line for line in await _contents(url, copy) if line.split()[3:4] != ["SCHEMA"]]
    with NamedTemporaryFile("w", encoding="utf-8", suffix=".list") as chosen:
        chosen.write("\n".join(wanted))
        chosen.flush()
        await _run(
            "pg_restore", url, "--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges",
            "--no-password", f"--use-list={chosen.name}", f"--dbname={_environment(url)['PGDATABASE']}", str(copy),
        )  # fmt: skip


async def _contents(url: str, copy: Path) -> list[str]:
    return (await _run("pg_restore", url, "--list", str(copy))).decode().splitlines()


async def _check_version(program: str, server: int) -> None:
    said = (await _run(program, "", "--version")).decode().split()
    version = int(said[2].partition(".")[0]) if len(said) > 2 and said[2][:1].isdigit() else 0
    if version < server:
        raise Unusable(
            f"{program} is of PostgreSQL {version}, and the server of {server}: install the client programs of "
            f"PostgreSQL {server} or newer, and have them first in PATH"
        )


async def _run(program: str, url: str, *arguments: str) -> bytes:
    """Run a program of PostgreSQL's and return its output.

    Raises:
        Unusable: the program is not installed.
        Unavailable: the program failed; the text says why.
    """
    found = shutil.which(program)
    if found is None:
        raise Unusable(f"{program} is not in PATH: install the client programs of PostgreSQL")
    running = await asyncio.create_subprocess_exec(
        found,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(_environment(url) if url else {})},
    )
    try:
        printed, complaint = await running.communicate()
    except BaseException:
        running.kill()
        raise
    if running.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{program} failed: {lines[-1] if lines else running.returncode}")
    return printed


_SSL_MODES: Final[dict[str, dict[str, str]]] = {
    "true": {"PGSSLMODE": "verify-full"},
    "false": {"PGSSLMODE": "disable"},
}


def _environment(url: str) -> dict[str, str]:
    """The environment by which PostgreSQL's own programs find the database of a URL."""
    server = postgresql_url.parse(url)
    environment = {
        "PGHOST": ",".join(host for host, _ in server.hosts),
        "PGPORT": ",".join(str(port) for _, port in server.hosts),
        "PGDATABASE": server.database,
    }
    if server.user:
        environment["PGUSER"] = server.user
    if server.password:
        environment["PGPASSWORD"] = server.password
    if server.ssl:
        environment |= _SSL_MODES.get(server.ssl, {"PGSSLMODE": server.ssl})
    if server.target:
        environment["PGTARGETSESSIONATTRS"] = server.target
    return environment
