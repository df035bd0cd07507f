"""Records mean the same in a row, in the service and in JSON; what breaks the rules is no record."""

import json
import re
import sqlite3
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.history import HistoryQuery
from app.model import (
    MAX_SIZE,
    MAX_TIME_US,
    Failure,
    Protocol,
    Session,
    Status,
    Upload,
    folded,
    is_upload_id,
    microseconds,
    rfc3339,
)
from tests.support.strategies import annotations, filenames

KEYS = [
    "id", "filename", "content_type", "size", "sha256", "status", "protocol", "created_at", "completed_at", "error",
    "metadata", "path", "expires_at", "links",
]  # fmt: skip
ROW = {
    "id": "0193a1f0-0000-7000-8000-000000000001",
    "session_id": "0193a1f0-0000-7000-8000-000000000002",
    "filename": "q3 report.pdf",
    "content_type": "application/pdf",
    "size_bytes": 12345,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "status": "completed",
    "protocol": "form",
    "error_code": None,
    "error_detail": None,
    "created_at_us": 1_795_379_580_123_456,
    "completed_at_us": 1_795_379_580_654_321,
    "metadata": None,
    "path": None,
    "path_folded": None,
    "keep_us": None,
}
FAILED = {**ROW, "status": "failed", "sha256": None, "completed_at_us": None, "error_code": "x", "error_detail": "y"}

times = st.integers(0, MAX_TIME_US) | st.sampled_from([0, 1, 999_999, MAX_TIME_US - 1, MAX_TIME_US])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@st.composite
def uploads(draw):
    """Every record that obeys the rules."""
    status = draw(st.sampled_from(Status))
    created_at = draw(times)
    done = status in {Status.COMPLETED, Status.DELETED}
    digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
    completions = st.integers(created_at, MAX_TIME_US)
    failed = st.builds(Failure, code=texts.filter(bool), detail=texts)
    return Upload(
        id=str(draw(st.uuids())),
        session_id=draw(texts.filter(bool)),
        filename=draw(filenames()),
        content_type=draw(st.none() | texts),
        size=draw(st.integers(0, MAX_SIZE)),
        sha256=draw(digests if done else st.none() | digests),
        status=status,
        protocol=draw(st.sampled_from(Protocol)),
        created_at=created_at,
        completed_at=draw(completions if done else st.none() | completions),
        error=draw(failed) if status is Status.FAILED else None,
        **draw(annotations()),
    )


