"""What is fuzzed: everything that reads what a stranger wrote. A target raises when a promise is broken.

A refusal is an answer, so an UploadError is caught where it may come; anything else that comes is a fault. Each target
takes any bytes, has no memory of the last case, and needs nothing that fuzzes: `test_corpus.py` calls it too.
"""

import random
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request as StarletteRequest
from starlette.requests import empty_receive

from app.config import types
from app.errors import BadRequest, RangeNotSatisfiable, UploadError
from app.model import DEFAULT_CONTENT_TYPE, MAX_FILENAME_BYTES, MAX_SIZE, Protocol, rfc3339
from app.protocols import filenames, ietf, tus
from app.protocols import headers as grammar
from app.protocols.detect import codec_for, detect
from app.protocols.intents import Append, Ask, Cancel, Concatenate, Create, Limits, State
from app.protocols.multipart import FormDecoder, PartBegin, PartData, PartEnd
from app.protocols.preferences import preferences
from app.signing import Signer
from app.web import history
from app.web.credentials import Credentials
from app.web.languages import languages, preferred
from app.web.origins import same_origin
from app.web.request import Request, RequestHeaders

DELIMITER = b"\r\n--B"
KEY = "k" * 32
MAX_PARTS, MAX_FIELD_BYTES = 4, 40
SIZES = (0, 1, 10, 5 * 2**30)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CLEAR_OF_LINES = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


# --- forms


def cut(body: bytes, steps: list[int]) -> list[bytes]:
    """The body in blocks that end at these places."""
    places = [0, *sorted(step % (len(body) + 1) for step in steps), len(body)]
    return [body[start:stop] for start, stop in pairwise(places)]


def events_of(blocks: list[bytes], content_type: str = "multipart/form-data; boundary=B") -> object:
    """What a form gives: each part with its bytes, or the class of the refusal that ended it."""
    found: list[tuple[PartBegin, bytes]] = []
    try:
        decoder = FormDecoder(content_type, max_parts=MAX_PARTS, max_field_bytes=MAX_FIELD_BYTES)
        begun: PartBegin | None = None
        content = b""
        for block in blocks:
            for event in decoder.feed(block):
                match event:
                    case PartBegin():
                        assert begun is None
                        begun, content = event, b""
                    case PartData(data):
                        assert begun is not None
                        assert len(data)
                        content += data
                    case PartEnd():
                        assert begun is not None
                        found.append((begun, content))
                        begun = None
        decoder.finish()
    except UploadError as refusal:
        return type(refusal)
    assert begun is None
    return found


def contents_of(body: bytes) -> list[bytes]:
    """The contents of a form's parts, as a reader finds them who knows nothing but where boundaries stand."""
    _, *segments = (b"\r\n" + body).split(DELIMITER)
    parts = []
    for segment in segments:
        if segment.startswith(b"--"):
            return parts
        head, blank, content = segment.partition(b"\r\n\r\n")
        assert head.startswith(b"\r\n")
        assert blank, "a boundary stood in a part's headers and was not seen"
        parts.append(content)
    raise AssertionError("there is no closing boundary")


def form(body: bytes) -> None:
    """However a body was cut it gives the same; what is accepted is, byte for byte, what stands between boundaries."""
    whole = events_of([body])
    chance = random.Random(zlib.crc32(body))
    for pieces in (1, 3, 9):
        places = [chance.randrange(len(body) + 1) for _ in range(pieces)]
        # As many cuts where it matters: about the ends of lines.
        places += [found + chance.randrange(3) for found in map(body.find, (b"\r\n", DELIMITER)) if found >= 0]
        assert events_of(cut(body, places)) == whole
    if len(body) <= 600:
        assert events_of([body[at : at + 1] for at in range(len(body))]) == whole
    if not isinstance(whole, list):
        return
    assert [content for _, content in whole] == contents_of(body)
    assert len(whole) <= MAX_PARTS
    for begin, content in whole:
        assert begin.filename is not None or len(content) <= MAX_FIELD_BYTES
        assert begin.name
        _is_label(begin.content_type)
        if begin.filename is not None:
            _is_clean(begin.filename)


