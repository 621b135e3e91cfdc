"""Tags are bounded and storable, and an origin survives Redis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from server.messages.origin import MAX_TAGS, TAG_CHARACTERS, TAG_NAME_CHARACTERS, Origin, tags_of

VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SMALL = st.dictionaries(
    st.text(min_size=1, max_size=TAG_NAME_CHARACTERS), VALUES | st.text(max_size=TAG_CHARACTERS), max_size=MAX_TAGS
)


@pytest.mark.parametrize(
    ("metadata", "tags"),
    [
        (None, {}),
        ({}, {}),
        ({"feature": "search", "beta": True, "off": False}, {"feature": "search", "beta": "true", "off": "false"}),
        ({"a": 1, "b": 1.0, "c": 1.5, "d": None, "e": ""}, {"a": "1", "b": "1", "c": "1.5", "e": ""}),
        ({"a\0": "\0b", "c": "\ud83d\ude00 \ud800"}, {"a\ufffd": "\ufffdb", "c": "\U0001f600 \ufffd"}),
        ({"n" * TAG_NAME_CHARACTERS: "v" * TAG_CHARACTERS}, {"n" * TAG_NAME_CHARACTERS: "v" * TAG_CHARACTERS}),
    ],
)
def test_metadata_becomes_tags(metadata: dict[str, Any] | None, tags: dict[str, str]) -> None:
    assert tags_of(metadata) == tags


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({str(n): n for n in range(MAX_TAGS + 1)}, "at most 16 pairs are taken, not 17"),
        ({"": "x"}, "a name has 1 to 64 characters, not 0"),
        ({"n" * (TAG_NAME_CHARACTERS + 1): "x"}, "a name has 1 to 64 characters, not 65"),
        ({"feature": "v" * (TAG_CHARACTERS + 1)}, "metadata.feature: at most 512 characters are taken, not 513"),
        ({"feature": {"a": 1}}, "metadata.feature: should be a text, a number, true, false or null"),
        ({"feature": ["a"]}, "metadata.feature: should be a text, a number, true, false or null"),
    ],
)
def test_what_is_too_much_is_refused_in_clear_words(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said) as refused:
        tags_of(metadata)
    assert refused.value.code == "invalid_frame"
    assert refused.value.details == {"limits": {"pairs": 16, "name": 64, "value": 512}}


@given(SMALL)
def test_tags_are_texts_that_any_store_takes(metadata: dict[str, Any]) -> None:
    for name, value in tags_of(metadata).items():
        assert "\0" not in name + value
        (name + value).encode()


@given(st.sampled_from(["ws", "http", "job"]), st.text(max_size=40), SMALL)
def test_an_origin_survives_redis(door: Any, origin_id: str, metadata: dict[str, Any]) -> None:
    origin = Origin(door, origin_id, tags_of(metadata))
    assert Origin.unpack(origin.pack()) == origin


def test_a_claim_without_one_has_an_unnamed_origin() -> None:
    assert Origin.unpack(None) == Origin("ws")
