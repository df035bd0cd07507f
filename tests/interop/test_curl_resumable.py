"""curl, which knows nothing of resumable uploads: its user reads the headers, and goes on by hand."""

import base64
import subprocess
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.interop.clients import MIB, Growth, everything, have_landed
from tests.support.service import PATIENCE, UPLOADS
from tests.support.tools import needs, tool

pytestmark = needs("curl")

VERSIONS = [5, 6, 8, 9, 10]
PART = {"Content-Type": "application/partial-upload"}


@dataclass
class Said:
    """Every answer, the interim ones first, each its status and headers; and the body of the last."""

    answers: list[tuple[int, dict[str, str]]]
    body: bytes

    @property
    def status(self):
        return self.answers[-1][0]

    @property
    def headers(self):
        return self.answers[-1][1]

    def interim(self, status):
        return [headers for found, headers in self.answers[:-1] if found == status]


def answers_in(dumped):
    """The answers whose heads curl has written whole."""
    found = []
    for block in dumped.decode("latin-1").split("\r\n\r\n")[:-1]:
        start, *lines = block.split("\r\n")
        fields = (line.partition(":") for line in lines)
        found.append((int(start.split()[1]), {name.lower(): value.strip() for name, _, value in fields}))
    return found


class Curl:
    """One session, and a directory in which files lie."""

    def __init__(self, running, directory):
        self.running, self.directory = running, directory
        self.session = running.session()

    def command(self, path, headers, *options):
        command = [tool("curl"), "--silent", "--max-time", "30", "--dump-header", "headers", "--output", "body"]
        for name, value in {**self.session, **headers}.items():
            command += ["--header", f"{name}: {value}"]
        (self.directory / "body").write_bytes(b"")
        (self.directory / "headers").write_bytes(b"")
        return [*command, *options, f"{self.running.url}{path}"]

    def __call__(self, path, headers, *options, stdin=b""):
        command = self.command(path, headers, *options)
        subprocess.run(command, cwd=self.directory, input=stdin, check=True, timeout=PATIENCE)
        return Said(answers_in(self.dumped()), (self.directory / "body").read_bytes())

    def dumped(self):
        return (self.directory / "headers").read_bytes()

    def append(self, path, offset, content, *, last):
        headers = PART | {"Upload-Offset": str(offset), "Upload-Complete": "?1" if last else "?0"}
        return self(path, headers, "--request", "PATCH", "--data-binary", "@-", stdin=content)


@pytest.fixture
def curl(running, tmp_path):
    return Curl(running, tmp_path)


@pytest.fixture
def landed(running, curl):
    """Whether the file is in the history, alone and whole."""

    def look(piece, protocol="resumable"):
        with running.client(headers=curl.session) as client:
            [record] = have_landed(client, [piece], protocol)
            assert everything(client) == [record]
            return record

    return look


def file(curl, piece):
    (curl.directory / piece.name).write_bytes(piece.content)
    return piece.name


class TestOneRequest:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_the_resource_is_announced_while_the_body_comes(self, curl, landed, source, version, method):
        piece = source.piece("file.bin", 3 * MIB)
        headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": str(version)}
        if method == "PUT":
            said = curl(f"{UPLOADS}/", headers, "--upload-file", file(curl, piece))
        else:
            headers["Content-Disposition"] = 'attachment; filename="file.bin"'
            headers["Content-Type"] = "application/octet-stream"
            said = curl(UPLOADS, headers, "--data-binary", f"@{file(curl, piece)}")
        first, *_ = said.interim(104)
        assert first["upload-draft-interop-version"] == str(version)
        assert "upload-limit" in first
        assert [set(more) & {"location"} for more in said.interim(104)[1:]] == [set() for _ in said.interim(104)[1:]]
        assert (said.status, said.headers["upload-complete"]) == (201, "?1")
        record = landed(piece)
        assert record["id"].encode() in said.body
        again = curl(urlsplit(first["location"]).path, {}, "--head")
        assert (again.headers["upload-offset"], again.headers["upload-complete"]) == (str(piece.size), "?1")

    @pytest.mark.parametrize("version", [None, 7, 11])
    def test_nothing_is_announced_to_a_client_of_another_version(self, curl, landed, source, version):
        piece = source.piece("file.bin", 100_000)
        headers = {"Upload-Complete": "?1"} | ({"Upload-Draft-Interop-Version": str(version)} if version else {})
        said = curl(f"{UPLOADS}/", headers, "--upload-file", file(curl, piece))
        assert (said.interim(104), said.status, said.headers["upload-complete"]) == ([], 201, "?1")
        landed(piece, "raw")

    def test_both_interim_answers_come(self, curl, landed, source):
        piece = source.piece("file.bin", 2 * MIB)
        headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "6", "Expect": "100-continue"}
        said = curl(f"{UPLOADS}/", headers, "--upload-file", file(curl, piece), "--expect100-timeout", "20")
        assert said.interim(104)
        assert said.interim(100)
        assert said.status == 201
        landed(piece)

    def test_an_upload_that_broke_off_goes_on_from_its_offset(self, curl, landed, source, running):
        piece, written = source.piece("file.bin", 32 * MIB), Growth(running)
        headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "6"}
        slowly = ["--upload-file", file(curl, piece), "--limit-rate", "3M"]
        with subprocess.Popen(curl.command(f"{UPLOADS}/", headers, *slowly), cwd=curl.directory) as sending:
            while not (announced := [more for status, more in answers_in(curl.dumped()) if status == 104]):
                assert sending.poll() is None
                time.sleep(0.01)
            while written() < MIB:
                assert sending.poll() is None
                time.sleep(0.01)
            sending.kill()
        path = urlsplit(announced[0]["location"]).path
        said = curl(path, {"Upload-Draft-Interop-Version": "6"}, "--head")
        assert (said.status, said.headers["upload-complete"]) == (204, "?0")
        assert said.headers["upload-length"] == str(piece.size)
        offset = int(said.headers["upload-offset"])
        assert MIB <= offset < piece.size
        said = curl.append(path, offset, piece.content[offset:], last=True)
        assert (said.status, said.headers["upload-complete"]) == (201, "?1")
        landed(piece)


