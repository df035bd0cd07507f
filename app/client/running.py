"""Running of the commands: from options to the work and its exit status."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import click

from app.annotations import checked_metadata
from app.client import asking
from app.client.accounts import Account, Accounts, address
from app.client.display import audience
from app.client.failures import Misused, TransferFailed
from app.client.outcomes import Outcome
from app.client.pulling import Pull, RemoteFile, of_link, of_record
from app.client.pushing import SMALL_FOR_EACH, Push
from app.client.sent import Sent
from app.client.sources import Walk, matches, named
from app.client.streaming import send_stream
from app.client.target import Target, find_target, join, session_of, signed_in
from app.client.transport import Transport
from app.client.watching import Watch
from app.client.wire import Wire
from app.durations import duration
from app.protocols.annotations import NOT_METADATA


def service_url(given: str | None) -> str:
    """The address of the service: as given, of WAYBILL_URL, or of the last login; raises Misused if there is none."""
    url = given or os.environ.get("WAYBILL_URL") or Accounts().last()
    if not url:
        raise Misused("no service is named: --to URL, WAYBILL_URL, or waybill login URL")
    return address(url)


@asynccontextmanager
async def reached(
    url: str | None,
    patience: str | None,
    report: Callable[[str], None] | None = None,
    *,
    connections: int = 8,
    begin: bool = False,
    for_ever: bool = False,
) -> AsyncIterator[tuple[Transport, Target]]:
    """Connect to the service, in the caller's session."""
    seconds = _seconds(patience or "2min") if patience or not for_ever else None
    async with Transport(patience=seconds, connections=connections, report=report) as transport:
        target = await find_target(transport, service_url(url))
        token = os.environ.get("WAYBILL_TOKEN") or None
        yield transport, await signed_in(transport, target, Accounts(), token=token, begin=begin)


def _seconds(text: str) -> float:
    try:
        return duration(text).total_seconds()
    except ValueError as error:
        raise Misused(str(error)) from None


async def push(
    files: tuple[str, ...],
    url: str | None,
    name: str | None,
    pairs: tuple[str, ...],
    expires_in: str | None,
    exclude: tuple[str, ...],
    watch: bool,
    delete_after: bool,
    again: bool,
    dry_run: bool,
    parallel: int,
    patience: str | None,
    as_json: bool,
) -> int:
    """Push files, or standard input, or what appears in folders."""
    metadata = _metadata(pairs)
    if expires_in is not None:
        _seconds(expires_in)
    if ("-" in files) != (name is not None) or ("-" in files and (len(files) > 1 or watch or dry_run or delete_after)):
        raise Misused("standard input (-) is sent alone, and has a --name")
    async with AsyncExitStack() as stack:
        hearing = stack.enter_context(audience(as_json=as_json))
        most = parallel * (SMALL_FOR_EACH + 1)
        reaching = reached(url, patience, hearing.note, connections=most, begin=not dry_run, for_ever=watch)
        transport, target = await stack.enter_async_context(reaching)
        if delete_after and not target.is_waybill:
            raise Misused("--delete-after needs a Waybill service: no other says which bytes it has")
        wire = Wire(transport, target, metadata=metadata, expires_in=expires_in)
        if name is not None:
            arrived, size = await send_stream(wire, name, sys.stdin.buffer, lambda at: hearing.moved(name, at))
            hearing.ended(Outcome("-", "sent", size, arrived.id, arrived.digest))
            return 0
        sent = stack.enter_context(Sent(target.session))
        pushing = Push(wire, sent, hearing, parallel=parallel, again=again, delete_after=delete_after, dry_run=dry_run)
        if watch:
            await Watch(pushing, hearing, _folders(files), exclude=exclude, parallel=parallel).until_stopped()
            return 0
        unreadable: list[str] = []

        def report(path: str, why: str) -> None:
            hearing.ended(Outcome(path, "failed", code="unreadable", detail=why))
            unreadable.append(path)

        walk = Walk(exclude, lambda path, why: hearing.note(f"passed over: {path}: {why}"), report)
        failed = await pushing.all(named(files, walk))
        return 1 if failed or unreadable else 0


def _folders(arguments: Iterable[str]) -> list[tuple[bytes, str]]:
    found = [each for argument in arguments for each in matches(argument)]
    for path, _ in found:
        if not os.path.isdir(path):
            raise Misused(f"--watch takes folders, and {os.fsdecode(path)} is none")
    return found


