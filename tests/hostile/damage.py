"""Good requests of every kind, and what accidents make of them. Chance is an argument: Hypothesis's, or a seed's."""

import re
from random import Random

from tests.hostile.wire import END, FORM, Visitor, named, part
from tests.support.service import HISTORY, UPLOADS

PLACE = b"########"
"""Stands for the number of the case wherever bytes of a file come, so that what was stored names its request."""
CONTENT = b"the content of case ########, 0123456789\r\n" * 3
TUS = "Tus-Resumable: 1.0.0"
TUS_CHUNK = "Content-Type: application/offset+octet-stream"
CHUNK = "Content-Type: application/partial-upload"
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(CONTENT)}"
RESOURCE = f"{UPLOADS}/the-key-of-the-resource"
"""Where a resumable upload's own URL stands in the requests of a sequence."""
ZEROES = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def chunked(content: bytes) -> bytes:
    half = len(content) // 2
    return b"%x\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\nA: b\r\n\r\n" % (
        half,
        content[:half],
        len(content) - half,
        content[half:],
    )


def good_requests(visitor: Visitor) -> list[bytes]:
    """Requests that are answered with success, or would be but for a digest; most bring CONTENT."""
    made = visitor.said_to(visitor.put("Content-Length: 5") + b"hello")[0].json()
    file = made["links"]["content"]
    return [
        # Whole files.
        visitor.put(LENGTH, "Expect: 100-continue", close=False) + CONTENT,
        visitor.put(CHUNKED, name="%C3%A9.txt", close=False) + chunked(CONTENT),
        visitor.put(LENGTH, f"Repr-Digest: sha-256=:{ZEROES}:", "Content-Type: text/plain; charset=utf-8") + CONTENT,
        visitor.put(LENGTH, "Idempotency-Key: ########", close=False) + CONTENT,
        visitor.post(CONTENT, b"text/plain", "Content-Disposition: attachment; filename*=UTF-8''a%20b"),
        # Forms, down to the rare ones.
        *(visitor.post(body) for body in good_forms()),
        visitor.head(f"POST {UPLOADS}", "Content-Type: Multipart/Form-Data; boundary=\"B\"", CHUNKED, close=False)
        + chunked(part(named(b"a.txt"), CONTENT) + END),
        visitor.post(part(named(b"a"), CONTENT) + END, FORM, "Upload-Complete: ?1"),
        # What is asked and changed.
        visitor.head(f"GET {file}", "Range: bytes=0-1,4-4", "If-Match: *", close=False),
        visitor.head(f"GET {file}", "Range: bytes=-3", 'If-Range: "a"', "If-None-Match: W/\"x\", \"y\""),
        visitor.head(f"HEAD {file}", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", close=False),
        visitor.head("DELETE /api/ingestion/files/0193a1f0-0000-7000-8000-000000000000", close=False),
        visitor.head(f"GET {HISTORY}?limit=5&filename=a&from=2020-01-01&count=true", "Accept: text/csv", close=False),
        visitor.head(f"GET {HISTORY}?status=completed,failed&order=oldest&min_size=1&format=ndjson", close=False),
        visitor.head(f"GET {HISTORY}?limit=1&cursor=1_2_3.x", close=False),
        visitor.head(f"GET {HISTORY}/summary", close=False),
        visitor.head("POST /api/session", "Content-Length: 0", close=False),
        visitor.head("POST /api/session/join", "Content-Length: 26") + b'{"code": "ABCD-EFGH-JKMN"}',
        visitor.head(f"OPTIONS {UPLOADS}", "Origin: http://x", "Access-Control-Request-Method: PUT", close=False),
        visitor.head("GET /health/ready", close=False),
        # Two in one go.
        visitor.put(LENGTH, close=False) + CONTENT + visitor.put(LENGTH) + CONTENT,
        # The beginnings of resumable uploads.
        visitor.head(f"POST {UPLOADS}", TUS, "Upload-Length: 1000", "Upload-Metadata: filename YS50eHQ=", close=False),
        visitor.head(f"POST {UPLOADS}", TUS, f"Upload-Length: {len(CONTENT)}", TUS_CHUNK, LENGTH) + CONTENT,
        visitor.head(f"POST {UPLOADS}", TUS, "Upload-Concat: final;/a/aaaaaaaaaaaaaaaaaaaaaa", close=False),
        visitor.put(LENGTH, "Upload-Complete: ?1", "Upload-Draft-Interop-Version: 6") + CONTENT,
        visitor.put(CHUNKED, "Upload-Complete: ?0", "Upload-Draft-Interop-Version: 10", "Upload-Length: 1000")
        + chunked(CONTENT),
    ]  # fmt: skip


def good_forms() -> list[bytes]:
    """The bodies of forms, each with CONTENT in it."""
    length = b"Content-Length: %d\r\n" % len(CONTENT)
    return [
        part(named(b"a.txt") + b"\r\nContent-Type: text/plain", CONTENT) + END,
        part(named(b"a"), CONTENT) + part(b'Content-Disposition: form-data; name="b"', b"field") + END,
        b"preamble\r\n" + part(length + named(b"a%22b"), CONTENT) + END + b"epilogue",
        part(named(b"") + b"\r\nContent-Transfer-Encoding: binary", CONTENT) + part(named(b""), b"") + END,
        part(b"content-disposition:form-data;name=f;filename=x ;filename*=utf-8''x", CONTENT) + END[:-2],
        part(named(b'a\\"b'), b"\r\n--A\r\n--\r" + CONTENT) * 3 + END,
        part(b"X: y\r\n" * 7 + named(b"../\xc3\xa9"), b"--C\r\n\r\n" + CONTENT + b"\r\n--C--") + END,
    ]


SEQUENCES = {
    "tus": [TUS, f"Upload-Length: {4 * len(CONTENT)}", "Upload-Metadata: filename YS50eHQ="],
    "tus, of unknown length": [TUS, "Upload-Defer-Length: 1"],
    "a part, of tus": [TUS, f"Upload-Length: {len(CONTENT)}", "Upload-Concat: partial"],
    "resumable": ["Upload-Complete: ?0", "Upload-Draft-Interop-Version: 10", "Content-Length: 0"],
    "resumable, of the older drafts": ["Upload-Complete: ?0", "Upload-Draft-Interop-Version: 6", "Content-Length: 0"],
}
"""What begins a resumable upload."""


def good_sequels(visitor: Visitor) -> list[bytes]:
    """Requests about RESOURCE, whichever way it began; which ones are answered with success depends on the others."""
    digest = f"Upload-Checksum: sha256 {ZEROES}"
    return [
        *(
            visitor.head(f"PATCH {RESOURCE}", TUS, TUS_CHUNK, f"Upload-Offset: {offset}", LENGTH, close=close) + CONTENT
            for offset, close in ((0, False), (0, False), (len(CONTENT), False), (2 * len(CONTENT), True))
        ),
        visitor.head(f"PATCH {RESOURCE}", TUS, TUS_CHUNK, "Upload-Offset: 0", CHUNKED) + chunked(CONTENT),
        visitor.head(f"PATCH {RESOURCE}", TUS, TUS_CHUNK, "Upload-Offset: 0", digest, LENGTH) + CONTENT,
        visitor.head(f"PATCH {RESOURCE}", TUS, TUS_CHUNK, "Upload-Offset: 0", "Upload-Length: 500", LENGTH) + CONTENT,
        visitor.head(f"POST {RESOURCE}", TUS, TUS_CHUNK, "X-HTTP-Method-Override: PATCH", "Upload-Offset: 0", LENGTH)
        + CONTENT,
        *(
            visitor.head(f"PATCH {RESOURCE}", CHUNK, f"Upload-Offset: {offset}", f"Upload-Complete: ?{done}", LENGTH)
            + CONTENT
            for offset, done in ((0, 0), (0, 1), (len(CONTENT), 0), (len(CONTENT), 1))
        ),
        visitor.head(f"PATCH {RESOURCE}", CHUNK, "Upload-Offset: 0", "Upload-Complete: ?1", CHUNKED) + chunked(CONTENT),
        visitor.head(f"HEAD {RESOURCE}", TUS, close=False),
        visitor.head(f"GET {RESOURCE}", "Upload-Draft-Interop-Version: 10", close=False),
        visitor.head(f"POST {UPLOADS}", TUS, f"Upload-Concat: final;{RESOURCE} {RESOURCE}", close=False),
        visitor.head(f"DELETE {RESOURCE}", TUS, close=False),
        visitor.head(f"OPTIONS {RESOURCE}", close=False),
    ]


BITS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b'"', b"\\", b"../", b"?", b"#", b"%00", b"%ff",
    b"\xff", b"--B", b"--B--", b"\r\n--B\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"-1", b"9" * 19, b"HTTP/1.0",
    b"Content-Length: 0\r\n", b"Host: y\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"Upload-Complete: ?0\r\n", b"Tus-Resumable: 1.0.0\r\n",
    b"Content-Encoding: gzip\r\n", b"Origin: http://y\r\n", b"Range: bytes=0-\r\n", b"Cookie: waybill_session=x\r\n",
]  # fmt: skip
ACCIDENTS = ["insert", "overwrite", "delete", "double", "cut", "swap lines", "double a line", "drop a line"]


