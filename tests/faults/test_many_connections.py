"""However many connect and wait, the service has a bound: in connections, and so in memory."""

import asyncio
import socket
from contextlib import ExitStack

import httpx
import pytest

from tests.support.service import UPLOADS, Service, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def test_a_connection_over_the_limit_is_told_to_retry(service):
    running = service(max_connections=3)
    with ExitStack() as opened:
        clients = [opened.enter_context(running.client()) for _ in range(4)]
        for client in clients[:3]:
            assert client.get("/health/live").status_code == 200
        with socket.create_connection(("127.0.0.1", running.port)) as late:
            told = late.makefile("rb").read()
        head, _, body = told.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2" in head.lower()
        assert b"connection: close" in head.lower()
        assert b'"code":"unavailable"' in body
        clients[0].close()
        until_answered(clients[3])
        assert clients[1].put(f"{UPLOADS}/f", content=b"x").status_code == 201


def until_answered(client: httpx.Client) -> None:
    """The service may learn a moment later than we do that somebody left."""
    for _ in range(1000):
        try:
            if client.get("/health/live").status_code == 200:
                return
        except httpx.TransportError:
            continue  # it was refused, and cut off before it was read
    raise AssertionError("nobody is let in")


SLOW = 200
PER_CLIENT = 320 * 1024
"""About 160 KiB are measured; the parser's and the sockets' buffers are most of it."""


def test_slow_clients_of_every_kind_cost_little_each(service):
    """Half of a large file from each, half of a form, and a large download that nobody reads."""
    running = service(max_connections=4 * SLOW)
    headers = running.session()
    large = bytes(4 * MIB)
    with running.client(headers=headers) as client:
        content = client.put(f"{UPLOADS}/large", content=large).json()["links"]["content"]
    before = running.memory()
    grown = asyncio.run(grown_in_the_middle(running, headers, content)) - before
    assert grown < 3 * SLOW * PER_CLIENT


async def grown_in_the_middle(running: Service, headers: dict[str, str], content: str) -> int:
    """The service's memory when it waits for all of them."""
    cookie = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    form = "Content-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    kinds = [
        (f"PUT {UPLOADS}/f", f"{cookie}Content-Length: {2 * MIB}\r\n", bytes(MIB)),
        (f"POST {UPLOADS}", f"{cookie}{form}Content-Length: {2 * MIB}\r\n", part + bytes(MIB)),
        (f"GET {content}", cookie, b""),
    ]
    writers = []
    try:
        for request, lines, body in kinds * SLOW:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
            writer.write(f"{request} HTTP/1.1\r\nHost: waybill.test\r\n{lines}\r\n".encode() + body)
            await writer.drain()
            if request.startswith("GET"):
                await reader.readuntil(b"\r\n\r\n")
            writers.append(writer)
        async with asyncio.timeout(60):
            while running.metric("waybill_received_bytes_total") < 2 * SLOW * MIB:  # noqa: ASYNC110  # a process of its own
                await asyncio.sleep(0.05)
        return running.memory()
    finally:
        for writer in writers:
            writer.close()
