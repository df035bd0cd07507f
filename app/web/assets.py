"""Assets: what the page is made of, read and compressed once, and answered from memory."""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from app.protocols.headers import matches
from app.protocols.preferences import Preference, preferences

STATIC: Final = Path(__file__).parent / "static"
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The policy of the page. Its scripts have it as well, because a worker goes by that of its own script."""
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
_TEMPLATES: Final = ".html"


class Asset(NamedTuple):
    """Content as it is sent: plain, and compressed if that is shorter; the middle of its entity tags; its type."""

    plain: bytes
    compressed: bytes | None
    tag: str
    media_type: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> "Asset":
        compressed = gzip.compress(content, 9, mtime=0)
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, compressed if len(compressed) < len(content) else None, tag, media_type)

    def answer(self, request: Request[Any], more_headers: Mapping[str, str]) -> Response:
        """The answer with the content, compressed if the client would rather have it so; or that the client has it."""
        content, tag = self.plain, f'"{self.tag}"'
        headers = {**more_headers, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self.compressed is not None and takes_gzip(request.headers.getlist("accept-encoding")):
            content, tag = self.compressed, f'"{self.tag}-gzip"'
            headers["Content-Encoding"] = "gzip"
        headers["ETag"] = tag
        if matches(", ".join(request.headers.getlist("if-none-match")), tag, weak=True):
            headers.pop("Content-Encoding", None)
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=self.media_type)


def takes_gzip(accept_encoding: Sequence[str]) -> bool:
    """Whether a client would rather have gzip than what is not compressed (RFC 9110 §12.5.3)."""
    wanted = preferences(accept_encoding)
    no = Preference(0, 0)
    best = wanted.get("gzip") or wanted.get("x-gzip") or wanted.get("*") or no
    return 0 < best.weight >= wanted.get("identity", no).weight


@cache
def assets() -> dict[str, Asset]:
    """The files below `static` by their names in URLs, except the templates of pages."""
    files = sorted(path for path in STATIC.rglob("*") if path.is_file() and path.suffix != _TEMPLATES)
    return {path.relative_to(STATIC).as_posix(): Asset.of(path.read_bytes(), _TYPES[path.suffix]) for path in files}
