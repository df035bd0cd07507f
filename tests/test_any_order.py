"""The whole service against a model of it: whoever uploads, leaves, comes back and deletes, and wherever it is killed.

What was answered with success is there, byte for byte, and listed once; what was not is nowhere, or is whole. Real
requests to a real process, which is killed with kill -9 and started again where it was.
"""

import hashlib
import socket
import time
from base64 import b64encode
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service
from tests.support.strategies import filenames, form

TUS = {"Tus-Resumable": "1.0.0"}
FILES = "/api/ingestion/files"
CHANGE = """
import app.web.exchange
app.web.exchange._LINGER_SECONDS = 0.05
"""
contents = st.binary(max_size=40) | st.builds(
    lambda block, times: block * times, st.binary(min_size=1), st.integers(1, 9_000)
)
parts = st.integers(0, 100)  # of a hundred


class File:
    """What a client knows of a file that it sent: all that a record and a download must say."""

    def __init__(self, filename, content, protocol):
        self.filename, self.content, self.protocol = filename, content, protocol
        self.sha256 = hashlib.sha256(content).hexdigest()

    def is_said_by(self, record):
        said = (
            record["filename"],
            record["size"],
            record["sha256"],
            record["protocol"],
            record["status"],
            record["error"],
        )
        return said == (self.filename, len(self.content), self.sha256, self.protocol, "completed", None)


class Unfinished:
    """A tus upload that has begun: how much was acknowledged, and how much may have come."""

    def __init__(self, url, file):
        self.url, self.file = url, file
        self.acknowledged = self.sent = 0


