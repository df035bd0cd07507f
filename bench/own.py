"""Waybill itself, in all the ways in which it is measured."""

import sys
from collections.abc import Sequence, Set
from importlib import metadata
from pathlib import Path
from typing import Final

from bench.generator import Wire, draft, form, put, tus, tus_in_two
from bench.peer import NO, Kind, Peer, Place, column

_UPLOADS: Final = "/api/ingestion/uploads"
_LIBRARIES: Final = ("starlette", "uvicorn", "uvloop", "httptools")
SMALL: Final = frozenset({"W3", "W4"})
"""The works for what differs from another peer by what a request costs, and not by what a byte does."""

BASELINE: Final = "waybill"


class _Waybill:
    """The Waybill beside this benchmark, which is there already."""

    def version(self, tools: Path) -> str:
        libraries = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
        return f"waybill {metadata.version('waybill')}; {libraries}; Python {sys.version.split()[0]}"


def _command(place: Place) -> list[str]:
    return [sys.executable, "-m", "app", "serve"]


def _rows(place: Place) -> Sequence[str | None]:
    question = "SELECT sha256 FROM uploads WHERE status = 'completed'"
    if place.database is not None:
        return place.database.query(question)
    return column(place.home / "waybill.db", question)


def _waybill(
    name: str,
    title: str,
    wire: Wire,
    *,
    cores: int = 1,
    postgresql: bool = False,
    durable: str = "yes",
    does: Set[Kind] = frozenset({"upload"}),
    works: Set[str] = frozenset(),
    **settings: str,
) -> Peer:
    def environment(place: Place) -> dict[str, str]:
        given = {"STORAGE_DIR": str(place.home), "PORT": str(place.port), "LOG_LEVEL": "warning", **settings}
        if place.database is not None:
            given["DATABASE_URL"] = place.database.url
        return {f"WAYBILL_{key}": value for key, value in given.items()}

    return Peer(
        name=name,
        title=title,
        needs=[_Waybill()],
        command=_command,
        environment=environment,
        wire=wire,
        durable=durable,
        digest="SHA-256",
        row="yes",
        rows=_rows,
        cores=cores,
        uses_postgresql=postgresql,
        does=frozenset(does),
        works=frozenset(works),
    )


_FORM: Final = form(_UPLOADS)

OWN: Final = (
    _waybill(BASELINE, "Waybill, form", _FORM, does={"upload", "download", "history"}),
    _waybill("waybill-raw", "Waybill, raw PUT", put(f"{_UPLOADS}/%n.bin")),
    _waybill("waybill-tus", "Waybill, tus, creation with upload", tus(_UPLOADS), works=SMALL),
    _waybill("waybill-tus-patch", "Waybill, tus, POST and PATCH", tus_in_two(_UPLOADS), works=SMALL),
    _waybill("waybill-draft", "Waybill, draft in one request", draft(f"{_UPLOADS}/%n.bin"), works={"W3"}),
    _waybill("waybill-fast", "Waybill, DURABILITY=fast", _FORM, durable=NO, DURABILITY="fast"),
    _waybill("waybill-2", "Waybill, two workers, two cores", _FORM, cores=2, WORKERS="2"),
    _waybill("waybill-pg", "Waybill, PostgreSQL", _FORM, postgresql=True, does={"upload", "history"}),
)
