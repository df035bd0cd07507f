"""Every address of the service, asked by the real curl."""

import csv
import hashlib
import io
import json
import shutil
import subprocess
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from app.web.routes import routes
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service
from tests.support.tools import needs, tool

pytestmark = needs("curl")

FILES = "/api/ingestion/files"
NAME, CONTENT = "q3 report.pdf", b"%PDF-1.7 and so on\n" * 1000
LIMIT = 2_000_000  # bytes in one file


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with closing(Service(tmp_path_factory.mktemp("service"), max_file_size=LIMIT)) as running:
        yield running.start()


@dataclass
class Said:
    status: int
    headers: dict[str, str]
    body: bytes
    sent: int

    def json(self):
        return json.loads(self.body)


class Curl:
    """One browser, so to say: a cookie jar, and a directory in which files lie."""

    def __init__(self, url, directory):
        self.url, self.directory = url, directory
        directory.mkdir(exist_ok=True)
        (directory / NAME).write_bytes(CONTENT)

    def __call__(self, path, *options, stdin=b""):
        command = [tool("curl"), "--silent", "--show-error", "--max-time", "30"]
        jar = ["--cookie", "jar", "--cookie-jar", "jar"]
        files = ["--output", "body", "--dump-header", "headers", "--write-out", "%{http_code} %{size_upload}"]
        (self.directory / "body").write_bytes(b"")
        done = subprocess.run(
            [*command, *jar, *files, *options, f"{self.url}{path}"],
            cwd=self.directory, input=stdin, capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        last = (self.directory / "headers").read_bytes().decode("latin-1").strip().split("\r\n\r\n")[-1]
        fields = (line.partition(":") for line in last.split("\r\n")[1:])
        status, sent = done.stdout.split()
        return Said(
            int(status),
            {name.lower(): value.strip() for name, _, value in fields},
            (self.directory / "body").read_bytes(),
            int(sent),
        )

    def uploaded(self):
        """The record of a file that has just been uploaded."""
        made = self(f"{UPLOADS}/", "--upload-file", NAME)
        assert made.status == 201
        return made.json()


@pytest.fixture
def curl(running, tmp_path):
    return Curl(running.url, tmp_path)


def is_report(record, protocol):
    assert record["filename"] == NAME
    assert record["size"] == len(CONTENT)
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (record["status"], record["protocol"]) == ("completed", protocol)


class TestUploads:
    def test_a_form_is_stored(self, curl):
        made = curl(UPLOADS, "--form", f"file=@{NAME}")
        assert made.status == 201
        [item] = made.json()["items"]
        is_report(item, "form")
        assert made.headers["location"] == item["links"]["self"]
        assert item["content_type"] == "application/pdf"

    def test_a_form_of_many_files_is_stored(self, curl):
        made = curl(
            UPLOADS, "-F", "a=@-;filename=one.txt", "-F", "note=x", "-F", f'b=@{NAME};filename="ü\\".txt"', stdin=b"1"
        )
        assert made.status == 201
        assert [(item["filename"], item["size"]) for item in made.json()["items"]] == [
            ("one.txt", 1),
            ('ü".txt', len(CONTENT)),
        ]

    def test_a_file_is_stored_by_name(self, curl):
        made = curl(f"{UPLOADS}/", "--upload-file", NAME)
        assert made.status == 201
        is_report(made.json(), "raw")
        assert made.headers["location"] == made.json()["links"]["self"]

    def test_a_stream_of_unknown_length_is_stored(self, curl):
        made = curl(f"{UPLOADS}/stream.bin", "--upload-file", "-", stdin=CONTENT)
        assert made.status == 201
        assert (made.json()["filename"], made.json()["size"]) == ("stream.bin", len(CONTENT))

    def test_a_body_with_a_disposition_is_stored_by_that_name(self, curl):
        disposition = f'Content-Disposition: attachment; filename="{NAME}"'
        kind = "Content-Type: application/pdf"
        made = curl(UPLOADS, "--data-binary", f"@{NAME}", "--header", disposition, "--header", kind)
        assert made.status == 201
        is_report(made.json(), "raw")

    @pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
    def test_uploads_work_in_either_version_of_http(self, curl, version):
        assert curl(f"{UPLOADS}/", "--upload-file", NAME, version).status == 201

    def test_an_empty_file_is_a_file(self, curl):
        made = curl(f"{UPLOADS}/empty", "--upload-file", "/dev/null")
        assert (made.status, made.json()["size"]) == (201, 0)

    def test_a_file_declared_too_large_is_refused_before_it_is_sent(self, curl):
        (curl.directory / "large").write_bytes(bytes(LIMIT + 1))
        made = curl(
            f"{UPLOADS}/", "--upload-file", "large", "--header", "Expect: 100-continue", "--expect100-timeout", "20"
        )
        assert (made.status, made.json()["code"], made.json()["limit"]) == (413, "too_large", LIMIT)
        assert made.sent == 0

    def test_a_file_that_proves_too_large_is_refused_readably(self, curl):
        made = curl(f"{UPLOADS}/large", "--upload-file", "-", "--header", "Expect:", stdin=bytes(LIMIT + 1))
        assert (made.status, made.json()["code"]) == (413, "too_large")

    def test_a_compressed_body_is_refused(self, curl):
        made = curl(f"{UPLOADS}/", "--upload-file", NAME, "--header", "Content-Encoding: gzip")
        assert (made.status, made.json()["code"]) == (415, "unsupported_media_type")

    def test_options_name_the_limits(self, curl):
        said = curl(UPLOADS, "--request", "OPTIONS")
        assert said.status == 204
        assert f"max-file-size={LIMIT}" in said.headers["waybill-limits"]


class TestHistory:
    def test_the_history_is_read_page_by_page(self, curl):
        ids = [curl.uploaded()["id"] for _ in range(3)]
        page = curl(f"{HISTORY}?limit=2&count=true")
        assert [item["id"] for item in page.json()["items"]] == ids[:0:-1]
        assert page.json()["total"] == 3
        link = page.headers["link"].partition(">")[0].removeprefix("<")
        assert [item["id"] for item in curl(link).json()["items"]] == ids[:1]

    def test_filters_select_uploads(self, curl):
        curl.uploaded()
        query = ["--get", "--data-urlencode", "filename=*REPORT*", "--data-urlencode", "from=2020-01-01T00:00:00+02:00"]
        assert len(curl(HISTORY, *query).json()["items"]) == 1
        assert curl(HISTORY, *query, "--data", "max_size=1").json()["items"] == []
        refused = curl(f"{HISTORY}?limit=0")
        assert (refused.status, refused.json()["code"], refused.json()["parameter"]) == (400, "bad_query", "limit")

    def test_the_history_is_read_as_a_stream(self, curl):
        records = [curl.uploaded() for _ in range(2)]
        ndjson = curl(f"{HISTORY}?format=ndjson")
        assert [json.loads(line) for line in ndjson.body.splitlines()] == records[::-1]
        table = list(
            csv.DictReader(io.StringIO(curl(HISTORY, "--header", "Accept: text/csv").body.decode(), newline=""))
        )
        assert [row["id"] for row in table] == [record["id"] for record in records[::-1]]

    def test_a_single_record_is_read(self, curl):
        record = curl.uploaded()
        assert curl(record["links"]["self"]).json() == record
        assert curl(f"{HISTORY}/{record['id'].upper()}").status == 404

    def test_the_summary_is_read(self, curl):
        curl.uploaded()
        sums = curl(f"{HISTORY}/summary").json()
        assert (sums["uploads"], sums["bytes"]) == (1, len(CONTENT))

    def test_nobody_sees_the_uploads_of_another_session(self, curl, running, tmp_path):
        record = curl.uploaded()
        other = Curl(running.url, tmp_path / "other")
        assert (curl(HISTORY).status, other(HISTORY).status) == (200, 401)
        other.uploaded()
        for link in record["links"].values():
            assert (curl(link).status, other(link).status) == (200, 404)


class TestFiles:
    def test_a_download_keeps_the_name_of_its_upload(self, curl):
        content = curl.uploaded()["links"]["content"]
        (curl.directory / "there").mkdir()
        command = [
            tool("curl"),
            "--silent",
            "--cookie",
            "../jar",
            "--remote-name",
            "--remote-header-name",
            curl.url + content,
        ]
        subprocess.run(command, cwd=curl.directory / "there", check=True, timeout=PATIENCE)
        [file] = (curl.directory / "there").iterdir()
        assert (file.name, file.read_bytes()) == (NAME, CONTENT)

    @pytest.mark.parametrize(
        ("range_", "expected"),
        [("0-9", CONTENT[:10]), ("10-", CONTENT[10:]), ("-7", CONTENT[-7:]), ("100-1000000", CONTENT[100:])],
    )
    def test_a_range_is_downloaded(self, curl, range_, expected):
        said = curl(curl.uploaded()["links"]["content"], "--range", range_)
        assert (said.status, said.body) == (206, expected)

    def test_several_ranges_are_downloaded(self, curl):
        said = curl(curl.uploaded()["links"]["content"], "--range", "0-3,10-13")
        assert said.status == 206
        assert said.headers["content-type"].startswith("multipart/byteranges; boundary=")
        assert CONTENT[:4] in said.body
        assert f"Content-Range: bytes 10-13/{len(CONTENT)}".encode() in said.body

    def test_a_range_beyond_the_end_is_refused(self, curl):
        said = curl(curl.uploaded()["links"]["content"], "--range", f"{len(CONTENT)}-")
        assert (said.status, said.headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")

    def test_a_download_that_broke_off_goes_on(self, curl):
        content = curl.uploaded()["links"]["content"]
        (curl.directory / "part").write_bytes(CONTENT[:1234])
        command = [tool("curl"), "--silent", "--fail", "--cookie", "jar", "--continue-at", "-", "--output", "part"]
        subprocess.run([*command, curl.url + content], cwd=curl.directory, check=True, timeout=PATIENCE)
        assert (curl.directory / "part").read_bytes() == CONTENT

    def test_a_file_that_the_client_has_is_not_sent_again(self, curl):
        content = curl.uploaded()["links"]["content"]
        whole = curl(content, "--etag-save", "etag")
        assert whole.status == 200
        again = curl(content, "--etag-compare", "etag")
        assert (again.status, again.body) == (304, b"")
        assert curl(content, "--time-cond", whole.headers["last-modified"]).status == 304
        assert curl(content, "--header", 'If-Match: "other"').json()["code"] == "precondition_failed"

    def test_the_head_of_a_file_is_read(self, curl):
        said = curl(curl.uploaded()["links"]["content"], "--head")
        assert (said.status, said.headers["content-length"]) == (200, str(len(CONTENT)))
        assert said.headers["x-content-type-options"] == "nosniff"

    def test_a_deleted_file_is_gone(self, curl):
        record = curl.uploaded()
        content = record["links"]["content"]
        assert curl(content, "--request", "DELETE").status == 204
        assert [curl(content).status, curl(content, "--request", "DELETE").status] == [404, 204]
        assert curl(record["links"]["self"]).json()["status"] == "deleted"


class TestSessions:
    def test_a_session_lives_from_the_first_answer_to_its_end(self, curl):
        assert curl("/api/session").status == 401
        made = curl("/api/session", "--request", "POST")
        assert made.status == 200
        assert curl("/api/session").json()["id"] == made.json()["id"]
        curl.uploaded()
        assert (curl("/api/session").json()["uploads"], curl("/api/session").json()["bytes"]) == (1, len(CONTENT))
        assert curl("/api/session", "--request", "DELETE").status == 204
        assert curl("/api/session").status == 401

    def test_a_new_token_replaces_the_old_one(self, curl):
        curl("/api/session", "--request", "POST")
        shutil.copy(curl.directory / "jar", curl.directory / "old")
        assert curl("/api/session/rotate", "--request", "POST").status == 200
        assert curl("/api/session").status == 200
        shutil.move(curl.directory / "old", curl.directory / "jar")
        assert curl("/api/session").status == 401

    def test_a_second_browser_joins(self, curl, running, tmp_path):
        mine = curl.uploaded()
        second = Curl(running.url, tmp_path / "second")
        theirs = second.uploaded()
        code = curl("/api/session/link", "--request", "POST").json()["code"]
        said = second("/api/session/join", "--json", json.dumps({"code": code.lower()}))
        assert said.status == 200
        ids = {mine["id"], theirs["id"]}
        assert {item["id"] for item in curl(HISTORY).json()["items"]} == ids
        assert {item["id"] for item in second(HISTORY).json()["items"]} == ids
        assert second("/api/session/join", "--json", json.dumps({"code": code})).json()["code"] == "forbidden"

    def test_a_token_serves_scripts(self, curl, running, tmp_path):
        curl.uploaded()
        [token] = [
            line.split("\t")[6] for line in (curl.directory / "jar").read_text().splitlines() if "waybill_" in line
        ]
        script = Curl(running.url, tmp_path / "script")
        assert len(script(HISTORY, "--oauth2-bearer", token).json()["items"]) == 1

    def test_another_site_changes_nothing(self, curl):
        content = curl.uploaded()["links"]["content"]
        refused = curl(content, "--request", "DELETE", "--header", "Origin: https://evil.example")
        assert (refused.status, refused.json()["code"]) == (403, "cross_origin")


class TestOtherAddresses:
    @pytest.mark.parametrize(("path", "status"), [("/health/live", "live"), ("/health/ready", "ready")])
    def test_health_is_answered(self, curl, path, status):
        said = curl(path)
        assert (said.status, said.json()["status"]) == (200, status)

    def test_an_unknown_address_is_not_found(self, curl):
        said = curl("/nowhere", "--header", "X-Request-Id: my-own")
        assert (said.status, said.json()["code"], said.json()["request_id"]) == (404, "not_found", "my-own")
        said = curl(HISTORY, "--request", "PATCH")
        assert (said.status, said.json()["code"], said.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")

    @pytest.mark.parametrize("option", ["--http2", "--http2-prior-knowledge"])
    def test_http_2_is_not_offered(self, curl, option):
        """A client that offers to upgrade is answered in HTTP/1.1; one that insists is told."""
        if option == "--http2":
            assert curl("/health/live", option).status == 200
            return
        command = [tool("curl"), "--silent", option, f"{curl.url}/health/live"]
        assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode != 0


ADDRESSES = {
    ("OPTIONS", "/api/ingestion/uploads"): 204,
    ("POST", "/api/ingestion/uploads"): 201,
    ("POST", "/api/ingestion/uploads/"): 201,
    ("PUT", "/api/ingestion/uploads/{filename:rest}"): 201,
    ("OPTIONS", "/api/ingestion/uploads/{key}"): 204,
    ("GET", "/api/ingestion/uploads/{key}"): 204,
    ("POST", "/api/ingestion/uploads/{key}"): 405,  # it stands for another only when it says for which
    ("PATCH", "/api/ingestion/uploads/{key}"): 415,  # of no media type
    ("DELETE", "/api/ingestion/uploads/{key}"): 204,
    ("GET", "/metrics"): 200,
    ("GET", "/openapi.json"): 200,
    ("GET", "/"): 200,
    ("POST", "/"): 403,  # of no page
    ("GET", "/docs"): 200,
    ("GET", "/static/{name:rest}"): 200,
    ("GET", "/api/ingestion/history"): 200,
    ("GET", "/api/ingestion/history/summary"): 200,
    ("GET", "/api/ingestion/history/{id}"): 200,
    ("GET", "/api/ingestion/files/{id}"): 200,
    ("POST", "/api/ingestion/files/{id}/links"): 400,  # no bounds come with it
    ("GET", "/api/ingestion/files/{id}/links"): 200,
    ("DELETE", "/api/ingestion/files/{id}/links/{link}"): 404,  # of no link
    ("GET", "/d/{secret}"): 404,
    ("GET", "/api/ingestion/files.zip"): 200,
    ("POST", "/api/ingestion/files.zip"): 415,  # of no media type
    ("POST", "/api/ingestion/files/delete"): 400,  # no ids come with it
    ("GET", "/api/session"): 200,
    ("POST", "/api/session"): 200,
    ("POST", "/api/session/link"): 201,
    ("POST", "/api/session/rotate"): 200,
    ("POST", "/api/session/join"): 400,  # no code comes with it
    ("GET", "/health/live"): 200,
    ("GET", "/health/ready"): 200,
    ("DELETE", "/api/ingestion/files/{id}"): 204,
    ("DELETE", "/api/session"): 204,
    ("GET", "/api/ingestion/events"): 401,  # of no session any more; with one it would go on for ever
}


def test_every_address_is_asked_here(curl):
    """So whoever adds one to the service will add it to these."""
    assert ADDRESSES.keys() == {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    upload_id = curl.uploaded()["id"]
    begun = curl(UPLOADS, "--request", "POST", "--header", "Upload-Complete: ?0").headers["location"]
    places = {"{filename:rest}": "a", "{key}": urlsplit(begun).path.rpartition("/")[2], "{id}": upload_id}
    places |= {"{link}": "none", "{secret}": "none", "{name:rest}": "page.css"}
    for (method, path), status in ADDRESSES.items():
        asked = path
        for place, value in places.items():
            asked = asked.replace(place, value)
        assert curl(asked, "--request", method).status == status, f"{method} {path}"
