"""Who is measured: how each one is had, started and spoken to, and what it promises."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from bench import postgres, processes
from bench.generator import Wire, form, form_field, get, put, tus, tus_in_two
from bench.install import Need, Node, Program, Python
from bench.machine import Cores

_SERVERS: Final = Path(__file__).parent / "servers"
_UVICORN: Final = ("uvicorn", "uvloop", "httptools")
NO: Final = "no"

Kind = Literal["upload", "download", "history"]


@dataclass(frozen=True)
class Place:
    """Where one server lives for one measurement: `home` is empty before, and on the data's file system."""

    home: Path
    port: int
    tools: Path
    database: postgres.Database | None = None

    @property
    def files(self) -> Path:
        """Where uploaded files end up."""
        return self.home / "files"


class Server(NamedTuple):
    """A running server; `pids` are the first processes of all that belongs to it, its own before a database's.

    It accepted connections `ready_seconds` after its start.
    """

    place: Place
    pids: tuple[int, ...]
    ready_seconds: float


Rows = Callable[[Place], Sequence[str | None]]
"""What the peer has recorded: the digest in each row, or None in each if it keeps none."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One column of the comparison.

    `durable`, `digest` and `row` say what holds when the upload is answered. Where rows come
    later, what they cost belongs to the uploads all the same and is waited for.
    """

    name: str
    title: str
    command: Callable[[Place], list[str]]
    wire: Wire
    needs: Sequence[Need] = ()
    environment: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    durable: str = NO
    digest: str = NO
    row: str = NO
    rows: Rows | None = None
    rows_come_later: bool = False
    sidecar: str | None = None
    cores: int = 1
    uses_postgresql: bool = False
    does: frozenset[Kind] = frozenset({"upload"})

    def version(self, tools: Path) -> str:
        found = [need.version(tools) for need in self.needs] or [_waybill_version()]
        return "; ".join([*found, *([postgres.version()] if self.uses_postgresql else [])])

    @contextmanager
    def running(self, home: Path, tools: Path, given: Cores) -> Iterator[Server]:
        """The server on its cores, in `home`, where it finds what was laid there or what it left there before."""
        cores = given.for_server(self.cores)
        for directory in (home, home / "files", home / "tmp"):
            directory.mkdir(exist_ok=True)
        with ExitStack() as stack:
            database = stack.enter_context(postgres.running(home, cores)) if self.uses_postgresql else None
            place = Place(home, processes.free_port(), tools, database)
            pid, ready_seconds = stack.enter_context(
                processes.running(
                    self.command(place),
                    cores,
                    port=place.port,
                    log=home / "server.log",
                    # Spooled bodies belong on the measured disk too.
                    environment={"TMPDIR": str(home / "tmp"), **self.environment(place)},
                    directory=home,
                )
            )
            yield Server(place, (pid, *([database.pid] if database else [])), ready_seconds)

    def stored(self, place: Place) -> Iterator[Path]:
        """Every uploaded file; what the peer keeps beside it for itself is left out."""
        for directory, below, names in os.walk(place.files):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                if self.sidecar is None or not name.endswith(self.sidecar):
                    yield Path(directory, name)


# --- Waybill


def _waybill_version() -> str:
    from importlib import metadata

    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("starlette", "uvicorn", "uvloop", "httptools")
    )
    return f"waybill {metadata.version('waybill')}; {libraries}; Python {sys.version.split()[0]}"


def _waybill_command(place: Place) -> list[str]:
    return [sys.executable, "-m", "app", "serve"]


def _waybill_rows(place: Place) -> Sequence[str | None]:
    question = "SELECT sha256 FROM uploads WHERE status = 'completed'"
    if place.database is not None:
        return place.database.query(question)
    return _column(place.home / "waybill.db", question)


def _waybill(name: str, title: str, *, raw: bool = False, cores: int = 1, postgresql: bool = False,
             durable: str = "yes", does: Set[Kind] = frozenset({"upload"}), **settings: str) -> Peer:  # fmt: skip
    def environment(place: Place) -> dict[str, str]:
        given = {"STORAGE_DIR": str(place.home), "PORT": str(place.port), "LOG_LEVEL": "warning", **settings}
        if place.database is not None:
            given["DATABASE_URL"] = place.database.url
        return {f"WAYBILL_{key}": value for key, value in given.items()}

    return Peer(
        name=name,
        title=title,
        command=_waybill_command,
        environment=environment,
        wire=put("/api/ingestion/uploads/%n.bin") if raw else form("/api/ingestion/uploads"),
        durable=durable,
        digest="SHA-256",
        row="yes",
        rows=_waybill_rows,
        cores=cores,
        uses_postgresql=postgresql,
        does=frozenset(does),
    )


# --- peers


