"""A digest that was put down and taken up again is that of all its bytes; whatever else is given is not taken up."""

import ctypes
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage import digest_state

_WORDS = "0" * 64
needs_openssl = pytest.mark.skipif(digest_state._openssl() is None, reason="this Python's OpenSSL is out of reach")


@needs_openssl
@given(pieces=st.lists(st.binary(max_size=200) | st.integers(0, 100_000).map(bytes), max_size=8), data=st.data())
def test_a_digest_may_be_put_down_and_taken_up_anywhere(pieces, data):
    digest, expected, count = digest_state.begun(), hashlib.sha256(), 0
    for piece in pieces:
        kind = data.draw(st.sampled_from([bytes, bytearray, lambda bytes_: memoryview(bytearray(bytes_))]))
        digest.update(kind(piece))
        expected.update(piece)
        count += len(piece)
        assert digest.hexdigest() == expected.hexdigest()
        if data.draw(st.booleans()):
            digest = digest_state.resumed(digest.state(), count)
    assert digest.hexdigest() == expected.hexdigest()


@needs_openssl
@pytest.mark.parametrize("count", [2**29 - 1, 2**29, 2**29 + 1, 2**32, 2**40, 2**60])
def test_a_digest_counts_beyond_what_a_word_holds(count):
    pending = "ab" * (count % 64)
    state = f"{count}.{_WORDS}.{pending}"
    assert digest_state.resumed(state, count).state() == state
    assert digest_state.resumed(state, count + 64) is None


@pytest.mark.parametrize(
    "state",
    [
        None,
        "",
        "1",
        f"1.{_WORDS}.",
        f"1.{_WORDS}.ABAB",
        f"1.{_WORDS}.a",
        f"1.{_WORDS}.abab",
        f"2.{_WORDS}.abab",
        f"65.{_WORDS}.ab",
        f"1.{_WORDS[1:]}.ab",
        f"1.{_WORDS}.ab\n",
        f"\u0661.{_WORDS}.ab",
    ],
)
def test_a_state_of_another_offset_is_not_resumed(state):
    assert digest_state.resumed(state, 1) is None


def test_a_digest_at_offset_zero_needs_no_state():
    for state in (None, "", "nonsense"):
        assert digest_state.resumed(state, 0).hexdigest() == hashlib.sha256().hexdigest()


def test_the_digest_holds_no_block_when_it_has_returned():
    block = memoryview(bytearray(100))
    digest_state.begun().update(block[10:])
    block.release()


class Library:
    """OpenSSL, with one thing wrong."""

    def __init__(self, **wrong):
        self.wrong = wrong

    def __getattr__(self, name):
        return self.wrong.get(name) or getattr(digest_state._openssl(), name)


def wrong_by_a_byte(context, start, size):
    return digest_state._openssl().SHA256_Update(context, start, ctypes.c_size_t(max(0, size.value - 1)))


@needs_openssl
@pytest.mark.parametrize("wrong", [{"SHA256_Init": lambda *_: 0}, {"SHA256_Update": wrong_by_a_byte}])
def test_a_library_that_does_otherwise_is_found_out(wrong):
    digest_state._try_out(Library())
    with pytest.raises(RuntimeError):
        digest_state._try_out(Library(**wrong))


def refuse(*_):
    raise OSError("no such library")


@pytest.mark.parametrize("wrong", [refuse, lambda _: object(), lambda _: Library(SHA256_Init=lambda *_: 0)])
def test_digests_without_openssl_are_those_of_python_and_cannot_be_saved(monkeypatch, wrong):
    library = digest_state._openssl()  # found before the door to it is taken away
    monkeypatch.setattr(digest_state.ctypes, "CDLL", wrong)
    without = digest_state._openssl.__wrapped__()
    assert library is not without is None
    monkeypatch.setattr(digest_state, "_openssl", lambda: without)
    digest = digest_state.begun()
    digest.update(b"hello")
    assert digest.state() is None
    assert digest.hexdigest() == hashlib.sha256(b"hello").hexdigest()
    assert digest_state.resumed(f"1.{_WORDS}.ab", 1) is None
