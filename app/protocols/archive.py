"""Archives: a ZIP of stored files that is made while it is sent, and whose length is known before.

Files are stored, not compressed, each with a data descriptor behind it; ZIP64 is used where a number needs it
(APPNOTE.TXT 4.3.9, 4.5.3). Nothing of a file is held but its entry in the directory, which comes last.
"""

from collections.abc import Generator, Iterator
from typing import Final

from zipstream import ZipStream

from app.model import MAX_FILENAME_BYTES, folded

MEDIA_TYPE: Final = "application/zip"
_EXTENSION_CHARACTERS: Final = 16


class Archive:
    """A ZIP, fed by hand: `add` all files; then for each, in that order, `header`, its bytes by `block`, `trailer`.

    The bytes that these return, and then those of `directory`, are the archive, of `length` bytes in all.
    """

    def __init__(self) -> None:
        self._zip = ZipStream(sized=True)
        self._names = _Names()
        self._blocks = _Blocks()
        self._entry: Generator[bytes, None, bool] | None = None

    def add(self, name: str, size: int) -> str:
        """Announce the next file; return the name that it gets, which no other has, without regard to case."""
        name = self._names.unique(name)
        self._zip.add(self._blocks, name, size=size)
        return name

    @property
    def length(self) -> int:
        return len(self._zip)

    def header(self) -> bytes:
        """Begin the next file."""
        self._entry = self._zip.file()
        return next(self._entry)

    def block(self, block: bytes) -> bytes:
        """Pass on the next bytes of the file, and count them in its checksum."""
        assert self._entry is not None
        self._blocks.next = block
        return next(self._entry)

    def trailer(self) -> bytes:
        """End the file; raises RuntimeError if it had not the announced size."""
        assert self._entry is not None
        trailer = next(self._entry)
        for _ in self._entry:
            raise AssertionError("a data descriptor is the last of an entry")
        return trailer

    def directory(self) -> Iterator[bytes]:
        """Iterate over the pieces of the directory, without which nobody takes the archive for whole."""
        return iter(self._zip.footer())


class _Blocks:
    """The bytes of the file that is being sent, given to the library when it asks for them."""

    next: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block, self.next = self.next, None
        if block is None:
            raise StopIteration
        return block


class _Names:
    """Names that differ without regard to case, since many file systems would take others for one file."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """The name itself, or `name (2).txt` if that is taken, and so on."""
        first, number, unique = folded(name), 1, name
        while folded(unique) in self._taken:
            number = self._next[first] = self._next.get(first, 1) + 1
            unique = _numbered(name, number)
        self._taken.add(folded(unique))
        return unique


def _numbered(name: str, number: int) -> str:
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension) > _EXTENSION_CHARACTERS:
        stem, dot, extension = name, "", ""
    ending = f" ({number}){dot}{extension}"
    room = MAX_FILENAME_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending
