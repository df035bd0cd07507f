"""How many calls a small upload takes: a bound on each, so that what it costs does not grow unnoticed.

Calls are counted and not time, since they are the same on every machine. They depend on the interpreter: there are
bounds for those on which every change is tested (`.ci/interpreters`), and tests on no other.
"""

import json
import socket
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.service import UPLOADS, Service

MOST = {(3, 11): {"form": 1088, "raw": 1012}, (3, 13): {"form": 1106, "raw": 1032}}
"""The most calls of a form and a raw upload, of Python's functions and of C's, in the thread of the event loop.

Measured, and a fiftieth more. A change that makes an upload cheaper lowers its bound, one that has to make it dearer
raises it.
"""
UPLOADS_EACH = 40
COUNT = """
import atexit, json, sys
from app.server.connection import Connection

calls, marks = 0, []

def count(frame, event, argument):
    global calls
    if event in ("call", "c_call"):
        calls += 1

class Counted(Connection):
    def connection_made(self, transport):
        sys.setprofile(count)
        super().connection_made(transport)

    def on_response_complete(self):
        super().on_response_complete()
        marks.append(calls)

import app.server
app.server.Connection = Counted
atexit.register(lambda: open("marks.json", "w").write(json.dumps(marks)))
"""
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW0"
CONTENT = b"\x5a" * 1024
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()


def of(kind: str, cookie: str) -> bytes:
    """A request that brings a small file, as one piece."""
    start, content_type, body = f"PUT {UPLOADS}/a.bin", "application/octet-stream", CONTENT
    if kind == "form":
        start, content_type = f"POST {UPLOADS}", f"multipart/form-data; boundary={BOUNDARY}"
        body = FORM + CONTENT + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"{start} HTTP/1.1\r\nHost: here\r\nAccept: */*\r\nCookie: {cookie}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def upload(running: Service, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as connection, connection.makefile("rb") as answers:
        for _ in range(UPLOADS_EACH):
            connection.sendall(request)
            assert answers.readline() == b"HTTP/1.1 201 Created\r\n"
            length = 0
            while (line := answers.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            answers.read(length)


if sys.version_info[:2] in MOST:

    @pytest.mark.parametrize("kind", ["form", "raw"])
    def test_a_small_upload_takes_no_more_calls_than_when_they_were_counted(kind: str, tmp_path: Path) -> None:
        with closing(Service(tmp_path, change=COUNT)) as running:
            running.start()
            upload(running, of(kind, running.session()["Cookie"]))
            assert running.stop() == 0
        marks = json.loads((tmp_path / "marks.json").read_text(encoding="ascii"))[-UPLOADS_EACH:]
        # The least, in which no periodic work falls, and no piece of a request came late.
        calls = min(later - sooner for sooner, later in pairwise(marks))
        assert calls <= MOST[sys.version_info[:2]][kind]
