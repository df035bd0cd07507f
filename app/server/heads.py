"""The head of a request: checks that uvicorn's parser lacks, and what the head says of the body."""

import re
from collections.abc import Sequence
from typing import Final

_VERSIONS: Final = {"1.0", "1.1"}
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Za-z:._~!$&'()*+,;=-]++\]|(?:[0-9A-Za-z._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]{0,5})?"
)
"""A host as in RFC 3986 §3.2.2, without the comma, which would make it a list to other readers."""


class HeadRefused(Exception):
    """A refusal of what the parser accepts; the text is for the client. Raised in a callback, it stops the parser."""


def framing(
    version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]], *, most_bytes: int, most_fields: int
) -> tuple[int | None, bool]:
    """Check a complete head; return the length that it declares for the body, if it does, and whether that is chunked.

    Raises:
        HeadRefused: it is too large, or could be read in two ways.
    """
    if version not in _VERSIONS:
        raise HeadRefused("only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(url) + sum(len(name) + len(value) for name, value in headers) > most_bytes:
        raise HeadRefused(f"the head of the request has more than {most_bytes} bytes")
    if len(headers) > most_fields:
        raise HeadRefused(f"the request has more than {most_fields} header fields")
    hosts = transfers = 0
    length, is_chunked = None, False
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if _HOST.fullmatch(value) is None:
                raise HeadRefused("the request's Host is no name of a host")
        elif name == b"content-length":
            length = int(value)  # a single number: the parser ensures that
        elif name == b"transfer-encoding":
            transfers += 1
            if version == "1.0" or transfers > 1 or value.strip().lower() != b"chunked":
                raise HeadRefused("the only Transfer-Encoding taken is chunked, once, with HTTP/1.1")
            is_chunked = True
    if hosts > 1 or (not hosts and version == "1.1"):
        raise HeadRefused("the request needs exactly one Host")
    return length, is_chunked
