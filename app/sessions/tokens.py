"""The tokens of sessions as text: signed together with the time they were issued. Pure: no database."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from app.model import Clock
from app.signing import Signer

_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}\.[0-9]{1,19}\.[A-Za-z0-9_-]{20,128}")
_STALE_SHARE: Final = 30
"""A cookie is issued anew once this fraction of its session's age has passed."""


class Token(NamedTuple):
    """A client's token: a secret, and when it was last issued."""

    secret: str
    given_at_us: int

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.secret.encode()).hexdigest()


class Tokens:
    """Makes, signs and reads tokens. `max_age_us` is how long an idle session lives."""

    def __init__(self, signer: Signer, *, max_age_us: int, now_us: Clock, new_secret: Callable[[], str]) -> None:
        self._signer = signer
        self._max_age_us = max_age_us
        self._now_us = now_us
        self._new_secret = new_secret

    def text_of(self, token: Token) -> str:
        """The token as a cookie or bearer value."""
        return self._signer.sign(f"{token.secret}.{token.given_at_us // 1_000_000}")

    def read(self, text: str) -> Token | None:
        """The token that a text holds; None if it is not signed by us."""
        signed = self._signer.verify(text)
        if signed is None:
            return None
        secret, _, given_at = signed.rpartition(".")
        return Token(secret, int(given_at) * 1_000_000)

    def read_all(self, texts: Sequence[str]) -> list[Token]:
        """The tokens among `texts` that are signed by us, whether or not they open a session."""
        if len(texts) == 1:
            token = self.read(texts[0])
            return [token] if token else []
        return [token for text in dict.fromkeys(texts) if (token := self.read(text))]

    def is_ours(self, text: str) -> bool:
        """Whether a text has the shape of a token: another service's bearer token is not taken for one."""
        return _SHAPE.fullmatch(text) is not None

    def new(self) -> Token:
        return Token(self._new_secret(), self._now_us())

    def renewed(self, token: Token) -> Token:
        """The same token, issued now."""
        return token._replace(given_at_us=self._now_us())

    def is_stale(self, token: Token) -> bool:
        """Whether a token should be issued anew, so that its cookie lives as long as the session."""
        return self._now_us() - token.given_at_us > self._max_age_us // _STALE_SHARE
