"""Assets: what the page is made of, read and compressed once, and answered from memory."""

import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

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
    """A file as it is sent: plain, and compressed if that is shorter; their entity tags; its type and policy."""

    plain: bytes
    compressed: bytes | None
    tag: str
    media_type: str
    policy: str

    @classmethod
    def of(cls, content: bytes, media_type: str, policy: str = PAGE_POLICY) -> "Asset":
        compressed = gzip.compress(content, 9, mtime=0)
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, compressed if len(compressed) < len(content) else None, tag, media_type, policy)

    def encoded(self, accept_encoding: Sequence[str]) -> tuple[bytes, str, str | None]:
        """The bytes for a client that accepts this, their strong entity tag, and how they are encoded."""
        if self.compressed is not None and takes_gzip(accept_encoding):
            return self.compressed, f'"{self.tag}-gzip"', "gzip"
        return self.plain, f'"{self.tag}"', None


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
