"""Detection of the resumable protocol that a request speaks, by its headers."""

from collections.abc import Collection
from typing import Final

from app.model import Protocol
from app.protocols import ietf, tus
from app.protocols.ietf import Resumable
from app.protocols.intents import Codec, Headers, Limits, media_type
from app.protocols.tus import Tus

_BEGINS: Final = frozenset(
    {"tus-resumable", "upload-complete", "upload-incomplete", "upload-length", "upload-defer-length", "upload-concat"}
)
"""The headers by which a request can begin a resumable upload."""


def detect(method: str, headers: Headers) -> Protocol | None:
    """Detect TUS or RESUMABLE; None for neither, or, on a resource's URL, for that of the resource's creation.

    `method` is what the request means, see `tus.method`. A complete file stays an ordinary
    upload although Upload-Complete cannot be read, as the draft wants it, and so does a complete
    form. A body that is only a part of a file never does.
    """
    if method in {"POST", "PUT"} and _BEGINS.isdisjoint(headers.keys()):  # most requests
        return Protocol.RESUMABLE if media_type(headers) == ietf.CHUNK else None
    if headers.getlist("tus-resumable"):
        return Protocol.TUS
    if method == "PATCH":
        return Protocol.TUS if media_type(headers) == tus.CHUNK else Protocol.RESUMABLE
    if method in {"POST", "PUT"}:
        return _new(method, headers)
    return Protocol.RESUMABLE if headers.getlist("upload-draft-interop-version") else None


def codec_for(protocol: Protocol, method: str, headers: Headers, limits: Limits, versions: Collection[int]) -> Codec:
    """The codec for a request in `protocol`, TUS or RESUMABLE; `versions` and refusals as in Resumable."""
    if protocol is Protocol.TUS:
        return Tus(method, headers, limits)
    return Resumable(method, headers, limits, versions)


def _new(method: str, headers: Headers) -> Protocol | None:
    ends = ietf.boolean(headers, "Upload-Complete")
    if ends is False or ietf.boolean(headers, "Upload-Incomplete"):  # the latter in the first drafts: ?1 marks a part
        return Protocol.RESUMABLE
    if ends:
        return None if media_type(headers) == "multipart/form-data" else Protocol.RESUMABLE
    if media_type(headers) == ietf.CHUNK:
        return Protocol.RESUMABLE
    if method == "POST" and not headers.getlist("upload-complete"):
        # A tus client whose Tus-Resumable was removed on the way: its empty body is no file.
        named = ("upload-length", "upload-defer-length", "upload-concat")
        return Protocol.TUS if any(headers.getlist(name) for name in named) else None
    return None
