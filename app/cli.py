"""The command waybill: serve, check, migrate, sweep, verify, backup, restore, history.

Results go to standard output, errors and progress to standard error. Exit status: 0 done,
1 a problem was found, 2 wrong usage, 69 something that is needed is unavailable: the
database, the store, the address to listen on; 74 the results could not be written; 78 the
configuration is not usable.

Every command imports what it needs: `waybill --help` should not take half a second.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import click

from app.commands import EX_IOERR, Commands
from app.errors import Unusable, UploadError

if TYPE_CHECKING:
    from app.checks import Check
    from app.config import Settings
    from app.db.database import Db
    from app.storage import Storage

EX_UNAVAILABLE: Final = 69
EX_CONFIG: Final = 78
P = ParamSpec("P")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def _command(work: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, None]:
    """Wrap an async command: its return value is the exit status, and no refusal leaves a traceback."""

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        sys.exit(_status_of(work(*arguments, **options)))

    return run


def _status_of(work: Coroutine[Any, Any, int]) -> int:
    """Run the work and return its exit status; a refusal is printed in one line."""
    import asyncio

    try:
        return asyncio.run(work)
    except Unusable as error:
        click.echo(str(error), err=True)
        return EX_CONFIG
    except UploadError as error:
        click.echo(f"{error.title}: {error}", err=True)
        return EX_UNAVAILABLE
    except OSError as error:  # from writing outside the store: a backup, or the target of a restore
        click.echo(f"{error.filename or 'a file'}: {error.strerror}", err=True)
        return EX_IOERR


def _settings() -> "Settings":
    from app import logs
    from app.config import load

    settings = load()
    logs.configure(settings.log_format, "warning")
    return settings


@asynccontextmanager
async def _stores(*, migrated: bool = True) -> "AsyncIterator[tuple[Storage, Db]]":
    """Open storage and database; with `migrated`, raise Unusable unless the tables exist."""
    from app.db import migrate
    from app.main import stores

    async with stores(_settings()) as (storage, db):
        if migrated and (await migrate.pending(db)).needed:
            raise Unusable("the database's schema is not current; waybill migrate makes it so")
        yield storage, db


@click.group(cls=Commands, help="Waybill: uploads that land whole or not at all, and a history of them.")
@click.version_option(package_name="waybill")
def main() -> None:
    # A program can be started with standard files closed. The next file or connection that is
    # opened would take their place, and receive what is printed and logged.
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(opened)


@main.command()
def serve() -> None:
    """Check everything, then serve until SIGTERM."""
    import signal

    from app import logs, server
    from app.cancellation import until_terminated
    from app.config import load

    try:
        settings = load()
    except Unusable as error:
        click.echo(str(error), err=True)
        sys.exit(EX_CONFIG)
    logs.configure(settings.log_format, settings.log_level)
    # A migration may wait for hours, and the first process of a container ignores signals by default.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if status := _status_of(until_terminated(_prepare(settings))):
        sys.exit(status)
    signal.signal(signal.SIGTERM, before)
    sys.exit(0 if server.serve(settings) else EX_UNAVAILABLE)


async def _prepare(settings: "Settings") -> int:
    """Check everything and bring the schema up to date, here, where signals are handled while a migration waits."""
    from app import checks
    from app.db import migrate
    from app.ids import now_us
    from app.main import open_database
    from app.sessions import totals_records

    results = await checks.run(settings)
    for check in results:
        if check.warns or not check.ok:
            click.echo(f"{check.name}: {check.found}", err=True)
    if failed := [check for check in results if not check.ok]:
        return _status(failed)
    db = open_database(settings)
    try:
        await db.open()
        await migrate.migrate(db, now_us=now_us(), indexes=False)
        await totals_records.begin(db)
    finally:
        await db.close()
    return 0


def _status(failed: "list[Check]") -> int:
    """The exit status of failed checks: 69 if waiting could help, 78 if only an operator can."""
    return EX_UNAVAILABLE if all(check.away for check in failed) else EX_CONFIG


@main.command()
@_as_json
@_command
async def check(as_json: bool) -> int:
    """Run the checks of the start and print each one's result."""
    from app import checks

    results = await checks.run(_settings())
    failed = [result for result in results if not result.ok]
    if as_json:
        _print({"ok": not failed, "checks": [result._asdict() for result in results]})
    else:
        for result in results:
            label = "warn" if result.warns else "ok  " if result.ok else "FAIL"
            click.echo(f"{label}  {result.name}: {result.found}")
    return _status(failed) if failed else 0


