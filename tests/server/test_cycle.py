"""One answer, byte by byte: how it is framed, and what can never leave."""

import asyncio

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from app.server.cycle import Cycle


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.writes = []
        self.closed = False

    def write(self, data):
        self.writes.append(data)

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self): ...

    def resume_reading(self): ...


def cycle_of(method="GET", keep_alive=True):
    wire = Wire()
    flow = FlowControl(wire)
    return wire, Cycle(
        scope={"method": method}, transport=wire, flow=flow, logger=None, access_logger=None, access_log=False,
        default_headers=[(b"date", b"today")], message_event=asyncio.Event(), expect_100_continue=False,
        keep_alive=keep_alive, on_response=lambda: None,
    )  # fmt: skip


async def say(cycle, status, headers, *bodies):
    await cycle.send({"type": "http.response.start", "status": status, "headers": headers})
    for number, body in enumerate(bodies, 1):
        await cycle.send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})


@pytest.mark.parametrize(
    ("method", "status", "headers", "bodies", "said"),
    [
        ("GET", 200, [(b"Content-Length", b"2")], [b"hi"], b"200 OK\r\ndate: today\r\nContent-Length: 2\r\n\r\nhi"),
        ("HEAD", 200, [(b"content-length", b"2")], [b"hi"], b"200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\n"),
        ("GET", 204, [], [b""], b"204 No Content\r\ndate: today\r\n\r\n"),
        (
            "GET", 200, [], [b"a", b"", b"bc", b""],
            b"200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ),
        (
            "GET", 460, [(b"content-length", b"0"), (b"connection", b"close")], [b""],
            b"460 \r\ndate: today\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
    ],
)  # fmt: skip
async def test_an_answer_is_framed(method, status, headers, bodies, said):
    wire, cycle = cycle_of(method)
    await say(cycle, status, headers, *bodies)
    assert b"".join(wire.writes) == b"HTTP/1.1 " + said
    assert cycle.response_complete
    assert wire.closed is (b"connection: close" in said)


async def test_a_small_answer_is_one_write_and_the_body_of_a_large_one_is_not_copied():
    wire, cycle = cycle_of()
    await say(cycle, 200, [(b"content-length", b"5")], b"small")
    assert len(wire.writes) == 1
    wire, cycle = cycle_of()
    large = bytes(100_000)
    await say(cycle, 200, [(b"content-length", b"100000")], large)
    assert wire.writes[1] is large


async def test_a_connection_that_is_not_kept_alive_says_so():
    wire, cycle = cycle_of(keep_alive=False)
    await say(cycle, 200, [(b"content-length", b"0")], b"")
    assert b"\r\nconnection: close\r\n" in wire.writes[0]
    assert wire.closed


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb", b"a\x00b", b"a\x1bb", b"a\x7fb", b"a\r\n"])
async def test_a_header_that_would_end_a_line_never_leaves(value):
    for header in ((b"x", value), (value, b"x")):
        wire, cycle = cycle_of()
        with pytest.raises(RuntimeError):
            await say(cycle, 200, [header], b"")
        assert wire.writes == []


@pytest.mark.parametrize("bodies", [[b"abc"], [b"a", b"bc"], [b"a"], [b""], [b"a", b""]])
async def test_an_answer_of_another_length_than_it_says_is_no_answer(bodies):
    _, cycle = cycle_of()
    with pytest.raises(RuntimeError, match="Content-Length"):
        await say(cycle, 200, [(b"content-length", b"2")], *bodies)
    assert not cycle.response_complete


async def test_an_asgi_message_out_of_place_is_refused():
    _, cycle = cycle_of()
    with pytest.raises(RuntimeError):
        await cycle.send({"type": "http.response.body", "body": b""})
    await say(cycle, 200, [(b"content-length", b"0")], b"")
    for message in ({"type": "http.response.start", "status": 200}, {"type": "http.response.body", "body": b""}):
        with pytest.raises(RuntimeError):
            await cycle.send(message)


async def test_blocks_of_a_body_are_handed_on_as_they_came():
    _, cycle = cycle_of()
    block = bytes(300_000)
    cycle.take(block)
    assert cycle.flow.read_paused
    received = await cycle.receive()
    assert received["body"] is block
    assert received["more_body"]
    cycle.take(b"a")
    cycle.take(b"b")
    cycle.more_body = False
    assert await cycle.receive() == {"type": "http.request", "body": b"ab", "more_body": False}
    assert not cycle.flow.read_paused


@pytest.mark.parametrize("whole", [True, False])
async def test_bytes_are_handed_on_before_the_disconnect(whole):
    _, cycle = cycle_of()
    cycle.take(b"a")
    cycle.more_body = not whole
    cycle.disconnected = True
    assert await cycle.receive() == {"type": "http.request", "body": b"a", "more_body": not whole}
    assert await cycle.receive() == {"type": "http.disconnect"}


async def test_nothing_of_the_body_is_handed_on_after_the_answer():
    _, cycle = cycle_of()
    cycle.take(b"a")
    await say(cycle, 200, [(b"content-length", b"0")], b"")
    assert await cycle.receive() == {"type": "http.disconnect"}


@pytest.mark.parametrize("gone", [True, False])
async def test_an_answered_cycle_holds_no_reference_to_itself(gone):
    _, cycle = cycle_of()
    cycle.scope["extensions"] = {"say": cycle.send_interim}
    cycle.disconnected = gone
    await say(cycle, 200, [(b"content-length", b"0")], b"")
    assert "extensions" not in cycle.scope
