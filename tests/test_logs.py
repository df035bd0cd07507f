"""One line per event, whatever clients send; never a secret; and nobody waits for whoever reads the log."""

import fcntl
import json
import logging
import os
import re
import socket
import string
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from tests.support.logging_apart import logging_apart
from tests.support.service import COMMAND, HISTORY, PATIENCE, ROOT, UPLOADS, Service, environment

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (debug|info|warning|error|critical) +")
HOSTILE = [
    "\n",
    "\r\n",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\x85",
    "\u2028",
    "\u202e",
    "\x7f",
    "\ud800",
    "a b",
    "a=b",
    '"',
    "'",
]
TEXTS = st.text(max_size=40) | st.sampled_from(HOSTILE)


@pytest.fixture
def configured(capfd):
    """`configured(format, level)` sends this process's logs to what the returned function reads."""

    def configure(log_format, level="info"):
        logs.configure(log_format, level)
        capfd.readouterr()

        def said():
            logs.flush(PATIENCE)
            return capfd.readouterr().err

        return said

    with logging_apart():
        yield configure


class TestLines:
    @given(event=TEXTS, value=TEXTS, inner=TEXTS)
    def test_an_event_is_one_line_of_text_that_moves_no_cursor(self, configured, event, value, inner):
        said = configured("text")
        structlog.get_logger().info(event, field=value, many=[inner], error=ValueError(inner))
        line = said()
        assert line.endswith("\n")
        assert TEXT_LINE.match(line)
        assert line[:-1].isprintable()

    @given(event=TEXTS, value=TEXTS, inner=TEXTS)
    def test_an_event_is_one_line_of_json_with_its_fields(self, configured, event, value, inner):
        said = configured("json")
        structlog.get_logger().info(event, field=value, many=[inner])
        line = said()
        assert line.isascii()
        assert line.count("\n") == 1
        found = json.loads(line)
        assert (found["event"], found["field"], found["many"]) == (event, value, [inner])
        assert found["level"] == "info"

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_events_of_libraries_are_logged_in_the_same_form(self, configured, log_format):
        said = configured(log_format)
        logging.getLogger("uvicorn.error").info("hello\n%s", "wor\x1b[31mld", extra={"color_message": "colourful"})
        line = said()
        assert line.count("\n") == 1
        assert "\x1b" not in line
        assert "colour" not in line
        assert "hello" in line

    def test_an_event_as_text_shows_its_fields(self, configured):
        said = configured("text")
        structlog.get_logger().info("it happened", plain="x.y/z", spaced="q r", number=3, empty="", unicode="ünï")
        assert (
            said().split(" ", 1)[1] == "info     it happened plain=x.y/z spaced='q r' number=3 empty='' unicode=ünï\n"
        )

    def test_a_traceback_is_indented_below_its_event(self, configured):
        said = configured("text")
        try:
            raise ValueError("two\nlines and \x1b[31ma colour")
        except ValueError:
            structlog.get_logger().exception("it failed", upload="x")
        first, *others = said().splitlines()
        assert TEXT_LINE.match(first)
        assert first.endswith(" it failed upload=x")
        assert len(others) >= 4
        assert all(line.startswith("    ") and line.isprintable() for line in others)
        assert others[-1] == "    lines and \\x1b[31ma colour"

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_a_line_is_short_however_long_its_fields(self, configured, log_format):
        said = configured(log_format)
        ids = [f"{number:036}" for number in range(20_000)]
        structlog.get_logger().info("x" * 100_000, path="/" + "é" * 60_000, uploads=ids, files=7)
        logging.getLogger("library").warning("y" * 100_000)
        first, second = said().splitlines()
        assert len(first) < 16 * 1024
        assert len(second) < 4 * 1024
        assert "19980 more" in first
        assert "files" in first

    def test_a_traceback_is_a_field_in_json(self, configured):
        said = configured("json")
        try:
            raise ValueError("two\nlines")
        except ValueError:
            structlog.get_logger().exception("it failed")
        [line] = said().splitlines()
        assert "ValueError: two\nlines" in json.loads(line)["exception"]

    def test_an_event_below_the_log_level_is_not_logged(self, configured):
        said = configured("text", "warning")
        structlog.get_logger().info("no")
        logging.getLogger("uvicorn.error").info("no")
        structlog.get_logger().warning("yes")
        assert [line.split()[1:3] for line in said().splitlines()] == [["warning", "yes"]]

    def test_libraries_that_print_arguments_are_silent_even_when_all_is_asked_for(self, configured):
        said = configured("text", "debug")
        for name in ("databases", "aiosqlite", "asyncio"):
            logging.getLogger(name).debug("SELECT :secret %s", "s3cret")
        assert said() == ""


def test_logging_of_the_process_is_as_before_once_a_test_has_set_it_up(capfd):
    log = structlog.get_logger()
    for _ in range(2):
        with logging_apart():
            logs.configure("text", "info")
            capfd.readouterr()
            log.info("within")
            assert capfd.readouterr().err.split()[2:] == ["within"]  # before the thread has its turn
        log.info("after")
        logs.flush(PATIENCE)
        said = capfd.readouterr()
        assert (said.err, said.out.count("after")) == ("", 1)


WRITER = """
import sys
import structlog
from app import logs

logs.configure("json", "info")
log = structlog.get_logger()
for number in range(int(sys.argv[1])):
    log.info("line", number=number, more=sys.argv[2])
print("written", flush=True)
sys.stdin.readline()
log.info("line", number=-1)
logs.flush(float(sys.argv[3]))
"""


