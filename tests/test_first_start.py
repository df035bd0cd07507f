"""A database that was not prepared: each command says in a line what to grant or rename, and doing that is enough."""

import asyncio
import re
import sqlite3
from contextlib import closing
from itertools import count

import pytest

from app.config import load
from tests.support.asgi import serving
from tests.test_cli import apart, refusal, run, upload

__all__ = ["apart"]

COMMANDS = ["check", "serve", "migrate"]
_numbers = count(1)


class Prepared:
    """A database, the role that uses it, and whoever may do anything."""

    def __init__(self, server, monkeypatch):
        self._server = server
        self.role = f"app_{next(_numbers)}"
        self.owner_url = server.create_database()
        self.name = self.owner_url.rpartition("/")[2]
        self.sql(f"CREATE ROLE {self.role} LOGIN")
        self.url = self.owner_url.replace("waybill@", f"{self.role}@")
        monkeypatch.setenv("WAYBILL_DATABASE_URL", self.url)

    def sql(self, *statements):
        for statement in statements:
            self._server.execute(statement, url=self.owner_url)

    def refused(self, expected):
        """The line that all commands end with."""
        [line] = {refusal(command) for command in COMMANDS}
        assert re.search(expected, line), line
        return line

    def do(self, line):
        """Do the first thing that the line asks for."""
        self.sql(re.search(r"((?:GRANT|CREATE) .*?)(?:, or .*)?$", line)[1])

    def serves(self):
        assert run("check").exit_code == 0
        assert run("migrate").exit_code == 0
        upload("a.txt")


@pytest.fixture
def prepared(postgres, monkeypatch):
    made = Prepared(postgres, monkeypatch)
    yield made
    postgres.drop_database(made.owner_url)


def test_a_role_that_may_not_make_tables_is_refused_with_the_grant_it_needs(prepared):
    line = prepared.refused(r"GRANT USAGE, CREATE ON SCHEMA public TO app_\d+, or set WAYBILL_DATABASE_SCHEMA")
    prepared.do(line)
    prepared.serves()


def test_a_role_that_may_use_no_schema_is_refused_with_the_reason(prepared):
    prepared.sql("REVOKE ALL ON SCHEMA public FROM public")
    prepared.do(prepared.refused("may use no schema of its search path"))
    prepared.serves()


@pytest.mark.parametrize(
    "table", ["sessions (id bigint, data text)", "schema_migrations (version text)", "uploads (id text, status text)"]
)
def test_a_table_of_another_application_is_named_and_left_alone(prepared, table, monkeypatch):
    prepared.sql(f"CREATE TABLE {table}", f"GRANT CREATE ON SCHEMA public TO {prepared.role}")
    prepared.refused(
        f"table {table.split()[0]} in the schema public that is not Waybill's: set WAYBILL_DATABASE_SCHEMA"
    )
    prepared.sql(f"GRANT CREATE ON DATABASE {prepared.name} TO {prepared.role}")
    monkeypatch.setenv("WAYBILL_DATABASE_SCHEMA", "user")  # a word that must be quoted
    prepared.serves()
    prepared.sql(
        "DO $$ BEGIN ASSERT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace) = 1; END $$"
    )


def test_a_schema_that_cannot_be_made_is_asked_for(prepared, monkeypatch):
    monkeypatch.setenv("WAYBILL_DATABASE_SCHEMA", "files")
    prepared.do(prepared.refused(r"CREATE SCHEMA files AUTHORIZATION app_\d+$"))
    prepared.serves()


def test_a_schema_that_belongs_to_others_is_asked_for(prepared, monkeypatch):
    monkeypatch.setenv("WAYBILL_DATABASE_SCHEMA", "files")
    prepared.sql("CREATE SCHEMA files")
    prepared.do(prepared.refused(r"GRANT USAGE, CREATE ON SCHEMA files TO app_\d+$"))
    prepared.serves()


def test_tables_that_may_not_be_used_are_named(prepared, monkeypatch):
    with monkeypatch.context() as owner:
        owner.setenv("WAYBILL_DATABASE_URL", prepared.owner_url)
        assert run("migrate").exit_code == 0
    prepared.do(prepared.refused(r"GRANT SELECT, INSERT, UPDATE, DELETE ON public\.schema_migrations, .* TO app_\d+$"))
    prepared.serves()


def test_a_migration_that_only_the_owner_can_apply_is_left_to_the_owner(prepared, monkeypatch):
    with monkeypatch.context() as owner:
        owner.setenv("WAYBILL_DATABASE_URL", prepared.owner_url)
        assert run("migrate").exit_code == 0
    prepared.sql(
        f"GRANT CREATE ON SCHEMA public TO {prepared.role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {prepared.role}",
        "DELETE FROM schema_migrations WHERE number = 3",
    )
    prepared.refused(
        "the table allowances belongs to the role waybill, .* 0003_create_session_usage.sql: run waybill migrate"
    )


def test_sqlite_with_a_table_of_another_application_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WAYBILL_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("CREATE TABLE sessions (id TEXT)")
    for command in COMMANDS:
        assert "has a table sessions that is not Waybill's" in refusal(command)


def test_a_migration_that_fails_in_spite_of_the_checks_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WAYBILL_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("CREATE TABLE a (b)")
        other.execute("CREATE INDEX uploads_by_session_newest_first ON a (b)")
    for command in ["serve", "migrate"]:
        assert "0001_create_sessions_and_uploads.sql cannot be applied: " in refusal(command)


@pytest.mark.slow
async def test_a_grant_that_is_taken_back_is_an_outage_until_it_is_given_again(prepared):
    prepared.sql(f"GRANT CREATE ON SCHEMA public TO {prepared.role}")
    async with serving(load()) as service:
        assert (await service.client().put("a.txt", b"x")).status == 201
        # In a thread: a transaction of the service's own background work, in this loop, must be able to end meanwhile.
        taken_back = "ALTER TABLE uploads OWNER TO waybill", f"GRANT SELECT ON uploads TO {prepared.role}"
        await asyncio.to_thread(prepared.sql, *taken_back)
        assert (await service.client().put("a.txt", b"x")).status == 503
        ready = await service.client().get("/health/ready")
        assert ready.status == 503
        await asyncio.to_thread(prepared.do, ready.json()["checks"]["schema"])
        async with asyncio.timeout(60):
            while (await service.client().put("a.txt", b"x")).status == 503:
                continue
