"""The command: what each part of it prints, in text and as JSON, and the status it ends with."""

import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from app import cli
from app.config import load
from app.db import migrate
from app.db.queries import Migration, migrations
from app.ids import new_id
from app.main import build
from app.maintenance import verify
from tests.support.logging_apart import logging_apart
from tests.support.service import HISTORY, PATIENCE, UPLOADS, environment

NO_STORE = "waybill-data/files/00"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """An empty directory and an environment without settings; and logging as it was, for the command sets it up."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("WAYBILL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WAYBILL_MIN_FREE_SPACE", "0")
    with logging_apart():
        yield


@pytest.fixture
def on_any_database(database_url, monkeypatch):
    monkeypatch.setenv("WAYBILL_DATABASE_URL", database_url)


def run(*arguments):
    return CliRunner().invoke(cli.main, list(arguments))


def refusal(command):
    """The one line in which a command says that it cannot be used as it is set up."""
    done = run(command)
    assert done.exit_code == 78, done.output
    said = [line for line in done.stderr.splitlines() if "Z info " not in line]
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL  ")]
    [line] = said + failed
    return line.removeprefix("FAIL  ").removeprefix("database: ")


def printed(*arguments, status=0):
    """What the command prints as JSON."""
    done = run(*arguments, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def upload(*names):
    """Have files of these names uploaded in one session; its records, newest first."""

    async def client():
        app = build(load())
        async with app.router.lifespan_context(app) as state:

            async def serve(scope, receive, send):
                await app({**scope, "state": dict(state)}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url="http://x") as asking:
                for name in names:
                    made = await asking.put(f"{UPLOADS}/{name}", content=f"content of {name}".encode())
                    assert made.status_code == 201
                session = (await asking.get("/api/session")).json()["id"]
                return session, (await asking.get(HISTORY)).json()["items"]

    return asyncio.run(client())


def stored(upload_id):
    return Path(f"waybill-data/files/{upload_id[-2:]}/{upload_id}")


class TestUsage:
    def test_help_names_every_command(self):
        done = run("--help")
        assert done.exit_code == 0
        for command in ("serve", "check", "migrate", "sweep", "verify", "history"):
            assert f"\n  {command} " in done.stdout
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize("command", ["serve", "check", "migrate", "sweep", "verify", "history"])
    def test_every_command_says_what_it_does(self, command):
        done = run(command, "--help")
        assert done.exit_code == 0
        assert len(done.stdout.splitlines()[2].strip()) > 20
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize(
        "wrong", [["no-such-command"], ["check", "--no-such-option"], ["history", "--limit", "0"], ["serve", "more"]]
    )
    def test_an_unknown_argument_is_wrong_usage(self, wrong):
        done = run(*wrong)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "Usage: " in done.stderr

    @pytest.mark.parametrize("command", [[sys.executable, "-m", "app"], [Path(sys.executable).with_name("waybill")]])
    def test_the_command_has_two_names(self, command):
        done = subprocess.run([*command, "--version"], env=environment(Path()), capture_output=True, text=True)
        assert done.returncode == 0
        assert "version 0.1.0" in done.stdout

    def test_help_waits_for_nothing_that_it_does_not_need(self):
        """Not for a database, a web framework or a validator."""
        script = "import sys, app.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
        heavy = ["sqlalchemy", "pydantic", "starlette", "uvicorn", "structlog", "asyncio"]
        done = subprocess.run(
            [sys.executable, "-c", script, *heavy], env=environment(Path()), capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


class TestConfiguration:
    @pytest.mark.parametrize("command", ["serve", "check", "migrate", "sweep", "verify", "history"])
    def test_all_configuration_problems_are_reported_at_once(self, command, monkeypatch):
        monkeypatch.setenv("WAYBILL_PORT", "many")
        monkeypatch.setenv("WAYBILL_MAX_FILE_SIZE", "-1")
        monkeypatch.setenv("WAYBILL_SECRET_KEYS", "tooshortbutsecret")
        monkeypatch.setenv("WAYBILL_DATABSE_URL", "sqlite:///x.db")
        done = run(command)
        assert (done.exit_code, done.stdout) == (78, "")
        first, *problems = done.stderr.splitlines()
        assert first == "configuration is not usable:"
        for name in ("PORT", "MAX_FILE_SIZE", "SECRET_KEYS", "DATABSE_URL"):
            assert sum(f"WAYBILL_{name}" in problem for problem in problems) == 1
        assert len(problems) == 4
        assert "tooshortbutsecret" not in done.stderr
        assert list(Path().iterdir()) == []


class TestCheck:
    def test_a_fit_installation_passes_every_check(self, on_any_database):
        done = run("check")
        assert (done.exit_code, done.stderr) == (0, "")
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
            "ok    storage",
            "ok    secret keys",
            "ok    open files",
            "ok    database",
        ]
        assert "will be migrated: 0001_" in done.stdout
        assert run("migrate").exit_code == 0
        assert "schema is current" in run("check").stdout

    def test_a_check_makes_no_key(self):
        """Beside a running service, whose file is gone, it would be another one than is in use."""
        assert "none yet; the start makes one" in run("check").stdout
        assert list(Path().rglob("secret*")) == []
        Path("waybill-data/secret.key").write_text("k" * 40)
        assert "one, in waybill-data/secret.key" in run("check").stdout

    def test_all_checks_are_tried_although_one_fails(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("WAYBILL_STORAGE_DIR", str(tmp_path / "file"))
        monkeypatch.setenv("WAYBILL_SECRET_KEYS", "k" * 40)
        monkeypatch.setenv("WAYBILL_DATABASE_URL", f"sqlite:///{tmp_path}/w.db")
        found = printed("check", status=78)
        assert found["ok"] is False
        assert [(check["name"], check["ok"], check["away"]) for check in found["checks"]] == [
            ("storage", False, False),
            ("secret keys", True, False),
            ("open files", True, False),
            ("database", True, False),
        ]
        assert str(tmp_path / "file") in found["checks"][0]["found"]
        assert "FAIL  storage: " in run("check").stdout

    def test_a_logo_that_is_no_image_fails_its_check(self, monkeypatch, tmp_path):
        monkeypatch.setenv("WAYBILL_LOGO", str(tmp_path / "logo.png"))
        assert run("check").exit_code == 78
        (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        assert f"ok    logo: {tmp_path}/logo.png is an image of the type image/png" in run("check").stdout

    def test_a_database_that_is_away_is_a_temporary_failure(self, monkeypatch):
        monkeypatch.setenv("WAYBILL_DATABASE_URL", "postgresql://waybill:topsecret@127.0.0.1:9/waybill")
        done = run("check")
        assert done.exit_code == 69
        assert "FAIL  database: postgresql://127.0.0.1:9/waybill: " in done.stdout
        assert "topsecret" not in done.output

    @pytest.mark.parametrize(("workers", "label"), [(7, "ok  "), (8, "warn")])
    def test_workers_that_want_more_connections_than_there_are_cause_a_warning(
        self, monkeypatch, postgres, workers, label
    ):
        """The server of the tests takes 60, and reserves some of them for its operator where we are not that."""
        name = (url := postgres.create_database()).rpartition("/")[2]
        postgres.execute(f"CREATE ROLE {name}_app LOGIN CONNECTION LIMIT 58")
        postgres.execute(f"ALTER DATABASE {name} OWNER TO {name}_app")
        monkeypatch.setenv("WAYBILL_DATABASE_URL", url.replace("//waybill@", f"//{name}_app@"))
        monkeypatch.setenv("WAYBILL_WORKERS", str(workers))
        done = run("check")
        assert done.exit_code == 0
        [*_, last] = done.stdout.splitlines()
        assert last.startswith(label)
        if label == "warn":
            assert "8 workers with up to 8 connections each, and the database lets 57 in" in last
            assert printed("check")["checks"][-1]["warns"] is True

    def test_a_disk_without_space_is_reported(self, monkeypatch):
        monkeypatch.setenv("WAYBILL_MIN_FREE_SPACE", "8000000TiB")
        done = run("check")
        assert done.exit_code == 78
        assert "FAIL  storage: " in done.stdout


class TestSchema:
    @pytest.mark.parametrize("command", ["serve", "check", "migrate", "history", "verify", "sweep"])
    def test_a_schema_that_needs_newer_code_is_refused_in_a_line(self, command, on_any_database, monkeypatch):
        assert run("migrate").exit_code == 0
        needs = Migration(99, f"0099_newer.needs_{len(migrations('sqlite')) + 1:04d}.sql", "DROP TABLE scrubs;\n")
        with monkeypatch.context() as newer:
            newer.setattr(migrate, "migrations", lambda dialect: (*migrations(dialect), needs))
            newer.setattr(migrate, "oldest_code", lambda name: 0)
            assert run("migrate").stdout == f"applied {needs.name}\n"
        done = run(command)
        assert done.exit_code == 78
        assert [line for line in done.output.splitlines() if needs.name in line] == [done.output.splitlines()[-1]]
        assert "Traceback" not in done.output


class TestMigrate:
    def test_migrating_twice_changes_nothing(self, on_any_database):
        done = run("migrate")
        assert (done.exit_code, done.stderr) == (0, "")
        assert all(line.startswith("applied 0") for line in done.stdout.splitlines())
        again = run("migrate")
        assert (again.exit_code, again.stdout) == (0, "nothing to apply\n")

    def test_the_migrations_are_printed_as_json(self, on_any_database):
        applied = printed("migrate")["applied"]
        assert applied == sorted(applied)
        assert applied[0].startswith("0001_")
        assert printed("migrate") == {"applied": []}

    def test_migrating_a_database_that_is_away_fails_in_a_line(self, monkeypatch):
        monkeypatch.setenv("WAYBILL_DATABASE_URL", "postgresql://waybill@127.0.0.1:9/waybill")
        done = run("migrate")
        assert (done.exit_code, done.stdout) == (69, "")
        assert done.stderr.count("\n") == 1


class TestSweep:
    def test_a_sweep_prints_its_findings(self, on_any_database):
        upload("a.txt", "b.txt")
        done = run("sweep")
        assert (done.exit_code, done.stderr) == (0, "")
        found = dict(line.split(": ") for line in done.stdout.splitlines())
        assert (found["files"], found["records"], found["staged removed"], found["stopped"]) == ("2", "2", "0", "-")

    def test_a_sweep_removes_leftovers_of_crashes(self):
        upload("a.txt")
        owner = Path("waybill-data/staging") / new_id()
        owner.mkdir()
        (owner / new_id()).write_text("half")
        assert printed("sweep")["staged_removed"] == 1
        assert not owner.exists()

    def test_a_sweep_reports_lost_files(self, on_any_database):
        _, items = upload("a.txt", "b.txt")
        stored(items[0]["id"]).unlink()
        found = printed("sweep")
        assert (found["records_lost"], found["stopped"]) == (1, None)

    def test_a_directory_of_another_database_is_left_alone(self, on_any_database):
        _, items = upload(*(f"{number}.txt" for number in range(11)))
        for item in items:
            stored(item["id"]).unlink()
        done = run("sweep")
        assert done.exit_code == 1
        assert "is this their directory?" in done.stdout


class TestVerify:
    def test_a_sound_store_is_verified(self, on_any_database):
        upload("a.txt", "b.txt")
        done = run("verify")
        assert done.exit_code == 0
        assert done.stdout == f"2 files, {2 * len('content of a.txt')} bytes read\nsound\n"
        assert printed("verify") == {
            "sound": True, "doubt": None, "files": 2, "bytes": 32, "missing": [], "replaced": [], "resized": [],
            "altered": [], "unreadable": [], "withheld": [], "without_record": [], "foreign": [], "mended": [],
            "recounted": [],
        }  # fmt: skip

    def test_every_damaged_file_is_named(self, on_any_database, monkeypatch):
        monkeypatch.setattr(verify, "_GRACE_SECONDS", -60.0)  # a new file without a record is not given time to get one
        _, items = upload("flipped", "short", "long", "gone", "fine")
        ids = {item["filename"]: item["id"] for item in items}
        for path in map(stored, ids.values()):
            path.chmod(0o600)
        stored(ids["flipped"]).write_bytes(b"Content of flipped")
        stored(ids["short"]).write_bytes(b"content of shor")
        stored(ids["long"]).write_bytes(b"content of long ")
        stored(ids["gone"]).unlink()
        extra, stray = new_id(), "what is\nthis"
        stored(extra).write_bytes(b"nobody's")
        Path(NO_STORE, stray).write_bytes(b"")
        found = printed("verify", status=1)
        assert found["sound"] is False
        assert found["files"] == 4
        assert found["altered"] == [ids["flipped"]]
        assert found["missing"] == [ids["gone"]]
        assert sorted(found["resized"]) == sorted([ids["short"], ids["long"]])
        assert found["without_record"] == [extra]
        assert found["foreign"] == [f"files/00/{stray}"]
        done = run("verify")
        assert done.exit_code == 1
        assert done.stdout.endswith("NOT sound\n")
        assert f"missing: {ids['gone']}\n" in done.stdout
        assert f"altered: {ids['flipped']}\n" in done.stdout
        assert f"without record: {extra}\n" in done.stdout
        assert "foreign: files/00/what is\\nthis\n" in done.stdout


class TestHistory:
    def test_the_history_lists_sessions_and_their_uploads(self, on_any_database):
        first, items = upload("a.txt", "b.txt")
        second, _ = upload("c.txt")
        done = run("history")
        assert (done.exit_code, done.stderr) == (0, "")
        assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted([first, second])
        assert all(line.endswith("  open") for line in done.stdout.splitlines())
        done = run("history", first)
        assert (done.exit_code, done.stderr) == (0, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines == [[item["created_at"], "completed", "16", item["id"], item["filename"]] for item in items]
        assert len(run("history", first, "--limit", "1").stdout.splitlines()) == 1

    def test_the_history_is_printed_as_json(self, on_any_database):
        session, items = upload("a.txt", "b.txt")
        [listed] = printed("history")["items"]
        assert (listed["id"], listed["ended_at"], listed["merged_into"]) == (session, None, None)
        assert printed("history", session) == {"session": listed, "items": items, "skipped": 0}

    @pytest.mark.parametrize("session", ["nobody", "019a0000-0000-7000-8000-000000000000", "", "\udcff", "a\nb"])
    def test_an_unknown_session_is_refused(self, session, on_any_database):
        assert run("migrate").exit_code == 0
        done = run("history", session)
        assert (done.exit_code, done.stdout, done.stderr) == (1, "", "there is no such session\n")

    def test_a_name_moves_no_cursor(self):
        session, [item] = upload("%C3%BCn%E2%80%A8x")
        assert item["filename"] == "ün\u2028x"
        assert run("history", session).stdout.endswith("  ün\\u2028x\n")

    def test_broken_rows_are_counted(self):
        session, items = upload("a.txt", "b.txt")
        with closing(sqlite3.connect("waybill-data/waybill.db")) as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            db.execute("UPDATE uploads SET filename = 'a/b' WHERE id = ?", [items[0]["id"]])
            db.commit()
        done = run("history", session)
        assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1)
        assert "1 broken rows left out" in done.stderr
        assert printed("history", session)["skipped"] == 1

    @pytest.mark.parametrize("command", ["history", "verify"])
    def test_a_database_without_tables_is_refused_with_a_hint_to_migrate(self, command, on_any_database):
        done = run(command)
        assert (done.exit_code, done.stdout) == (78, "")
        assert "waybill migrate" in done.stderr


class TestStandardFiles:
    def test_a_reader_that_leaves_early_is_no_error_of_ours(self):
        upload(*(f"{number}.txt" for number in range(20)))
        session = printed("history")["items"][0]["id"]
        line = f'{sys.executable} -m app history {session} | (read line; echo "$line")'
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=environment(Path()), capture_output=True, text=True, timeout=PATIENCE
        )
        assert len(done.stdout.splitlines()) == 1
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_closed_standard_files_are_no_error(self):
        """Nor does the database's file take the place of one, and receive what is printed."""
        line = f"{sys.executable} -m app migrate 0<&- 1>&- 2>&-; {sys.executable} -m app migrate"
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=environment(Path()), capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to apply\n", "")