class TestTimes:
    @given(time_us=times)
    def test_a_time_is_text_and_back(self, time_us):
        text = rfc3339(time_us)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
        assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
        assert microseconds(datetime.fromisoformat(text)) == time_us

    @pytest.mark.parametrize(
        ("time_us", "text"),
        [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1, "1970-01-01T00:00:00.000001Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999999Z"),
            (1_795_379_580_123_456, "2026-11-22T20:33:00.123456Z"),
            (MAX_TIME_US, "9999-12-31T23:59:59.999999Z"),
        ],
    )
    def test_known_times_have_their_text(self, time_us, text):
        assert rfc3339(time_us) == text

    @given(earlier=times, later=times)
    def test_times_sort_as_text(self, earlier, later):
        assert (earlier < later) == (rfc3339(earlier) < rfc3339(later))

    @given(time_us=times, minutes=st.integers(-23 * 60, 23 * 60))
    @example(time_us=MAX_TIME_US // 2 + 1, minutes=1)
    def test_a_moment_is_the_same_in_every_zone(self, time_us, minutes):
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
        try:
            elsewhere = moment.astimezone(timezone(timedelta(minutes=minutes)))
        except OverflowError:
            return  # it is the year 10000 there
        assert microseconds(elsewhere) == time_us


class TestRecords:
    @given(upload=uploads())
    def test_a_record_is_a_row_and_back(self, upload):
        row = upload.as_row()
        assert Upload.from_row(row) == upload
        assert row["filename_folded"] == folded(upload.filename)

    @given(upload=uploads())
    def test_a_record_as_json_says_everything_but_whose_it_is(self, upload):
        shown = json.loads(upload.as_json())
        assert list(shown) == KEYS
        assert {key for key in KEYS if shown[key] is None} <= {
            "content_type", "sha256", "completed_at", "error", "path", "expires_at"
        }  # fmt: skip
        assert (shown["id"], shown["filename"], shown["content_type"]) == (
            upload.id,
            upload.filename,
            upload.content_type,
        )
        assert (shown["size"], shown["sha256"]) == (upload.size, upload.sha256)
        assert (shown["status"], shown["protocol"]) == (upload.status.value, upload.protocol.value)
        assert microseconds(datetime.fromisoformat(shown["created_at"])) == upload.created_at
        assert (shown["completed_at"] is None) == (upload.completed_at is None)
        assert shown["error"] == (upload.error and {"code": upload.error.code, "detail": upload.error.detail})
        content = f"/api/ingestion/files/{upload.id}" if shown["status"] == "completed" else None
        assert shown["links"] == {"self": f"/api/ingestion/history/{upload.id}", "content": content}

    def test_a_record_has_its_documented_json(self):
        assert json.loads(Upload.from_row(ROW).as_json()) == {
            "id": ROW["id"],
            "filename": "q3 report.pdf",
            "content_type": "application/pdf",
            "size": 12345,
            "sha256": ROW["sha256"],
            "status": "completed",
            "protocol": "form",
            "created_at": "2026-11-22T20:33:00.123456Z",
            "completed_at": "2026-11-22T20:33:00.654321Z",
            "error": None,
            "metadata": {},
            "path": None,
            "expires_at": None,
            "links": {
                "self": f"/api/ingestion/history/{ROW['id']}",
                "content": f"/api/ingestion/files/{ROW['id']}",
            },
        }

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("id", ROW["id"].upper()), ("id", ROW["id"][:-1]), ("id", f"{ROW['id']}\n"), ("id", f"../{ROW['id']}"),
            ("id", None), ("id", b"x"),
            ("session_id", ""), ("session_id", None),
            ("filename", ""), ("filename", "."), ("filename", ".."), ("filename", "a/b"), ("filename", "a\\b"),
            ("filename", "a\0"), ("filename", "a\n"), ("filename", "a\x7f"), ("filename", "a\x85"),
            ("filename", "\ud800"),
            ("filename", "x" * 256), ("filename", "é" * 128), ("filename", None),
            ("content_type", "a\0"), ("content_type", "\udfff"), ("content_type", "x" * 256), ("content_type", 1),
            ("size_bytes", -1), ("size_bytes", MAX_SIZE + 1), ("size_bytes", None), ("size_bytes", 1.0),
            ("size_bytes", "1"), ("size_bytes", True),
            ("sha256", None), ("sha256", ROW["sha256"].upper()), ("sha256", "0" * 63), ("sha256", "g" * 64),
            ("status", "done"), ("status", "COMPLETED"), ("status", ""), ("status", None), ("status", 1),
            ("protocol", "ftp"), ("protocol", None),
            ("created_at_us", -1), ("created_at_us", MAX_TIME_US + 1), ("created_at_us", None),
            ("created_at_us", ROW["completed_at_us"] + 1), ("created_at_us", 1.5),
            ("completed_at_us", None), ("completed_at_us", ROW["created_at_us"] - 1),
            ("completed_at_us", MAX_TIME_US + 1),
            ("error_code", "x"),
        ],
    )  # fmt: skip
    def test_a_row_that_breaks_a_rule_is_no_record(self, column, value):
        row = {**ROW, column: value}
        if column == "error_code":
            row["error_detail"] = "a completed upload with an error"
        with pytest.raises(ValidationError):
            Upload.from_row(row)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("error_code", None),
            ("error_code", ""),
            ("error_code", "\0"),
            ("error_detail", None),
            ("error_detail", "\0"),
        ],
    )
    def test_a_failed_upload_without_a_reason_is_no_record(self, column, value):
        Upload.from_row(FAILED)
        with pytest.raises(ValidationError):
            Upload.from_row({**FAILED, column: value})

    @pytest.mark.parametrize("status", ["deleted", "completed"])
    @pytest.mark.parametrize("column", ["sha256", "completed_at_us"])
    def test_a_once_completed_upload_has_a_digest_and_a_time(self, status, column):
        Upload.from_row({**ROW, "status": status})
        with pytest.raises(ValidationError):
            Upload.from_row({**ROW, "status": status, column: None})

    def test_a_record_cannot_be_changed_and_knows_no_other_field(self):
        upload = Upload.from_row(ROW)
        with pytest.raises(ValidationError):
            upload.size = 1
        with pytest.raises(ValidationError):
            Upload(**{**dict(upload), "path": "/etc"})

    def test_a_session_shows_times_as_text(self):
        shown = Session(id="a", created_at=0, last_seen_at=1, expires_at=MAX_TIME_US).model_dump(mode="json")
        assert shown == {
            "id": "a",
            "created_at": "1970-01-01T00:00:00.000000Z",
            "last_seen_at": "1970-01-01T00:00:00.000001Z",
            "expires_at": "9999-12-31T23:59:59.999999Z",
        }


