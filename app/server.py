"""How uvicorn is run: its parser and loop, its workers, its end, and the memory allocator beneath it."""

import ctypes
import resource
import sys
from typing import Final

import structlog
import uvicorn
from starlette.applications import Starlette

from app import logs, main
from app.config import Settings, load

log = structlog.stdlib.get_logger("waybill")

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MMAP_BYTES: Final = 32 * 1024 * 1024
_TRIM_BYTES: Final = 64 * 1024 * 1024


def keep_freed_blocks() -> None:
    """Let glibc keep the blocks that bodies are read into.

    They are up to 256 KiB long. By default glibc maps each anew and gives it back at
    once, and the kernel zeroes every page of every body: measured, two thirds of the CPU
    that receiving cost. Other C libraries have no such call and need none.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def raise_open_files_limit() -> None:
    """Allow as many open files as the system lets this process have: each upload may need two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def create() -> Starlette:
    """The application as each worker process makes it, from the environment."""
    settings = load()
    logs.configure(settings.log_format, settings.log_level)
    keep_freed_blocks()
    raise_open_files_limit()
    return main.build(settings)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. The caller has checked that the service can start."""
    uvicorn.run(
        "app.server:create",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=4096,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.shutdown_timeout.total_seconds()),
    )
