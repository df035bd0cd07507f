"""The composition root: what it makes on a first start, for whom, and that a start which fails leaves nothing open."""

import asyncio
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.config import Settings
from app.errors import Unusable
from app.ids import new_code, new_id, now_us
from app.main import build, open_database, services
from app.model import is_upload_id
from app.secret_key import secret_keys
from tests.support.asgi import serving
from tests.support.service import PATIENCE


def settings_in(directory, **others):
    return Settings(**{"storage_dir": directory / "store", "min_free_space": 0} | others)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def open_files():
    """What this process has open, but for the listing itself."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def end(threads):
    """Wait for these threads, which have been told to end; those of the loop's own pool end with the loop."""
    for thread in threads:
        if thread.name.startswith("asyncio_"):
            continue
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread


class TestSecretKeys:
    def test_configured_keys_are_used_in_their_order(self, tmp_path):
        keys = ["a" * 32, "b" * 32]
        assert secret_keys(settings_in(tmp_path, secret_keys=",".join(keys))) == keys
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_key_is_made_and_kept_private_to_this_user(self, tmp_path):
        settings = settings_in(tmp_path)
        settings.storage_dir.mkdir()
        [key] = secret_keys(settings)
        assert len(key) >= 64
        assert secret_keys(settings) == [key]
        assert mode(settings.storage_dir / "secret.key") == 0o600
        assert os.listdir(settings.storage_dir) == ["secret.key"]

    def test_processes_that_start_at_once_agree_on_one_key(self, tmp_path):
        settings = settings_in(tmp_path)
        settings.storage_dir.mkdir()
        everyone = threading.Barrier(8)

        def start():
            everyone.wait()
            return secret_keys(settings)

        with ThreadPoolExecutor(8) as threads:
            found = [thread.result() for thread in [threads.submit(start) for _ in range(8)]]
        assert found == [found[0]] * 8
        assert os.listdir(settings.storage_dir) == ["secret.key"]

    def test_the_name_of_a_new_key_survives_a_power_cut(self, tmp_path, monkeypatch):
        """The key is flushed before it has its name, and its name before anything is signed."""
        settings = settings_in(tmp_path)
        settings.storage_dir.mkdir()
        done, fsync, link = [], os.fsync, os.link

        def flush(fd):
            done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).partition(".")[0])
            fsync(fd)

        def name(*paths):
            done.append("named")
            link(*paths)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "link", name)
        secret_keys(settings)
        assert done == ["secret", "named", "store"]

    @pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
    def test_a_file_that_holds_no_key_is_refused(self, tmp_path, content):
        settings = settings_in(tmp_path)
        settings.storage_dir.mkdir()
        (settings.storage_dir / "secret.key").write_bytes(content)
        with pytest.raises(Unusable, match=r"store/secret\.key"):
            secret_keys(settings)


class TestDatabaseFile:
    async def test_the_database_file_and_its_logs_are_private_to_this_user(self, tmp_path):
        settings = settings_in(tmp_path, database_url=f"sqlite:///{tmp_path}/elsewhere/records.db")
        async with services(settings):
            files = sorted((tmp_path / "elsewhere").iterdir())
            assert [file.name for file in files] == [
                "records.db",
                "records.db-reserve",
                "records.db-shm",
                "records.db-wal",
            ]
            assert {mode(file) for file in files} == {0o600}
        assert mode(tmp_path / "elsewhere") == 0o700

    async def test_permissions_that_an_operator_granted_stay(self, tmp_path):
        (tmp_path / "records.db").touch()
        (tmp_path / "records.db").chmod(0o640)
        async with services(settings_in(tmp_path, database_url=f"sqlite:///{tmp_path}/records.db")):
            assert mode(tmp_path / "records.db") == 0o640

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(Unusable, match=r"file/below/records\.db cannot be made"):
            open_database(settings_in(tmp_path, database_url=f"sqlite:///{tmp_path}/file/below/records.db"))


class TestLife:
    async def test_everything_that_was_opened_is_closed_again(self, tmp_path):
        settings = settings_in(tmp_path)
        async with serving(settings):
            pass  # what is made once and kept, such as imports, is made now
        files, threads = open_files(), set(threading.enumerate())
        async with serving(settings):
            assert len(open_files()) > len(files)
        end(set(threading.enumerate()) - threads)
        assert open_files() == files
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert list((settings.storage_dir / "staging").iterdir()) == []

    @pytest.mark.parametrize("broken", ["store", "database", "key"])
    async def test_a_start_that_fails_half_way_closes_what_it_had_opened(self, tmp_path, broken):
        settings = settings_in(tmp_path)
        async with serving(settings):
            pass
        files, threads = open_files(), set(threading.enumerate())
        if broken == "store":
            (settings.storage_dir / "files" / "00").rmdir()
            (settings.storage_dir / "files" / "00").touch()
        elif broken == "database":
            (settings.storage_dir / "waybill.db").write_bytes(b"no database" * 1000)
        else:
            (settings.storage_dir / "secret.key").write_text("short")
        with pytest.raises(Unusable):
            async with services(settings):
                pytest.fail("it started")
        end(set(threading.enumerate()) - threads)
        assert open_files() == files
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert list((settings.storage_dir / "staging").iterdir()) == []

    async def test_nothing_is_opened_before_its_life_begins(self, tmp_path):
        files = open_files()
        build(settings_in(tmp_path))
        assert open_files() == files
        assert list(tmp_path.iterdir()) == []


class TestRandomness:
    def test_ids_are_sorted_by_time_and_differ(self):
        ids = [new_id() for _ in range(1000)]
        assert len(set(ids)) == 1000
        assert all(is_upload_id(each) and each[14] == "7" for each in ids)
        times = [each[:13] for each in ids]
        assert times == sorted(times)

    def test_codes_have_no_look_alike_characters(self):
        codes = [new_code() for _ in range(200)]
        assert len(set(codes)) == 200
        for code in codes:
            assert [len(part) for part in code.split("-")] == [4, 4, 4]
            assert not set(code) & set("ILOU")

    def test_the_clock_shows_the_present(self):
        before = Path("/proc/self").stat().st_ctime_ns
        assert before // 1000 <= now_us() < sys.maxsize
