"""Commands as a group: how their results are printed, and which of them are loaded only when they are needed."""

import errno
import io
import os
import sys
from contextlib import redirect_stdout
from typing import Any, Final, TextIO

import click

EX_IOERR: Final = 74
CLIENT: Final = frozenset({"login", "ls", "pull", "push", "share"})
"""Commands that stand in `app.client.commands`, whose libraries are an extra."""


class Buffered(io.TextIOWrapper):
    """A buffer in the place of standard output, which is `live` for commands that print as they go.

    Text and bytes may be written: a shell is told by bytes how a command can go on.
    """

    def __init__(self, live: TextIO) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding="utf-8", errors="surrogateescape", write_through=True)
        self.live = live

    def text(self) -> str:
        """All that was written."""
        return self._bytes.getvalue().decode("utf-8", "surrogateescape")


class Commands(click.Group):
    """Commands whose results are printed all at once, when they have ended; the client's are loaded when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *CLIENT})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in CLIENT:
            return super().get_command(ctx, cmd_name)
        from app.client.commands import COMMANDS

        return COMMANDS.get(cmd_name)

    def main(self, *arguments: Any, **options: Any) -> Any:
        output = Buffered(sys.stdout)
        try:
            with redirect_stdout(output):
                return super().main(*arguments, **options)
        finally:
            if not _written(output.text()):
                sys.exit(EX_IOERR)


def _written(text: str) -> bool:
    """Print the text; False if that fails. The reason is printed too, unless the reader has closed the pipe."""
    if not text or sys.stdout is None:
        return True
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would try to flush the rest of the buffer at its end, and report the failure again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            click.echo(f"standard output: {error.strerror}", err=True)
        return False
    return True
