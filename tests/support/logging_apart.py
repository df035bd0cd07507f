"""Logging of this process that a test may set up as the service does, and that is as it was before afterwards."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import structlog

from app import logs

_LEVELLED = ("databases", "aiosqlite", "asyncio")
_PATIENCE = 60.0  # seconds


@contextmanager
def logging_apart() -> Iterator[None]:
    """Restore the logging of this process at the end, also that of loggers that were used meanwhile.

    The service has every logger remember its first configuration, and a thread of its own writes what is logged. Here
    loggers forget, and a line is written when the call that logs it returns: neither comes later than the test, when
    pytest captures nothing.
    """
    root, configure = logging.getLogger(), structlog.configure
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in _LEVELLED}
    for handler in handlers:
        root.removeHandler(handler)  # or they would be closed

    write = logs._Lines.write

    def write_at_once(lines: logs._Lines, line: str) -> None:
        write(lines, line)
        if threading.current_thread() is not lines._thread:
            lines.wait(_PATIENCE)

    def forgettable(**given: object) -> None:
        configure(**{**given, "cache_logger_on_first_use": False})

    try:
        with patch.object(structlog, "configure", forgettable), patch.object(logs._Lines, "write", write_at_once):
            yield
    finally:
        logs.flush(_PATIENCE)
        root.handlers[:], root.level = handlers, level
        configure(**before)
        for name, found in levels.items():
            logging.getLogger(name).setLevel(found)
