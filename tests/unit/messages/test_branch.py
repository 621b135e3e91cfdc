"""What a model is sent of a branch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.messages.branch import Branch, Context, TooLong, count_tokens

Map = dict[str, Any]


def entry(name: str, role: str, content: str, of: str = "", **fields: Any) -> Map:
    message: Map = {"role": role, "content": content, **fields}
    return {"id": name, "role": role, "state": "done", "of": of or name, "message": message, "pinned": False}


def call(name: str) -> Map:
    return {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def sent(branch: Branch, room: int) -> Context | int:
    """What is sent; or how much would have to be."""
    try:
        return branch.trim(room)
    except TooLong as error:
        return error.needed


def test_the_oldest_turns_go_first_and_whole() -> None:
    branch = [entry("s", "system", "be brief")]
    for n in range(4):
        branch += [entry(f"q{n}", "user", "x" * 30), entry(f"a{n}", "assistant", "y" * 30)]
    branch.append(entry("q4", "user", "x" * 30))
    room = sum(count_tokens(e["message"]) for e in branch) - 1
    context = Branch(branch).trim(room)
    assert context.entries == ["s", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]
    assert context.dropped == 2
    assert [e["id"] for e in Branch(branch).within(room).entries] == context.entries
    branch[1]["pinned"] = True
    assert Branch(branch).trim(room).entries == ["s", "q0", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]


def test_tool_calls_go_with_their_results_and_the_last_ones_stay() -> None:
    branch = [entry("q", "user", "x" * 30)]
    for n in range(3):
        branch.append(entry(f"a{n}", "assistant", "", tool_calls=[call(f"c{n}")]))
        branch.append(entry(f"t{n}", "tool", "z" * 30, tool_call_id=f"c{n}"))
    whole = Branch(branch).trim(10_000)
    assert whole.entries == ["q", "a0", "t0", "a1", "t1", "a2", "t2"]
    assert Branch(branch).trim(whole.tokens - 1).entries == ["q", "a1", "t1", "a2", "t2"]
    fixed = Branch(branch).trim(whole.tokens // 2).entries
    assert fixed == ["q", "a2", "t2"]
    with pytest.raises(TooLong) as long:
        Branch(branch).trim(10)
    assert (long.value.room, long.value.needed) == (10, Branch(branch).trim(whole.tokens // 2).tokens)


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    branch = [
        entry("q", "user", "x"), entry("a", "assistant", "", tool_calls=[call("c1"), call("c2")]),
        entry("t", "tool", "sunny", tool_call_id="c2"), entry("q2", "user", "never mind"),
    ]  # fmt: skip
    messages = Branch(branch).trim(1_000).messages
    assert [(m["role"], m.get("tool_call_id"), m["content"]) for m in messages[2:4]] == [
        ("tool", "c2", "sunny"), ("tool", "c1", "no result"),
    ]  # fmt: skip


def test_an_answer_without_text_is_left_out_and_one_cut_short_loses_its_calls() -> None:
    failed = entry("a", "assistant", "") | {"state": "failed"}
    cut = entry("b", "assistant", "part", tool_calls=[call("c")]) | {"state": "interrupted"}
    assert Branch([entry("q", "user", "x"), failed, cut, entry("r", "user", "y")]).trim(100).messages == [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "part"}, {"role": "user", "content": "y"},
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.integers(1, 60)), max_size=30),
       st.integers(1, 400))  # fmt: skip
def test_what_is_sent_fits_keeps_the_order_and_the_newest(turns: list[tuple[str, int]], room: int) -> None:
    branch = [entry(str(n), role, "x" * size) for n, (role, size) in enumerate(turns)]
    branch.append(entry("last", "user", "now"))
    try:
        context = Branch(branch).trim(room)
    except TooLong:
        return
    assert context.tokens == sum(map(count_tokens, context.messages)) <= room
    assert context.entries[-1] == "last"
    order = [e["id"] for e in branch]
    assert context.entries == [name for name in order if name in set(context.entries)]
    assert {e["id"] for e in branch if e["role"] == "system"} <= set(context.entries)
    assert context.dropped == len(branch) - len(context.entries)


@given(st.lists(st.integers(1, 60), max_size=20), st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_what_was_found_for_one_room_is_not_told_of_another(sizes: list[int], rooms: list[int]) -> None:
    entries = [entry(str(n), ("user", "assistant")[n % 2], "x" * size) for n, size in enumerate(sizes)]
    entries.append(entry("last", "user", "now"))
    branch = Branch(entries)
    for room in rooms:
        assert sent(branch, room) == sent(Branch(entries), room)
        inside = sent(branch.within(room), room)
        if isinstance(inside, Context):
            assert (inside.entries, inside.dropped) == (branch.trim(room).entries, 0)
