"""Buffers and the transition table."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.client.message import (
    ENDED,
    FOLD_PARTS,
    TRANSITIONS,
    ClientMessage,
    MessageState,
    TextBuffer,
    ToolCallBuffer,
    Trigger,
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3 * FOLD_PARTS))
def test_text_and_hash_of_pieces_are_those_of_the_whole(pieces: list[str]) -> None:
    buffer = TextBuffer()
    for number, piece in enumerate(pieces):
        buffer.append(piece)
        if number % 50 == 0:
            assert buffer.text == "".join(pieces[: number + 1])
    whole = "".join(pieces)
    assert buffer.text == whole
    data = whole.encode()
    assert buffer.matches(len(data), hashlib.sha256(data).hexdigest())
    assert not buffer.matches(len(data) + 1, hashlib.sha256(data).hexdigest())
    assert not buffer.matches(len(data), hashlib.sha256(data + b"x").hexdigest())


def test_a_lone_surrogate_is_a_mismatch_and_no_crash() -> None:
    assert not TextBuffer("\ud83d").matches(3, "0" * 64)


def test_tool_calls_merge_by_index() -> None:
    calls = ToolCallBuffer()
    calls.merge([{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}])
    calls.merge([{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}, {"index": 1, "function": {}}])
    calls.merge([{"index": 1, "id": None, "function": {"arguments": "}"}}])
    assert calls.calls == [
        {"id": "a", "function": {"name": "f", "arguments": ""}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_whole_tool_calls_without_index_keep_their_order() -> None:
    calls = ToolCallBuffer()
    calls.merge([{"id": "a", "function": {"name": "f", "arguments": "1"}}, {"id": "b"}])
    assert [call["id"] for call in calls.calls] == ["a", "b"]


def test_the_table_has_every_state_and_ends_have_no_way_but_retry() -> None:
    assert TRANSITIONS.keys() == set(MessageState)
    for state in ENDED:
        assert TRANSITIONS[state].keys() <= {Trigger.RETRY}
    reachable = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reachable == set(MessageState)


@pytest.mark.parametrize("state", MessageState)
@pytest.mark.parametrize("trigger", Trigger)
def test_a_trigger_without_a_row_changes_nothing(state: MessageState, trigger: Trigger) -> None:
    message = ClientMessage("m", None, state)
    target = TRANSITIONS[state].get(trigger)
    assert message.move(trigger) is (target is not None)
    assert message.state is (target or state)
