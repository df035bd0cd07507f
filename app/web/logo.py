"""The logo on the page: an image that the operator names (WAYBILL_LOGO), read once, when the service starts."""

import re
from pathlib import Path
from typing import Final

from app.errors import Unusable
from app.web.assets import Asset

MAX_BYTES: Final = 64 * 1024
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_SVG = re.compile(rb"(?:<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE\s+svg[^>\[]*>|\s)*<svg[\s>]", re.DOTALL)
LOGO_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""The policy of a logo: opened by itself, an SVG has its own styles, runs nothing and loads nothing."""


def read_logo(path: Path) -> Asset:
    """Read a logo.

    Raises:
        Unusable: it cannot be read, is too large, or is neither a PNG nor an SVG.
    """
    named = f"WAYBILL_LOGO is {str(path)!r}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unusable(f"{named}, which cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise Unusable(f"{named}, which has more than 64 KiB, expected an image of 64 KiB at most")
    if content.startswith(_PNG):
        return Asset.of(content, "image/png")
    if _SVG.match(content.removeprefix(b"\xef\xbb\xbf")):
        return Asset.of(content, "image/svg+xml")
    raise Unusable(f"{named}, which is neither, expected a PNG or an SVG")
