"""Reading chat-completions chunks: merging, providers' dialects, endings."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from server.upstreams.base import Batch, Fault, TokenUsage, UpstreamFailure
from server.upstreams.chat import ChatReader


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return orjson.dumps({"id": "1", "model": "m", "choices": choices, **more})


def text(content: str) -> bytes:
    return chunk({"content": content})


def read(*payloads: bytes) -> Batch:
    return ChatReader("m").read(list(payloads))


def test_neighbours_of_one_kind_are_merged() -> None:
    batch = read(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"reasoning": " so"}),
        text("a"),
        text("b"),
        text(""),
        chunk({"role": "assistant", "content": "c"}),
    )
    assert batch.pieces == [("reasoning", "hm so"), ("text", "abc")]
    assert batch.chunks == 5


def test_order_of_kinds_is_kept() -> None:
    batch = read(text("a"), chunk({"reasoning": "r"}), text("b"), chunk({"reasoning": "s", "content": "c"}))
    assert batch.pieces == [("text", "a"), ("reasoning", "r"), ("text", "b"), ("reasoning", "s"), ("text", "c")]


def test_tool_call_deltas_of_one_call_are_joined() -> None:
    first = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    batch = read(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "d", "function": {"name": "g", "arguments": "{}"}}]}),
    )
    [(kind, calls)] = batch.pieces
    assert kind == "tool_calls"
    assert calls == [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"index": 1, "id": "d", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_content_in_parts() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    batch = read(chunk({"content": [thinking, {"type": "text", "text": "so"}]}))
    assert batch.pieces == [("reasoning", "hm"), ("text", "so")]


def test_finish_reason_and_usage_come_with_the_ending() -> None:
    reader = ChatReader("m")
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    batch = reader.read([text("a"), chunk({}, "length"), chunk(None, usage=usage), b"[DONE]"])
    assert (batch.finish_reason, batch.usage, reader.done) == (None, None, True)
    ended = reader.ending(batch)
    assert (ended.finish_reason, ended.usage) == ("length", TokenUsage(9, 4, 2, 1))


def test_usage_in_every_chunk_is_told_once() -> None:
    reader = ChatReader("m")
    reader.read([chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 1})])
    reader.read([chunk({"content": "b"}, "stop", usage={"prompt_tokens": 1, "completion_tokens": 2})])
    assert reader.ending(Batch()).usage == TokenUsage(1, 2)


@pytest.mark.parametrize(
    ("told", "meant"),
    [("stop", "stop"), ("function_call", "tool_calls"), ("max_tokens", "length"), ("eos", "stop")],
)
def test_finish_reasons(told: str, meant: str) -> None:
    reader = ChatReader("m")
    batch = reader.read([text("a"), chunk({}, told)])
    assert reader.ending(batch).finish_reason == meant


def test_the_model_is_told_once_if_it_differs() -> None:
    reader = ChatReader("alias")
    assert reader.read([text("a")]).model == "m"
    assert reader.read([text("b")]).model is None
    assert ChatReader("m").read([text("a")]).model is None


@pytest.mark.parametrize(
    ("payloads", "fault"),
    [
        ([b"{oh"], Fault.GARBLED),
        ([b"[1]"], Fault.GARBLED),
        ([b"7"], Fault.GARBLED),
        ([chunk({"tool_calls": ["x"]})], Fault.GARBLED),
        ([b'{"error": {"message": "no"}}'], Fault.SERVER_ERROR),
        ([chunk({"content": ""}, "error")], Fault.SERVER_ERROR),
        ([chunk({}, "stop"), b"[DONE]"], Fault.EMPTY),
        ([chunk({}, "content_filter"), b"[DONE]"], Fault.CONTENT_FILTER),
        ([], Fault.BROKEN_STREAM),
        ([text("a")], Fault.BROKEN_STREAM),
    ],
)
def test_failures(payloads: list[bytes], fault: Fault) -> None:
    reader = ChatReader("m")
    with pytest.raises(UpstreamFailure) as found:
        reader.ending(reader.read(payloads))
    assert found.value.fault is fault


@pytest.mark.parametrize("bad", [b"{oh", b'{"error": "no"}'])
def test_what_came_before_a_failure_is_given_out_first(bad: bytes) -> None:
    reader = ChatReader("m")
    batch = reader.read([text("a"), text("b"), bad, text("c")])
    assert batch.pieces == [("text", "ab")]
    assert reader.failure is not None


@pytest.mark.parametrize(
    "odd",
    [b"{}", b'{"choices": null}', b'{"choices": [null]}', b'{"choices": [{}]}', b'{"choices": [{"delta": null}]}'],
)
def test_odd_chunks_bring_nothing(odd: bytes) -> None:
    assert read(odd).pieces == []


def test_an_answer_without_text_for_want_of_tokens_is_one() -> None:
    reader = ChatReader("m")
    assert reader.ending(reader.read([chunk({}, "length")])).finish_reason == "length"


def test_done_without_a_finish_reason_is_an_end() -> None:
    reader = ChatReader("m")
    assert reader.ending(reader.read([text("a"), b"[DONE]"])).finish_reason == "stop"


def test_a_whole_json_answer() -> None:
    reader = ChatReader("m")
    message = {"role": "assistant", "content": "hello", "reasoning_content": "hm"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    body = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})
    batch = reader.ending(reader.read_whole(body))
    assert batch.pieces == [("reasoning", "hm"), ("text", "hello")]
    assert (batch.finish_reason, batch.usage) == ("stop", TokenUsage(1, 2))
