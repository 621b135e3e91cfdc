"""Events: splitting at characters, merging, hashing, and what stands in Redis."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import clean_text
from server.messages.events import (
    CALLS,
    END,
    REASONING,
    TEXT,
    Entry,
    NewEvents,
    merge_calls,
    pack,
    split_bytes,
    split_calls,
    unpack,
)
from server.upstreams.base import Piece

ANY_TEXT = st.text(st.characters(codec=None), max_size=40)
"""Lone surrogates included, as a provider's JSON escapes can bring them."""


@given(st.text(max_size=200), st.integers(4, 50))
def test_splitting_keeps_every_character_whole(text: str, limit: int) -> None:
    parts = split_bytes(text.encode(), limit)
    assert "".join(parts) == text
    assert all(0 < len(part.encode()) <= limit for part in parts)


def test_splitting_at_the_narrowest_limit() -> None:
    assert split_bytes("🌊🌊".encode(), 4) == ["🌊", "🌊"]
    assert split_bytes("a🌊".encode(), 4) == ["a", "🌊"]
    assert split_bytes(b"", 4) == []


def pieces_of(texts: list[tuple[str, str]]) -> list[Piece]:
    return [("text", text) if kind == "text" else ("reasoning", text) for kind, text in texts]


@given(st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), ANY_TEXT), max_size=12), st.integers(4, 30))
def test_the_events_are_the_text_and_the_hash_is_of_it(texts: list[tuple[str, str]], limit: int) -> None:
    waiting = NewEvents(limit)
    waiting.add(pieces_of(texts))
    sha, size = waiting.text_sha256(), waiting.text_bytes
    events = waiting.take(10**9)
    visible = "".join(event[1] for event in events if event[0] == TEXT)
    assert hashlib.sha256(visible.encode()).hexdigest() == sha
    assert len(visible.encode()) == size
    assert all(len(event[1].encode()) <= limit for event in events)
    runs: list[tuple[str, str]] = []
    for kind, text in texts:
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + text)
        elif text:
            runs.append((kind, text))
    merged = [(TEXT if kind == "text" else REASONING, clean_text(text)) for kind, text in runs]
    told: list[tuple[str, str]] = []
    for kind, text in events:
        told = [*told[:-1], (kind, told[-1][1] + text)] if told and told[-1][0] == kind else [*told, (kind, text)]
    whole: list[tuple[str, str]] = []
    for kind, text in merged:
        whole = [*whole[:-1], (kind, whole[-1][1] + text)] if whole and whole[-1][0] == kind else [*whole, (kind, text)]
    assert told == whole
    assert not waiting


@given(
    st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), st.text(max_size=30)), max_size=12), st.integers(1, 60)
)
def test_taking_by_portions_takes_everything_once(texts: list[tuple[str, str]], limit: int) -> None:
    whole, portions = NewEvents(8), NewEvents(8)
    whole.add(pieces_of(texts))
    portions.add(pieces_of(texts))
    taken: list[Any] = []
    while portions:
        portion = portions.take(limit)
        assert portion, "something waits, so something must be taken"
        assert len(portion) == 1 or sum(len(event[1]) for event in portion) <= limit
        taken += portion
    assert taken == list(whole.take(10**9))
    assert portions.size == 0
    assert portions.text_sha256() == whole.text_sha256()


def test_surrogates_are_joined_or_replaced() -> None:
    waiting = NewEvents()
    waiting.add([("text", "\ud83c"), ("text", "\udf0a \udf0a")])
    assert waiting.take(100) == [(TEXT, "🌊 \ufffd")]


def test_a_restart_starts_the_hash_over() -> None:
    waiting = NewEvents()
    waiting.add([("text", "old")])
    waiting.starts_over()
    waiting.put(("a", {"mode": "restart"}))
    waiting.add([("text", "new")])
    assert (waiting.text_sha256(), waiting.text_bytes) == (hashlib.sha256(b"new").hexdigest(), 3)
    assert [event[0] for event in waiting.take(10**6)] == [TEXT, "a", TEXT]


