"""What a model is sent of a branch, and how inputs become entries."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from protocol.errors import ProtocolError
from server.messages.conversation import (
    MAX_INPUTS,
    PART_BYTES,
    TooLong,
    by_reference,
    count_tokens,
    inputs_of,
    new_entries,
    resolved,
    shortened,
    trim,
)

Map = dict[str, Any]


def entry(name: str, role: str, content: str, of: str = "", **fields: Any) -> Map:
    message: Map = {"role": role, "content": content, **fields}
    return {"id": name, "role": role, "state": "done", "of": of or name, "message": message, "pinned": False}


def call(name: str) -> Map:
    return {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_the_oldest_turns_go_first_and_whole() -> None:
    branch = [entry("s", "system", "be brief")]
    for n in range(4):
        branch += [entry(f"q{n}", "user", "x" * 30), entry(f"a{n}", "assistant", "y" * 30)]
    branch.append(entry("q4", "user", "x" * 30))
    room = sum(count_tokens(e["message"]) for e in branch) - 1
    context = trim(branch, room)
    assert context.entries == ["s", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]
    assert context.dropped == 2
    assert [e["id"] for e in shortened(branch, room)] == context.entries
    branch[1]["pinned"] = True
    assert trim(branch, room).entries == ["s", "q0", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]


def test_tool_calls_go_with_their_results_and_the_last_ones_stay() -> None:
    branch = [entry("q", "user", "x" * 30)]
    for n in range(3):
        branch.append(entry(f"a{n}", "assistant", "", tool_calls=[call(f"c{n}")]))
        branch.append(entry(f"t{n}", "tool", "z" * 30, tool_call_id=f"c{n}"))
    whole = trim(branch, 10_000)
    assert whole.entries == ["q", "a0", "t0", "a1", "t1", "a2", "t2"]
    assert trim(branch, whole.tokens - 1).entries == ["q", "a1", "t1", "a2", "t2"]
    fixed = trim(branch, whole.tokens // 2).entries
    assert fixed == ["q", "a2", "t2"]
    with pytest.raises(TooLong) as long:
        trim(branch, 10)
    assert (long.value.room, long.value.needed) == (10, trim(branch, whole.tokens // 2).tokens)


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    branch = [
        entry("q", "user", "x"), entry("a", "assistant", "", tool_calls=[call("c1"), call("c2")]),
        entry("t", "tool", "sunny", tool_call_id="c2"), entry("q2", "user", "never mind"),
    ]  # fmt: skip
    messages = trim(branch, 1_000).messages
    assert [(m["role"], m.get("tool_call_id"), m["content"]) for m in messages[2:4]] == [
        ("tool", "c2", "sunny"), ("tool", "c1", "no result"),
    ]  # fmt: skip


def test_an_answer_without_text_is_left_out_and_one_cut_short_loses_its_calls() -> None:
    failed = entry("a", "assistant", "") | {"state": "failed"}
    cut = entry("b", "assistant", "part", tool_calls=[call("c")]) | {"state": "interrupted"}
    assert trim([entry("q", "user", "x"), failed, cut, entry("r", "user", "y")], 100).messages == [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "part"}, {"role": "user", "content": "y"},
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.integers(1, 60)), max_size=30),
       st.integers(1, 400))  # fmt: skip
def test_what_is_sent_fits_keeps_the_order_and_the_newest(turns: list[tuple[str, int]], room: int) -> None:
    branch = [entry(str(n), role, "x" * size) for n, (role, size) in enumerate(turns)]
    branch.append(entry("last", "user", "now"))
    try:
        context = trim(branch, room)
    except TooLong:
        return
    assert context.tokens == sum(map(count_tokens, context.messages)) <= room
    assert context.entries[-1] == "last"
    order = [e["id"] for e in branch]
    assert context.entries == [name for name in order if name in set(context.entries)]
    assert {e["id"] for e in branch if e["role"] == "system"} <= set(context.entries)
    assert context.dropped == len(branch) - len(context.entries)


@pytest.mark.parametrize(
    ("given_input", "roles"),
    [
        ("x", ["user"]), ([{"type": "text", "text": "x"}], ["user"]),
        ({"role": "tool", "tool_call_id": "c", "content": "x"}, ["tool"]),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], ["system", "user"]), (None, []),
    ],
)  # fmt: skip
def test_inputs_come_in_four_forms(given_input: Any, roles: list[str]) -> None:
    assert [message["role"] for message in inputs_of(given_input)] == roles


@pytest.mark.parametrize("wrong", [[], [{"role": "user"}], [{"role": "tool", "content": "x"}], [{"x": 1}]])
def test_wrong_inputs_are_named(wrong: Any) -> None:
    with pytest.raises(ProtocolError, match="input"):
        inputs_of(wrong)
    with pytest.raises(ProtocolError, match=str(MAX_INPUTS)):
        inputs_of([{"role": "user", "content": "x"}] * (MAX_INPUTS + 1))


def test_entering_twice_makes_the_same_entries() -> None:
    one, _ = new_entries("m", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1.0)
    two, _ = new_entries("m", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1.0)
    assert one == two
    assert (one[-1].id, len({entry.id for entry in one})) == ("m", 3)


@pytest.mark.parametrize(
    "content", ["é" * PART_BYTES, [{"type": "text", "text": "a"}, {"type": "file", "data": "b" * PART_BYTES}]]
)
def test_large_parts_go_by_reference_and_come_back_whole(content: Any) -> None:
    parts: dict[str, bytes] = {}
    short = by_reference({"role": "user", "content": content}, parts)
    assert (len(parts), len(orjson.dumps(short)) < 500) == (1, True)
    assert by_reference(short, {}) == short
    assert resolved(short, parts) == {"role": "user", "content": content}