def form_type(raw: bytes) -> None:
    """Any Content-Type of a form: its boundary is understood to the letter, or refused."""
    text = raw.decode("latin-1")
    try:
        FormDecoder(text)
    except UploadError:
        return
    _, found = grammar.parameters(text)
    boundary = grammar.unquoted(found["boundary"]).encode("latin-1")
    assert 1 <= len(boundary) <= 70
    body = b'--%b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nhi\r\n--%b--' % (boundary, boundary)
    assert events_of([body], text) == [(PartBegin("x", DEFAULT_CONTENT_TYPE, "f"), b"hi")]


# --- header grammar


def header(raw: bytes) -> None:
    """Any value of any header that has a grammar of its own: what is read from it is true of it."""
    text = raw.decode("latin-1")
    with suppress(BadRequest):
        word, found = grammar.parameters(text)
        assert word == word.lower()
        for name, value in found.items():
            assert name == name.lower()
            assert value in text
            grammar.unquoted(value)
            with suppress(BadRequest):
                grammar.extended_value(value)
    with suppress(UploadError):
        name = grammar.disposition_filename(text)
        assert name is None or _is_clean(name)
    with suppress(BadRequest):
        length = grammar.content_length([text])
        assert length is not None
        assert 0 <= length <= MAX_SIZE
        assert int(text) == length
        assert text.isascii()
        assert text.isdigit()
    _is_label(grammar.content_type(text))
    with suppress(BadRequest):
        sha256, _ = grammar.declared_digests("Repr-Digest", [text])
        assert (
            sha256 is None or grammar.declared_digests("Repr-Digest", [grammar.digest_field(sha256)]).sha256 == sha256
        )
    with suppress(BadRequest):
        assert grammar.whole_range(text) > 0
    for size in SIZES:
        _ranges(text, size)
    tag = grammar.etag("0" * 64)
    for weak in (True, False):
        if grammar.matches(text, tag, weak=weak):
            assert tag in text or text.strip(" \t") == "*"
    seconds = grammar.parse_http_date(text)
    if seconds is not None and seconds >= 0:
        assert grammar.parse_http_date(grammar.http_date(seconds * 1_000_000)) == seconds
    identity = grammar.request_id(text)
    assert identity is None or (identity == text and identity.isascii() and len(text) <= 64)
    _credentials(text)


def filename(raw: bytes) -> None:
    """Any name a client gives: clean and the same when cleaned again and sent back, or refused."""
    for given in (raw, raw.decode("utf-8", "surrogateescape")):
        with suppress(UploadError):
            _is_clean(filenames.safe_filename(given))


def _is_clean(name: str) -> bool:
    assert filenames.safe_filename(name) == name
    assert 1 <= len(name.encode()) <= MAX_FILENAME_BYTES
    assert not _CONTROLS.search(name)
    assert not {"/", "\\"} & set(name)
    assert name not in {".", ".."}
    offered = grammar.attachment(name)
    assert re.fullmatch(r"[ -~]+", offered)
    assert grammar.disposition_filename(offered) == name
    return True


def _is_label(kind: str) -> None:
    assert re.fullmatch(r"[ -~]{1,255}", kind)


def _ranges(text: str, size: int) -> None:
    try:
        ranges = grammar.byte_ranges(text, size)
    except RangeNotSatisfiable:
        return
    if ranges is None:
        return
    assert 1 <= len(ranges) <= grammar.MAX_RANGES
    taken = sorted(ranges)
    assert all(0 <= start < stop <= size for start, stop in taken)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(taken))


# It takes every bearer token for one of its own.
_SESSIONS: Any = SimpleNamespace(tokens=SimpleNamespace(is_ours=bool))


def _credentials(text: str) -> None:
    """Whatever stands in a cookie or a bearer token: nothing that these keys did not sign is taken for signed."""
    raw = text.encode("latin-1")
    fields = [(b"cookie", raw), (b"cookie", b"waybill_session=" + raw), (b"authorization", raw)]
    shown = [Credentials(RequestHeaders([field]), _SESSIONS) for field in fields]
    signer = Signer([KEY], "session")
    for token in (*(token for credentials in shown for token in credentials.texts), text):
        signed = signer.verify(token)
        assert signed is None or signer.sign(signed) == token
    assert not same_origin(text, "http://x") or "x" in text.lower()
    assert all(0 <= preference.weight <= 1 for preference in preferences([text]).values())
    assert preferred([text]) in languages().values()


# --- requests of resumable uploads

LIMITS = Limits(file_bytes=10**6, request_bytes=10**6, idle_seconds=3600)


