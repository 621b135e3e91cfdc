"""Both codecs: what they carry, and what they refuse from strangers."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import CODECS, JSON, MAX_DEPTH, MSGPACK, Codec, DecodeError, clean_text
from protocol.frames import MAX_SAFE_INTEGER

both = pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.subprotocol)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
frames = st.dictionaries(texts, values, max_size=4)


@both
@given(st.lists(frames, min_size=1, max_size=4))
def test_what_goes_in_comes_out(codec: Codec, sent: list[dict[str, Any]]) -> None:
    data = codec.join([codec.encode(frame) for frame in sent])
    assert codec.decode(data) == sent
    assert codec.decode_trusted(data) == sent


def test_text_messages_may_be_str() -> None:
    assert JSON.decode('{"type":"ping"}') == JSON.decode_trusted('{"type":"ping"}') == [{"type": "ping"}]
    for decode in (MSGPACK.decode, MSGPACK.decode_trusted):
        with pytest.raises(DecodeError, match="binary"):
            decode("{}")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@both
def test_depth(codec: Codec) -> None:
    """The array around several frames does not count."""
    deepest = codec.encode(nested(MAX_DEPTH))
    assert codec.decode(deepest) == [nested(MAX_DEPTH)]
    assert len(codec.decode(codec.join([deepest, deepest]))) == 2
    with pytest.raises(DecodeError, match="nested"):
        codec.decode(codec.encode(nested(MAX_DEPTH + 1)))


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_absurd_depth(depth: int) -> None:
    with pytest.raises(DecodeError):
        JSON.decode('{"a":' + "[" * depth + "]" * depth + "}")
    with pytest.raises(DecodeError):
        MSGPACK.decode(b"\x81\xa1a" + b"\x91" * depth + b"\x90")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "7",
        "[7]",
        '"x"',
        "null",
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":1e999}',
        '{"a":9007199254740993}',
        '{"a":-9007199254740993}',
        f'{{"a":{"1" * 5000}}}',
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":2}}',
        '{"\\ud800":1,"\\ufffd":2}',
        '{"a":1}{"a":2}',
    ],
)
def test_refused_json(text: str) -> None:
    with pytest.raises(DecodeError):
        JSON.decode(text)
    with pytest.raises(DecodeError):
        JSON.decode(text.encode())


@pytest.mark.parametrize("data", [b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32-le")])
def test_json_is_utf8(data: bytes) -> None:
    with pytest.raises(DecodeError):
        JSON.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgpack.packb(7),
        msgpack.packb({"a": b"bytes"}),
        msgpack.packb({1: 2}),
        msgpack.packb({b"a": 2}),
        msgpack.packb({"a": float("nan")}),
        msgpack.packb({"a": float("-inf")}),
        msgpack.packb({"a": 2**53 + 1}),
        msgpack.packb({"a": 2**64 - 1}),
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        msgpack.packb({"a": msgpack.Timestamp(1)}),
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1a\xa1\xff",
        b"\x81\x91\x01\x02",
        msgpack.packb({"a": 1}) + b"\x00",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a",
    ],
)
def test_refused_msgpack(data: bytes) -> None:
    with pytest.raises(DecodeError):
        MSGPACK.decode(data)


@both
@given(st.binary(max_size=40))
def test_noise_is_refused_or_decoded_and_never_crashes(codec: Codec, data: bytes) -> None:
    try:
        found = codec.decode(data)
    except DecodeError:
        return
    assert all(isinstance(frame, dict) for frame in found)


def test_surrogates_become_text_that_utf8_can_carry() -> None:
    sent = '{"a":"\\ud83d\\ude00 \\ud83d","b":["\\udc00"],"\\ud800":1}'
    (frame,) = JSON.decode(sent)
    assert frame == {"a": "😀 \ufffd", "b": ["\ufffd"], "\ufffd": 1}
    JSON.encode(frame)
    MSGPACK.encode(frame)


@given(st.text())
def test_clean_text(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned.encode().decode() == cleaned
    assert clean_text(cleaned) == cleaned


def test_a_failed_encode_leaves_nothing_behind() -> None:
    with pytest.raises(TypeError):
        MSGPACK.encode({"a": 1, "b": object()})
    assert MSGPACK.decode(MSGPACK.encode({"a": 1})) == [{"a": 1}]


@given(frames)
def test_json_is_what_the_standard_library_reads(frame: dict[str, Any]) -> None:
    assert json.loads(JSON.encode(frame)) == frame


@pytest.mark.parametrize("data", [b"{", b"\xff"])
@both
def test_a_trusted_peer_that_errs(codec: Codec, data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode_trusted(b"" if codec.binary else data)
