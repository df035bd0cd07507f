"""Archives: any files, whatever their names, come out of the ZIP as they went in, and its length is known before."""

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model import MAX_FILENAME_BYTES, folded
from app.protocols.archive import Archive
from app.protocols.filenames import safe_filename

GIB = 2**30


def made(files: list[tuple[str, list[bytes]]]) -> tuple[Archive, list[str], bytes]:
    archive = Archive()
    names = [archive.add(name, sum(map(len, blocks))) for name, blocks in files]
    pieces = []
    for _, blocks in files:
        pieces += [archive.header(), *(archive.block(block) for block in blocks), archive.trailer()]
    pieces += archive.directory()
    return archive, names, b"".join(pieces)


any_name = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=60
).map(safe_filename)
any_path = st.lists(any_name | st.sampled_from(["a", "A", "a (2)"]), min_size=1, max_size=3).map("/".join)
any_files = st.lists(st.tuples(any_path | st.sampled_from(["a", "A", "a.txt", "a (2).txt"]), st.lists(st.binary())))


@given(any_files)
def test_files_come_out_of_an_archive_as_they_went_in(files: list[tuple[str, list[bytes]]]) -> None:
    archive, names, content = made(files)
    assert archive.length == len(content)
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        assert read.testzip() is None
        assert read.namelist() == names
        assert [read.read(name) for name in names] == [b"".join(blocks) for _, blocks in files]
    assert len({folded(name) for name in names}) == len(names)
    assert all(len(each.encode()) <= MAX_FILENAME_BYTES for name in names for each in name.split("/"))
    directories = {folded(name.rpartition("/")[0]) for name in names if "/" in name}
    assert not directories & {folded(name) for name in names}


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (["a.txt", "a.txt", "A.TXT"], ["a.txt", "a (2).txt", "A (3).TXT"]),
        (["a (2).txt", "a.txt", "a.txt"], ["a (2).txt", "a.txt", "a (3).txt"]),
        (["tar", "tar"], ["tar", "tar (2)"]),
        ([".profile", ".profile"], [".profile", ".profile (2)"]),
        (["straße", "STRASSE"], ["straße", "STRASSE (2)"]),
        (["ä" * 127, "ä" * 127], ["ä" * 127, "ä" * 125 + " (2)"]),
        (["a/b.txt", "A/B.txt", "a/c"], ["a/b.txt", "a/B (2).txt", "a/c"]),
        (["a", "a/b", "a/c", "a"], ["a", "a (2)/b", "a (2)/c", "a (3)"]),
        (["a", "a/b", "a (2)"], ["a", "a (2)/b", "a (2) (2)"]),
        (["a/b", "a", "a/b/c"], ["a/b", "a (2)", "a/b (2)/c"]),
        (["x." + "y" * 200, "x." + "y" * 200], ["x." + "y" * 200, "x." + "y" * 200 + " (2)"]),
    ],
)
def test_an_equal_name_gets_a_number(given: list[str], got: list[str]) -> None:
    archive = Archive()
    assert [archive.add(name, 0) for name in given] == got


@pytest.mark.parametrize("size", [4 * GIB - 2, 4 * GIB - 1, 4 * GIB, 5 * GIB])
def test_the_length_of_an_archive_counts_what_zip64_takes(size: int) -> None:
    """The files are not made; what else is there depends on their sizes alone."""
    archive = Archive()
    archive.add("large", size)
    archive.add("behind it", 0)
    is_long = size * 1.05 > 0x7FFFFFFF
    assert archive.length > size
    overhead = 2 * (30 + 46 + 16) + 2 * len("large") + 2 * len("behind it") + 22
    assert (archive.length > size + overhead) == is_long


def test_a_file_of_another_size_than_announced_ends_the_archive() -> None:
    archive = Archive()
    archive.add("a", 3)
    archive.header()
    archive.block(b"ab")
    with pytest.raises(RuntimeError):
        archive.trailer()
