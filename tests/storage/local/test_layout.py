"""The tree of the local store: made once, refused by name, owned by a lock, and swept with care."""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import Unavailable, Unusable
from app.storage import NotStored
from app.storage.local import owners
from app.storage.local.publish import FLUSH_EACH
from tests.contracts.storage import MiB, content_of, fill, get, keys, new_key, put, staged
from tests.support.stores import ROOT, files_in, local, mounted, needs_root, tmpfs

SHARDS = [f"{number:02x}" for number in range(256)]
CHECKOUT = Path(__file__).parents[3]


async def prepared(root, **how):
    storage = local(root, **how)
    try:
        await storage.prepare()
    except BaseException:
        await storage.close()
        raise
    return storage


async def refusal(root) -> str:
    """Why the directory is refused; nothing is left open by that."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unusable) as refused:
        await prepared(root)
    assert len(os.listdir("/proc/self/fd")) == before
    return str(refused.value)


# --- made


async def test_the_tree_is_made_for_this_user_alone(tmp_path):
    storage = await prepared(tmp_path / "new" / "store")
    root = tmp_path / "new" / "store"
    assert sorted(os.listdir(root)) == ["files", "partial", "staging", "trash"]
    assert sorted(os.listdir(root / "files")) == SHARDS
    for directory in [tmp_path / "new", root, *(path for path in root.rglob("*") if path.is_dir())]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await storage.close()
    assert os.listdir(root / "staging") == []


@pytest.mark.parametrize("size", [10, 2 * MiB])
async def test_a_file_can_be_changed_by_nobody(tmp_path, size):
    storage = await prepared(tmp_path)
    file = await staged(storage, content_of(size))
    assert await storage.publish([file]) == {}
    path = tmp_path / "files" / file.key[-2:] / file.key
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert path.read_bytes() == content_of(size)
    await storage.close()


async def test_two_services_share_a_store_and_each_sees_what_the_other_published(tmp_path):
    one, other = await prepared(tmp_path), await prepared(tmp_path)
    key = await put(one, b"hello")
    assert await get(other, key) == b"hello"
    await one.close()
    assert await keys(other) == [key]
    await other.close()


def test_an_owner_is_a_key(tmp_path):
    with pytest.raises(ValueError, match="owner"):
        local(tmp_path, owner="../elsewhere")


# --- refused


@pytest.mark.parametrize("name", ["staging", "partial", "files", "trash", "files/7f"])
async def test_a_link_in_the_tree_is_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "store"
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(tmp_path / "elsewhere")
    assert await refusal(root) == f"{root / name} is not a directory (a symbolic link is not followed here)"
    (root / name).unlink()
    (root / name).symlink_to("nowhere")
    assert await refusal(root) == f"{root / name} is not a directory (a symbolic link is not followed here)"
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("name", ["staging", "partial", "files", "trash", "files/7f"])
async def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert (await refusal(tmp_path)).startswith(f"{tmp_path / name} is not a directory")


async def test_a_root_that_is_no_directory_or_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert await refusal(tmp_path / "file") == f"{tmp_path / 'file'} cannot be used: Not a directory"
    assert await refusal(tmp_path / "file" / "store") == f"{tmp_path / 'file/store'} cannot be used: Not a directory"
    (tmp_path / "dangling").symlink_to("nowhere")
    assert str(tmp_path / "dangling") in await refusal(tmp_path / "dangling")


async def test_the_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "store").symlink_to("volume")
    storage = await prepared(tmp_path / "store")
    key = await put(storage, b"hello")
    assert (tmp_path / "volume" / "files" / key[-2:] / key).exists()
    await storage.close()


@needs_root
@pytest.mark.parametrize("name", ["staging", "partial", "files", "trash", "files/00"])
async def test_another_file_system_in_the_tree_is_refused(tmp_path, name):
    with tmpfs(tmp_path / name, "1m"):
        assert (await refusal(tmp_path)).startswith(f"{tmp_path / name} lies on another file system than {tmp_path}; ")


@needs_root
async def test_another_mount_of_the_same_file_system_is_refused(tmp_path):
    (tmp_path / "volume").mkdir()
    with mounted(tmp_path / "store" / "files", "--bind", source=str(tmp_path / "volume")):
        assert await refusal(tmp_path / "store") == (
            f"{tmp_path / 'store'} cannot be used: the store failed its test: Invalid cross-device link"
        )


@needs_root
async def test_a_read_only_file_system_is_refused(tmp_path):
    with tmpfs(tmp_path / "volume", "1m", "ro"):
        assert str(tmp_path / "volume") in await refusal(tmp_path / "volume")


AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from app.errors import Unusable
from tests.support.stores import local
from tests.contracts.storage import put

os.chdir(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

async def main():
    storage = local(Path(sys.argv[3]))
    try:
        await storage.prepare()
        sys.stdout.write("usable " + await put(storage, b"hello"))
    except Unusable as refusal:
        sys.stdout.write(str(refusal))
    finally:
        await storage.close()

asyncio.run(main())
"""


