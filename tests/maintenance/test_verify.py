"""Every damage is found and named, and what is sound is never called damaged."""

import hashlib
import os
import uuid

import pytest

from app.maintenance.verify import verify
from app.model import Damage, Failure, Protocol, Status, Upload
from app.storage import Unreadable, Withheld
from app.storage.local import LocalStorage
from app.uploads import records as upload_records
from tests.support.unreliable import NOW, Store, opened


@pytest.fixture
async def db(tmp_path):
    db = await opened(f"sqlite:///{tmp_path}/waybill.db")
    yield db
    await db.close()


@pytest.fixture
async def store(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "app.maintenance.verify._GRACE_SECONDS", 0
    )  # also what was published this very moment is looked at
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
        error=Failure(code="too_slow", detail="") if failed else None,
    )


def damaged(found):
    """What is damaged, by how."""
    return {damage.value: getattr(found, damage) for damage in Damage if getattr(found, damage)}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


async def mark(db, number, code):
    assert await upload_records.fail_uploads(db, [key(number)], code, "") == [key(number)]


async def put_file(storage, number, content=b"content"):
    staged = storage.stage(key(number))
    await staged.write(content)
    await staged.finish()
    assert await storage.publish([staged]) == {}
    return staged.sha256


async def put(storage, db, number, content=b"content"):
    await upload_records.insert_uploads(db, [row(number, await put_file(storage, number, content), len(content))])


@pytest.fixture
async def path(store, db, tmp_path):
    """The file of upload 2, which stands between two sound ones."""
    for number, content in ((1, b""), (2, b"content"), (3, b"x" * 3_000_000)):
        await put(store, db, number, content)
    path = tmp_path / "store" / "files" / key(2)[-2:] / key(2)
    path.chmod(0o600)
    return path


async def test_a_sound_store_is_called_sound(store, db, path):
    seen = []
    found = await verify(store, db, on_file=lambda: seen.append(1))
    assert found.as_dict() == {
        "sound": True, "doubt": None, "files": 3, "bytes": 3_000_007,
        "missing": [], "replaced": [], "resized": [], "altered": [], "unreadable": [], "withheld": [],
        "without_record": [], "foreign": [], "mended": [], "recounted": [],
    }  # fmt: skip
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("content", "damage"),
    [(b"contenT", "altered"), (b"conten", "resized"), (b"content!", "resized"), (b"", "resized")],
)
async def test_other_bytes_are_damage(store, db, path, content, damage):
    path.write_bytes(content)
    found = await verify(store, db)
    assert (damaged(found), found.files, found.sound) == ({damage: [key(2)]}, 3, False)


async def test_a_file_that_is_gone_is_missing(store, db, path):
    path.unlink()
    found = await verify(store, db)
    assert (damaged(found), found.files, found.sound) == ({"missing": [key(2)]}, 2, False)


async def test_a_link_in_place_of_a_file_is_damage(store, db, path, tmp_path):
    """Not even one to the very bytes: whoever made it can change them."""
    (tmp_path / "elsewhere").write_bytes(b"content")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert damaged(await verify(store, db)) == {"replaced": [key(2)]}


async def test_a_pipe_in_place_of_a_file_is_damage_and_is_not_opened(store, db, path):
    path.unlink()
    os.mkfifo(path)
    assert damaged(await verify(store, db)) == {"replaced": [key(2)]}


async def test_a_directory_in_place_of_a_file_is_damage(store, db, path):
    path.unlink()
    path.mkdir()
    assert damaged(await verify(store, db)) == {"replaced": [key(2)]}


@pytest.mark.parametrize(("refusal", "kind"), [(Unreadable, "unreadable"), (Withheld, "withheld")])
async def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_looked_at(
    store, db, path, monkeypatch, refusal, kind
):
    digest = store.digest

    async def failing(upload_id, pace):
        if upload_id == key(2):
            raise refusal
        return await digest(upload_id, pace)

    monkeypatch.setattr(store, "digest", failing)
    found = await verify(store, db)
    assert (damaged(found), found.files, found.doubt, found.sound) == ({kind: [key(2)]}, 2, None, False)


async def test_most_files_that_cannot_be_had_are_a_doubt(store, db, path, tmp_path):
    path.unlink()
    (tmp_path / "store" / "files" / key(3)[-2:] / key(3)).unlink()
    found = await verify(store, db)
    assert found.doubt == "2 of 3 records have no file that can be read; is this their directory, and our user?"


async def test_files_in_numbers_without_a_record_are_a_doubt(store, db, path, monkeypatch):
    monkeypatch.setattr("app.maintenance.verify._GRACE_SECONDS", -60.0)
    for number in range(4, 15):
        await put_file(store, number)
    found = await verify(store, db)
    assert found.doubt == "11 of 14 files have no record; is this their database?"


async def test_a_record_that_does_not_fit_its_file_is_found(store, db, path):
    await upload_records.insert_uploads(db, [row(4, await put_file(store, 4), 8)])
    assert damaged(await verify(store, db)) == {"resized": [key(4)]}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to somebody else")
