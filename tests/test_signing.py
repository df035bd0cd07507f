"""Signed text is exactly what a configured key makes of it, for its own purpose, or it is nothing."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.signing import Signer

KEYS = ["a" * 32, "b" * 32, "c" * 32]
SIGNER = Signer(KEYS[:1], "test")
texts = st.text(st.characters(codec="ascii"), max_size=60)


@given(text=texts)
def test_signed_text_comes_back(text):
    assert SIGNER.verify(SIGNER.sign(text)) == text


@given(text=texts)
def test_signing_is_the_same_every_time_and_in_every_process(text):
    assert SIGNER.sign(text) == Signer(KEYS[:1], "test").sign(text)


def test_released_signatures_stay_valid():
    """A change here ends every session of everybody."""
    assert SIGNER.sign("secret.1795379580") == "secret.1795379580.d9zZukjk112xM4xw6U3pCsujlnQuvi5Um57RKwVus64"


@given(text=texts, data=st.data())
def test_text_altered_in_any_place_is_refused(text, data):
    signed = SIGNER.sign(text)
    at = data.draw(st.integers(0, len(signed)), label="at")
    removed = data.draw(st.integers(0, 2), label="removed")
    put = data.draw(st.text(st.characters(codec="utf-8"), max_size=2), label="put")
    altered = signed[:at] + put + signed[at + removed :]
    assert SIGNER.verify(altered) == (text if altered == signed else None)


@given(garbage=st.text())
def test_malformed_text_is_refused(garbage):
    assert SIGNER.verify(garbage) is None


@pytest.mark.parametrize("text", ["", "secret.1", "x" * 5000])
def test_a_signature_that_only_decodes_to_the_same_bytes_is_refused(text):
    signed = SIGNER.sign(text)
    text, _, signature = signed.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=")
    twins = [signature + "=", signature + "==", f"!{signature}", f"{signature[:9]}\n{signature[9:]}"]
    twins += [signature[:-1] + letter for letter in string.ascii_letters + string.digits + "-_"]
    twins += [base64.b64encode(raw).decode(), raw.hex()]
    assert [twin for twin in twins if twin != signature and SIGNER.verify(f"{text}.{twin}") is not None] == []


@given(text=texts)
def test_another_purpose_is_another_key(text):
    assert Signer(KEYS[:1], "other").verify(SIGNER.sign(text)) is None


def test_the_first_key_signs_and_every_key_verifies():
    old, both, new = Signer(KEYS[:1], "test"), Signer([KEYS[1], KEYS[0]], "test"), Signer([KEYS[1]], "test")
    assert both.verify(old.sign("text")) == "text"
    assert both.sign("text") == new.sign("text")
    assert new.verify(both.sign("text")) == "text"
    assert new.verify(old.sign("text")) is None
    assert Signer(KEYS, "test").verify(Signer(KEYS[2:], "test").sign("text")) == "text"