class TestReaders:
    """What becomes of lines when nobody reads them."""

    @contextmanager
    def writer(self, count, more="", flush_seconds=0):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(count), more, str(flush_seconds)],
            env=environment(ROOT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            yield process

    def test_a_late_reader_gets_all_lines_that_fit_and_the_number_of_the_others(self):
        count = logs.MAX_WAITING * 3
        with self.writer(count, flush_seconds=PATIENCE) as writer:
            assert writer.stdout.readline() == "written\n"  # it did not wait for us
            writer.stdin.close()
            events = [json.loads(line) for line in writer.stderr]
        lines = [event["number"] for event in events if event["event"] == "line"]
        lost = sum(event["lines"] for event in events if event["event"].startswith("log lines were lost"))
        assert len(lines) >= logs.MAX_WAITING
        assert lines[:-1] == list(range(len(lines) - 1))
        assert lost > 0
        assert len(lines) + lost == count + 1

    def test_lines_that_wait_are_bounded_by_their_length_too(self):
        with self.writer(logs.MAX_WAITING // 2, "x" * logs.MAX_FIELD_CHARACTERS, PATIENCE) as writer:
            assert writer.stdout.readline() == "written\n"
            writer.stdin.close()
            events = [json.loads(line) for line in writer.stderr]
        lines = [len(json.dumps(event)) for event in events if event["event"] == "line"]
        lost = sum(event["lines"] for event in events if event["event"].startswith("log lines were lost"))
        assert lost > 0
        assert len(lines) + lost == logs.MAX_WAITING // 2 + 1
        assert sum(lines) < 2 * logs.MAX_WAITING_BYTES + (1 << 17)  # as many again were being written

    def test_a_reader_that_never_reads_keeps_no_process_from_ending(self):
        with self.writer(logs.MAX_WAITING) as writer:
            assert writer.stdout.readline() == "written\n"
            writer.stdin.close()
            assert writer.wait(PATIENCE) == 0

    def test_a_reader_that_went_away_keeps_nobody_from_writing(self):
        with self.writer(1000) as writer:
            writer.stderr.close()
            assert writer.stdout.readline() == "written\n"
            writer.stdin.close()
            assert writer.wait(PATIENCE) == 0


@pytest.mark.slow
class TestService:
    @contextmanager
    def serving(self, directory, **options):
        """`waybill serve` with a standard error of its own making; ended, and seen to end well."""
        process = subprocess.Popen(
            [*options.pop("before", []), *COMMAND, "serve"],
            cwd=directory,
            env=environment(directory, log_level="debug", **options.pop("settings", {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **options,
        )
        try:
            yield process
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()

    def serves(self, url, requests):
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            for number in range(requests):
                content = b"content %d" % number
                made = client.put(f"{UPLOADS}/{number}.bin", content=content)
                assert made.status_code == 201
                assert client.get(made.json()["links"]["content"]).content == content

    @pytest.mark.parametrize("reader", ["sleeps", "leaves"])
    def test_requests_go_on_when_nobody_reads_the_log(self, tmp_path, reader):
        """F35: the pipe is full, or has nobody at its end."""
        with self.serving(tmp_path, stderr=subprocess.PIPE) as process, process.stderr:
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            for line in process.stderr:
                if b"Uvicorn running on" in line:
                    break
            if reader == "leaves":
                process.stderr.close()
            self.serves(json.loads(line)["event"].split()[3], requests=50)

    def test_requests_go_on_when_there_is_no_standard_error(self, tmp_path):
        """F35. Nor does a file or a connection take its place, and receive what is logged."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        closed = ["/bin/sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"]
        with self.serving(tmp_path, before=closed, settings={"port": port}) as process:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                with suppress(httpx.ConnectError):
                    httpx.get(f"{url}/health/live", trust_env=False)
                    break
                time.sleep(0.02)
            self.serves(url, requests=5)
            for number in (0, 1, 2):
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_no_secret_and_no_content_is_ever_logged(self, tmp_path, log_format):
        keys = "first-key-" + string.ascii_letters, "second-key-" + string.ascii_letters
        settings = {"log_format": log_format, "log_level": "debug", "secret_keys": ",".join(keys)}
        with closing(Service(tmp_path, **settings)) as running:
            running.start()
            with running.client() as client, running.client() as second:
                client.put(f"{UPLOADS}/a.bin", content=b"the content of the file")
                token = client.cookies["waybill_session"]
                bearer = {"Authorization": f"Bearer {token}"}
                second.get(HISTORY, headers=bearer)
                second.get(
                    HISTORY, headers={"Authorization": f"Bearer {token}x", "Cookie": f"waybill_session={token}y"}
                )
                code = client.post("/api/session/link").json()["code"]
                second.post("/api/session/join", json={"code": code})
                joined = second.cookies["waybill_session"]
                second.post("/api/session/join", content=f'{{"code": "{code}"')
                client.post(
                    UPLOADS, content=b"half of a form", headers={"Content-Type": "multipart/form-data; boundary=x"}
                )
                client.get(HISTORY, params={"cursor": token})
                rotated = client.post("/api/session/rotate").cookies["waybill_session"]
                client.delete("/api/session")
            assert running.stop() == 0
            text = "".join(running.lines)
        assert text.count("answered") > 10
        for secret in (*keys, token, joined, rotated, code, "the content", "half of a form"):
            assert secret not in text
            assert secret.partition(".")[0] not in text