class TestBackup:
    def test_a_backup_is_restored_into_an_empty_place_and_no_other(self, monkeypatch, tmp_path):
        upload("a.txt", "b.txt")
        made = printed("backup", "backups")
        assert (made["files"], made["copied"], made["lost"]) == (2, 2, [])
        assert printed("backup", "backups")["copied"] == 0
        assert printed("backup", "backups", "--verify") == {"sound": True, "damaged": []}
        refused = run("restore", "backups")
        assert refused.exit_code == 78
        assert "is not empty" in refused.stderr
        monkeypatch.setenv("WAYBILL_STORAGE_DIR", str(tmp_path / "elsewhere"))
        assert printed("restore", "backups")["files"] == 2
        assert printed("verify")["sound"]
        assert printed("sweep")["files_set_aside"] == 0
        assert (tmp_path / "elsewhere" / "secret.key").read_text() == (tmp_path / "waybill-data/secret.key").read_text()

    def test_only_the_newest_backups_and_their_files_are_kept(self):
        upload("a.txt")
        names = [printed("backup", "backups", "--keep", "2")["name"] for _ in range(3)]
        assert sorted(os.listdir("backups/snapshots")) == names[1:]
        assert len([name for _, _, files in os.walk("backups/files") for name in files]) == 1

    def test_a_directory_of_something_else_is_no_place_for_a_backup(self):
        Path("other").mkdir()
        Path("other/letter").touch()
        for name in ("other", "waybill-data/backups", "."):
            assert run("backup", name).exit_code == 78
        assert os.listdir("other") == ["letter"]


def started(tmp_path, *arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, env=environment(tmp_path), stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize("arguments", [("check",), ("sweep", "--json"), ("--help",)], ids=" ".join)
def test_results_that_cannot_be_written_end_a_command_with_one_line_and_a_status(tmp_path, arguments):
    with open("/dev/full", "wb") as full:
        done = started(tmp_path, *arguments, stdout=full)
    assert done.stderr == b"standard output: No space left on device\n"
    assert done.returncode == 74


def test_a_reader_that_hangs_up_ends_a_command_without_a_word(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    done = started(tmp_path, "check", stdout=writes)
    os.close(writes)
    assert done.stderr == b""
    assert done.returncode == 74


def test_a_form_larger_than_the_files_that_may_be_open_is_refused_at_the_start(tmp_path):
    variables = environment(tmp_path, max_files_per_request=300)
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (1024, 1024))
    command = [sys.executable, "-m", "app", "serve"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, preexec_fn=few, check=False)
    assert done.returncode == 78
    assert b"WAYBILL_MAX_FILES_PER_REQUEST is 300" in done.stderr
    assert b"1024 files open (ulimit -Hn): expected 256 at most" in done.stderr
