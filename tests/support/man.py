"""The pages for `man`, made from the commands and their options; the wheel installs them, a test compares them.

`python -m tests.support.man` writes them anew.
"""

import re
from importlib import metadata
from pathlib import Path
from typing import Final

import click

from app.cli import main
from app.commands import CLIENT

ROOT: Final = Path(__file__).parents[2]
PLACE: Final = ROOT / "docs/man"

_STATUS_OF_THE_CLIENT: Final = {
    "0": "All is done.",
    "1": "Some of it failed; the lines say what.",
    "2": "Wrong usage; nothing was done.",
    "69": "The service cannot be reached, and was not for as long as --patience says.",
    "77": "The service refuses the token.",
    "130": "Interrupted; the same command goes on from there.",
}
_STATUS: Final = {
    "0": "All is done.",
    "1": "A problem was found.",
    "2": "Wrong usage.",
    "69": "Something that is needed is unavailable: the database, the store, the address to listen on.",
    "74": "The results could not be written.",
    "78": "The configuration is not usable.",
}
_ENVIRONMENT_OF_THE_CLIENT: Final = {
    "WAYBILL_URL": "Address of the service, where no option names one.",
    "WAYBILL_TOKEN": "Token of the session, in place of the one that is kept.",
    "HTTP_PROXY, HTTPS_PROXY, NO_PROXY": "Proxies on the way to the service, in either case.",
}
_FILES_OF_THE_CLIENT: Final = {
    "~/.config/waybill/servers.json": "The sessions that were begun or logged in to, with their tokens.",
    "~/.cache/waybill/push.db": "What has been sent, and what is under way.",
}


def pages() -> dict[str, str]:
    """Every page by the name of its file."""
    top = click.Context(main, info_name="waybill")
    commands = {name: main.get_command(top, name) for name in main.list_commands(top)}
    found = {
        "waybill.1": _page(top, main, {name: command.get_short_help_str(200) for name, command in commands.items()})
    }
    for name, command in commands.items():
        found[f"waybill-{name}.1"] = _page(click.Context(command, info_name=name, parent=top), command, {})
    return found


def _page(context: click.Context, command: click.Command, commands: dict[str, str]) -> str:
    name = context.command_path.replace(" ", "-")
    of_the_client = command.name in CLIENT
    first, *rest = re.split(r"\n\n+", command.help)
    lines = [
        f'.TH {name.upper()} 1 "" "waybill {metadata.version("waybill")}" "Waybill"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(_one_line(first).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        _text(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *(f".PP\n{_text(_one_line(part))}" for part in (first, *rest)),
    ]
    options = [
        record
        for option in command.get_params(context)
        if isinstance(option, click.Option) and (record := option.get_help_record(context))
    ]
    lines += _listed("OPTIONS", dict(options))
    lines += _listed("COMMANDS", {f"waybill-{name}(1)": said for name, said in commands.items()})
    lines += _listed("EXIT STATUS", _STATUS_OF_THE_CLIENT if of_the_client else _STATUS)
    if of_the_client:
        lines += _listed("ENVIRONMENT", _ENVIRONMENT_OF_THE_CLIENT)
        lines += _listed("FILES", _FILES_OF_THE_CLIENT)
    else:
        lines += [".SH ENVIRONMENT", _text("Every setting is a variable WAYBILL_*; the documentation lists them.")]
    return "\n".join(lines) + "\n"


def _listed(title: str, items: dict[str, str]) -> list[str]:
    """A section of words, each with what it means."""
    if not items:
        return []
    return [f".SH {title}", *(f".TP\n.B {_text(word)}\n{_text(_one_line(meaning))}" for word, meaning in items.items())]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """The text as roff shows it unchanged."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    for page in PLACE.glob("*.1"):
        page.unlink()
    for name, text in pages().items():
        (PLACE / name).write_text(text, encoding="utf-8")