def _script(name: str, needs: Python, *arguments: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        given = [argument(place) for argument in arguments]
        return [str(needs.get(place.tools)), str(_SERVERS / name), str(place.port), str(place.files), *given]

    return command


def _by_hand(journal: str) -> Callable[[Place], list[str]]:
    return _script("starlette_by_hand.py", STARLETTE, lambda place: str(place.home / "rows.db"), lambda place: journal)


def _by_hand_rows(place: Place) -> Sequence[str | None]:
    return _column(place.home / "rows.db", "SELECT NULL FROM uploads")


def _copyparty(place: Place) -> list[str]:
    return [
        str(COPYPARTY.get(place.tools)), "-m", "copyparty", "-q", "-i", "127.0.0.1", "-p", str(place.port),
        "-e2d", "-v", f"{place.files}::rw",
    ]  # fmt: skip


def _copyparty_rows(place: Place) -> Sequence[str | None]:
    return _column(place.files / ".hist" / "up2k.db", "SELECT NULL FROM up")


def _tus_node(place: Place) -> list[str]:
    home = TUS_NODE.get(place.tools)
    script = home / "tus_node.mjs"  # a module finds its packages beside itself only
    shutil.copyfile(_SERVERS / script.name, script)
    return [shutil.which("node") or "node", str(script), str(place.port), str(place.files)]


def _nginx(*lines: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        configuration = place.home / "nginx.conf"
        configuration.write_text(_nginx_configuration(place, lines))
        return [str(NGINX.get(place.tools)), "-e", "stderr", "-p", str(place.home), "-c", str(configuration)]

    return command


def _nginx_configuration(place: Place, lines: Sequence[str]) -> str:
    temporary = "\n".join(
        f"    {kind}_temp_path {place.home / 'tmp' / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    location = "\n".join(f"            {line}" for line in lines)
    return f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {place.home}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
{temporary}
    server {{
        listen 127.0.0.1:{place.port};
        root {place.files};
        location / {{
{location}
        }}
    }}
}}
"""


def _column(database: Path, question: str) -> list[str | None]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(question)]


STARLETTE: Final = Python(("starlette", "python-multipart", "aiofiles", "databases[aiosqlite]", *_UVICORN))
FASTAPI: Final = Python(("fastapi", "python-multipart", *_UVICORN))
AIOHTTP: Final = Python(("aiohttp", "uvloop"))
COPYPARTY: Final = Python(("copyparty",))
TUSPYSERVER: Final = Python(("tuspyserver", *_UVICORN))
TUS_NODE: Final = Node(("@tus/server", "@tus/file-store"))
NGINX: Final = Program("nginx", "nginx-light", "-v")

BASELINE: Final = "waybill"

PEERS: Final = (
    _waybill(BASELINE, "Waybill, form", does={"upload", "download", "history"}),
    _waybill("waybill-raw", "Waybill, raw PUT", raw=True),
    _waybill("waybill-fast", "Waybill, DURABILITY=fast", durable=NO, DURABILITY="fast"),
    _waybill("waybill-2", "Waybill, two workers, two cores", cores=2, WORKERS="2"),
    _waybill("waybill-pg", "Waybill, PostgreSQL", postgresql=True, does={"upload", "history"}),
    Peer(
        name="starlette",
        title="Starlette by hand, SQLite default",
        needs=[STARLETTE],
        command=_by_hand("default"),
        wire=form("/upload"),
        durable="row only",
        row="yes",
        rows=_by_hand_rows,
    ),
    Peer(
        name="starlette-wal",
        title="Starlette by hand, SQLite WAL",
        needs=[STARLETTE],
        command=_by_hand("wal"),
        wire=form("/upload"),
        durable="row only",
        row="yes",
        rows=_by_hand_rows,
    ),
    Peer(
        name="fastapi",
        title="FastAPI UploadFile, sync",
        needs=[FASTAPI],
        command=_script("fastapi_sync.py", FASTAPI),
        wire=form("/upload"),
    ),
    Peer(
        name="aiohttp",
        title="aiohttp, streamed multipart",
        needs=[AIOHTTP],
        command=_script("aiohttp_streamed.py", AIOHTTP),
        wire=form("/upload"),
    ),
    Peer(
        name="copyparty",
        title="copyparty, with its database",
        needs=[COPYPARTY],
        command=_copyparty,
        environment=lambda place: {"HOME": str(place.home)},
        wire=form("/?j", field="f", before=form_field("act", "bput")),
        durable="row only",
        digest="SHA-512",
        row="later",
        rows=_copyparty_rows,
        rows_come_later=True,
    ),
    Peer(
        name="tuspyserver",
        title="tuspyserver, POST and PATCH",
        needs=[TUSPYSERVER],
        command=_script("tuspyserver_app.py", TUSPYSERVER),
        wire=tus_in_two("/files/"),
        row="sidecar",
        sidecar=".info",
    ),
    Peer(
        name="tus-node",
        title="@tus/server, creation with upload",
        needs=[TUS_NODE],
        command=_tus_node,
        wire=tus("/files"),
        row="sidecar",
        sidecar=".json",
    ),
    Peer(
        name="nginx",
        title="nginx dav PUT, stock",
        needs=[NGINX],
        command=_nginx("dav_methods PUT;"),
        wire=put("/%n.bin"),
    ),
    Peer(
        name="nginx-1m",
        title="nginx dav PUT, 1 MiB body buffer",
        needs=[NGINX],
        command=_nginx("dav_methods PUT;", "client_body_buffer_size 1m;"),
        wire=put("/%n.bin"),
    ),
    Peer(
        name="starlette-files",
        title="Starlette FileResponse",
        needs=[STARLETTE],
        command=_script("starlette_files.py", STARLETTE),
        wire=get("%p"),
        does=frozenset({"download"}),
    ),
    Peer(
        name="nginx-static",
        title="nginx static, sendfile",
        needs=[NGINX],
        command=_nginx(),
        wire=get("%p"),
        does=frozenset({"download"}),
    ),
)