async def test_a_file_of_another_owner_is_damage_whatever_it_holds(store, db, path, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"content")
    os.chown(tmp_path / "elsewhere", 12345, 12345)
    path.unlink()
    path.hardlink_to(tmp_path / "elsewhere")
    assert damaged(await verify(store, db)) == {"replaced": [key(2)]}


async def test_a_second_name_elsewhere_is_no_damage(store, db, path, tmp_path):
    """Backups are made so."""
    (tmp_path / "backup").hardlink_to(path)
    assert (await verify(store, db)).sound


@pytest.mark.parametrize("status", [None, Status.FAILED, Status.DELETED])
async def test_a_file_that_no_completed_upload_owns_is_found(store, db, path, status):
    sha256 = await put_file(store, 4)
    if status is not None:
        await upload_records.insert_uploads(db, [row(4, sha256, 7, status)])
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


async def test_a_file_deleted_meanwhile_is_no_damage(db):
    class Busy(Store):
        async def digest(self, upload_id, pace=None):
            if upload_id == key(2) and await self.missing([key(2)]) == []:
                await self.delete(2)
            return await super().digest(upload_id, pace)

        async def walk(self, grace_seconds):
            found = [file async for files in super().walk(0) for file in files]
            await self.delete(3)
            yield found

        async def delete(self, number):
            assert await upload_records.delete_upload(db, "mine", key(number), NOW)
            await self.remove([key(number)])

    store = Busy()
    for number in (1, 2, 3):
        await put(store, db, number)
    found = await verify(store, db)
    assert (found.as_dict()["sound"], found.files) == (True, 2)


async def test_an_upload_landed_meanwhile_is_no_damage(db):
    """Its file is there a moment before its row: only what has settled is looked at."""

    class Busy(Store):
        async def walk(self, grace_seconds):
            await put_file(self, 2)
            async for found in super().walk(grace_seconds):
                yield found

    store = Busy()
    await put(store, db, 1)
    assert (await verify(store, db)).sound


async def test_uploads_of_more_than_one_page_are_all_verified(store, db, path, monkeypatch):
    monkeypatch.setattr("app.maintenance.verify._AT_ONCE", 2)
    for number in range(4, 10):
        await put(store, db, number)
    for number in (5, 8):
        await store.remove([key(number)])
    found = await verify(store, db)
    assert (found.files, damaged(found)) == (7, {"missing": [key(5), key(8)]})


class TestMarked:
    """Uploads that were found damaged before: they are looked at too, and mended when there is nothing wrong."""

    async def test_an_upload_that_stays_damaged_is_still_named(self, store, db, path):
        path.unlink()
        await mark(db, 2, "lost")
        found = await verify(store, db)
        assert (damaged(found), found.mended, found.sound) == ({"missing": [key(2)]}, [], False)

    @pytest.mark.parametrize("code", ["lost", "damaged"])
    async def test_an_undamaged_upload_is_completed_again(self, store, db, path, code):
        [before] = (await upload_records.list_these(db, [key(2)])).values()
        await mark(db, 2, code)
        found = await verify(store, db)
        assert (damaged(found), found.mended, found.files, found.sound) == ({}, [key(2)], 3, True)
        assert (await upload_records.list_these(db, [key(2)]))[key(2)] == before

    async def test_the_file_of_a_marked_upload_is_not_without_a_record(self, store, db, path):
        path.write_bytes(b"contenT")
        await mark(db, 2, "damaged")
        found = await verify(store, db)
        assert (damaged(found), found.without_record) == ({"altered": [key(2)]}, [])

    async def test_an_upload_that_failed_otherwise_is_not_repaired(self, store, db, path):
        """An unfinished upload whose bytes were lost was never complete."""
        failed = row(4, None, 7, Status.FAILED).model_copy(update={"completed_at": None})
        await put_file(store, 4)
        await upload_records.insert_uploads(db, [failed])
        found = await verify(store, db)
        assert (found.mended, found.without_record) == ([], [key(4)])

    async def test_an_upload_deleted_meanwhile_is_neither_damaged_nor_repaired(self, db):
        class Busy(Store):
            async def digest(self, upload_id, pace=None):
                found = await super().digest(upload_id, pace)
                await upload_records.delete_upload(db, "mine", upload_id, NOW)
                return found

        store = Busy()
        for number, content in ((1, b"whole"), (2, b"altered")):
            await put_file(store, number, content)
            await upload_records.insert_uploads(db, [row(number, sha256(b"whole"), len(content))])
            await mark(db, number, "damaged")
        found = await verify(store, db)
        assert (damaged(found), found.mended) == ({}, [])
        assert set((await upload_records.statuses_of(db, [key(1), key(2)])).values()) == {"deleted"}


async def test_one_bad_reading_is_not_damage(store, db, path, monkeypatch):
    """What the disk has is the same the second time; what happened on the way is not."""
    digest, readings = store.digest, []

    async def wrong_once(upload_id, pace):
        size, sha256 = await digest(upload_id, pace)
        readings.append(upload_id)
        return size, sha256 if readings.count(upload_id) > 1 else "0" * 64

    monkeypatch.setattr(store, "digest", wrong_once)
    assert (await verify(store, db)).sound
    assert len(readings) == 6
