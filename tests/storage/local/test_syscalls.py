"""The system calls that Python does not offer."""

import errno
import os
from contextlib import suppress

import pytest

from app.storage.local import syscalls


@pytest.fixture
def place(tmp_path):
    """A directory with a file `old` in it, and its descriptor."""
    (tmp_path / "old").write_bytes(b"old")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


@pytest.fixture(params=["renameat2", "link"])
def rename(request, place, monkeypatch):
    """Renames within the directory: as Linux does it, and as it is done where that is not to be had."""
    if request.param == "link":
        real = syscalls._call

        def without_rename(name, *arguments):
            if name == "renameat2":
                raise OSError(errno.EINVAL, "not here")
            real(name, *arguments)

        monkeypatch.setattr(syscalls, "_call", without_rename)
    return lambda old, new: syscalls.rename_new(old, new, old_dir_fd=place[1], new_dir_fd=place[1])


def test_a_rename_moves_a_file(place, rename):
    rename("old", "new")
    assert os.listdir(place[0]) == ["new"]
    assert (place[0] / "new").read_bytes() == b"old"


def test_a_rename_never_replaces(place, rename):
    (place[0] / "new").write_bytes(b"new")
    with pytest.raises(FileExistsError):
        rename("old", "new")
    assert (place[0] / "new").read_bytes() == b"new"
    assert (place[0] / "old").read_bytes() == b"old"


def test_an_absent_file_cannot_be_renamed(place, rename):
    with pytest.raises(FileNotFoundError):
        rename("other", "new")


def no_rename(name, *arguments):
    raise OSError(errno.ENOSYS, "not here")


def test_a_link_whose_answer_was_lost_is_a_rename_all_the_same(place, monkeypatch):
    """A network file system repeats the call, and finds the name taken: by itself."""
    real = os.link

    def answer_lost(*arguments, **named):
        real(*arguments, **named)
        real(*arguments, **named)

    monkeypatch.setattr(syscalls, "_call", no_rename)
    monkeypatch.setattr(os, "link", answer_lost)
    syscalls.rename_new("old", "new", old_dir_fd=place[1], new_dir_fd=place[1])
    assert os.listdir(place[0]) == ["new"]


def test_a_rename_that_cannot_be_finished_leaves_no_new_name(place, monkeypatch):
    real = os.unlink

    def keep_old(name, *, dir_fd=None):
        if name == "old":
            raise OSError(errno.EIO, "broken")
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(syscalls, "_call", no_rename)
    monkeypatch.setattr(os, "unlink", keep_old)
    with pytest.raises(OSError, match="broken"):
        syscalls.rename_new("old", "new", old_dir_fd=place[1], new_dir_fd=place[1])
    assert os.listdir(place[0]) == ["old"]


def test_flushing_and_asking_succeed_on_a_sound_file(place):
    with open(place[0] / "old", "ab") as file:
        file.write(b"more")
        file.flush()
        syscalls.start_writeback(file.fileno(), 0, 8 << 20)
        syscalls.syncfs(place[1])
        syscalls.written_back(file.fileno())


def test_an_error_is_raised_with_its_number():
    for call in (syscalls.syncfs, syscalls.written_back):
        with pytest.raises(OSError, match="Bad file descriptor") as told:
            call(-1)
        assert told.value.errno == errno.EBADF


def test_an_interrupted_call_is_made_again(monkeypatch):
    answers = [(-1, errno.EINTR), (-1, errno.EINTR), (0, 0)]

    class Libc:
        def syncfs(self, fd):
            result, code = answers.pop(0)
            syscalls.ctypes.set_errno(code)
            return result

    monkeypatch.setattr(syscalls, "_libc", Libc())
    syscalls.syncfs(5)
    assert answers == []


def test_a_call_that_this_system_lacks_is_an_error_like_any_other(monkeypatch):
    monkeypatch.setattr(syscalls, "_libc", object())
    with pytest.raises(OSError, match="not implemented") as told:
        syscalls.syncfs(5)
    assert told.value.errno == errno.ENOSYS


class TestOpenCached:
    def test_open_cached_opens_a_cached_name(self, place):
        os.stat("old", dir_fd=place[1])
        fd = syscalls.open_cached("old", os.O_RDONLY, dir_fd=place[1])
        assert os.read(fd, 9) == b"old"
        os.close(fd)

    @pytest.mark.parametrize("name", ["absent", "link", "../outside"])
    def test_open_cached_opens_nothing_else(self, place, name):
        (place[0] / "link").symlink_to("old")
        (place[0].parent / "outside").touch()
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=place[1])
        with pytest.raises(OSError):  # noqa: PT011  # which one depends on what the kernel looks at first
            syscalls.open_cached(name, os.O_RDONLY, dir_fd=place[1])