def as_ordinary_user(directory: Path, root: str) -> str:
    """What an ordinary user is told of `root`, a path relative to `directory`."""
    arguments = [sys.executable, "-W", "error", "-c", AS_NOBODY, str(CHECKOUT), str(directory), root]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def hand_over(*directories: Path) -> None:
    for directory in directories:
        directory.mkdir(mode=0o700, exist_ok=True)
        if ROOT:
            os.chown(directory, 65534, 65534)


def test_an_ordinary_user_can_use_a_store(tmp_path):
    hand_over(tmp_path)
    assert as_ordinary_user(tmp_path, "deeply/nested/store").startswith("usable ")
    assert as_ordinary_user(tmp_path, "deeply/nested/store").startswith("usable ")


@pytest.mark.parametrize("name", ["staging", "partial", "files", "trash", "files/00", "files/ff"])
@pytest.mark.parametrize("mode", [0o500, 0o600, 0o300, 0o000])
@pytest.mark.slow
def test_a_directory_that_this_user_cannot_use_is_named(tmp_path, name, mode):
    hand_over(tmp_path, tmp_path / "files", tmp_path / name)
    (tmp_path / name).chmod(mode)
    told = as_ordinary_user(tmp_path, ".")
    (tmp_path / name).chmod(0o700)
    assert told.startswith(f"{name} cannot be ")


def test_a_root_that_this_user_cannot_write_is_named(tmp_path):
    hand_over(tmp_path, tmp_path / "store")
    (tmp_path / "store").chmod(0o500)
    assert as_ordinary_user(tmp_path, "store") == "store cannot be written by this user"
    assert as_ordinary_user(tmp_path, "store/inner") == "store/inner cannot be used: Permission denied"
    (tmp_path / "store").chmod(0o700)


# --- prepared by many


STARTER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support.stores import local
from tests.contracts.storage import content_of, put, staged

async def main():
    storage = local(Path(sys.argv[2]))
    print("here", flush=True)
    sys.stdin.readline()
    await storage.prepare()
    print(await put(storage, b"whole"), flush=True)
    kept = [await staged(storage, content_of(size)) for size in (400_000, 3_000_000)]
    print("staged", flush=True)
    sys.stdin.readline()
    assert await storage.publish(kept) == {}
    print(*(file.key for file in kept), flush=True)
    await storage.recorded([kept[0].key])
    print("recorded", flush=True)
    if sys.stdin.readline():
        await asyncio.sleep(60)
    await storage.close()

