"""Calls that do less than asked for, are interrupted, or take their time: the bytes are right all the same."""

import hashlib
import subprocess
import threading
from contextlib import closing

import pytest

from tests.faults.guest import (
    CHUNK,
    KIB,
    MIB,
    WAYS,
    Baseline,
    Guest,
    Halfway,
    content_of,
    eventually,
    figures,
    is_success,
)
from tests.faults.tracing import NAMED_THREADS, traced
from tests.support.sender import TUS
from tests.support.service import HISTORY, UPLOADS, Service
from tests.support.tally import TORTURE
from tests.support.tools import needs, tool

pytestmark = pytest.mark.slow

PUBLISHES = "waybill-publish"

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether the descriptor is a file below one of these directories. */
static int lies_in(int fd, const char *directory, const char *other) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, directory) || strstr(path, other);
}

static ssize_t (*really_write)(int, const void *, size_t);
static int (*really_close)(int);

__attribute__((constructor)) static void begin(void) {
    really_write = dlsym(RTLD_NEXT, "write");
    really_close = dlsym(RTLD_NEXT, "close");
}

/* A half of what was asked for is really written; of what is written past the page cache, a half of its sectors. */
ssize_t write(int fd, const void *block, size_t size) {
    if (size > 1 && lies_in(fd, "/staging/", "/partial/")) size = size >= 8192 ? size / 2 / SECTOR * SECTOR : size / 2;
    return really_write(fd, block, size);
}

/* The descriptor is closed, as Linux does, and then an error is told, as network file systems do. */
int close(int fd) {
    int failing = access(getenv("FAILING_CLOSE"), F_OK) == 0 && lies_in(fd, "/waybill-data/files/", "/staging/");
    int result = really_close(fd);
    if (failing) { errno = EIO; return -1; }
    return result;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library by which writes are short, and closes fail as long as the file beside it is there."""
    compiler = tool("cc")
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(SHIM)
    options = ["-shared", "-fPIC", "-O1", "-DSECTOR=512", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run([compiler, *options], cwd=directory, check=True)
    return directory / "shim.so", directory / "closes-fail"


PRELOADED = """
import os, sys

if "LD_PRELOAD" not in os.environ:
    os.environ.update(LD_PRELOAD={!r}, FAILING_CLOSE={!r})
    os.execv(sys.executable, sys.orig_argv)
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory, shim):
    """A guest at a service whose writes are all short."""
    change = PRELOADED.format(*map(str, shim))
    with closing(Service(tmp_path_factory.mktemp("service"), change=change)) as running:
        guest = Guest(running.start())
        yield guest


def test_writes_that_are_cut_short_are_gone_on_with(short):
    """F8: each write takes half of what it is given, down to single bytes, past the page cache and through it."""
    before = Baseline(short.running)
    for way in WAYS:
        for size in (1, 100 * KIB, 3 * MIB + 5):
            assert is_success(short.send(way, content_of(size, size)))
    assert short.send_form(*(content_of(size) for size in (0, 5000, 2 * MIB))).status_code == 201
    short.finds_all()
    before.is_back()


def test_a_close_that_returns_an_error_refuses_the_file(short, shim):
    """F6: the error that network file systems keep until then; the descriptor is closed all the same."""
    before = Baseline(short.running)
    _, failing = shim
    content = content_of(2 * MIB, 1)
    with short.client() as client:
        url = client.post(UPLOADS, headers=TUS | {"Upload-Length": str(len(content))}).headers["location"]
    upload_id = short.history()[-1]["id"]
    for send in (
        lambda: short.send("raw", b"x"),
        lambda: short.send_form(b"x", b"y"),
        lambda: short.append(url, content),
    ):
        failing.touch()
        answer = send()
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert short.send("raw", b"no matter what").status_code == 503
        failing.unlink()
        trusts_again(short)
    with short.client() as client:
        left = int(client.head(url, headers=TUS).headers["upload-offset"])
        if left < len(content):
            assert is_success(short.append(url, content, left))
    short.acknowledge(short.get(f"{HISTORY}/{upload_id}").json(), content)
    short.finds_all()
    before.is_back()


