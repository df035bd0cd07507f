"""Logging of this process that a test may set up as the service does, and that is as it was before afterwards."""

import logging
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

    The service has every logger remember its first configuration. Of a module's logger that would outlive the test,
    and later lines would go past pytest's capture, from the thread that writes them.
    """
    root, configure = logging.getLogger(), structlog.configure
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in _LEVELLED}
    for handler in handlers:
        root.removeHandler(handler)  # or they would be closed

    def forgettable(**given: object) -> None:
        configure(**{**given, "cache_logger_on_first_use": False})

    try:
        with patch.object(structlog, "configure", forgettable):
            yield
    finally:
        logs.flush(_PATIENCE)
        root.handlers[:], root.level = handlers, level
        configure(**before)
        for name, found in levels.items():
            logging.getLogger(name).setLevel(found)
