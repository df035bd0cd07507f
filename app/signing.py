"""Signed text: made for one purpose, checked under every configured key."""

import hashlib
from collections.abc import Sequence
from hmac import compare_digest

import itsdangerous


class Signer:
    """Sign and verify short ASCII text for one purpose.

    The first key signs; every key verifies, so keys can be rotated without ending a
    session. The purpose is part of the key: text signed for one is nothing to another.
    """

    def __init__(self, keys: Sequence[str], purpose: str) -> None:
        salt = f"waybill.{purpose}.v1"
        self._signers = [itsdangerous.Signer(key, salt=salt, digest_method=hashlib.sha256) for key in keys]

    def sign(self, text: str) -> str:
        return self._signers[0].sign(text).decode("ascii")

    def verify(self, signed: str) -> str | None:
        """The text inside, or None when `signed` is not exactly what a configured key makes of it.

        The comparison is with the text made anew: base64 decoding forgives junk, so a
        signature that merely decodes to the right bytes would still be an altered one.
        """
        text, dot, _ = signed.rpartition(".")
        if not dot or not signed.isascii():
            return None
        given = signed.encode("ascii")
        return text if any(compare_digest(signer.sign(text), given) for signer in self._signers) else None