def trusts_again(guest):
    eventually(lambda: guest.get("/health/ready").status_code == 200 and is_success(guest.send("raw", b"x")))


# --- by strace


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    with closing(Service(tmp_path_factory.mktemp("service"), change=NAMED_THREADS)) as running:
        guest = Guest(running.start())
        guest.goes_on()
        yield guest


@needs("strace")
def test_calls_that_are_interrupted_are_made_again(guest):
    """F9: EINTR at every second call, in the thread that publishes and for a large file; no byte comes twice."""
    before = Baseline(guest.running)
    every_second = "error=EINTR:when=1+2"
    calls = "openat,write,fsync,renameat2"
    with traced(guest.running, "-e", f"inject={calls}:{every_second}", thread=PUBLISHES, trace=calls) as story:
        assert is_success(guest.send("raw", content_of(100 * KIB)))
        assert is_success(guest.send("form", content_of(100)))
    assert {line.split("(")[0].split()[-1] for line in story.injected} == set(calls.split(","))
    with Halfway(guest, 4 * MIB + 100) as upload:
        upload.send(MIB + 5)
        staged = str(upload.staged())
        with traced(guest.running, "-P", staged, "-e", f"inject=write:{every_second}") as story:
            assert upload.answer().status == 201
        assert story.injected
    guest.finds_all()
    before.is_back()


@needs("strace")
def test_a_file_that_cannot_be_written_now_is_refused_and_not_written_twice(guest):
    """F9: EAGAIN, which no disk may say, is an error like any other."""
    before = Baseline(guest.running)
    with Halfway(guest, 4 * MIB + 100) as upload:
        upload.send(MIB + 5)
        staged = str(upload.staged())
        with traced(guest.running, "-P", staged, "-e", "inject=write:error=EAGAIN:when=1") as story:
            assert upload.answer().code == "unavailable"
        assert story.injected
    trusts_again(guest)
    guest.finds_all()
    before.is_back()


def lags(running):
    """How often the event loop was late so much: counts by their bounds, each with those below it."""
    name = 'waybill_event_loop_lag_seconds_bucket{le="'
    return {key[len(name) : -2]: value for key, value in figures(running).items() if key.startswith(name)}


@needs("strace")
def test_a_slow_flush_leaves_the_event_loop_free_and_others_served(guest):
    """F10: the flush goes on when strace lets it; until then nothing else waits but what is to be published."""
    ticks = 20 if TORTURE else 3
    before, earlier = Baseline(guest.running), lags(guest.running)
    answers = []
    slow = threading.Thread(target=lambda: answers.append(guest.send("raw", content_of(100 * KIB))))
    waiting = "inject=fsync:delay_enter=600s:when=1"
    with traced(guest.running, "-e", waiting, thread=PUBLISHES, trace="fsync"):
        slow.start()
        eventually(lambda: list((guest.running.store / "staging").glob("*/*")) != [])
        content = content_of(MIB, 2)
        with guest.client() as client:
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 200
            made = client.post(UPLOADS, headers=TUS | {"Upload-Length": str(len(content) + 1)})
            upload = client.patch(
                made.headers["location"], content=content, headers=TUS | CHUNK | {"Upload-Offset": "0"}
            )
            assert upload.headers["upload-offset"] == str(len(content))
            for upload_id, digest in guest.acknowledged.items():
                served = client.get(f"/api/ingestion/files/{upload_id}").content
                assert hashlib.sha256(served).hexdigest() == digest
        eventually(lambda: lags(guest.running)["+Inf"] >= earlier["+Inf"] + ticks)
        assert answers == []
    slow.join()
    assert is_success(answers[0])
    now = lags(guest.running)
    late = {bound: (now["+Inf"] - now[bound]) - (earlier["+Inf"] - earlier[bound]) for bound in ("0.05", "1.0")}
    assert late["1.0"] == 0
    if TORTURE:
        assert late["0.05"] <= ticks / 10, late
    guest.finds_all()
    before.is_back(partials=1)
