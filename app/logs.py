"""Logs: one line per event, with named fields, on standard error; ours and the libraries' alike."""

import logging
import sys
from typing import Any, Final

import structlog
from structlog.typing import Processor

from app.config import LogFormat, LogLevel

_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class _Stderr:
    """Standard error, from which nothing comes back: a full or closed pipe must not fail a request."""

    def write(self, line: str) -> int:
        try:
            return sys.stderr.write(line)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            return


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Send every log line of this process where and how the settings say."""
    stream: Any = _Stderr()
    renderer: Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
        exceptions: Processor = structlog.processors.format_exc_info
    else:
        # Fields are shown as repr, so that a client's text can neither break a line nor colour it.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        exceptions = _untouched
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_SHARED, exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(allow=())],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, exceptions, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    # These print every argument, or every request, and know nothing of secrets.
    for name in ("databases", "aiosqlite", "asyncio"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _untouched(logger: Any, method: str, event: Any) -> Any:
    return event
