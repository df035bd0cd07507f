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

    def add(self, path: str, size: int) -> str:
        """Announce the next file; return the path that it gets, which no other has, without regard to case."""
        name = self._names.unique(path)
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
    """Names that differ without regard to case, since many file systems would take others for one file.

    Nor is any name that of a directory in which others are.
    """

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._directories: dict[str, str] = {"": ""}
        """The directories, as they are named, by the folded paths that were asked for."""
        self._taken: set[str] = set()
        """The folded names of these directories, without a slash."""
        self._next: dict[str, int] = {}

    def unique(self, path: str) -> str:
        """The path itself, or its last element as `name (2).txt` if that is taken, and so on."""
        directory, _, name = path.rpartition("/")
        unique = self._free(self._directory(directory), name, of_file=True)
        self._files.add(folded(unique))
        return unique

    def _directory(self, path: str) -> str:
        """The directory of this path with a slash, under another name if a file has its own."""
        asked = folded(path)
        if asked not in self._directories:
            parent, _, name = path.rpartition("/")
            free = self._free(self._directory(parent), name, of_file=False)
            self._taken.add(folded(free))
            self._directories[asked] = f"{free}/"
        return self._directories[asked]

    def _free(self, parent: str, name: str, *, of_file: bool) -> str:
        first, number, free = folded(parent + name), 1, parent + name
        while folded(free) in self._files or (of_file and folded(free) in self._taken):
            number = self._next[first] = self._next.get(first, 1) + 1
            free = parent + _numbered(name, number)
        return free


def _numbered(name: str, number: int) -> str:
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension) > _EXTENSION_CHARACTERS:
        stem, dot, extension = name, "", ""
    ending = f" ({number}){dot}{extension}"
    room = MAX_FILENAME_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending
