"""Positions in the order of changes, as clients keep them: opaque, so that they tell nothing of what others do."""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

from app.signing import Signer

_PAIR: Final = struct.Struct(">QQ")
_SEAL_CHARACTERS: Final = 11
_MASK_CHARACTERS: Final = 22
_LENGTH: Final = _SEAL_CHARACTERS + _MASK_CHARACTERS


class ChangePosition(NamedTuple):
    """A change by its id and time. Both must agree for it to be known: a restored backup gives ids out again."""

    id: int
    at: int


START: Final = ChangePosition(0, 0)
"""The position before all changes, where there are none, not even the one that every database begins with."""


class Positions:
    """Writes and reads positions: sealed by the first signing key, and masked by a text that the seal leads to."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def written(self, position: ChangePosition) -> str:
        """The position as 33 letters, digits, `-` and `_`."""
        pair = _PAIR.pack(*position)
        seal = self._seal(pair)
        return seal + urlsafe_b64encode(self._masked(pair, seal)).decode("ascii").rstrip("=")

    def read(self, text: str) -> ChangePosition | None:
        """Read a position; None for anything else than what the current key wrote."""
        if len(text) != _LENGTH or not text.isascii():
            return None
        seal = text[:_SEAL_CHARACTERS]
        try:
            pair = self._masked(urlsafe_b64decode(f"{text[_SEAL_CHARACTERS:]}=="), seal)
        except ValueError:
            return None
        position = ChangePosition(*_PAIR.unpack(pair))
        return position if self.written(position) == text else None

    def _seal(self, pair: bytes) -> str:
        return self._signer.derive(f"seal {pair.hex()}")[:_SEAL_CHARACTERS]

    def _masked(self, pair: bytes, seal: str) -> bytes:
        mask = urlsafe_b64decode(f"{self._signer.derive(f'mask {seal}')[:_MASK_CHARACTERS]}==")
        return (int.from_bytes(pair) ^ int.from_bytes(mask)).to_bytes(_PAIR.size)