def request(raw: bytes) -> None:
    """Any method and any headers, a line each: an intent that keeps within the limits, and an answer that is one."""
    method, *lines = raw.decode("latin-1").replace("\r", "").replace("\0", "").split("\n")
    pairs = [(name.strip(" \t").lower(), value) for name, _, value in (line.partition(":") for line in lines)]
    sent = RequestHeaders([(name.encode("latin-1"), value.strip(" \t").encode("latin-1")) for name, value in pairs])
    speaks: list[Protocol] = [Protocol.TUS, Protocol.RESUMABLE]
    with suppress(UploadError):
        method = tus.method(method, sent)
        protocol = detect(method, sent)
        speaks = [protocol] if protocol is not None else speaks
    for protocol in speaks:
        with suppress(UploadError):
            one = codec_for(protocol, method, sent, LIMITS, ietf.VERSIONS)
            try:
                intent = one.read()
            except UploadError as refusal:
                _can_be_sent(one.refusal(refusal, location="/x"))
                raise
            _is_within_limits(intent)
            metadata = getattr(intent, "metadata", None)
            concat = getattr(intent, "concat", None)
            for done in (False, True):
                state = State("/x", 5, 9, done, 0, 10**9, metadata, concat, "/record" if done else None, "0" * 64)
                _can_be_sent(one.answer(intent, state).headers)
                for interim in (one.interim(state), one.progress(5)):
                    _can_be_sent(interim.headers if interim else [])


def _is_within_limits(intent: object) -> None:
    match intent:
        case Create(length=length, filename=name, content_type=kind):
            assert length is None or 0 <= length <= LIMITS.file_bytes
            assert name is None or _is_clean(name)
            _is_label(kind)
        case Concatenate(keys=keys, filename=name, content_type=kind):
            assert 1 <= len(keys) <= tus.MAX_PARTS
            assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,64}", key) for key in keys)
            assert name is None or _is_clean(name)
            _is_label(kind)
        case Append(offset=offset, length=length):
            assert 0 <= offset <= LIMITS.file_bytes
            assert length is None or offset <= length <= LIMITS.file_bytes
        case _:
            assert isinstance(intent, Ask | Cancel)


def _can_be_sent(pairs: list[tuple[str, str]]) -> None:
    """No header of an answer holds what would end its line: a client's own words come back in some."""
    for _, value in pairs:
        assert _CLEAR_OF_LINES.fullmatch(value), value


# --- query strings


def query(raw: bytes) -> None:
    """Any query of the history: understood, and then it says the same in its own words, or refused."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": history.HISTORY,
        "query_string": raw.replace(b"#", b""),
        "exchange": _Exchange,
        "state": {"cursors": Signer([KEY], "cursor")},
        "headers": [],
    }
    with suppress(UploadError):
        asked = history.parse(_request(scope), "session")
        assert 1 <= asked.limit <= history.MAX_LIMIT
        found = asked.query
        assert found.filename is None or "\0" not in found.filename
        assert found.from_us is None or found.to_us is None or found.from_us < found.to_us
        for moment in (found.from_us, found.to_us):
            assert moment is None or rfc3339(moment)
        for size in (found.min_size, found.max_size):
            assert size is None or 0 <= size <= MAX_SIZE


class _Exchange:
    headers = RequestHeaders([])


def _request(scope: dict[str, object]) -> "StarletteRequest[object]":
    return Request(scope, empty_receive)


# --- settings


def setting(raw: bytes) -> None:
    """Any text as any kind of setting: understood, or refused with a sentence; of a secret it repeats nothing."""
    text = raw.decode("utf-8", "surrogateescape")
    for kind, adapter in _SETTINGS.items():
        with suppress(ValidationError):
            try:
                adapter.validate_python(text)
            except ValidationError as error:
                [fault] = error.errors(include_url=False, include_input=False)
                said = str(fault["ctx"]["error"])
                # A short text may stand in a sentence by chance; and a scheme, which is no secret, is named.
                secret = kind in {"Keys", "DatabaseUrl"} and len(text) > 20
                assert not (secret and text in said)
                raise


_SETTINGS: Final = {
    name: TypeAdapter(getattr(types, name))
    for name in (
        "Size", "SizeAboveZero", "Duration", "YesOrNo", "Versions", "Directory", "DatabaseUrl", "Keys", "Host",
        "Origins", "Proxies",
    )
}  # fmt: skip


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "form": form,
    "form_type": form_type,
    "header": header,
    "filename": filename,
    "request": request,
    "query": query,
    "setting": setting,
}