class AnyOrder(RuleBasedStateMachine):
    service: Service

    def __init__(self):
        super().__init__()
        self.client = httpx.Client(base_url=self.service.url, timeout=PATIENCE, trust_env=False)
        self.files: dict[str, File] = {}
        self.gone: set[str] = set()
        self.unfinished: list[Unfinished] = []
        self.perhaps: list[File] = []  # sent, and never answered
        self.deaths = 0

    @initialize()
    def arrive(self):
        assert self.client.post("/api/session").status_code == 200

    # --- what clients do

    def landed(self, record, file):
        assert file.is_said_by(record)
        assert record["id"] not in self.files
        self.files[record["id"]] = file

    @rule(names=st.lists(filenames(), min_size=1, max_size=3), content=contents)
    def send_a_form(self, names, content):
        files = [File(name, content[number:], "form") for number, name in enumerate(names)]
        body, content_type = form([(file.filename, "text/plain", file.content) for file in files])
        answer = self.client.post(UPLOADS, content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 201, answer.text
        for record, file in zip(answer.json()["items"], files, strict=True):
            self.landed(record, file)

    @rule(content=contents)
    def send_raw(self, content):
        answer = self.client.put(f"{UPLOADS}/raw.bin", content=content)
        assert answer.status_code == 201, answer.text
        self.landed(answer.json(), File("raw.bin", content, "raw"))

    @rule(name=filenames(), content=contents)
    def begin(self, name, content):
        metadata = f"filename {b64encode(name.encode()).decode()}"
        headers = TUS | {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
        answer = self.client.post(UPLOADS, headers=headers)
        assert answer.status_code == 201, answer.text
        if content:
            self.unfinished.append(Unfinished(answer.headers["location"], File(name, content, "tus")))
        else:
            self.perhaps.append(File(name, content, "tus"))  # it is finished as it begins, and its record is asked for

    def of_any(self, data):
        return data.draw(st.sampled_from(self.unfinished))

    def resume(self, upload):
        """What the service has of it: never less than it said, and never more than came."""
        offset = int(self.client.head(upload.url, headers=TUS).headers["upload-offset"])
        assert upload.acknowledged <= offset <= upload.sent
        upload.acknowledged = offset
        return offset

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), part=parts)
    def go_on(self, data, part):
        upload = self.of_any(data)
        offset = self.resume(upload)
        left = upload.file.content[offset:]
        block = left[: -(-len(left) * part // 100)]
        headers = TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        answer = self.client.patch(upload.url, content=block, headers=headers)
        assert answer.status_code == 204, answer.text
        upload.acknowledged = upload.sent = offset + len(block)
        assert int(answer.headers["upload-offset"]) == upload.acknowledged
        if upload.acknowledged == len(upload.file.content):
            self.finished(upload)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def cancel(self, data):
        upload = self.of_any(data)
        assert self.client.delete(upload.url, headers=TUS).status_code == 204
        assert self.client.head(upload.url, headers=TUS).status_code in (404, 410)
        self.unfinished.remove(upload)

    # --- who leaves, and what dies

    def say(self, start, *lines, body=b""):
        """A connection on which this much of a request was sent. Its answer is nobody's business."""
        cookie = f"Cookie: waybill_session={self.client.cookies['waybill_session']}"
        connection = socket.create_connection(("127.0.0.1", self.service.port), timeout=PATIENCE)
        connection.sendall("\r\n".join([f"{start} HTTP/1.1", "Host: x", cookie, *lines, "", ""]).encode() + body)
        return connection

    @rule(content=contents, part=parts, listens=st.booleans())
    def leave(self, content, part, listens):
        """A byte is missing at least, so nothing of it may ever be seen."""
        sent = content[: len(content) * part // 100]
        with self.say(f"PUT {UPLOADS}/never", f"Content-Length: {len(content) + 1}", body=sent) as connection:
            connection.shutdown(socket.SHUT_WR)
            while listens and connection.recv(65536):
                continue

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), part=parts)
    def leave_while_going_on(self, data, part):
        upload = self.of_any(data)
        self.part_of(upload, part, whole=False).close()

    def part_of(self, upload, part, *, whole):
        offset = self.resume(upload)
        left = upload.file.content[offset:]
        block = left if whole else left[: (len(left) - 1) * part // 100]
        kind = "Content-Type: application/offset+octet-stream"
        lines = ["Tus-Resumable: 1.0.0", f"Upload-Offset: {offset}", kind, f"Content-Length: {len(left)}"]
        upload.sent = offset + len(block)
        return self.say(f"PATCH {urlsplit(upload.url).path}", *lines, body=block)

    def die(self):
        self.deaths += 1
        self.service.kill()
        self.service.start()
        self.client.base_url = self.service.url

    @precondition(lambda self: self.deaths < DEATHS)
    @rule(content=contents, whole=st.booleans(), part=parts)
    def die_over_a_file(self, content, whole, part):
        """Whole or not it was never answered: either all of it is there then, or nothing."""
        sent = content if whole else content[: len(content) * part // 100]
        with self.say(f"PUT {UPLOADS}/raw.bin", f"Content-Length: {len(content) + (not whole)}", body=sent):
            self.die()
        if whole:
            self.perhaps.append(File("raw.bin", content, "raw"))
        self.list_all()
        self.perhaps.clear()  # nobody is left who could bring it about

    @precondition(lambda self: self.unfinished and self.deaths < DEATHS)
    @rule(data=st.data(), part=parts, whole=st.booleans())
    def die_over_a_part(self, data, part, whole):
        upload = self.of_any(data)
        with self.part_of(upload, part, whole=whole):
            self.die()
        if self.resume(upload) == len(upload.file.content):
            self.finished(upload)

    def finished(self, upload):
        """All of its bytes were taken; if nobody was told, its record may be a moment behind."""
        self.unfinished.remove(upload)
        self.perhaps.append(upload.file)
        until = time.monotonic() + PATIENCE
        while self.perhaps and time.monotonic() < until:
            self.list_all()
        assert self.perhaps == []

    # --- what clients ask

    def listed(self, **query):
        """All pages of a query."""
        found = []
        query = {"limit": 7, **query}
        while query:
            answer = self.client.get(HISTORY, params=query)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert page["skipped"] == 0
            found += page["items"]
            query = query | {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
        return found

    @invariant()
    def list_all(self):
        """What is listed as completed is what the model knows, each once, the newest first."""
        records = self.listed(status="completed")
        assert [record["id"] for record in records] == sorted((record["id"] for record in records), reverse=True)
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            if record["id"] not in self.files:
                found = [file for file in self.perhaps if file.is_said_by(record)]
                assert found, f"nobody sent this whole, or it was answered otherwise: {record}"
                [file, *_] = found
                self.perhaps.remove(file)
                self.landed(record, file)
            assert self.files[record["id"]].is_said_by(record)
        assert {record["id"] for record in records} == self.files.keys()

    @rule(
        least=st.integers(0, 50),
        protocol=st.sampled_from(["form", "raw", "tus"]),
        order=st.sampled_from(["oldest", "newest"]),
    )
    def ask_for_some(self, least, protocol, order):
        found = [
            record["id"] for record in self.listed(status="completed", min_size=least, protocol=protocol, order=order)
        ]
        wanted = {key for key, file in self.files.items() if len(file.content) >= least and file.protocol == protocol}
        assert set(found) == wanted
        assert found == sorted(found, reverse=order == "newest")

    @precondition(lambda self: self.files)
    @rule(data=st.data(), first=parts, last=parts)
    def fetch(self, data, first, last):
        key = data.draw(st.sampled_from(sorted(self.files)))
        file = self.files[key]
        record = self.client.get(f"{HISTORY}/{key}").json()
        assert file.is_said_by(record)
        assert self.client.get(record["links"]["content"]).content == file.content
        start, stop = sorted((len(file.content) * first // 100, len(file.content) * last // 100))
        if start < stop:
            answer = self.client.get(f"{FILES}/{key}", headers={"Range": f"bytes={start}-{stop - 1}"})
            assert (answer.status_code, answer.content) == (206, file.content[start:stop])
        same = {record["id"] for record in self.listed(status="completed", sha256=file.sha256)}
        assert same == {key for key, other in self.files.items() if other.content == file.content}

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data):
        key = data.draw(st.sampled_from(sorted(self.files)))
        assert self.client.delete(f"{FILES}/{key}").status_code == 204
        assert self.client.delete(f"{FILES}/{key}").status_code == 204  # again, since the answer may be lost
        assert self.client.get(f"{FILES}/{key}").status_code == 404
        assert self.client.get(f"{HISTORY}/{key}").json()["status"] == "deleted"
        del self.files[key]
        self.gone.add(key)

    @rule()
    def ask_for_what_is_gone(self):
        for key in self.gone:
            assert self.client.get(f"{FILES}/{key}").status_code == 404

    @rule()
    def log_out(self):
        old = self.client.cookies["waybill_session"]
        assert self.client.delete("/api/session").status_code == 204
        headers = {"Cookie": f"waybill_session={old}"}
        assert httpx.get(f"{self.service.url}{HISTORY}", headers=headers, trust_env=False).status_code == 401
        self.gone |= self.files.keys()
        self.files, self.unfinished, self.perhaps = {}, [], []
        self.arrive()

    def teardown(self):
        self.client.close()


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    with closing(Service(tmp_path_factory.mktemp("service"), change=CHANGE)) as running:
        AnyOrder.service = running.start()
        yield
        assert running.said("error") == []
        assert running.stop() == 0


DEATHS = 1  # of one example: they are what takes long
TestAnyOrder = pytest.mark.slow(AnyOrder.TestCase)
TestAnyOrder.settings = settings(max_examples=max(5, settings().max_examples // 20), stateful_step_count=25)
