"""Commands of the client: push, pull, ls, share, login.

Each imports what it needs when it is called, and prints as it goes. Exit status: 0 all is done, 1 some of it failed,
2 wrong usage, 69 the service cannot be reached, 77 it refuses the token, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import redirect_stdout
from functools import wraps
from typing import Any, Final, ParamSpec

import click

EX_USAGE: Final = 2
EX_UNAVAILABLE: Final = 69
EX_NOPERM: Final = 77
EX_INTERRUPTED: Final = 130
P = ParamSpec("P")

_to = click.option(
    "--to", "url", metavar="URL", help="Address of the service. Default: WAYBILL_URL, or the last login."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON lines on a terminal, too.")
_patience = click.option(
    "--patience",
    metavar="DURATION",
    help="How long the service may be away before the command gives up. Default: 2min.",
)


def _client(work: Callable[P, Coroutine[Any, Any, int]]) -> Callable[P, None]:
    """Wrap an async command: its return value is the exit status, and a failure is one line."""

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        # Other commands' results are gathered until they end; these come as they are printed.
        with redirect_stdout(getattr(sys.stdout, "live", sys.stdout)):
            sys.exit(_status_of(work(*arguments, **options)))

    return run


def _status_of(work: Coroutine[Any, Any, int]) -> int:
    """Run the work and return its exit status."""
    import asyncio
    import sqlite3

    try:
        import uvloop

        import app.client.running  # noqa: F401  # what every command needs
        from app.client.failures import AccessDenied, ConnectionBroken, Misused, TransferFailed, Unreachable
    except ModuleNotFoundError as error:
        work.close()
        raise click.UsageError(f"the client is not installed ({error.name}): pip install 'waybill[client]'") from None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except Misused as error:
        raise click.UsageError(str(error)) from None
    except AccessDenied as error:
        click.echo(f"refused: {error}", err=True)
        return EX_NOPERM
    except Unreachable as error:
        click.echo(f"unreachable: {error}", err=True)
        return EX_UNAVAILABLE
    except (TransferFailed, ConnectionBroken) as error:
        click.echo(f"failed: {error}", err=True)
        return 1
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:  # of the user's own directories
        click.echo(f"failed: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        return EX_INTERRUPTED


@click.command()
@click.argument("files", nargs=-1, required=True)
@_to
@click.option("--name", help="Name of what comes by standard input (-).")
@click.option("--metadata", "pairs", multiple=True, metavar="NAME=VALUE", help="A pair that every file carries.")
@click.option("--expires-in", metavar="DURATION", help="When the service deletes the files again, such as 30d.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Names, or paths with a slash, to leave out: '*.tmp'."
)
@click.option("--watch", is_flag=True, help="Go on for ever: send every new and changed file below the folders, once.")
@click.option("--delete-after", is_flag=True, help="Delete each file here once the service has it.")
@click.option("--again", is_flag=True, help="Send what was sent before, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 64), help="Large files at a time.")
@_patience
@_as_json
@_client
async def push(**options: Any) -> int:
    """Send FILES: files, folders, patterns such as '*.log', or - for standard input.

    Uploads go on where they broke off, in this run or the next. What the service has already is not sent again.
    """
    from app.client.running import push as run

    return await run(**options)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the filters of the history."""
    for option in reversed(
        (
            click.option("--filename", help="Names that hold this text; * and ? are wildcards."),
            click.option("--path", help="Paths in a folder, such as 'photos/*'."),
            click.option(
                "--metadata", "pairs", multiple=True, metavar="NAME=VALUE", help="Uploads that carry this pair."
            ),
            click.option("--type", "content_type", help="Content type, such as 'image/*'."),
            click.option("--sha256", help="The digest."),
            click.option("--since", metavar="TIME", help="Created at this time or later: a date, or RFC 3339."),
            click.option("--until", metavar="TIME", help="Created before this time."),
            click.option("--min-size", type=click.IntRange(0), help="Bytes at least."),
            click.option("--max-size", type=click.IntRange(0), help="Bytes at most."),
            click.option("--protocol", help="How they came: form, raw, tus or resumable."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("wanted", nargs=-1, metavar="[ID | LINK]...")
@_to
@click.option(
    "-o",
    "--output",
    default=".",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Folder that the files go to. Default: the current one.",
)
@_filters
@click.option("--limit", type=click.IntRange(1), help="How many at most. Default: all that match.")
@click.option("--force", is_flag=True, help="Replace files of the same name.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 64), help="Files at a time.")
@_patience
@_as_json
@_client
async def pull(**options: Any) -> int:
    """Fetch files: by their ids, by share links, or all that the filters match.

    A download goes on where it broke off. A file has its name only when its digest is right.
    """
    from app.client.running import pull as run

    return await run(**options)


@click.command()
@_to
@_filters
@click.option("--status", multiple=True, help="completed, failed, uploading, processing, expired or deleted.")
@click.option("--order", help="newest (default), oldest, name, -name, size or -size.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many to print at most.")
@_patience
@_as_json
@_client
async def ls(**options: Any) -> int:
    """List the uploads of the session, the newest first."""
    from app.client.running import ls as run

    return await run(**options)


@click.command()
@click.argument("upload_id", metavar="ID")
@_to
@click.option("--expires-in", metavar="DURATION", help="How long the link lives, such as 7d.")
@click.option("--max-downloads", type=click.IntRange(1), help="How many downloads it allows.")
@click.option("--label", help="A word about the link, for its list.")
@_patience
@_as_json
@_client
async def share(**options: Any) -> int:
    """Make a link to the file of an upload, and print it. Whoever has the link gets the file."""
    from app.client.running import share as run

    return await run(**options)


@click.command()
@click.argument("url")
@click.option("--code", help="A one-time code of the session to join, from Add a device.")
@_patience
@_client
async def login(**options: Any) -> int:
    """Keep a session of the service at URL: by a code, or by its token, which is read from standard input."""
    from app.client.running import login as run

    return await run(**options)


COMMANDS: Final = {command.name: command for command in (login, ls, pull, push, share)}
