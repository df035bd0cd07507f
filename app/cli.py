"""The command waybill: serve, check, migrate, sweep, verify, history.

Results go to standard output, errors and progress to standard error. Exit status: 0 done,
1 something is not as it should be, 2 wrong usage, 69 the database or the store is away,
78 the configuration is not usable.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Final, ParamSpec

import click
from pydantic_core import to_json

from app import checks, logs, records
from app.config import Settings, load
from app.db import Db, migrate
from app.errors import Unusable, UploadError
from app.main import now_us, stores
from app.model import HistoryQuery, rfc3339
from app.sweep import Sweeper
from app.verify import verify

EX_UNAVAILABLE: Final = 69
EX_CONFIG: Final = 78
P = ParamSpec("P")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def _command(work: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, None]:
    """Run an async command; its number is the exit status, and no refusal leaves a traceback."""

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            status = asyncio.run(work(*arguments, **options))
        except Unusable as error:
            click.echo(str(error), err=True)
            status = EX_CONFIG
        except UploadError as error:
            click.echo(f"{error.title}: {error}", err=True)
            status = EX_UNAVAILABLE
        sys.exit(status)

    return run


def _settings() -> Settings:
    settings = load()
    logs.configure(settings.log_format, "warning")
    return settings


@click.group(help="Waybill: uploads that land whole or not at all, and a history of them.")
@click.version_option(package_name="waybill")
def main() -> None:
    return


@main.command()
def serve() -> None:
    """Check everything, then serve until SIGTERM."""
    # Imported here: the other commands need no HTTP server, and uvicorn takes its time to import.
    from app import server

    try:
        settings = load()
    except Unusable as error:
        click.echo(str(error), err=True)
        sys.exit(EX_CONFIG)
    logs.configure(settings.log_format, settings.log_level)
    failed = [check for check in asyncio.run(checks.run(settings)) if not check.ok]
    for check in failed:
        click.echo(f"{check.name}: {check.found}", err=True)
    if failed:
        sys.exit(EX_CONFIG)
    server.serve(settings)


@main.command()
@_as_json
@_command
async def check(as_json: bool) -> int:
    """Run the checks of the start and print each one's result."""
    results = await checks.run(_settings())
    if as_json:
        _print({"ok": all(result.ok for result in results), "checks": [result._asdict() for result in results]})
    else:
        for result in results:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'}  {result.name}: {result.found}")
    return 0 if all(result.ok for result in results) else EX_CONFIG


@main.command(name="migrate")
@_as_json
@_command
async def migrate_(as_json: bool) -> int:
    """Bring the database's schema up to date, as the start does."""
    async with stores(_settings()) as (_, db):
        applied = await migrate.migrate(db, now_us=now_us())
    if as_json:
        _print({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


@main.command()
@_as_json
@_command
async def sweep(as_json: bool) -> int:
    """Remove what crashes and walk-aways left, once, as the service does on a schedule."""
    async with stores(_settings()) as (storage, db):
        await migrate.migrate(db, now_us=now_us())
        swept = await Sweeper(storage, db, now_us=now_us).once()
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
    """Digest every stored file and compare it with its record, and the other way round."""
    async with stores(_settings()) as (storage, db):
        count = await records.count_stored(db)
        with click.progressbar(length=count, label="verifying", file=sys.stderr) as bar:
            found = await verify(storage, db, on_file=lambda: bar.update(1))
    if as_json:
        _print(found.as_dict())
    else:
        click.echo(f"{found.files} files, {found.bytes} bytes read")
        for kind in ("missing", "damaged", "without_record", "foreign"):
            for name in getattr(found, kind):
                click.echo(f"{kind.replace('_', ' ')}: {name}")
        click.echo("sound" if found.sound else "NOT sound")
    return 0 if found.sound else 1


@main.command()
@click.argument("session", required=False)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500), help="How many to print at most.")
@_as_json
@_command
async def history(session: str | None, limit: int, as_json: bool) -> int:
    """Print the latest uploads of SESSION; without one, the latest sessions."""
    async with stores(_settings()) as (_, db):
        return await (_sessions(db, limit, as_json) if session is None else _uploads(db, session, limit, as_json))


async def _sessions(db: Db, limit: int, as_json: bool) -> int:
    sessions = await records.list_sessions(db, limit)
    if as_json:
        _print({"items": [session.model_dump(mode="json") for session in sessions]})
    for session in () if as_json else sessions:
        state = f"ended {rfc3339(session.ended_at)}" if session.ended_at is not None else "open"
        click.echo(f"{session.id}  last seen {rfc3339(session.last_seen_at)}  {state}")
    return 0


async def _uploads(db: Db, session_id: str, limit: int, as_json: bool) -> int:
    session = await records.find_session(db, session_id)
    if session is None:
        click.echo("there is no such session", err=True)
        return 1
    page = await records.list_uploads(db, session_id, HistoryQuery(), after=None, page_size=limit)
    if as_json:
        items = [upload.model_dump(mode="json") for upload in page.uploads]
        _print({"session": session.model_dump(mode="json"), "items": items, "skipped": page.skipped})
        return 0
    for upload in page.uploads:
        name = (
            upload.filename.encode("unicode_escape").decode() if not upload.filename.isprintable() else upload.filename
        )
        click.echo(f"{rfc3339(upload.created_at)}  {upload.status:<10}  {upload.size:>12}  {upload.id}  {name}")
    if page.skipped:
        click.echo(f"{page.skipped} broken rows left out", err=True)
    return 0


def _print(document: object) -> None:
    click.echo(to_json(document, indent=2).decode())
