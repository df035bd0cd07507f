"""Sessions where several processes, keys and clocks are at work: whom they know, and whom no longer. Real sockets."""

import hmac
import time
from hashlib import sha256

import httpx
import itsdangerous
import pytest

from tests.support.service import HISTORY, UPLOADS, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

OLD, NEW = "o" * 40, "n" * 40
MINUTES = """
import app.main
true = app.main.now_us
app.main.now_us = lambda: true() + {} * 60_000_000
"""


@pytest.fixture
def database(postgres):
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


def status(running, headers):
    """On a connection of its own, so that any worker may have it."""
    return httpx.get(f"{running.url}{HISTORY}", headers=headers, trust_env=False).status_code


def test_clocks_that_are_five_minutes_apart_log_nobody_out(service, database):
    shared = {"database_url": database, "secret_keys": OLD}
    processes = [service(change=MINUTES.format(minutes), **shared) for minutes in (-5, 0, 5)]
    for first in processes:
        headers = first.session()
        assert [status(other, headers) for other in processes] == [200] * 3


def test_keys_rotate_and_log_nobody_out(service):
    running = service(secret_keys=OLD)
    old = running.session()
    for keys, known in ((f"{OLD}, {NEW}", 200), (f"{NEW}, {OLD}", 200), (NEW, 401)):
        assert running.stop() == 0
        running.settings["secret_keys"] = keys
        running.start()
        assert status(running, old) == known
        assert status(running, running.session()) == 200


def test_an_ended_session_is_ended_on_all_workers_within_a_second(service, database):
    running = service(workers=2, database_url=database)
    headers = running.session()
    assert [status(running, headers) for _ in range(20)] == [200] * 20  # every worker knows the session
    httpx.delete(f"{running.url}/api/session", headers=headers, trust_env=False).raise_for_status()
    ended = time.monotonic()
    while time.monotonic() < ended + 1:
        assert status(running, headers) in (200, 401)
    assert [status(running, headers) for _ in range(20)] == [401] * 20


def test_text_signed_by_the_same_key_for_another_purpose_is_no_session(service):
    running = service(secret_keys=OLD)
    name, _, token = running.session()["Cookie"].partition("=")
    signed = token.rpartition(".")[0]
    assert status(running, {"Cookie": f"{name}={token}"}) == 200
    others = [
        itsdangerous.Signer(OLD).sign(signed),
        itsdangerous.TimestampSigner(OLD, digest_method=sha256).sign(signed),
        itsdangerous.URLSafeTimedSerializer(OLD).dumps(signed),
        *(
            itsdangerous.Signer(OLD, salt, digest_method=sha256).sign(signed)
            for salt in ("waybill.cursor.v1", "cookie-session")
        ),
        f"{signed}.{hmac.new(OLD.encode(), signed.encode(), sha256).hexdigest()}",
    ]
    for other in others:
        text = other.decode() if isinstance(other, bytes) else other
        assert status(running, {"Cookie": f"{name}={text}"}) == 401
        assert status(running, {"Authorization": f"Bearer {text}"}) == 401


@pytest.mark.parametrize(
    ("settings", "proxied", "secure"),
    [
        ({}, {}, False),
        ({"secure_cookies": "always"}, {}, True),
        ({"trusted_proxies": "127.0.0.1"}, {"X-Forwarded-Proto": "https"}, True),
        ({}, {"X-Forwarded-Proto": "https"}, False),
    ],
)
def test_the_cookie_has_its_flags(service, settings, proxied, secure):
    running = service(**settings)
    for answer in (
        httpx.post(f"{running.url}/api/session", headers=proxied, trust_env=False),
        httpx.put(f"{running.url}{UPLOADS}/a", content=b"hello", headers=proxied, trust_env=False),
    ):
        cookie, *flags = answer.headers["set-cookie"].split("; ")
        assert cookie.startswith("__Host-waybill_session=" if secure else "waybill_session=")
        assert set(flags) == {"Max-Age=2592000", "Path=/", "HttpOnly", "SameSite=Lax"} | (
            {"Secure"} if secure else set()
        )
