"""Whatever is done to the bytes of a good request, the service answers, stores what was sent or nothing, and goes on.

Requests of every kind are cut, doubled, swapped and sprinkled with bytes, and sent to one service.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import damage
from tests.hostile.damage import ACCIDENTS, RESOURCE, cut_up, damaged, good_requests, good_sequels, was_sent
from tests.hostile.damage import SEQUENCES as BEGINNINGS
from tests.hostile.wire import Visitor
from tests.support.service import PATIENCE, UPLOADS

CHANGE = """
import app.web.exchange
app.web.exchange._LINGER_SECONDS = 0.05
"""


@pytest.fixture(scope="module")
def theirs(running):
    """Who sends all this."""
    return Visitor(running)


@pytest.fixture(scope="module")
def good(theirs):
    """What is sent, before anything happens to it: in each list, what may come on one connection."""
    keys = [theirs.asked(f"POST {UPLOADS}", *lines)["location"].encode() for lines in BEGINNINGS.values()]
    return good_requests(theirs), [
        request.replace(RESOURCE.encode(), key) for key in keys for request in good_sequels(theirs)
    ]


def statuses(running, pieces):
    """The status of every response to these pieces, then the end of what the client has to say."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        connection.settimeout(0.02)  # who needs longer for his answer does not hear it: the end below goes before
        with suppress(ConnectionError, TimeoutError):
            while block := connection.recv(65536):
                received += block
        connection.settimeout(PATIENCE)
        with suppress(OSError):  # it has ended already
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while block := connection.recv(65536):
                received += block
    return [int(line[9:12]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


@pytest.fixture(scope="module")
def seen(running):
    """The files that are known, and what was sent. In the end nothing is left of what was not stored."""
    yield set(), []
    assert running.stop() == 0
    assert [path for path in (running.store / "staging").rglob("*") if path.is_file() and path.name != "lock"] == []


@given(chance=st.randoms(use_true_random=False), sequel=st.booleans())
@pytest.mark.slow
def test_any_request_is_answered_and_stored_as_sent_or_not_at_all(running, good, seen, chance, sequel):
    files, sent = seen
    request = damaged(chance, chance.choice(good[sequel]))
    said = statuses(running, cut_up(chance, request))
    assert all(status < 500 or status in (503, 507) for status in said), said
    with running.client() as client:
        assert client.put(f"{UPLOADS}/next", content=b"hello").json()["status"] == "completed"
    sent.append(request)  # of a resumable upload any earlier request may have brought a part
    found = {os.path.join(place, name) for place, _, names in os.walk(running.store / "files") for name in names}
    for path in found - files:
        content = Path(path).read_bytes()
        assert content == b"hello" or any(was_sent(content, one) for one in [*sent[-3:], b"".join(sent)]), content
    files |= found


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_each_kind_of_damage_changes_a_request(accident, monkeypatch):
    monkeypatch.setattr(damage, "ACCIDENTS", [accident])
    assert damage.with_true_length(b"A:\r\nContent-Length: 9\r\n\r\nhi") == b"A:\r\nContent-Length: 2\r\n\r\nhi"
    request = b"PUT / HTTP/1.1\r\nA: b\r\nC: d\r\n\r\n"
    assert any(damaged(Random(seed), request) != request for seed in range(20))
