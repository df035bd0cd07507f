"""Every damage is found and named, and what is sound is never called damaged."""

import os
import uuid

import pytest

from app import records
from app.model import Failure, Protocol, Status, Upload
from app.storage.local import LocalStorage
from app.verify import verify
from tests.unreliable import NOW, Store, opened


@pytest.fixture
async def db(tmp_path):
    db = await opened(f"sqlite:///{tmp_path}/waybill.db")
    yield db
    await db.close()


@pytest.fixture
async def store(tmp_path, monkeypatch):
    monkeypatch.setattr("app.verify._GRACE_SECONDS", 0)  # also what was published this very moment is looked at
    storage = LocalStorage(tmp_path / "store", owner=key(0), min_free=0)
    await storage.prepare()
    yield storage
    await storage.close()


def key(number):
    return str(uuid.UUID(int=number))


def row(number, sha256, size, status=Status.COMPLETED):
    failed = status is Status.FAILED
    return Upload(
        id=key(number),
        session_id="mine",
        filename="a",
        content_type=None,
        size=size,
        sha256=sha256,
        status=status,
        protocol=Protocol.RAW,
        created_at=NOW,
        completed_at=NOW,
        error=Failure(code="lost", detail="") if failed else None,
    )


async def put_file(storage, number, content=b"content"):
    staged = storage.stage(key(number))
    await staged.write(content)
    await staged.finish()
    assert await storage.publish([staged]) == {}
    return staged.sha256


async def put(storage, db, number, content=b"content"):
    await records.insert_uploads(db, [row(number, await put_file(storage, number, content), len(content))])


@pytest.fixture
async def path(store, db, tmp_path):
    """The file of upload 2, which stands between two sound ones."""
    for number, content in ((1, b""), (2, b"content"), (3, b"x" * 3_000_000)):
        await put(store, db, number, content)
    path = tmp_path / "store" / "files" / key(2)[-2:] / key(2)
    path.chmod(0o600)
    return path


async def test_what_is_sound_is_called_sound(store, db, path):
    seen = []
    found = await verify(store, db, on_file=lambda: seen.append(1))
    assert found.as_dict() == {
        "sound": True, "files": 3, "bytes": 3_000_007,
        "missing": [], "damaged": [], "without_record": [], "foreign": [],
    }  # fmt: skip
    assert len(seen) == 3


@pytest.mark.parametrize("content", [b"contenT", b"conten", b"content!", b""])
async def test_other_bytes_are_damage(store, db, path, content):
    path.write_bytes(content)
    found = await verify(store, db)
    assert (found.damaged, found.missing, found.sound) == ([key(2)], [], False)


async def test_a_file_that_is_gone_is_missing(store, db, path):
    path.unlink()
    found = await verify(store, db)
    assert (found.missing, found.damaged, found.files, found.sound) == ([key(2)], [], 2, False)


async def test_a_link_in_its_place_is_no_file(store, db, path, tmp_path):
    """Not even one to the very bytes: whoever made it can change them."""
    (tmp_path / "elsewhere").write_bytes(b"content")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert (await verify(store, db)).missing == [key(2)]


async def test_nor_is_a_pipe_and_nobody_waits_at_it(store, db, path):
    path.unlink()
    os.mkfifo(path)
    assert (await verify(store, db)).missing == [key(2)]


async def test_nor_is_a_directory(store, db, path):
    path.unlink()
    path.mkdir()
    assert (await verify(store, db)).missing == [key(2)]


async def test_a_file_that_cannot_be_read_is_damage_and_the_rest_is_looked_at(store, db, path, monkeypatch):
    digest = store.digest

    async def failing(upload_id):
        if upload_id == key(2):
            raise OSError(5, "the disk has lost it")
        return await digest(upload_id)

    monkeypatch.setattr(store, "digest", failing)
    found = await verify(store, db)
    assert (found.damaged, found.files) == ([key(2)], 2)


async def test_a_record_that_does_not_fit_its_file_is_found(store, db, path):
    await records.insert_uploads(db, [row(4, await put_file(store, 4), 8)])
    assert (await verify(store, db)).damaged == [key(4)]


@pytest.mark.parametrize("status", [None, Status.FAILED, Status.DELETED])
async def test_a_file_that_no_completed_upload_owns_is_found(store, db, path, status):
    sha256 = await put_file(store, 4)
    if status is not None:
        await records.insert_uploads(db, [row(4, sha256, 7, status)])
    found = await verify(store, db)
    assert (found.without_record, found.sound) == ([key(4)], False)


async def test_a_link_that_no_upload_owns_is_foreign(store, db, path):
    path.with_name(key(0x102)).symlink_to("/etc/hostname")
    found = await verify(store, db)
    assert (found.foreign, found.sound) == ([f"files/02/{key(0x102)}"], False)


async def test_names_that_cannot_be_keys_are_foreign(store, db, path):
    path.with_name("README").write_bytes(b"hello")
    path.with_name(key(1)).write_bytes(b"in the wrong place")
    found = await verify(store, db)
    assert sorted(found.foreign) == sorted([f"files/02/{key(1)}", "files/02/README"])
    assert not found.sound


async def test_what_is_deleted_meanwhile_is_no_damage(db):
    class Busy(Store):
        async def digest(self, upload_id):
            if upload_id == key(2):
                await self.delete(2)
            return await super().digest(upload_id)

        async def walk(self, grace_seconds):
            found = [file async for files in super().walk(0) for file in files]
            await self.delete(3)
            yield found

        async def delete(self, number):
            assert await records.delete_upload(db, "mine", key(number))
            await self.remove([key(number)])

    store = Busy()
    for number in (1, 2, 3):
        await put(store, db, number)
    found = await verify(store, db)
    assert (found.as_dict()["sound"], found.files) == (True, 2)


async def test_what_lands_meanwhile_is_no_damage(db):
    """Its file is there a moment before its row: only what has settled is looked at."""

    class Busy(Store):
        async def walk(self, grace_seconds):
            await put_file(self, 2)
            async for found in super().walk(grace_seconds):
                yield found

    store = Busy()
    await put(store, db, 1)
    assert (await verify(store, db)).sound


async def test_more_uploads_than_are_looked_at_at_once(store, db, path, monkeypatch):
    monkeypatch.setattr("app.verify._AT_ONCE", 2)
    for number in range(4, 10):
        await put(store, db, number)
    for number in (5, 8):
        await store.remove([key(number)])
    found = await verify(store, db)
    assert (found.files, found.missing, found.damaged) == (7, [key(5), key(8)], [])
