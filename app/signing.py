"""Signatures: text signed for one purpose, checked under every configured key."""

import hashlib
import hmac
from collections.abc import Sequence
from hmac import compare_digest

import itsdangerous
from itsdangerous.encoding import base64_encode, want_bytes


class _Signer(itsdangerous.Signer):
    """One key for one purpose, derived once, since every request with a session is verified."""

    def __init__(self, key: str, salt: str) -> None:
        super().__init__(key, salt=salt, digest_method=hashlib.sha256)
        self._keyed = hmac.new(self.derive_key(), digestmod="sha256")

    def get_signature(self, value: str | bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(want_bytes(value))
        return base64_encode(mac.digest())


class Signer:
    """A signer and verifier of short ASCII text for one purpose.

    The first key signs; every key verifies, so keys can be rotated without ending a
    session. The purpose is part of the key: text signed for one purpose is invalid for another.
    """

    def __init__(self, keys: Sequence[str], purpose: str) -> None:
        salt = f"waybill.{purpose}.v1"
        self._signers = [_Signer(key, salt) for key in keys]

    def sign(self, text: str) -> str:
        return self._signers[0].sign(text).decode("ascii")

    def derive(self, text: str) -> str:
        """Derive a secret of 43 characters that a URL can hold: the same for the same text and key."""
        return self._signers[0].get_signature(text).decode("ascii")

    def verify(self, signed: str) -> str | None:
        """The signed text; None when `signed` is not exactly what a configured key makes of that text.

        The comparison is with the text signed anew: base64 decoding ignores junk, so a
        signature that merely decodes to the right bytes would still be an altered one.
        """
        text, dot, _ = signed.rpartition(".")
        if not dot or not signed.isascii():
            return None
        given = signed.encode("ascii")
        for signer in self._signers:
            if compare_digest(signer.sign(text), given):
                return text
        return None
