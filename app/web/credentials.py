"""Credentials: the session tokens in a request, and their return in an answer, as cookies or a bearer token.

A bearer token is sent on purpose, a cookie is not: with a bearer token cookies are ignored, and none is set.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from app.sessions import Sessions
from app.sessions.opening import Recognised
from app.sessions.tokens import Token
from app.web.request import RequestHeaders

COOKIE: Final = "waybill_session"
_NAMES: Final = (f"__Host-{COOKIE}", f"__Secure-{COOKIE}", COOKIE)
"""The cookie's names, the most trustworthy first, which only a page of this very host and HTTPS can set."""
_PLAIN: Final = 2
_RANKS: Final = {name: rank for rank, name in enumerate(_NAMES)}


class Credentials:
    """The tokens that a request carries, as text, valid or not."""

    def __init__(self, headers: RequestHeaders, sessions: Sessions) -> None:
        sent = headers.getlist("authorization")
        self.bearers = [text for text in _bearers(sent) if sessions.tokens.is_ours(text)] if sent else sent
        self._cookies: list[list[str]] = [[], [], []]  # by rank; a request may carry several of one name
        for header in headers.getlist("cookie"):
            for pair in header.split(";"):
                name, _, value = pair.partition("=")
                if (rank := _RANKS.get(name.strip(" \t"))) is not None:
                    self._cookies[rank].append(value.strip(" \t").strip('"'))
        self.by_cookie = not self.bearers and any(self._cookies)
        """Whether the request carries its session, if any, by a cookie, which a browser sends by itself."""
        self.groups = [self.bearers] if self.bearers else self._cookies
        """The tokens that count, grouped by kind, in order of precedence."""
        self._headers = headers

    @property
    def wants_token(self) -> bool:
        """Whether the caller keeps no cookies, and is to be shown the token."""
        return bool(self.bearers) or (
            "cookie" not in self._headers and self._headers.get("waybill-token", "").lower() == "true"
        )

    @property
    def texts(self) -> list[str]:
        """The tokens that count, in order of precedence."""
        return [text for group in self.groups for text in group]

    def to_exchange(self, recognised: Recognised) -> bool:
        """Whether the session came by the plain cookie, which over HTTPS is to be replaced by one of a better name."""
        return self.by_cookie and recognised.group == _PLAIN

    def set_cookie(
        self, sessions: Sessions, token: Token | str, *, secure: bool, base_path: str
    ) -> Iterator[tuple[bytes, bytes]]:
        """The header fields that set the cookie to `token`; "" deletes it."""
        if self.bearers:
            return
        text = sessions.tokens.text_of(token) if isinstance(token, Token) else ""
        name = _NAMES[_PLAIN] if not secure else _NAMES[1] if base_path else _NAMES[0]
        path, flags = base_path or "/", "; Secure" if secure else ""
        yield _field(name, text, sessions.max_age_seconds if text else 0, path, flags)
        for other, values in zip(_NAMES, self._cookies, strict=True):
            # A cookie of another name would open the old session once this one is deleted. Over HTTP the browser
            # does not allow a secure one to be deleted.
            if values and other != name and (secure or other == COOKIE):
                yield _field(other, "", 0, "/" if other == _NAMES[0] else path, flags)


def _field(name: str, text: str, age: int, path: str, flags: str) -> tuple[bytes, bytes]:
    return b"set-cookie", f"{name}={text}; Max-Age={age}; Path={path}; HttpOnly; SameSite=Lax{flags}".encode("ascii")


def _bearers(fields: Sequence[str]) -> Iterator[str]:
    for field in fields:
        scheme, _, token = field.partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip(" \t")
