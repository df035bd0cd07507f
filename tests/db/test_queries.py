"""The SQL folder keeps its rules, and what breaks one is refused."""

import re
from pathlib import Path

import pytest

from app.db import queries
from app.db.queries import Malformed, Query, load, migrations, parse

APP = Path(queries.__file__).parents[1]
HEADER = "-- name: find_thing :one\n-- params: thing_id\n-- A thing.\n"


def only(text: str, dialect: queries.Dialect = "sqlite") -> Query:
    [query] = parse(text, dialect, where="things.sql")
    return query


def test_both_dialects_ask_the_same_questions():
    def shape(query):
        return query.name, query.kind, query.params, query.optional, query.writes

    sqlite, postgresql = load("sqlite"), load("postgresql")
    assert {shape(query) for query in sqlite.values()} == {shape(query) for query in postgresql.values()}


def test_a_query_is_in_a_dialects_folder_only_if_it_differs():
    for path in (queries.folder() / "queries" / "sqlite").glob("*.sql"):
        other = path.parents[1] / "postgresql" / path.name
        ours, theirs = (
            {query.name: query.statement for query in parse(file.read_text(), "sqlite", where="")}
            for file in (path, other)
        )
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] == theirs[name]] == []


def test_every_query_is_used_and_every_used_query_exists():
    asking = [*APP.rglob("*records.py"), APP / "db" / "migrate.py", APP / "db" / "privileges.py"]
    code = "".join(path.read_text() for path in asking)
    asked = set(re.findall(r'\.(?:one|many|run)\(\s*"(\w+)"', code)) | set(
        re.findall(r'"((?:list|search)_\w*uploads\w*)"', code)
    )
    assert asked == set(load("sqlite"))


def test_a_statement_names_its_columns():
    for query in load("sqlite").values():
        assert not re.search(r"(SELECT|RETURNING)\s+\*|\.\*", query.statement), query.name


def test_the_migrations_of_both_dialects_have_the_same_names():
    assert [migration.name for migration in migrations("sqlite")] == [m.name for m in migrations("postgresql")]
    assert all(re.fullmatch(r"\d{4}_[a-z_]+(\.needs_\d{4})?\.sql", found.name) for found in migrations("sqlite"))


def test_a_migration_falls_into_its_statements():
    text = "-- Why; and how.\nCREATE TABLE a (b TEXT DEFAULT ';' || '--');\n\n-- More.\nDROP TABLE c; -- gone\n"
    statements = queries.Migration(1, "0001_try.sql", text).statements
    assert statements == ["CREATE TABLE a (b TEXT DEFAULT ';' || '--')", "DROP TABLE c"]


def test_a_statement_of_a_migration_may_hold_others():
    trigger = "CREATE TRIGGER t AFTER INSERT ON a\nBEGIN\n    UPDATE b SET c = 1;\n    UPDATE b SET d = 2;\nEND"
    text = f"-- Why.\n{trigger};\n\nDROP TABLE e;"
    assert queries.Migration(1, "0001_try.sql", text).statements == [trigger, "DROP TABLE e"]


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("DROP INDEX a;\n\nCREATE INDEX b\nON t (c)\nWHERE d;", [("a", None), ("b", "t (c)\nWHERE d")]),
        ("CREATE UNIQUE INDEX a ON t (c);", None),
        ("CREATE INDEX a ON t (c);\n\nDROP TABLE d;", None),
        ("-- Nothing to do.", None),
    ],
)
def test_a_migration_of_nothing_but_indexes_is_known(text, indexes):
    assert queries.Migration(1, "0001_try.sql", text).indexes == indexes


def test_no_later_migration_needs_an_index_that_may_not_be_there_yet():
    late = set()
    for migration in migrations("postgresql"):
        if migration.indexes is None:
            assert not late & set(re.findall(r"\w+", "".join(migration.statements))), migration.name
        else:
            late |= {index.name for index in migration.indexes}


def test_comments_and_quotes_hold_no_parameters():
    text = HEADER + "SELECT ':a' -- it's :b\nFROM t\nWHERE \":c\" = :thing_id AND d = 'it''s :e' AND f = :thing_id;\n"
    assert only(text).statement == "SELECT ':a' \nFROM t\nWHERE \":c\" = :thing_id AND d = 'it''s :e' AND f = :thing_id"
    assert only(text, "postgresql").statement.count("$1") == 2
    assert only(text, "postgresql").order == ("thing_id",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SELECT 1;\n" + HEADER + "SELECT :thing_id;", "before the first header"),
        ("-- name: find_thing :one\n-- A thing.\nSELECT 1;", "header"),
        ("-- name: find_thing :one\n-- params: none\nSELECT 1;", "header"),
        ("-- name: find_thing :few\n-- params: none\n-- A thing.\nSELECT 1;", "header"),
        ("-- name: thing :one\n-- params: none\n-- A thing.\nSELECT 1;", "header"),
        (HEADER + "SELECT 1;", "uses"),
        (HEADER + "SELECT :thing_id, :other;", "uses"),
        (HEADER.replace("thing_id", "thing_id, thing_id") + "SELECT :thing_id;", "lists"),
        (HEADER + "SELECT :thing_id", "semicolon"),
        (HEADER + "SELECT :thing_id; SELECT 2;", "one statement"),
        (HEADER + "SELECT :thing_id LIKE 'a%';", "%"),
        (HEADER + "SELECT CAST(:thing_id AS TEXT)::int;", "::"),
        (HEADER.replace("thing_id", "thing_id?") + "SELECT 1 WHERE :thing_id IS NULL;", "CAST"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(text, complaint):
    with pytest.raises(Malformed, match=complaint):
        only(text)


def test_a_query_that_is_there_twice_is_refused(tmp_path, monkeypatch):
    for place in ("queries", "queries/sqlite"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "things.sql").write_text(HEADER + "SELECT :thing_id;")
    monkeypatch.setattr(queries, "folder", lambda: tmp_path)
    with pytest.raises(Malformed, match="find_thing is there twice"):
        load.__wrapped__("sqlite")


@pytest.mark.parametrize(
    "names",
    [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["0002_a.sql"], ["0001_a.needs_1.sql"], ["0001.sql"]],
)
def test_migrations_with_a_gap_or_another_name_are_refused(tmp_path, monkeypatch, names):
    (tmp_path / "migrations" / "sqlite").mkdir(parents=True)
    for name in names:
        (tmp_path / "migrations" / "sqlite" / name).touch()
    monkeypatch.setattr(queries, "folder", lambda: tmp_path)
    with pytest.raises(Malformed):
        migrations.__wrapped__("sqlite")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"a": 1}, r"missing \['b'\]"),
        ({"a": 1, "b": 2, "d": 3}, r"unknown \['d'\]"),
        ({"a": 1, "b": None}, r"\['b'\] cannot be None"),
        ({}, r"missing \['a', 'b'\]"),
    ],
)
def test_a_call_names_every_parameter_and_no_other(given, complaint):
    query = only("-- name: find_thing :one\n-- params: a, b, c?\n-- A thing.\nSELECT :a, :b, CAST(:c AS TEXT);")
    with pytest.raises(TypeError, match=complaint):
        query.arguments(given)
    assert query.arguments({"a": 1, "b": 2}) == {"a": 1, "b": 2, "c": None}
    assert query.arguments({"a": 1, "b": 2, "c": None}) == {"a": 1, "b": 2, "c": None}