def _metadata(pairs: Iterable[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in found or name in NOT_METADATA:
            raise Misused(
                f"--metadata {pair!r}: expected NAME=VALUE, each name once, and none that names the file itself"
            )
        found[name] = value
    try:
        return checked_metadata(found)
    except ValueError as error:
        raise Misused(f"--metadata: {error}") from None


async def pull(
    wanted: tuple[str, ...],
    url: str | None,
    output: str,
    limit: int | None,
    force: bool,
    parallel: int,
    patience: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Fetch files by id, by share link or by filters."""
    links = [each for each in wanted if "/" in each]
    ids = [each for each in wanted if "/" not in each]
    chosen = _query(**filters)
    if wanted and (chosen or limit):
        raise Misused("files are named by ids and links, or chosen by filters, not both")
    async with AsyncExitStack() as stack:
        files: list[RemoteFile] = []
        hearing = stack.enter_context(audience(as_json=as_json))
        if links:
            linked = Transport(patience=_seconds(patience or "2min"), connections=parallel, report=hearing.note)
            transport = await stack.enter_async_context(linked)
            files += [await of_link(transport, link) for link in links]
        if ids or not wanted:
            reaching = reached(url, patience, hearing.note, connections=parallel)
            transport, target = await stack.enter_async_context(reaching)
            queries = [[("id", each)] for each in ids] or [[*chosen, ("status", "completed")]]
            for query in queries:
                found = [each async for each in asking.records(transport, target, query, limit or sys.maxsize)]
                if ids and not found:
                    raise TransferFailed("not_found", f"there is no upload {query[0][1]} in this session")
                for record in found:
                    if record["links"]["content"] is None:
                        raise TransferFailed("gone", f"{record['id']} has no bytes: it is {record['status']}")
                    at = urljoin(target.base, record["links"]["content"])
                    files.append(of_record(record, at, target.headers))
        files = list({(file.name, file.sha256): file for file in reversed(files)}.values())  # each once
        pulling = Pull(transport, Path(output), hearing, parallel=parallel, force=force)
        return 1 if await pulling.all(files) else 0


async def ls(
    url: str | None,
    status: tuple[str, ...],
    order: str | None,
    limit: int,
    patience: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """List the uploads of the session that match."""
    query = _query(**filters) + [("status", each) for each in status] + ([("order", order)] if order else [])
    async with reached(url, patience) as (transport, target):
        found = [each async for each in asking.records(transport, target, query, limit)]
    asking.show(found, as_json=as_json)
    return 0


def _query(pairs: Iterable[str], since: str | None, until: str | None, **plain: object) -> list[tuple[str, str]]:
    """The filters of the history that the options say."""
    found = [(name, str(value)) for name, value in plain.items() if value is not None]
    found += [(name, value) for name, value in (("from", since), ("to", until)) if value is not None]
    return found + [(f"metadata.{name}", value) for name, value in _metadata(pairs).items()]


async def share(
    upload_id: str,
    url: str | None,
    expires_in: str | None,
    max_downloads: int | None,
    label: str | None,
    patience: str | None,
    as_json: bool,
) -> int:
    """Make a link to a file, and print it."""
    wishes = {"expires_in": expires_in, "max_downloads": max_downloads, "label": label}
    given = {name: value for name, value in wishes.items() if value is not None}
    async with reached(url, patience) as (transport, target):
        await asking.share(transport, target, upload_id, given, as_json=as_json)
    return 0


async def login(url: str, code: str | None, patience: str | None) -> int:
    """Keep a session of a service: one that a code joins, or whose token comes by standard input."""
    token = None
    if code is None:
        text = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
        token = text.strip()
        if not token:
            raise Misused("a session is kept by --code, or by its token on standard input")
    async with Transport(patience=_seconds(patience or "2min")) as transport:
        target = await find_target(transport, address(url))
        if not target.is_waybill:
            raise Misused(f"{target.base} is no Waybill service")
        if token is not None:
            account = Account(token, (await session_of(transport, target, token))["id"])
        else:
            account = await join(transport, target, code or "")
    Accounts().keep(target.base, account)
    click.echo(f"session {account.session} of {target.base} is kept")
    return 0
