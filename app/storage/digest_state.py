"""Running SHA-256 digests whose state can be saved as text and resumed, by another process if need be.

Python's own digests cannot be saved. Those of the OpenSSL that Python is linked with can:
their state is a plain structure. Where that is unavailable, or does not pass the test below,
Python's are used; their state is None, and the bytes are read again to resume.
"""

import ctypes
import hashlib
import re
from functools import cache
from typing import Any, Final, Protocol

import structlog

log = structlog.stdlib.get_logger("waybill.storage")

_BLOCK: Final = 64
_STATE: Final = re.compile(r"([0-9]{1,19})\.([0-9a-f]{64})\.((?:[0-9a-f]{2}){0,63})", re.ASCII)


class RunningDigest(Protocol):
    def update(self, block: memoryview | bytes | bytearray, /) -> object: ...

    def hexdigest(self) -> str:
        """The digest of all bytes so far; more may follow."""

    def state(self) -> str | None:
        """The state from which `resumed` continues, or None where it cannot be saved."""


class _PythonDigest:
    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.update = self._digest.update
        self.hexdigest = self._digest.hexdigest

    def state(self) -> None:
        return None


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX, with spare space behind it in case that a fork's is larger."""

    _fields_ = (
        ("words", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("pending", ctypes.c_uint8 * _BLOCK),
        ("pending_bytes", ctypes.c_uint),
        ("digest_bytes", ctypes.c_uint),
        ("spare", ctypes.c_uint8 * 144),
    )


class _OpenSSLDigest:
    """A digest of OpenSSL's. Its state: the byte count, the eight words, and the bytes that do not fill a block."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._context = _Context()
        self._call("SHA256_Init", ctypes.byref(self._context))

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments) != 1:
            raise RuntimeError(f"{name} failed")

    def update(self, block: memoryview | bytes | bytearray, /) -> None:
        view = memoryview(block)
        if view.nbytes:
            # Writable buffers, as are all blocks of large files, are not copied.
            start = bytes(view) if view.readonly else ctypes.byref(ctypes.c_char.from_buffer(view))
            self._call("SHA256_Update", ctypes.byref(self._context), start, ctypes.c_size_t(view.nbytes))

    def hexdigest(self) -> str:
        copy, digest = _Context.from_buffer_copy(self._context), (ctypes.c_uint8 * 32)()
        self._call("SHA256_Final", digest, ctypes.byref(copy))
        return bytes(digest).hex()

    def state(self) -> str:
        context = self._context
        count = (context.bits_high << 32 | context.bits_low) // 8
        words = "".join(f"{word:08x}" for word in context.words)
        return f"{count}.{words}.{bytes(context.pending[: context.pending_bytes]).hex()}"

    def take_up(self, count: int, words: str, pending: bytes) -> None:
        context = self._context
        context.words[:] = [int(words[at : at + 8], 16) for at in range(0, 64, 8)]
        context.bits_high, context.bits_low = divmod(count * 8, 2**32)
        context.pending[: len(pending)] = list(pending)
        context.pending_bytes = len(pending)


def begun() -> RunningDigest:
    """Begin a digest, of no bytes yet."""
    library = _openssl()
    return _PythonDigest() if library is None else _OpenSSLDigest(library)


def resumed(state: str | None, offset: int) -> RunningDigest | None:
    """Resume the digest of the first `offset` bytes; None when `state` does not hold it."""
    if offset == 0:
        return begun()
    library, match = _openssl(), _STATE.fullmatch(state or "")
    if library is None or match is None:
        return None
    count, pending = int(match[1]), bytes.fromhex(match[3])
    if count != offset or len(pending) != offset % _BLOCK:
        return None
    digest = _OpenSSLDigest(library)
    digest.take_up(count, match[2], pending)
    return digest


@cache
def _openssl() -> Any:
    """The library that Python's digests come from, if its SHA-256 is the one described here; or None."""
    try:
        import _hashlib  # absent where Python was built without OpenSSL

        library = ctypes.CDLL(_hashlib.__file__)  # has no file where it is built in
        _try_out(library)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        log.info("an interrupted upload's digest cannot be saved; its bytes are read again", reason=str(error))
        return None
    return library


def _try_out(library: Any) -> None:
    """Raise RuntimeError unless digests, saved and resumed at any point, equal Python's."""
    content = bytes(range(256)) * 2
    for cut in (0, 1, 55, 56, 63, 64, 65, 127, 128, 300):
        first, second = _OpenSSLDigest(library), _OpenSSLDigest(library)
        first.update(bytearray(content[:cut]))
        match = _STATE.fullmatch(first.state())
        if match is None or int(match[1]) != cut or len(match[3]) != cut % _BLOCK * 2:
            raise RuntimeError("its SHA-256 counts otherwise")
        second.take_up(cut, match[2], bytes.fromhex(match[3]))
        for digest in (first, second):
            digest.update(content[cut:])
            if digest.hexdigest() != hashlib.sha256(content).hexdigest():
                raise RuntimeError("its SHA-256 has another structure")
