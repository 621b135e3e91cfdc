"""What is compared and what is stored of a request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import JSON, MSGPACK
from protocol.frames import Send, parse_client_frame
from server.messages.request import count_input, fingerprint, options, pack, stored, unpack, wants_structure

BASE: dict[str, Any] = {
    "type": "send",
    "id": "m1",
    "model": "fast",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "c", "content": "x", "name": "n", "x_vendor": {"a": [1, 2.5, None]}},
    ],
    "max_output_tokens": 100,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["a", "b"],
    "seed": 7,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": None}}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"strict": True}},
}


def send(**changes: Any) -> Send:
    """The base request with changes; `...` leaves a field out."""
    fields = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    frame = parse_client_frame(fields)
    assert isinstance(frame, Send)
    return frame


USER = {"role": "user", "content": "hi"}
SAME: list[dict[str, Any]] = [
    {"id": "another"}, {"after": 9}, {"retry_of": 4}, {"on_busy": "reject"}, {"metadata": {"feature": "x"}},
    {"metadata": None}, {"conversation": None}, {"prompt": None}, {"parent": None}, {"unknown_field": 5},
    {"max_output_tokens": ..., "max_tokens": 100}, {"max_output_tokens": ..., "max_completion_tokens": 100},
]  # fmt: skip


@pytest.mark.parametrize("changes", SAME, ids=repr)
def test_what_is_not_asked_for_does_not_count(changes: dict[str, Any]) -> None:
    assert fingerprint(send(**changes)) == fingerprint(send())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 1}, {"temperature": 1.0}), ({"temperature": 0}, {"temperature": -0.0}),
        ({"seed": ...}, {"seed": None}), ({"tools": ...}, {"tools": None}), ({"model": ...}, {"model": "default"}),
        ({"tools": [{"a": 1, "b": 2.0}]}, {"tools": [{"b": 2, "a": 1.0}]}),
        ({"messages": [{**USER, "name": None}]}, {"messages": [USER]}),
    ],
)  # fmt: skip
def test_equal_things_are_equal_however_they_are_written(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fingerprint(send(**one)) == fingerprint(send(**other))


def variants() -> list[Send]:
    turns = BASE["messages"]
    changes: list[dict[str, Any]] = [
        {}, {"model": "slow"}, {"model": ...}, {"max_output_tokens": 101}, {"max_output_tokens": ...},
        {"temperature": 0.6}, {"temperature": ...}, {"temperature": 0}, {"temperature": 1},
        {"top_p": 1}, {"top_p": ...},
        {"stop": ["b", "a"]}, {"stop": "a"}, {"stop": ["a"]}, {"stop": []}, {"stop": ...}, {"seed": 8}, {"seed": ...},
        {"seed": 0}, {"tools": []}, {"tools": ...}, {"tool_choice": "none"}, {"tool_choice": {"type": "auto"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": False}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": 0}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": "None"}}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": 1e300}}}]},
        {"response_format": {"type": "text"}}, {"response_format": ...}, {"parent": "p"},
        {"messages": turns[:1]}, {"messages": turns[1:]}, {"messages": turns[::-1]}, {"messages": [*turns, turns[0]]},
        {"messages": [USER]}, {"messages": [{**USER, "role": "system"}]}, {"messages": [{**USER, "content": "hi "}]},
        {"messages": [{**USER, "name": "n"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [{"role": "user", "content": "hi", "x_vendor": 1}]},
        {"prompt": {"name": "p"}}, {"prompt": {"name": "p", "version": "1"}},
        {"prompt": {"name": "p", "variables": {"a": 1}}},
    ]  # fmt: skip
    return [send(**change) for change in changes]


def test_any_other_change_differs() -> None:
    seen: dict[bytes, Send] = {}
    for variant in variants():
        print_ = fingerprint(variant)
        assert print_ not in seen, (variant, seen[print_])
        seen[print_] = variant
    assert all(key.startswith(b"1:") and len(key) == 66 for key in seen)


def test_the_codec_does_not_matter() -> None:
    prints = set()
    for codec in (JSON, MSGPACK):
        for variant in (BASE, {**BASE, "temperature": 0.1, "top_p": 1.0, "seed": 2**53}):
            (raw,) = codec.decode(codec.encode(variant))
            frame = parse_client_frame(raw)
            assert isinstance(frame, Send)
            prints.add(fingerprint(frame))
    assert len(prints) == 2


WORD = st.text(st.characters(codec=None), max_size=5)
"""Lone surrogates included: they may hide in the keys of free-form parts."""
FREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(["type", "function", "x"]), FREE, max_size=3), max_size=2))
def test_whatever_is_inside_a_request_can_be_compared_stored_and_read_again(tools: list[dict[str, Any]]) -> None:
    frame = Send.model_construct(**{**send().__dict__, "tools": tools, "metadata": {"m": tools}})
    again = Send.model_construct(**{**send().__dict__, "tools": tools, "metadata": {}})
    assert fingerprint(frame) == fingerprint(again)
    request = stored(frame)
    assert unpack(pack(request)) == orjson.loads(orjson.dumps(request))
    orjson.dumps(options(request))


def test_what_is_stored_is_what_was_given() -> None:
    request = unpack(pack(stored(send())))
    assert request == {key: value for key, value in BASE.items() if key not in ("type", "id")}
    assert request["messages"] == BASE["messages"]  # an explicit null is passed on
    assert "on_busy" not in request


def test_options_are_those_that_were_given() -> None:
    request = stored(send())
    names = ("temperature", "top_p", "stop", "seed", "tools", "tool_choice", "response_format")
    assert options(request) == {name: BASE[name] for name in names}
    assert options(stored(send(**dict.fromkeys(names, ...)))) == {}
    assert options(stored(send(**dict.fromkeys(names)))) == {}
    assert options(stored(send(temperature=0, stop=[]))) == {**options(request), "temperature": 0, "stop": []}


@pytest.mark.parametrize(
    ("given_format", "structured"),
    [(..., False), (None, False), ({"type": "text"}, False), ({"type": "json_object"}, True), ({}, False),
     ({"type": "json_schema"}, True), ({"type": ["json_object"]}, False), ({"type": None}, False)],
)  # fmt: skip
def test_structured_output_is_recognised(given_format: Any, structured: bool) -> None:
    assert wants_structure(stored(send(response_format=given_format, tools=...))) is structured


@pytest.mark.parametrize(
    ("content", "tokens"),
    [("", 4), ("abc", 5), ("abcd", 6), ("🌊", 6), (None, 4), ([{"type": "text", "text": "abc"}], 5),
     ([{"type": "image_url"}], 4), ([{"type": "text", "text": None}], 4), ([{"type": "text", "text": 5}], 4),
     ([{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}], 5)],
)  # fmt: skip
def test_input_is_estimated_whatever_its_parts_are(content: Any, tokens: int) -> None:
    assert count_input([{"role": "user", "content": content}]) == tokens


def test_the_estimate_adds_up() -> None:
    assert count_input([]) == 0
    assert count_input([{"content": "abc"}, {}]) == 9
