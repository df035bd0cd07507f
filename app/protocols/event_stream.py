"""Server-sent events (HTML Standard §9.2): how each is written, and the fields that a client sends back."""

from typing import Final

MEDIA_TYPE: Final = "text/event-stream"
LAST_EVENT_ID: Final = "last-event-id"
COMMENT: Final = b":\n\n"
"""A comment, which clients pass over; it keeps proxies from closing an idle connection."""


def event(name: str, data: bytes, position: str | None = None) -> bytes:
    """Write an event of one line of data; from its position on a client can go on when it comes back."""
    return b"%bevent: %b\ndata: %b\n\n" % (_id(position), name.encode("ascii"), data)


def only_position(position: str) -> bytes:
    """Write a position alone: clients note it and pass nothing on (§9.2.6, an event with empty data)."""
    return _id(position) + b"\n"


def retry(milliseconds: int) -> bytes:
    """Write how long clients are to wait before they come back."""
    return b"retry: %d\n\n" % milliseconds


def _id(position: str | None) -> bytes:
    return b"" if position is None else b"id: %b\n" % position.encode("ascii")
