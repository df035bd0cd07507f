"""Signatures: text signed for one purpose, checked under every configured key."""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hmac import compare_digest

import itsdangerous


class _Key:
    """One key for one purpose, derived once, since every request with a session is verified."""

    def __init__(self, key: str, salt: str) -> None:
        derived = itsdangerous.Signer(key, salt=salt, digest_method=hashlib.sha256).derive_key()
        self._keyed = hmac.new(derived, digestmod="sha256")

    def signature(self, text: str) -> bytes:
        mac = self._keyed.copy()
        mac.update(text.encode("ascii"))
        return urlsafe_b64encode(mac.digest()).rstrip(b"=")


class Signer:
    """A signer and verifier of short ASCII text for one purpose.

    The first key signs; every key verifies, so keys can be rotated without ending a
    session. The purpose is part of the key: text signed for one purpose is invalid for another.
    """

    def __init__(self, keys: Sequence[str], purpose: str) -> None:
        salt = f"waybill.{purpose}.v1"
        self._keys = [_Key(key, salt) for key in keys]

    def sign(self, text: str) -> str:
        return f"{text}.{self.derive(text)}"

    def derive(self, text: str) -> str:
        """Derive a secret of 43 characters that a URL can hold: the same for the same text and key."""
        return self._keys[0].signature(text).decode("ascii")

    def verify(self, signed: str) -> str | None:
        """The signed text; None when `signed` is not exactly what a configured key makes of that text.

        The comparison is with the signature made anew: base64 decoding ignores junk, so a
        signature that merely decodes to the right bytes would still be an altered one.
        """
        text, dot, signature = signed.rpartition(".")
        if not dot or not signed.isascii():
            return None
        given = signature.encode("ascii")
        for key in self._keys:
            if compare_digest(key.signature(text), given):
                return text
        return None
