"""UUIDv7."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.client.ids import uuid7
from protocol.frames import ID_PATTERN


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_fields(unix_ms: int, randomness: bytes) -> None:
    text = uuid7(unix_ms, randomness)
    value = uuid.UUID(text)
    assert re.match(ID_PATTERN, text)
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == unix_ms


@given(st.integers(0, 2**40), st.integers(1, 2**40), st.binary(min_size=10, max_size=10))
def test_sorts_by_time(unix_ms: int, later: int, randomness: bytes) -> None:
    assert uuid7(unix_ms, b"\xff" * 10) < uuid7(unix_ms + later, randomness)


def test_the_example_of_the_rfc() -> None:
    # RFC 9562, appendix A.6: rand_a = 0xCC3, rand_b = 0x18C4DC0C0C07398F
    randomness = (0xCC3 << 64 | 0x18C4DC0C0C07398F).to_bytes(10)
    assert uuid7(0x017F22E279B0, randomness) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_wants_ten_bytes() -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        uuid7(0, b"")
