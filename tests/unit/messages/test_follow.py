"""Cursors and merging: whatever the layout, a reader gets exactly the later events, in order, or a `Hole`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages.events import ATTEMPT, CALLS, END, REASONING, TEXT, Entry, Event
from server.messages.follow import Hole, events_after, next_frame, snapshot_part

NO_HEAD = 0
"""A head before every event: no end is passed over."""


def attempt(number: int, mode: str = "fresh") -> Event:
    return (ATTEMPT, {"attempt": number, "target": "t", "model": "m", "mode": mode})


def entry(first: int, events: Sequence[Event], prev: int | None = None) -> Entry:
    return Entry(first - 1 if prev is None else prev, first, list(events), 100)


EVENTS = st.one_of(
    st.tuples(st.just(TEXT), st.text(min_size=1, max_size=6)),
    st.tuples(st.just(REASONING), st.text(min_size=1, max_size=6)),
    st.tuples(st.just(CALLS), st.lists(st.builds(lambda n: {"index": n}, st.integers(0, 3)), min_size=1, max_size=2)),
    st.builds(attempt, st.integers(1, 9), st.sampled_from(["restart", "continue"])),
)  # fmt: skip


@st.composite
def journals(draw: st.DrawFn) -> list[Entry]:
    """Entries as appends write them, with jumps as takeovers make them, ended or not."""
    entries: list[Entry] = []
    head = 0
    for events in draw(st.lists(st.lists(EVENTS, min_size=1, max_size=5), max_size=8)):
        jump = draw(st.sampled_from([0, 0, 0, 1, 7, 2**20]))
        entries.append(entry(head + 1 + jump, events, prev=head))
        head = entries[-1].last
    if entries and draw(st.booleans()):
        entries[-1] = entry(
            entries[-1].first, [*entries[-1].events, (END, "done", {"text_bytes": 0})], entries[-1].prev
        )
    return entries


def numbered(entries: list[Entry]) -> list[tuple[int, Event]]:
    return [(seq, event) for e in entries for seq, event in enumerate(e.events, e.first)]


def read(entries: list[Entry], cursor: int, limits: list[int], head: int) -> list[dict[str, Any]]:
    """Every frame after `cursor`, with these limits in turn."""
    frames = []
    while (got := next_frame("m", entries, cursor, limits[len(frames) % len(limits)], head)) is not None:
        frame, cursor = got
        frames.append(frame)
    return frames


LIMITS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(journals(), LIMITS, st.data())
def test_frames_are_exactly_the_later_events_once_and_in_order(
    entries: list[Entry], limits: list[int], data: st.DataObject
) -> None:
    known = numbered(entries)
    seqs = [0, *(seq for seq, _ in known)]
    cursor = data.draw(st.sampled_from(seqs))
    frames = read(entries, cursor, limits, seqs[-1])
    later = [(seq, event) for seq, event in known if seq > cursor]
    at = cursor
    told: list[tuple[int, Event]] = []
    for frame in frames:
        assert frame["id"] == "m"
        covered = [(seq, event) for seq, event in later if at < seq <= frame["seq"]]
        assert frame["after"] == at  # a client that stands there may apply it
        if frame["type"] == "delta":
            kinds = {event[0] for _, event in covered}
            assert len(kinds) == 1, "a delta mixes kinds or crosses an attempt"
            assert kinds <= {TEXT, REASONING, CALLS}
            (kind,) = kinds
            bodies = [event[1] for _, event in covered]
            name = {TEXT: "text", REASONING: "reasoning", CALLS: "tool_calls"}[kind]
            whole: Any = [*itertools.chain(*bodies)] if kind == CALLS else "".join(bodies)
            assert frame[name] == whole
            assert not {"text", "reasoning", "tool_calls"} - {name} & frame.keys()
        else:
            assert len(covered) == 1
            assert frame["type"] == {ATTEMPT: "attempt", END: "done"}[covered[0][1][0]]
        assert frame["seq"] == covered[-1][0]
        at = frame["seq"]
        told += covered
    assert told == later


@given(journals(), LIMITS, st.integers(0, 2**21))
def test_a_cursor_that_was_never_an_event_is_a_hole(entries: list[Entry], limits: list[int], cursor: int) -> None:
    seqs = {0, *(seq for seq, _ in numbered(entries))}
    head = max(seqs)
    if cursor in seqs:
        read(entries, cursor, limits, head)
    elif cursor < head:
        with pytest.raises(Hole):
            read(entries, cursor, limits, head)
    else:
        assert read(entries, cursor, limits, head) == []  # beyond the head: the caller sees that by itself


@given(journals(), st.data())
def test_a_lost_entry_is_a_hole_and_never_skipped(entries: list[Entry], data: st.DataObject) -> None:
    if len(entries) < 3:
        return
    lost = data.draw(st.integers(1, len(entries) - 2))
    rest = entries[:lost] + entries[lost + 1 :]
    before = entries[lost].prev
    told: list[int] = []
    with pytest.raises(Hole):
        told.extend(seq for _, seq, _ in events_after(rest, 0))
    assert told == [seq for seq, _ in numbered(entries) if seq <= before]


@given(journals(), st.integers(0, 30))
def test_what_lies_before_the_cursor_may_be_missing(entries: list[Entry], dropped: int) -> None:
    rest = entries[dropped:]
    if rest:
        start = rest[0].prev
        assert [seq for _, seq, _ in events_after(rest, start)] == [seq for seq, _ in numbered(rest)]


def test_after_is_the_seq_before_the_first_event_also_across_a_jump() -> None:
    entries = [entry(1, [(TEXT, "a")]), entry(1000, [attempt(2, "continue"), (TEXT, "b"), (TEXT, "c")], prev=1)]
    assert read(entries, 1, [100], 1002) == [
        {
            "type": "attempt",
            "id": "m",
            "after": 1,
            "seq": 1000,
            "attempt": 2,
            "target": "t",
            "model": "m",
            "mode": "continue",
        },
        {"type": "delta", "id": "m", "after": 1000, "seq": 1002, "text": "bc"},
    ]
    direct = [entry(1, [(TEXT, "a")]), entry(1000, [(TEXT, "b")], prev=1)]
    assert read(direct, 1, [100], 1000) == [{"type": "delta", "id": "m", "after": 1, "seq": 1000, "text": "b"}]
    assert read(direct, 0, [100], 1000) == [{"type": "delta", "id": "m", "after": 0, "seq": 1000, "text": "ab"}]


@pytest.mark.parametrize("cursor", [2, 999])
def test_a_cursor_inside_a_jump_is_a_hole(cursor: int) -> None:
    with pytest.raises(Hole):
        next_frame("m", [entry(1, [(TEXT, "a")]), entry(1000, [(TEXT, "b")], prev=1)], cursor, 100, 1000)


def test_the_limit_holds_unless_one_event_alone_is_larger() -> None:
    entries = [entry(1, [(TEXT, "x" * 10)] * 5 + [(TEXT, "y" * 100)] + [(TEXT, "z")])]
    sizes = [len(frame["text"]) for frame in read(entries, 0, [25], 7)]
    assert sizes == [20, 20, 10, 100, 1]


def test_a_failure_that_was_reopened_is_passed_over() -> None:
    failed = (END, "failed", {"error": {}})
    entries = [entry(1, [attempt(1), (TEXT, "a"), failed]), entry(4, [attempt(2, "restart"), (TEXT, "b")])]
    frames = read(entries, 0, [100], 5)
    assert [(frame["type"], frame["after"], frame["seq"]) for frame in frames] == [
        ("attempt", 0, 1), ("delta", 1, 2), ("attempt", 2, 4), ("delta", 4, 5),
    ]  # fmt: skip
    assert read(entries, 3, [100], 5)[0]["after"] == 3  # a reader who saw the failure stands behind it
    assert [f["type"] for f in read(entries[:1], 0, [100], 3)] == [
        "attempt",
        "delta",
        "failed",
    ]  # as long as it is last


def test_nothing_later_is_none() -> None:
    assert next_frame("m", [], 5, 10, 5) is None
    assert next_frame("m", [entry(1, [(TEXT, "a")])], 1, 10, 1) is None


def test_a_snapshot_part_keeps_kinds_apart() -> None:
    pieces: list[Event] = [(TEXT, "a"), (REASONING, "r"), (TEXT, "b"), (CALLS, [{"index": 0}])]
    assert snapshot_part("m", 9, 2, 1, True, pieces) == {
        "type": "snapshot", "id": "m", "seq": 9, "attempt": 2, "part": 1, "last": True,
        "text": "ab", "reasoning": "r", "tool_calls": [{"index": 0}],
    }  # fmt: skip
    assert snapshot_part("m", 0, 0, 1, True, []).keys().isdisjoint({"reasoning", "tool_calls"})
