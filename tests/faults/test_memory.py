"""A file of any size passes through the service in little memory."""

import asyncio
import hashlib
import random
from pathlib import Path

import pytest

from tests.support.service import UPLOADS, ask, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SIZE = 1024 * MIB
MOST = 100 * MIB
BOUNDARY = "a-boundary-that-the-file-does-not-contain"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def peak(pid):
    """The most memory that the process ever used, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def form(digest):
    """A form with one file of SIZE bytes, made as it is sent; `digest` takes in what the file holds."""
    piece = random.Random(0).randbytes(MIB)
    yield HEAD
    for number in range(SIZE // MIB):
        numbered = number.to_bytes(8, "big") + piece[8:]  # no two are the same, so none can stand for another
        digest.update(numbered)
        yield numbered
    yield TAIL


def test_a_gibibyte_passes_through_in_less_than_a_hundred_mebibytes(service):
    running = service()
    headers = running.session()
    digest = hashlib.sha256()
    sent = ask(
        running.port,
        "POST",
        UPLOADS,
        {**headers, "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        form(digest),
        length=len(HEAD) + SIZE + len(TAIL),
    )
    answer = asyncio.run(sent)
    assert answer.status == 201
    [item] = answer.json()["items"]
    assert (item["size"], item["sha256"]) == (SIZE, digest.hexdigest())
    with running.client(headers=headers) as client:
        with client.stream("GET", item["links"]["content"]) as content:
            received = hashlib.sha256()
            for block in content.iter_raw(MIB):
                received.update(block)
        assert received.hexdigest() == digest.hexdigest()
        assert peak(running.pid) < MOST
        # Not left for the next runs, as the rest of a test's directory is.
        assert client.delete(item["links"]["content"]).status_code == 204
    assert running.stop() == 0