class TestSeveralRequests:
    @pytest.fixture
    def begun(self, curl):
        headers = {"Upload-Complete": "?0", "Content-Disposition": 'attachment; filename="file.bin"'}
        said = curl(UPLOADS, headers, "--request", "POST")
        assert (said.status, said.headers["upload-complete"], said.headers["upload-offset"]) == (201, "?0", "0")
        return urlsplit(said.headers["location"]).path

    def test_an_upload_is_created_empty_and_then_filled(self, curl, landed, source, begun):
        piece = source.piece("file.bin", 2 * MIB + 1)
        said = curl.append(begun, 0, piece.content[:MIB], last=False)
        assert (said.status, said.headers["upload-complete"]) == (204, "?0")
        said = curl(begun, {}, "--head")
        assert (said.headers["upload-offset"], said.headers["cache-control"]) == (str(MIB), "no-store")
        said = curl.append(begun, MIB, piece.content[MIB:], last=True)
        assert (said.status, said.headers["upload-complete"]) == (201, "?1")
        landed(piece)

    def test_an_append_at_a_wrong_offset_is_refused_with_the_right_one(self, curl, landed, source, begun):
        piece = source.piece("file.bin", 1_000)
        curl.append(begun, 0, piece.content[:600], last=False)
        said = curl.append(begun, 500, piece.content[500:], last=True)
        assert (said.status, said.headers["upload-offset"], said.headers["upload-complete"]) == (409, "600", "?0")
        assert b"https://iana.org/assignments/http-problem-types#mismatching-upload-offset" in said.body
        assert curl.append(begun, 600, piece.content[600:], last=True).status == 201
        landed(piece)

    def test_the_address_of_an_upload_opens_it_without_a_session(self, curl, landed, source, begun):
        piece = source.piece("file.bin", 1_000)
        mine, curl.session = curl.session, {}
        assert curl.append(begun, 0, piece.content, last=True).status == 201
        curl.session = mine
        landed(piece)

    def test_another_session_finds_nothing(self, curl, running, begun):
        curl.session = running.session()
        assert curl(begun, {}, "--head").status == 404
        assert curl.append(begun, 0, b"x", last=True).status == 404
        assert curl(begun, {}, "--request", "DELETE").status == 404

    def test_a_cancelled_upload_is_gone(self, curl, begun):
        curl.append(begun, 0, b"0123456789", last=False)
        assert curl(begun, {}, "--request", "DELETE").status == 204
        assert curl(begun, {}, "--head").status in (404, 410)


def test_a_tus_upload_by_hand_is_stored(curl, landed, source):
    piece = source.piece("file.bin", 100_000)
    version = {"Tus-Resumable": "1.0.0"}
    named = base64.b64encode(piece.name.encode()).decode()
    headers = version | {"Upload-Length": str(piece.size), "Upload-Metadata": f"filename {named}"}
    made = curl(UPLOADS, headers, "--request", "POST")
    assert (made.status, made.headers["tus-resumable"]) == (201, "1.0.0")
    path = urlsplit(made.headers["location"]).path
    chunk = version | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    half = piece.size // 2
    assert curl(path, chunk, "-X", "PATCH", "--data-binary", "@-", stdin=piece.content[:half]).status == 204
    assert curl(path, version, "--head").headers["upload-offset"] == str(half)
    chunk["Upload-Offset"] = str(half)
    said = curl(path, chunk, "-X", "PATCH", "--data-binary", "@-", stdin=piece.content[half:])
    assert (said.status, said.headers["upload-offset"]) == (204, str(piece.size))
    landed(piece, "tus")


def test_options_name_the_offered_protocols(curl):
    said = curl(UPLOADS, {}, "--request", "OPTIONS")
    assert said.status == 204
    assert said.headers["tus-version"] == "1.0.0"
    assert "sha1" in said.headers["tus-checksum-algorithm"].split(",")
    assert "concatenation" in said.headers["tus-extension"].split(",")
    assert "upload-limit" in said.headers
