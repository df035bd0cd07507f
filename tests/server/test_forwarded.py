"""Who asked, behind one proxy or several: what is believed, of whom, and what is passed over."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.server.forwarded import Proxies

PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/8", "fd00::/8")


def read(fields: list[tuple[str, str]], *, peer: str | None = PROXY, trusted: Any = TRUSTED) -> tuple[Any, str]:
    """The client's address and the scheme of a request with these fields, which `peer` passed on."""
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    scope = {"type": "http", "client": None if peer is None else (peer, 5), "scheme": "http", "headers": headers}
    Proxies(trusted).read(scope)
    return scope["client"] and scope["client"][0], scope["scheme"]


@pytest.mark.parametrize(
    ("client", "scheme", "found"),
    [
        ("192.0.2.1", "https", ("192.0.2.1", "https")),
        ("192.0.2.1", "HTTPS", ("192.0.2.1", "https")),
        ("192.0.2.1, 10.0.0.9", "https,http", ("192.0.2.1", "https")),
        ("192.0.2.1, 10.0.0.9", "https, https", ("192.0.2.1", "https")),
        ("192.0.2.1, 10.0.0.9", "https", ("192.0.2.1", "https")),
        ("192.0.2.1", "https, http", ("192.0.2.1", "http")),
        ("198.51.100.7, 192.0.2.1, 10.0.0.9", "https, http, http", ("192.0.2.1", "http")),
        ("10.0.0.8, 10.0.0.9", "https, http", ("10.0.0.8", "https")),
        ("192.0.2.1:4711", "http", ("192.0.2.1", "http")),
        ("[2001:db8::1]:4711", "http", ("2001:db8::1", "http")),
        ("2001:DB8::1", "http", ("2001:db8::1", "http")),
        ("::ffff:192.0.2.1", "http", ("192.0.2.1", "http")),
        ("192.0.2.1, ::ffff:10.0.0.9", "https, http", ("192.0.2.1", "https")),
        ("unknown", "https", (PROXY, "https")),
        ("", "https", (PROXY, "https")),
    ],
)
def test_a_list_is_read_from_the_right_past_trusted_hops(client: str, scheme: str, found: tuple[str, str]) -> None:
    assert read([("X-Forwarded-For", client), ("X-Forwarded-Proto", scheme)]) == found


def test_several_fields_of_one_name_are_one_list() -> None:
    fields = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "10.0.0.9")]
    assert read(fields) == ("192.0.2.1", "https")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("for=192.0.2.1;proto=https", ("192.0.2.1", "https")),
        ("For=192.0.2.1; Proto=HTTPS ;by=203.0.113.43", ("192.0.2.1", "https")),
        ('for="[2001:db8::1]:4711";proto=https', ("2001:db8::1", "https")),
        ("for=192.0.2.1;proto=https, for=10.0.0.9;proto=http", ("192.0.2.1", "https")),
        ("for=10.0.0.8, for=192.0.2.1;proto=http, for=10.0.0.9", ("192.0.2.1", "http")),
        ("for=_hidden;proto=https", (PROXY, "https")),
        ("for=unknown;proto=https", (PROXY, "https")),
        ('for="a,b;c"', (PROXY, "http")),
        ("proto=https", (PROXY, "https")),
        ("nonsense", (PROXY, "http")),
    ],
)
def test_forwarded_is_read_where_no_x_forwarded_stands(value: str, found: tuple[str, str]) -> None:
    assert read([("Forwarded", value)]) == found


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"])
def test_forwarded_is_ignored_beside_x_forwarded(name: str) -> None:
    value = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http"}.get(name, "nas")
    client = "192.0.2.1" if name == "X-Forwarded-For" else PROXY
    assert read([("Forwarded", "for=203.0.113.9;proto=https"), (name, value)]) == (client, "http")


@pytest.mark.parametrize(
    ("peer", "trusted", "believed"),
    [
        ("192.0.2.9", TRUSTED, False),
        (PROXY, (), False),
        ("::ffff:10.0.0.1", TRUSTED, True),
        ("fd00::1", TRUSTED, True),
        ("192.0.2.9", ("*",), True),
        (None, TRUSTED, False),
        (None, ("unix",), True),
        (PROXY, ("unix",), False),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str | None, trusted: tuple[str, ...], believed: bool) -> None:
    client, scheme = read(
        [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https")], peer=peer, trusted=trusted
    )
    assert (client == "192.0.2.1", scheme == "https") == (believed, believed)


def test_ipv4_on_a_socket_of_both_kinds_is_ipv4() -> None:
    assert read([], peer="::ffff:192.0.2.7", trusted=()) == ("192.0.2.7", "http")


def test_a_malformed_forwarded_header_is_logged_once() -> None:
    proxies = Proxies(TRUSTED)
    with capture_logs() as lines:
        for _ in range(3):
            for fields in (
                [(b"x-forwarded-for", b"not an address")],
                [(b"x-forwarded-proto", b"gopher")],
                [(b"forwarded", b"for=;;=")],
            ):
                scope = {"type": "http", "client": (PROXY, 5), "scheme": "http", "headers": fields}
                proxies.read(scope)
                assert (scope["client"], scope["scheme"]) == ((PROXY, 5), "http")
    assert sorted(line["field"] for line in lines) == ["Forwarded", "address", "scheme"]


@given(st.text(st.characters(codec="latin-1")), st.sampled_from(["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto"]))
def test_any_forwarded_headers_give_a_scheme_and_an_address(value: str, name: str) -> None:
    client, scheme = read([(name, value)])
    assert scheme in {"http", "https"}
    assert client