@given(text=st.uuids().map(str) | st.text(max_size=40))
@example(text="0193A1F0-0000-7000-8000-000000000001")
@example(text="0193a1f0-0000-7000-8000-000000000001\n")
@example(text="0193a1f000007000800000000000000 1")
def test_an_id_is_a_uuid_in_canonical_text(text):
    assert is_upload_id(text) == (re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", text) is not None)


class TestFolding:
    @given(text=texts)
    @example(text="ẞ")
    @example(text="\u1fb3\u0301")
    def test_twins_fold_to_one_in_every_form(self, text):
        for form in ("NFC", "NFD"):
            assert folded(unicodedata.normalize(form, text)) == folded(text)
        assert folded(folded(text)) == folded(text)

    def test_folding_twice_is_folding_once_for_every_character(self):
        every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        assert [character for character in every if folded(folded(character)) != folded(character)] == []

    @pytest.mark.parametrize(
        ("one", "other"), [("STRASSE", "straße"), ("É", "e\u0301"), ("ǰ", "J\u030c"), ("ΣΑΣ", "σας"), ("K", "\u212a")]
    )
    def test_look_alike_names_fold_to_one(self, one, other):
        assert folded(one) == folded(other)


def like(name, pattern):
    """Whether a database says that the folded name is like the pattern."""
    with sqlite3.connect(":memory:") as database:
        [(answer,)] = database.execute("SELECT ? LIKE ? ESCAPE '\\'", (folded(name), pattern))
    database.close()
    return bool(answer)


class TestFilenamePattern:
    letters = st.text(st.sampled_from("aAbÉé\u0301%_\\ß[]^-."), max_size=6)

    def test_an_empty_search_is_no_pattern(self):
        assert HistoryQuery().filename_pattern is None

    @given(wanted=letters.filter(bool), before=letters, after=letters, other=letters)
    def test_a_pattern_without_wildcards_matches_anywhere(self, wanted, before, after, other):
        pattern = HistoryQuery(filename=wanted).filename_pattern
        for name in (before + wanted + after, other, wanted.upper(), wanted.lower()):
            assert like(name, pattern) == (folded(wanted) in folded(name))

    @given(wanted=st.text(st.sampled_from("aAb%_\\.*?"), min_size=1, max_size=6), name=letters)
    @example(wanted="*.PDF", name="report.pdf")
    @example(wanted="?", name="%")
    def test_a_pattern_with_wildcards_matches_the_whole_name(self, wanted, name):
        pattern = HistoryQuery(filename=wanted + "*").filename_pattern
        meaning = {"*": ".*", "?": "."}
        shape = "".join(meaning.get(character, re.escape(character)) for character in folded(wanted) + "*")
        assert like(name, pattern) == (re.fullmatch(shape, folded(name), re.DOTALL) is not None)

    @pytest.mark.parametrize("text", ["", "x" * 256, "a\0", "\ud800"])
    def test_text_that_no_name_could_hold_is_refused(self, text):
        with pytest.raises(ValidationError):
            HistoryQuery(filename=text)
