"""The frame models: what a client may send and how mistakes are told."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import ProtocolError
from protocol.frames import (
    CLIENT_FRAMES,
    JOURNALED,
    SERVER_FRAMES,
    Hello,
    Send,
    parse_client_frame,
    server_frame,
)

USER = [{"role": "user", "content": "Hello"}]


def send(**fields: Any) -> Send:
    frame = parse_client_frame({"type": "send", "id": "m1", **fields})
    assert isinstance(frame, Send)
    return frame


def refused(frame: dict[str, Any]) -> str:
    with pytest.raises(ProtocolError) as error:
        parse_client_frame(frame)
    assert error.value.code == "invalid_frame"
    return error.value.message


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "hello"},
        {"type": "hello", "token": "t", "client": {"name": "x"}, "resume": [{"id": "m1"}, {"id": "m2", "after": 7}]},
        {"type": "send", "id": "m1", "messages": USER},
        {"type": "send", "id": "m1", "conversation": "c", "input": "Hello"},
        {"type": "send", "id": "m1", "conversation": "c", "parent": "m0"},
        {"type": "send", "id": "m1", "prompt": {"name": "p", "version": "^2", "variables": {"a": 1}}},
        {"type": "resume", "id": "m1", "after": 3},
        {"type": "detach", "id": "m1"},
        {"type": "cancel", "id": "m1"},
        {"type": "auth", "token": "t"},
        {"type": "subscribe", "conversation": "c"},
        {"type": "unsubscribe", "conversation": "c"},
        {"type": "history", "conversation": "c", "before": "m9", "limit": 10},
        {"type": "ping", "nonce": "n"},
        {"type": "ping", "nonce": 5},
        {"type": "ping"},
    ],
)
def test_accepted(frame: dict[str, Any]) -> None:
    parsed = parse_client_frame(frame | {"unknown": {"field": [1]}})
    assert isinstance(parsed, CLIENT_FRAMES[frame["type"]])


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        ({}, "type"),
        ({"type": 5}, "type"),
        ({"type": "weather"}, "weather"),
        ({"type": "send", "id": "m1"}, "messages"),
        ({"type": "send", "messages": USER}, "id"),
        ({"type": "send", "id": "a b", "messages": USER}, "id"),
        ({"type": "send", "id": "x" * 65, "messages": USER}, "id"),
        ({"type": "send", "id": "m1", "messages": []}, "messages"),
        ({"type": "send", "id": "m1", "messages": [{"role": "user"}]}, "content"),
        ({"type": "send", "id": "m1", "messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"type": "send", "id": "m1", "messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"type": "send", "id": "m1", "messages": [{"role": "user", "content": []}]}, "parts"),
        ({"type": "send", "id": "m1", "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "type"),
        ({"type": "send", "id": "m1", "messages": USER, "conversation": "c"}, "not both"),
        ({"type": "send", "id": "m1", "input": "x"}, "conversation"),
        ({"type": "send", "id": "m1", "messages": USER, "temperature": 3}, "temperature"),
        ({"type": "send", "id": "m1", "messages": USER, "max_tokens": "5"}, "max_output_tokens"),
        ({"type": "send", "id": "m1", "messages": USER, "max_tokens": 5, "max_output_tokens": 6}, "contradict"),
        ({"type": "send", "id": "m1", "messages": USER, "on_busy": "panic"}, "on_busy"),
        ({"type": "resume", "id": "m1", "after": -1}, "after"),
        ({"type": "resume", "id": "m1", "after": "1"}, "after"),
        ({"type": "hello", "resume": [{"id": "m"}] * 257}, "resume"),
        ({"type": "history", "conversation": "c", "limit": 0}, "limit"),
        ({"type": "auth"}, "token"),
    ],
)
def test_refused_with_the_field_named(frame: dict[str, Any], named: str) -> None:
    assert named in refused(frame)


@pytest.mark.parametrize("name", ["max_output_tokens", "max_completion_tokens", "max_tokens"])
def test_names_of_the_output_cap(name: str) -> None:
    assert send(messages=USER, **{name: 5}).max_output_tokens == 5
    assert send(messages=USER, max_tokens=5, max_completion_tokens=5).max_output_tokens == 5
    assert send(messages=USER, **{name: None}).max_output_tokens is None


def test_provider_specific_fields_of_messages_are_kept() -> None:
    (message,) = send(messages=[{"role": "user", "content": "x", "cache_control": {"type": "y"}}]).messages or []
    assert message.model_dump(exclude_none=True)["cache_control"] == {"type": "y"}


def test_defaults() -> None:
    frame = send(messages=USER)
    assert (frame.model, frame.on_busy, frame.after) == ("default", "queue", 0)
    hello = parse_client_frame({"type": "hello"})
    assert isinstance(hello, Hello)
    assert hello.resume == []


def test_assistant_messages_may_hold_only_tool_calls() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    send(
        messages=[
            *USER,
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ]
    )


def test_every_journaled_frame_has_id_and_seq() -> None:
    assert SERVER_FRAMES.keys() > JOURNALED
    for kind in JOURNALED:
        fields = SERVER_FRAMES[kind].model_fields
        assert fields["id"].is_required()
        assert fields["seq"].is_required()


@pytest.mark.parametrize("frames", [CLIENT_FRAMES, SERVER_FRAMES])
def test_tables_name_each_model_by_its_type(frames: dict[str, Any]) -> None:
    for kind, model in frames.items():
        assert model.model_fields["type"].annotation.__args__ == (kind,)
        assert model.__doc__


def test_a_server_frame() -> None:
    frame = server_frame.validate_python({"type": "goaway", "reason": "x", "reconnect_after_ms": 5, "more": 1})
    assert type(frame) is SERVER_FRAMES["goaway"]
