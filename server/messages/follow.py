"""Cursors and merging: what a reader at some seq is to be told next. Pure.

The one rule for holes, for all readers: if the next entry does not continue the cursor, or the cursor is beyond the
head or was never an event, the answer is a snapshot. So what a failover lost can never be mixed with what replaced it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from server.messages.events import ATTEMPT, CALLS, END, REASONING, TEXT, Entry, Event

Frame = dict[str, Any]
_FIELD = {TEXT: "text", REASONING: "reasoning"}


class Hole(Exception):
    """The journal does not continue the cursor: what the reader has may have been replaced."""


def events_after(entries: Iterable[Entry], cursor: int) -> Iterator[tuple[int, int, Event]]:
    """`(seq before, seq, event)` for every event after `cursor`, in order.

    Entries that lie wholly before the cursor are passed over. Raises `Hole` where the log does not continue it.
    """
    for entry in entries:
        if entry.last <= cursor:
            continue
        if not entry.holds(cursor):
            raise Hole
        seq = max(cursor + 1, entry.first)
        for event in entry.after(cursor):
            yield cursor, seq, event
            cursor = seq
            seq += 1


def next_frame(
    message_id: str, entries: Iterable[Entry], cursor: int, limit: int, head: int
) -> tuple[Frame, int] | None:
    """The next frame for a reader at `cursor` and the cursor after it; None if there is nothing later.

    An end event before the journal's `head` belongs to a failure that was reopened since: it is passed over.

    Neighbouring deltas of one kind become one frame of at most about `limit` bytes of text. Merging never crosses an
    attempt and never reorders kinds. Raises `Hole`.
    """
    kind = ""
    start = cursor
    parts: list[Any] = []
    size = 0
    for _, seq, event in events_after(entries, cursor):
        if event[0] == END and seq < head:
            continue
        if not kind:
            kind = event[0]  # `after` is where the reader stands, also where an end was passed over
            if kind == ATTEMPT:
                return {"type": "attempt", "id": message_id, "after": start, "seq": seq, **event[1]}, seq
            if kind == END:
                return {"type": event[1], "id": message_id, "after": start, "seq": seq, **event[2]}, seq
        elif event[0] != kind:
            break
        body = event[1]
        size += len(body) if kind != CALLS else sum(len(str(delta)) for delta in body)
        if parts and size > limit:
            break
        if kind == CALLS:
            parts += body
        else:
            parts.append(body)
        cursor = seq
        if size >= limit:
            break
    if not kind:
        return None
    value = parts if kind == CALLS else parts[0] if len(parts) == 1 else "".join(parts)
    return {
        "type": "delta",
        "id": message_id,
        "after": start,
        "seq": cursor,
        _FIELD.get(kind, "tool_calls"): value,
    }, cursor


def snapshot_part(message_id: str, seq: int, attempt: int, part: int, last: bool, pieces: Iterable[Event]) -> Frame:
    """One part of a snapshot. `pieces` are text, reasoning and tool-call events, in order."""
    text: list[str] = []
    reasoning: list[str] = []
    calls: list[Any] = []
    for kind, body in pieces:
        if kind == TEXT:
            text.append(body)
        elif kind == REASONING:
            reasoning.append(body)
        else:
            calls += body
    frame: Frame = {
        "type": "snapshot",
        "id": message_id,
        "seq": seq,
        "attempt": attempt,
        "part": part,
        "last": last,
        "text": "".join(text),
    }
    if reasoning:
        frame["reasoning"] = "".join(reasoning)
    if calls:
        frame["tool_calls"] = calls
    return frame
