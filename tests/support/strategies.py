"""Hypothesis strategies, and bodies built without the code under test."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

from hypothesis import strategies as st

BOUNDARY = "----boundary-7MA4YWxkTrZu0gW"

_INVISIBLE = "\u061c\u180e\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff" + "".join(
    map(chr, range(0x2060, 0x2070))
)
_NASTY_NAMES = (
    'say "hi".txt',
    "a;b=c.txt",
    "filename*=UTF-8''x",
    "100%.txt",
    "%41%2e%0d%0a.txt",
    "it's, (a) name: [x] {y} <z>?|*.tar.gz",
    "=?utf-8?B?YQ==?=",
    "CON",
    "NUL.txt",
    "a:b",
    "desktop.ini",
    ".htaccess",
    "~",
    "...",
    "-rf",
    "trailing.",
    "日本語.txt",
    "🎉👩\u200a🚀.png",
    "<img src=x onerror=alert(1)>.svg",
    "=cmd|'calc'!A1",
    "x" * 255,
    "é" * 127,
    "\u0301starts with a mark",
    "line\u2028separator",
    "\ufffd",
)


def chunkings(body: bytes) -> st.SearchStrategy[list[bytes]]:
    """`body` as a network might deliver it: cut anywhere, empty chunks among them, or in equal steps."""

    def cut(places: Iterable[int]) -> list[bytes]:
        borders = [0, *sorted(places), len(body)]
        return [body[start:stop] for start, stop in pairwise(borders)]

    anywhere = st.lists(st.integers(0, len(body)), max_size=12).map(cut)
    steps = st.integers(1, max(1, len(body))).map(lambda step: cut(range(step, len(body), step)))
    return anywhere | steps


def filenames() -> st.SearchStrategy[str]:
    """Names as records show them, nasty but legal, that every way of uploading carries unchanged.

    Not among them: a literal `%22`, which in a form means a quote.
    """
    alphabet = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\" + _INVISIBLE)
    return (
        (st.sampled_from(_NASTY_NAMES) | st.text(alphabet, min_size=1, max_size=80))
        .map(_in_display_form)
        .filter(_is_legal)
    )


def _in_display_form(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    while name and unicodedata.category(name[0]) == "Zs":
        name = name[1:]
    while name and unicodedata.category(name[-1]) == "Zs":
        name = name[:-1]
    return name


def _is_legal(name: str) -> bool:
    return name not in {"", ".", ".."} and len(name.encode()) <= 255 and "%22" not in name


def form(files: Sequence[tuple[str | None, str | None, bytes]], *, boundary: str = BOUNDARY) -> tuple[bytes, str]:
    """A form as a browser writes it, and the Content-Type of its request.

    Each part is (filename, content type, bytes); without a filename it is a plain field.
    """
    body = b""
    for number, (filename, content_type, content) in enumerate(files):
        disposition = f'form-data; name="part{number}"'
        if filename is not None:
            escaped = filename.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
            disposition += f'; filename="{escaped}"'
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n".encode()
        if content_type is not None:
            body += f"Content-Type: {content_type}\r\n".encode()
        body += b"\r\n" + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@st.composite
def annotations(draw: st.DrawFn) -> dict[str, object]:
    """Metadata, a path and a time to keep, as keywords of a record."""
    names = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
    paths = st.lists(filenames(), min_size=2, max_size=4).map("/".join).filter(lambda path: len(path.encode()) <= 1024)
    return {
        "metadata": draw(st.just({}) | st.dictionaries(names, texts, max_size=5)),
        "path": draw(st.none() | paths),
        "keep_us": draw(st.none() | st.integers(1, 2**50)),
    }
