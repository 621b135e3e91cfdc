"""Codes that bring a second device in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.pairing import CODE_SECONDS, NONCE_BYTES, Pairing

NOW = 1_800_000_000.0
NONCE = bytes(range(NONCE_BYTES))
PAIRING = Pairing(b"a secret of some length")


def test_a_code_tells_its_name_until_it_is_over() -> None:
    code = PAIRING.code(NOW, NONCE)
    assert PAIRING.name(code, NOW) == NONCE.hex()
    assert PAIRING.name(code, NOW + CODE_SECONDS - 1) == NONCE.hex()
    assert PAIRING.name(code, NOW + CODE_SECONDS) is None


def test_a_code_of_another_secret_is_none() -> None:
    assert Pairing(b"another").name(PAIRING.code(NOW, NONCE), NOW) is None


@given(st.integers(0, 31), st.sampled_from("Aa0-_Z"))
def test_a_changed_code_is_none(at: int, character: str) -> None:
    code = PAIRING.code(NOW, NONCE)
    changed = code[:at] + character + code[at + 1 :]
    assert (PAIRING.name(changed, NOW) is not None) == (changed == code)


@pytest.mark.parametrize("code", ["", "x" * 31, "x" * 33, "=" * 32, "é" * 32, "+/" * 16])
def test_nonsense_is_none(code: str) -> None:
    assert PAIRING.name(code, NOW) is None
