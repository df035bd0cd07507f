"""The tables of settings, metrics and problem codes, as the pages show them: made from the code, compared by a test.

`python -m tests.support.tables` writes them anew, each between the two comments of its page that name it.
"""

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from app import config
from app.config import types
from app.errors import problem_codes
from tests.support.asgi import serving, settings_in

ROOT: Final = Path(__file__).parents[2]
PLACES: Final = {
    "settings": ROOT / "docs/operations/settings.md",
    "metrics": ROOT / "docs/operations/monitoring.md",
    "label values": ROOT / "docs/operations/monitoring.md",
    "problem codes": ROOT / "docs/api/errors.md",
}
"""Where each table stands."""

_SIZES = {metadata for kind in (types.Size, types.SizeAboveZero) for metadata in kind.__metadata__}
_SIZE_UNITS = {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}
_TIME_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "min": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}


def tables(exposition: str) -> dict[str, str]:
    """Every table by its name; `exposition` is what GET /metrics answers."""
    return {
        "settings": _table(("Variable", "Default", "Meaning"), _settings()),
        "metrics": _table(("Name", "Kind", "Labels", "Meaning"), _metrics(exposition)),
        "label values": _table(("Name", "Label", "Values"), _label_values(exposition)),
        "problem codes": _table(("Status", "Code", "Title"), _problem_codes()),
    }


def shown(name: str) -> str:
    """The table that the page of this name shows."""
    return _between(name).search(PLACES[name].read_text(encoding="utf-8"))[2]


def write(name: str, table: str) -> None:
    page = PLACES[name]
    text = page.read_text(encoding="utf-8")
    page.write_text(_between(name).sub(lambda match: match[1] + table + match[3], text, count=1), encoding="utf-8")


def default(name: str) -> str:
    """The default of a setting, as it would be written in the environment; empty where it is none."""
    field = config.Settings.model_fields[name]
    value: Any = getattr(config.Settings(), name)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return next(f"{value // unit}{word}" for word, unit in _TIME_UNITS.items() if not value % unit)
    if value and not _SIZES.isdisjoint(field.metadata):
        return next((f"{value // unit}{word}" for word, unit in _SIZE_UNITS.items() if not value % unit), str(value))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _settings() -> list[tuple[str, ...]]:
    return [
        (f"`{config.PREFIX}{name.upper()}`", f"`{default(name)}`" if default(name) else "–", field.description or "")
        for name, field in config.Settings.model_fields.items()
    ]


def _problem_codes() -> list[tuple[str, ...]]:
    kinds = sorted(problem_codes().values(), key=lambda kind: (kind.status, kind.code))
    return [(str(kind.status), f"`{kind.code}`", f"{kind.title}.") for kind in kinds]


def _metrics(exposition: str) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), text)
        for name, kind, text, labels in _families(exposition)
    ]


def _label_values(exposition: str) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", f"`{label}`", ", ".join(f"`{value}`" for value in values))
        for name, _, _, labels in _families(exposition)
        for label, values in labels.items()
        if name != "waybill_build_info"  # its values are the versions of what runs
    ]


def _families(exposition: str) -> list[tuple[str, str, str, dict[str, list[str]]]]:
    """Name, kind, help, and the values of each label, in the order in which they are exported."""
    found = []
    for family in text_string_to_metric_families(exposition):
        labels: dict[str, list[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le" and value not in labels.setdefault(label, []):
                    labels[label].append(value)
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.append((name, family.type, family.documentation, labels))
    return found


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


async def _exposition() -> str:
    with TemporaryDirectory() as directory:
        async with serving(settings_in(Path(directory))) as service:
            return (await service.client().get("/metrics")).body.decode()


if __name__ == "__main__":
    for name, table in tables(asyncio.run(_exposition())).items():
        write(name, table)