def test_what_another_owner_wrote_counts() -> None:
    waiting = NewEvents()
    waiting.standing("grün".encode())
    waiting.add([("text", "er")])
    assert waiting.text_sha256() == hashlib.sha256("grüner".encode()).hexdigest()
    assert waiting.text_bytes == 7


def test_reasoning_is_not_in_the_hash() -> None:
    waiting = NewEvents()
    waiting.add([("reasoning", "hm"), ("text", "a")])
    assert waiting.text_sha256() == hashlib.sha256(b"a").hexdigest()


def test_dropping_forgets_what_waits() -> None:
    waiting = NewEvents()
    waiting.add([("text", "a"), ("tool_calls", [{"index": 0}])])
    assert waiting
    waiting.drop()
    assert not waiting
    assert (waiting.size, waiting.take(10)) == (0, [])


# --- tool calls ------------------------------------------------------------------------------------------------------


def call(index: int, arguments: str | None, **more: Any) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}, **more}


@given(st.lists(st.tuples(st.integers(0, 2), ANY_TEXT), max_size=8), st.integers(4, 20))
def test_split_calls_merge_to_the_same(raw: list[tuple[int, str]], limit: int) -> None:
    deltas = [call(index, arguments) for index, arguments in raw]
    parts = split_calls(deltas, limit)
    assert all(len(part["function"]["arguments"].encode()) <= limit for part in parts)
    whole: list[dict[str, Any]] = []
    merge_calls(whole, [call(index, clean_text(arguments)) for index, arguments in raw])
    merged: list[dict[str, Any]] = []
    merge_calls(merged, parts)
    assert merged == whole
    json.dumps(parts, ensure_ascii=False).encode()


def test_the_first_part_of_a_call_has_its_name_and_the_others_only_their_index() -> None:
    first, *rest = split_calls([{"index": 3, "id": "c", "function": {"name": "f", "arguments": "x" * 10}}], 4)
    assert first == {"index": 3, "id": "c", "function": {"name": "f", "arguments": "xxxx"}}
    assert rest == [call(3, "xxxx"), call(3, "xx")]


def test_merging_goes_by_index_and_keeps_what_is_not_told_again() -> None:
    calls: list[dict[str, Any]] = []
    merge_calls(calls, [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}])
    merge_calls(calls, [call(0, "{", id="a"), call(1, '{"x"'), call(1, ":1}", id=None, type=None)])
    merge_calls(calls, [{"index": 1, "function": {"name": None, "arguments": None}}, {"index": 0, "function": None}])
    assert calls == [
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
        {"index": 0, "id": "a", "function": {"arguments": "{"}},
    ]


def test_merging_changes_no_delta() -> None:
    delta = call(0, "a")
    calls: list[dict[str, Any]] = []
    merge_calls(calls, [delta, call(0, "b")])
    assert delta == call(0, "a")
    assert calls[0]["function"]["arguments"] == "ab"


def test_surrogates_anywhere_in_a_call_are_cleaned() -> None:
    (part,) = split_calls([{"index": 0, "\ud800": ["\ud800"], "function": {"arguments": "\ud83c\udf0a"}}], 100)
    assert part == {"index": 0, "\ufffd": ["\ufffd"], "function": {"arguments": "🌊"}}


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_comes_back_from_redis_as_it_was() -> None:
    events = [[TEXT, "a\u2028🌊"], [CALLS, [{"index": 0}]], [END, "done", {"usage": {"x": 2**53}}]]
    data = pack(5, 1_000_000, events)
    entry = unpack(data)
    assert (entry.prev, entry.first, entry.last, entry.size) == (5, 1_000_000, 1_000_002, len(data))
    assert entry.events == events
    assert entry.ends
    assert not unpack(pack(0, 1, events[:2])).ends


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", b"\xa1x"])
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack(data)


def test_what_an_entry_holds() -> None:
    entry = Entry(10, 20, [(TEXT, "a"), (TEXT, "b"), (TEXT, "c")], 0)
    assert [cursor for cursor in range(30) if entry.holds(cursor)] == [10, 20, 21, 22]
    assert list(entry.after(10)) == entry.events
    assert list(entry.after(20)) == [(TEXT, "b"), (TEXT, "c")]
    assert list(entry.after(22)) == []