@main.command(name="migrate")
@_as_json
@_command
async def migrate_(as_json: bool) -> int:
    """Bring the database's schema up to date, as the start does."""
    from app.db import migrate
    from app.ids import now_us
    from app.sessions import totals_records

    async with _stores(migrated=False) as (_, db):
        applied = await migrate.migrate(db, now_us=now_us())
        await totals_records.begin(db)
    if as_json:
        _print({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


@main.command()
@_as_json
@_command
async def sweep(as_json: bool) -> int:
    """Remove leftovers of crashes and abandoned uploads, once, as the service does on a schedule."""
    from app.db import migrate
    from app.ids import now_us
    from app.main import receiving
    from app.sessions import totals_records

    async with _stores(migrated=False) as (storage, db):
        await migrate.migrate(db, now_us=now_us(), indexes=False)
        await totals_records.begin(db)
        async with receiving(_settings(), storage, db) as ways_in:
            swept = await ways_in.sweeper.once()
    if as_json:
        _print(swept.as_dict())
    else:
        for name, value in swept.as_dict().items():
            click.echo(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
    return 0 if swept.stopped is None else 1


@main.command(name="verify")
@_as_json
@_command
async def verify_(as_json: bool) -> int:
    """Compare every stored file with its record, and the other way round; repair records of files that are intact."""
    from app.maintenance.verify import verify
    from app.model import Damage
    from app.uploads import records as upload_records

    async with _stores() as (storage, db):
        count = await upload_records.count_stored(db) + await upload_records.count_damaged(db)
        with click.progressbar(length=count, label="verifying", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            found = await verify(storage, db, on_file=lambda: bar.update(1))
    if as_json:
        _print(found.as_dict())
    else:
        click.echo(f"{found.files} files, {found.bytes} bytes read")
        for kind in (*Damage, "without_record", "foreign", "mended", "recounted"):
            for name in getattr(found, kind):
                click.echo(f"{kind.replace('_', ' ')}: {_shown(name)}")
        if found.doubt is not None:
            click.echo(found.doubt)
        click.echo("sound" if found.sound else "NOT sound")
    return 0 if found.sound else 1


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", default=7, show_default=True, type=click.IntRange(1, 1000), help="How many backups to keep.")
@click.option("--verify", "verify_only", is_flag=True, help="Make none; read again what is there, and compare.")
@_as_json
@_command
async def backup(directory: Path, keep: int, verify_only: bool, as_json: bool) -> int:
    """Back up the database and the files into DIRECTORY, while the service serves; only what is new is copied."""
    from app.backup import back_up
    from app.backup.snapshots import Backups
    from app.ids import now_us

    backups = Backups(directory)
    if verify_only:
        damaged = backups.damaged()
        if as_json:
            _print({"sound": not damaged, "damaged": damaged})
        else:
            click.echo(
                "\n".join([*(f"damaged: {_shown(path)}" for path in damaged), "NOT sound" if damaged else "sound"])
            )
        return 1 if damaged else 0
    settings = _settings()
    async with _stores() as (_, db):
        url = settings.database_url.get_secret_value()
        about = await back_up(settings.storage_dir, db, url, backups, now_us=now_us(), keep=keep)
    if as_json:
        _print(about.as_dict())
    else:
        click.echo(f"{backups.root / 'snapshots' / about.name}: {about.files} files, {about.bytes} bytes")
        click.echo(f"{about.copied} copied, {len(about.deleted)} deleted meanwhile, {about.unfinished} unfinished")
        for key in about.lost:
            click.echo(f"NOT copied, missing or damaged: {key}")
        if not about.secret_key:
            click.echo("WAYBILL_SECRET_KEYS is not in it: keep a copy, or every session ends")
    return 1 if about.lost else 0


@main.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--snapshot", "name", help="Which one of the backups; by default the newest.")
@_as_json
@_command
async def restore(directory: Path, name: str | None, as_json: bool) -> int:
    """Restore a backup from DIRECTORY into an empty store and an empty database."""
    from app.backup.restore import restore as put_back
    from app.backup.snapshots import Backups
    from app.ids import now_us
    from app.main import open_database

    settings = _settings()
    snapshots = {snapshot.name: snapshot for snapshot in Backups(directory).snapshots()}
    snapshot = snapshots.get(name or max(snapshots, default=""))
    if snapshot is None:
        raise Unusable(f"there is no such backup; there are: {', '.join(snapshots) or 'none'}")
    restored = await put_back(
        snapshot,
        settings.storage_dir,
        lambda: open_database(settings),
        settings.database_url.get_secret_value(),
        settings.database_schema or None,
        now_us=now_us(),
    )
    if as_json:
        _print(restored.as_dict())
    else:
        click.echo(f"{restored.snapshot}: {restored.files} files, {restored.unfinished} unfinished uploads")
        for key in restored.lost:
            click.echo(f"lost: {key}")
        if not restored.secret_key:
            click.echo("no key was in it: set WAYBILL_SECRET_KEYS as it was, or every session ends")
        click.echo("next: waybill serve; it may serve while waybill verify reads all of it once more")
    return 1 if restored.lost else 0


@main.command()
@click.argument("session", required=False)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500), help="How many to print at most.")
@_as_json
@_command
async def history(session: str | None, limit: int, as_json: bool) -> int:
    """Print the latest uploads of SESSION; without one, the latest sessions."""
    async with _stores() as (_, db):
        return await (_sessions(db, limit, as_json) if session is None else _uploads(db, session, limit, as_json))


async def _sessions(db: "Db", limit: int, as_json: bool) -> int:
    from app.model import rfc3339
    from app.sessions import records as session_records

    sessions = await session_records.list_sessions(db, limit)
    if as_json:
        _print({"items": [session.model_dump(mode="json") for session in sessions]})
        return 0
    for session in sessions:
        state = f"ended {rfc3339(session.ended_at)}" if session.ended_at is not None else "open"
        click.echo(f"{session.id}  last seen {rfc3339(session.last_seen_at)}  {state}")
    return 0


async def _uploads(db: "Db", session_id: str, limit: int, as_json: bool) -> int:
    from app.history import HistoryQuery
    from app.model import is_upload_id, rfc3339
    from app.sessions import records as session_records
    from app.uploads import records as upload_records

    session = await session_records.find_session(db, session_id) if is_upload_id(session_id) else None
    if session is None:
        click.echo("there is no such session", err=True)
        return 1
    page = await upload_records.list_uploads(db, session.id, HistoryQuery(), after=None, page_size=limit)
    if as_json:
        items = [upload.model_dump(mode="json") for upload in page.uploads]
        _print({"session": session.model_dump(mode="json"), "items": items, "skipped": page.skipped})
        return 0
    for upload in page.uploads:
        when, name = rfc3339(upload.created_at), _shown(upload.filename)
        click.echo(f"{when}  {upload.status:<10}  {upload.size:>12}  {upload.id}  {name}")
    if page.skipped:
        click.echo(f"{page.skipped} broken rows left out", err=True)
    return 0


def _shown(name: str) -> str:
    """The name, escaped so that it can neither end the line nor move the terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)


def _print(document: object) -> None:
    from pydantic_core import to_json

    click.echo(to_json(document, indent=2).decode())