asyncio.run(main())
"""


class Process:
    """Another process with a service on the same store, led step by step."""

    def __init__(self, root: Path) -> None:
        arguments = [sys.executable, "-W", "error", "-c", STARTER, str(CHECKOUT), str(root)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.says("here")

    def says(self, *expected: str) -> str:
        """Its next line, lines of its log aside."""
        while line := self.process.stdout.readline():
            if "[info" not in line:
                assert not expected or line.strip() in expected
                return line.strip()
        pytest.fail("the other process ended early")

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@pytest.mark.slow
async def test_many_processes_prepare_the_same_store_at_once(tmp_path):
    root = tmp_path / "deeply" / "nested" / "store"
    processes = [Process(root) for _ in range(4)]
    for process in processes:
        process.go_on()
    published = [process.says() for process in processes]
    storage = await prepared(root)
    assert await keys(storage) == sorted(published)
    for process in processes:
        process.says("staged")
        process.go_on()
        published += process.says().split()
        process.says("recorded")
        process.end()
        assert process.process.returncode == 0
    assert await keys(storage) == sorted(published)
    await storage.close()
    assert os.listdir(root / "staging") == []


async def test_only_the_staging_of_dead_owners_is_swept(tmp_path):
    process = Process(tmp_path)
    process.go_on()
    published = process.says()
    process.says("staged")
    storage = await prepared(tmp_path)
    assert await storage.sweep() == 0
    left = [name for name in files_in(tmp_path) if name.startswith("staging/")]
    assert len(left) == 2
    process.process.send_signal(signal.SIGKILL)
    process.end()
    assert await storage.sweep() == 2
    assert await storage.sweep() == 0
    assert await keys(storage) == [published]
    assert len(os.listdir(tmp_path / "staging")) == 1
    await storage.close()


async def test_a_crash_explains_what_had_no_record_and_nothing_else(tmp_path):
    process = Process(tmp_path)
    process.go_on()
    whole = process.says()
    process.says("staged")
    process.go_on()
    published = process.says().split()
    process.says("recorded")
    process.process.send_signal(signal.SIGKILL)
    process.end()
    storage = await prepared(tmp_path)
    recorded, *rest = published
    found = {found.key: found.left async for slice_ in storage.walk(0) for found in slice_}
    assert found == {whole: True, recorded: False} | dict.fromkeys(rest, True)
    await storage.set_aside([whole, recorded])
    assert {file.key: file.left for file in await storage.aside()} == {whole: True, recorded: False}
    await storage.forget_left(3600)
    assert {found.key: found.left async for slice_ in storage.walk(0) for found in slice_} == dict.fromkeys(rest, True)
    await storage.forget_left(0)  # files of the notes are still set aside
    assert {file.key: file.left for file in await storage.aside()} == {whole: True, recorded: False}
    await storage.remove([whole])
    await storage.forget_left(0)
    assert not any([found.left async for slice_ in storage.walk(0) for found in slice_])
    assert list(tmp_path.glob("*.unrecorded")) == []
    await storage.close()


@pytest.mark.parametrize("files", [1, FLUSH_EACH])
async def test_a_crash_explains_files_of_a_small_group_although_what_was_not_flushed_is_lost(tmp_path, files):
    dead, other = await prepared(tmp_path), await prepared(tmp_path)
    group = [await staged(dead, b"hello") for _ in range(files)]
    assert await dead.publish(group) == {}
    await dead.close()
    for path in tmp_path.glob("*.unrecorded"):
        os.truncate(path, 0)
    assert [found.left async for slice_ in other.walk(0) for found in slice_] == [True] * files
    await other.close()


async def test_a_living_process_explains_nothing_and_one_that_ends_well_leaves_no_list(tmp_path):
    living, other = await prepared(tmp_path), await prepared(tmp_path)
    key = await put(living, b"hello")
    assert [found.left async for slice_ in other.walk(0) for found in slice_] == [False]
    await living.recorded([key])
    await living.close()
    assert [path.name for path in tmp_path.glob("*.unrecorded")] == []
    in_doubt = await prepared(tmp_path)
    later = await put(in_doubt, b"hello")
    await in_doubt.close()
    found = {found.key: found.left async for slice_ in other.walk(0) for found in slice_}
    assert found == {key: False, later: True}
    await other.close()


async def test_a_sweeper_that_is_faster_than_the_lock_takes_nothing_away(tmp_path, monkeypatch):
    """It may remove the new staging directory before it is opened, and again before it is locked."""
    other = await prepared(tmp_path)
    real_flock, real_open, sweeps = fcntl.flock, os.open, []
    owner = new_key()

    def sweep_first(*arguments, **named):
        if arguments[0] == owner and "open" not in sweeps:
            sweeps.append("open")
            owners.remove_stale(other._directories)
            assert not (tmp_path / "staging" / owner).exists()
        return real_open(*arguments, **named)

    def sweep_before_lock(fd, how):
        if how == fcntl.LOCK_EX and "lock" not in sweeps:
            sweeps.append("lock")
            owners.remove_stale(other._directories)
            assert not (tmp_path / "staging" / owner).exists()
        real_flock(fd, how)

    monkeypatch.setattr(os, "open", sweep_first)
    monkeypatch.setattr(fcntl, "flock", sweep_before_lock)
    storage = await prepared(tmp_path, owner=owner)
    assert sweeps == ["open", "lock"]
    file = await staged(storage, content_of(MiB))
    assert await other.sweep() == 0
    assert await storage.publish([file]) == {}
    await storage.close()
    await other.close()


async def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(fd, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = await refusal(tmp_path)
    assert told.startswith(f"{tmp_path}/staging/")
    assert told.endswith(" cannot be locked: No locks available")


async def test_a_lock_that_fails_later_costs_no_live_upload(tmp_path, monkeypatch):
    storage, other = await prepared(tmp_path), await prepared(tmp_path)
    file = await staged(storage, content_of(MiB))

    def no_locks(fd, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert await other.sweep() == 0
    assert await storage.publish([file]) == {}
    await storage.close()
    await other.close()


# --- what others put there


async def test_a_stored_name_that_is_no_regular_file_is_never_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"not for download")
    root = tmp_path / "store"
    storage = await prepared(root)
    names = {}
    for kind in ("link", "dangling", "fifo", "directory", "device"):
        names[kind] = key = new_key()
        path = root / "files" / key[-2:] / key
        match kind:
            case "link":
                path.symlink_to(tmp_path / "secret")
            case "dangling":
                path.symlink_to("nowhere")
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "device":
                if ROOT:
                    os.mknod(path, stat.S_IFCHR, os.makedev(1, 5))
                else:
                    path.mkdir()
    for key in names.values():
        with pytest.raises(NotStored):
            await storage.open(key)
        with pytest.raises(NotStored):
            await storage.digest(key)
    assert await storage.missing(list(names.values())) == list(names.values())
    assert await keys(storage) == []
    assert sorted(await storage.strays()) == sorted(f"files/{key[-2:]}/{key}" for key in names.values())
    await storage.set_aside([names["directory"]])
    assert await storage.sweep() == 0
    await storage.remove(list(names.values()))
    assert (tmp_path / "secret").read_bytes() == b"not for download"
    await storage.close()


async def test_foreign_names_are_reported_and_left_alone(tmp_path):
    storage = await prepared(tmp_path)
    key = await put(storage, b"hello")
    wrong_shard = f"files/{'00' if key[-2:] != '00' else '01'}/{key}"
    foreign = [wrong_shard, "files/7f/README", "files/7f/.hidden", "files/README", "partial/README", "trash/README"]
    foreign += ["staging/README", f"partial/{key}.-1", f"partial/{key}"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"foreign")
    (tmp_path / "staging" / "lost+found").mkdir()
    (tmp_path / "staging" / "lost+found" / "precious").touch()
    not_a_file = f"trash/{new_key()}"
    (tmp_path / not_a_file).mkdir()
    assert await keys(storage) == [key]
    assert sorted(await storage.strays()) == sorted([*foreign, not_a_file, "staging/lost+found"])
    assert await storage.sweep() == 0
    assert all((tmp_path / name).exists() for name in [*foreign, "staging/lost+found/precious"])
    await storage.close()


async def test_a_directory_in_the_staging_of_a_dead_owner_is_reported_and_left(tmp_path):
    storage = await prepared(tmp_path)
    (tmp_path / "staging" / new_key() / "foreign").mkdir(parents=True)
    assert await storage.sweep() == 0
    assert len(os.listdir(tmp_path / "staging")) == 2
    await storage.close()


async def test_a_file_set_aside_ages_from_that_moment(tmp_path):
    """Also where a rename does not count as a change of the file."""
    storage = await prepared(tmp_path)
    file = await staged(storage, b"aside")
    await storage.publish([file])
    path = tmp_path / "files" / file.key[-2:] / file.key
    os.utime(path, (0, 0))
    before = path.stat().st_mtime
    await storage.set_aside([file.key])
    aside = tmp_path / "trash" / file.key
    assert aside.read_bytes() == b"aside"
    assert aside.stat().st_mtime > before
    [found] = await storage.aside()
    assert 0 <= found.age < 60
    await storage.close()


async def test_a_file_that_is_put_back_meanwhile_is_not_removed(tmp_path):
    storage = await prepared(tmp_path)
    files = [await put(storage, b"aside") for _ in range(3)]
    await storage.set_aside(files)
    aside = await storage.aside()
    assert await get(storage, files[0]) == b"aside"
    assert await storage.remove_aside(aside) == 2
    assert await storage.aside() == []
    assert await keys(storage) == files[:1]
    await storage.close()


async def test_a_file_under_its_key_is_not_replaced_by_one_that_was_set_aside(tmp_path):
    storage = await prepared(tmp_path)
    key = await put(storage, b"first")
    await storage.set_aside([key])
    assert await put(storage, b"second", key=key) == key
    assert await storage.put_back([key]) == {}
    assert await get(storage, key) == b"second"
    assert [file.key for file in await storage.aside()] == [key]
    await storage.close()


# --- the tree goes away


async def test_a_tree_that_was_removed_under_the_service_loses_no_record(tmp_path):
    """Nothing is said to be missing, or to be all there is, of a directory that is no longer there."""
    storage = await prepared(tmp_path / "store")
    key = await put(storage, b"hello")
    open_file = await staged(storage, b"late")
    shutil.rmtree(tmp_path / "store")
    asked = [storage.missing([key]), storage.open(key), storage.digest(key)]
    for ask in (*asked, keys(storage), storage.strays(), storage.sweep(), storage.test()):
        with pytest.raises(Unavailable):
            await ask
    assert [type(error) for error in (await storage.publish([open_file])).values()] == [Unavailable]
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await storage.close()


async def test_a_tree_that_was_moved_under_the_service_goes_on(tmp_path):
    storage = await prepared(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    key = await put(storage, b"hello")
    with storage.alone_at("sweep") as alone:
        assert alone
    assert (tmp_path / "moved" / "files" / key[-2:] / key).exists()
    assert not (tmp_path / "store").exists()
    await storage.close()


async def test_a_file_whose_upload_has_a_record_is_on_no_list(tmp_path):
    storage, other = await prepared(tmp_path), await prepared(tmp_path)
    file = storage.stage(new_key(), has_record=True)
    await fill(file, b"hello", 5)
    assert await storage.publish([file]) == {}
    await storage.close()
    assert [found.left async for slice_ in other.walk(0) for found in slice_] == [False]
    await other.close()
