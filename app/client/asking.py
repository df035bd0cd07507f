"""Asking of a Waybill service: what the session's history has, links to its files, and who the caller is."""

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urljoin

import click

from app.client.display import plain, printed, readable
from app.client.failures import Misused, TransferFailed
from app.client.target import Target
from app.client.transport import Transport

Filters = Sequence[tuple[str, str]]
_PAGE = 500


async def records(transport: Transport, target: Target, filters: Filters, limit: int) -> AsyncIterator[dict[str, Any]]:
    """The records of the session's history that match, `limit` at most."""
    require_session(target)
    cursor: str | None = None
    while limit > 0:
        query = [*filters, ("limit", str(min(limit, _PAGE))), *([("cursor", cursor)] if cursor else [])]
        url = f"{target.base}/api/ingestion/history?{urlencode(query)}"
        reply = await transport.ask("GET", url, target.headers)
        if reply.status != 200:
            raise reply.refused()
        page = reply.json()
        for record in page["items"]:
            yield record
            limit -= 1
        cursor = page["next_cursor"]
        if cursor is None:
            return


async def record_of(transport: Transport, target: Target, upload_id: str) -> dict[str, Any]:
    """The record of one upload."""
    async for record in records(transport, target, [("id", upload_id)], 1):
        return record
    raise TransferFailed("not_found", f"there is no upload {upload_id} in this session")


def require_session(target: Target) -> None:
    """Raise Misused where there is no history to ask."""
    if not target.is_waybill:
        raise Misused(f"{target.base} is no Waybill service")
    if target.token is None:
        raise Misused("no session is kept here: waybill login, or WAYBILL_TOKEN")


def show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print records, one a line: for people on a terminal, as JSON elsewhere."""
    if as_json or not sys.stdout.isatty():
        for record in found:
            printed(record)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for record in found:
        created = record["created_at"][:16].replace("T", " ")
        line = Text(f"{created}  {readable(record['size']):>10}  {record['id']}  ")
        if record["status"] != "completed":
            line.append(f"{record['status']} ", "red" if record["status"] == "failed" else "yellow")
        line.append(plain(record["path"] or record["filename"]), "bold")
        console.print(line, soft_wrap=True)


async def share(
    transport: Transport, target: Target, upload_id: str, wishes: Mapping[str, object], *, as_json: bool
) -> None:
    """Make a link to a file, and print its URL."""
    require_session(target)
    reply = await transport.ask(
        "POST",
        f"{target.base}/api/ingestion/files/{upload_id}/links",
        {**target.headers, "Content-Type": "application/json"},
        json.dumps(wishes).encode(),
    )
    if reply.status != 201:
        raise reply.refused()
    link = reply.json()
    link["url"] = urljoin(target.base, link["url"])
    if as_json:
        printed(link)
    else:
        click.echo(link["url"])
