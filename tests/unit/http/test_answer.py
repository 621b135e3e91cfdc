"""The chat-completions format, as a pure function of frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.answer import Chunks, Head, whole

HEAD = Head("m1", 1_700_000_000, "default")
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cached_tokens": 1, "reasoning_tokens": 2}
DONE: dict[str, Any] = {
    "type": "done",
    "id": "m1",
    "seq": 9,
    "finish_reason": "stop",
    "usage": USAGE,
    "model": "m",
    "target": "t",
    "attempts": 1,
}
FRESH = {"type": "attempt", "mode": "fresh", "attempt": 1}
ERROR = {"code": "upstream_timeout", "class": "temporary", "status": 504, "message": "late", "retryable": True}


def delta(**fields: Any) -> dict[str, Any]:
    return {"type": "delta", "id": "m1", "after": 0, "seq": 1, **fields}


def snapshot(text: str, part: int = 1, last: bool = True, **fields: Any) -> dict[str, Any]:
    return {"type": "snapshot", "id": "m1", "seq": 5, "attempt": 1, "part": part, "last": last, "text": text, **fields}


def said(chunks: Chunks, *frames: dict[str, Any]) -> tuple[str, dict[str, Any] | None, bool]:
    """Text, error and whether `[DONE]` came."""
    data = chunks.join([chunks.encode(frame) for frame in frames]).decode()
    text, error, done = "", None, False
    for event in data.split("\n\n"):
        if not event.startswith("data: "):
            continue
        assert not done
        if event == "data: [DONE]":
            done = True
            continue
        chunk = json.loads(event[6:])
        error = chunk.get("error", error)
        for choice in chunk.get("choices", ()):
            text += choice["delta"].get("content") or ""
    return text, error, done


def test_a_plain_answer() -> None:
    chunks = Chunks(HEAD, False)
    assert said(chunks, FRESH, delta(text="a"), delta(text="b"), DONE) == ("ab", None, True)
    assert chunks.over
    assert chunks.refusal is None
    assert chunks.encode(delta(text="late")) == b""


def test_an_empty_answer_has_a_role_all_the_same() -> None:
    data = Chunks(HEAD, True).encode(DONE).decode()
    assert '"role":"assistant"' in data
    assert data.endswith("data: [DONE]\n\n")


def test_a_failure_before_anything_is_a_refusal() -> None:
    chunks = Chunks(HEAD, False)
    text, error, done = said(chunks, FRESH, {"type": "failed", "error": ERROR})
    assert (text, done) == ("", False)
    assert error is not None
    assert (error["type"], error["param"]) == ("server_error", None)
    assert chunks.refusal == ERROR


def test_a_failure_after_text_is_none() -> None:
    chunks = Chunks(HEAD, False)
    assert said(chunks, FRESH, delta(text="a"), {"type": "failed", "error": ERROR})[2] is False
    assert chunks.over
    assert chunks.refusal is None


@pytest.mark.parametrize("mode", ["fresh", "restart"])
def test_a_restart_ends_it_only_after_something_was_shown(mode: str) -> None:
    again = {"type": "attempt", "mode": mode, "attempt": 2, "reason": {"code": "upstream_timeout", "message": "x"}}
    assert said(Chunks(HEAD, False), FRESH, again, delta(text="a"), DONE) == ("a", None, True)
    for shown in (delta(text="a"), delta(reasoning="r"), delta(tool_calls=[{"index": 0}])):
        text, error, done = said(Chunks(HEAD, False), FRESH, shown, again, delta(text="b"), DONE)
        assert "b" not in text
        assert not done
        assert error is not None
        assert (error["code"], error["retryable"]) == ("answer_restarted", True)
        assert error["details"] == {"message_id": "m1", "reason": again["reason"]}


def test_a_continuation_goes_on() -> None:
    again = {"type": "attempt", "mode": "continue", "attempt": 2}
    assert said(Chunks(HEAD, False), FRESH, delta(text="a"), again, delta(text="b"), DONE) == ("ab", None, True)


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 7), st.integers(0, 30))
def test_of_a_snapshot_only_what_is_new_is_said(shown: str, rest: str, size: int, cut: int) -> None:
    chunks = Chunks(HEAD, False)
    text = shown + rest
    parts = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    frames = [snapshot(part, n, n == len(parts)) for n, part in enumerate(parts, 1)]
    broken_off = frames[: min(cut, len(frames) - 1)]  # a restart came in between; it begins anew
    got, error, done = said(chunks, FRESH, delta(text=shown), *broken_off, *frames, delta(text="!"), DONE)
    assert (got, error, done) == (text + "!", None, True)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_snapshot_with_other_text_ends_it(shown: str, other: str) -> None:
    chunks = Chunks(HEAD, False)
    text, error, done = said(chunks, FRESH, delta(text=shown), snapshot(other), DONE)
    if other.startswith(shown):
        assert (text, error, done) == (other, None, True)
    else:
        assert (text, done) == (shown, False)
        assert error is not None
        assert error["code"] == "answer_restarted"


def test_a_snapshot_after_tool_calls_ends_it() -> None:
    _, error, done = said(Chunks(HEAD, False), delta(tool_calls=[{"index": 0}]), snapshot(""), DONE)
    assert (error is not None, done) == (True, False)


def test_notices_are_comments() -> None:
    assert Chunks(HEAD, False).encode({"type": "notice", "frame": {"type": "goaway"}}) == b": goaway\n\n"
    assert Chunks(HEAD, False).encode({"type": "pong"}) == b""


def test_a_whole_answer() -> None:
    calls = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    answer = whole(HEAD, "", "", calls, DONE)
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    stopped = whole(HEAD, "a", "r", [], {"usage": USAGE})
    assert stopped["choices"][0]["finish_reason"] == "cancelled"
    assert "tidewire" not in stopped
