"""Logs: one line per event, with named fields, on standard error; ours and the libraries' alike."""

import atexit
import logging
import os
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

from app.config import LogFormat, LogLevel

STDERR: Final = 2
MAX_WAITING: Final = 10_000
"""How many lines may wait for a reader; further ones are lost, and counted."""
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
"""How many bytes of lines may wait: clients that send long requests must not fill the memory with log lines."""
MAX_FIELD_CHARACTERS: Final = 1024
"""A longer value is cut: a path or a name may be as long as a client likes."""
_MAX_TRACEBACK_CHARACTERS: Final = 16 * 1024
_MAX_ENTRIES: Final = 20
_GATHER_SECONDS: Final = 0.005
_LAST_SECONDS: Final = 1.0

_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_COLOURS: Final = {"critical": "\033[1;31m", "error": "\033[31m", "warning": "\033[33m", "info": "\033[32m"}
_DIM: Final = "\033[2m"
_PLAIN: Final = "\033[0m"
_NEEDS_QUOTES: Final = frozenset(" \t\r\n=\"'")


class _Lines:
    """Lines on their way to standard error, written by a thread of its own.

    Logging never waits for a reader: a full pipe, a stopped terminal or a closed one costs
    lines, never a request. The thread calls the system and not `sys.stderr`: blocked by a full pipe, it
    would still hold that stream's lock when the interpreter wants to end.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._bytes = 0  # bytes of the lines that wait
        self._counting = threading.Lock()
        self._lost = self._reported = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if it is not running yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="waybill-logs", daemon=True)
            self._thread.start()
            atexit.register(flush)

    def write(self, line: str) -> None:
        with self._counting:
            if self._waiting.qsize() >= MAX_WAITING or self._bytes + len(line) > MAX_WAITING_BYTES:
                self._lost += 1
                return
            self._bytes += len(line)
        self._waiting.put(line)

    def flush(self) -> None:
        """Do nothing: the libraries call this after every line, and would wait."""

    def wait(self, seconds: float) -> None:
        """Return when what was written before this call has been read, or after `seconds`."""
        if self._thread is not None:
            arrived = threading.Event()
            self._waiting.put(arrived)
            arrived.wait(seconds)

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            if isinstance(batch[0], str):
                time.sleep(_GATHER_SECONDS)  # under load one wake of this thread serves many lines
            with suppress(Empty):
                while len(batch) < MAX_WAITING:
                    batch.append(self._waiting.get_nowait())
            lines = "".join(line for line in batch if isinstance(line, str))
            _write_all(lines)
            with self._counting:
                self._bytes -= len(lines)
            reported = self._report_lost()
            for arrived in batch:
                if isinstance(arrived, threading.Event):
                    if reported:
                        self._waiting.put(arrived)  # behind the report
                    else:
                        arrived.set()

    def _report_lost(self) -> bool:
        """Log how many lines were lost since the last report; False if none, or if there is no room for it yet."""
        lost = self._lost - self._reported
        if not lost or self._waiting.qsize() >= MAX_WAITING or self._bytes > MAX_WAITING_BYTES // 2:
            return False
        self._reported += lost
        structlog.stdlib.get_logger("waybill").warning("log lines were lost: nobody read them", lines=lost)
        return True


def _write_all(text: str) -> None:
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    try:
        while left:
            left = left[os.write(STDERR, left) :]
    except OSError:
        return  # nobody reads any more, and there is nowhere else to report it


_LINES: Final = _Lines()


def flush(seconds: float = _LAST_SECONDS) -> None:
    """Wait up to `seconds` for the log's reader to take all lines logged until now."""
    _LINES.wait(seconds)


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Configure all logging of this process: its format and its level."""
    _LINES.start()
    stream: Any = _LINES
    renderer: Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = _Text(colours=os.isatty(STDERR))
    exceptions = structlog.processors.format_exc_info
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_SHARED, exceptions, _bounded, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(allow=())],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, exceptions, _bounded, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    # These log every argument, or every request, without hiding secrets.
    for name in ("databases", "aiosqlite", "asyncio"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _bounded(logger: Any, method: str, event: EventDict) -> EventDict:
    """Cut every value of the event to `MAX_FIELD_CHARACTERS`."""
    for name, value in event.items():
        if isinstance(value, str):
            if len(value) > MAX_FIELD_CHARACTERS:
                event[name] = _cut(value, _MAX_TRACEBACK_CHARACTERS if name == "exception" else MAX_FIELD_CHARACTERS)
        elif isinstance(value, list | tuple):
            if len(value) > _MAX_ENTRIES:
                event[name] = [*value[:_MAX_ENTRIES], f"and {len(value) - _MAX_ENTRIES} more"]
            event[name] = [
                _cut(entry, MAX_FIELD_CHARACTERS) if isinstance(entry, str) else entry for entry in event[name]
            ]
    return event


def _cut(text: str, most: int) -> str:
    """Shorten a text to its beginning and its end: a path begins and a traceback ends with what matters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}… ({len(text) - most} characters left out) …{text[-most // 2 :]}"


class _Text:
    """A line for people: time, level, event, fields. A traceback follows its event, indented.

    A line may hold text from clients, so characters that could end the line, move the cursor or
    colour it are escaped.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        moment, level = event.pop("timestamp", ""), event.pop("level", method)
        said, exception = str(event.pop("event", "")), event.pop("exception", None)
        line = _inert(said + "".join(f" {name}={_field(value)}" for name, value in event.items()))
        if exception is not None:
            line = "\n    ".join([line, *(_inert(part) for part in str(exception).splitlines())])
        if self._colours:
            return f"{_DIM}{moment}{_PLAIN} {_COLOURS.get(level, _DIM)}{level:<8}{_PLAIN} {line}"
        return f"{moment} {level:<8} {line}"


def _field(value: object) -> str:
    return value if isinstance(value, str) and value and not _NEEDS_QUOTES.intersection(value) else repr(value)


def _inert(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