def noise(chance: Random) -> bytes:
    return chance.choice(BITS) if chance.randrange(2) else chance.randbytes(chance.randint(1, 6))


def damaged(chance: Random, request: bytes) -> bytes:
    """The request after a few accidents, each to its bytes or to its lines; often its length is true again."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, until = sorted((chance.randint(0, len(request)), chance.randint(0, len(request))))
        match chance.choice(ACCIDENTS):
            case "insert":
                request = request[:at] + noise(chance) + request[at:]
            case "overwrite":
                request = request[:at] + (new := noise(chance)) + request[at + len(new) :]
            case "delete":
                request = request[:at] + request[min(until, at + chance.randint(1, 40)) :]
            case "double":
                request = request[:until] + request[at:]
            case "cut":
                request = request[:until]
            case at_lines:
                request = _with_lines(chance, request.split(b"\r\n"), at_lines)
    # Otherwise hardly any damage to a body would come to whoever reads it.
    return with_true_length(request) if chance.randrange(3) else request


def with_true_length(request: bytes) -> bytes:
    """The same, its Content-Length that of what stands behind the head, if it has one there."""
    head, end, body = request.partition(b"\r\n\r\n")
    return re.sub(rb"(?<=\r\nContent-Length: )[0-9]+", b"%d" % len(body), head, count=1) + end + body


def _with_lines(chance: Random, lines: list[bytes], accident: str) -> bytes:
    first, second = (chance.randrange(len(lines)) for _ in range(2))
    match accident:
        case "swap lines":
            lines[first], lines[second] = lines[second], lines[first]
        case "double a line":
            lines.insert(first, lines[second])
        case "drop a line":
            del lines[first]
        case _:
            raise AssertionError(accident)
    return b"\r\n".join(lines)


def cut_up(chance: Random, request: bytes) -> list[bytes]:
    """The request in up to four pieces, some of them perhaps empty."""
    cuts = sorted(chance.randint(0, len(request)) for _ in range(chance.randint(0, 3)))
    return [request[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(request)], strict=True)]


def was_sent(content: bytes, sent: bytes) -> bool:
    """Whether a file's bytes stand in what was sent: one after the other, but for what stands between pieces of it."""
    if content in sent:
        return True
    several = b"chunked" in sent.lower() or b"\r\nupload-" in sent.lower()
    # A concatenation may name a part more than once: here twice, and again in a line that was doubled.
    left = iter(sent * 4 if b"upload-concat" in sent.lower() else sent)
    return several and all(byte in left for byte in content)
