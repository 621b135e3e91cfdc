"""Journal events and entries: what a message's log holds, in memory and packed.

An **entry** is what one write appended: `prev` (the seq it continues), `first`, and its events, numbered
`first, first + 1, …`. Normally `first == prev + 1`; after a takeover it jumps. An **event** is a short list:

| event | meaning |
|---|---|
| `["t", text]` | text |
| `["r", text]` | reasoning |
| `["c", [delta, …]]` | tool-call deltas in the chat-completions format |
| `["a", {attempt, target, model, mode, reason?}]` | an attempt begins to show |
| `["e", state, {…}]` | the end: the fields of the `done`, `failed` or `cancelled` frame without `id` and `seq` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgpack

from protocol.codec import clean_text
from server.upstreams.base import Piece

TEXT: Final = "t"
REASONING: Final = "r"
CALLS: Final = "c"
ATTEMPT: Final = "a"
END: Final = "e"
EVENT_BYTES: Final = 16_384
"""Largest text of one event, UTF-8 bytes."""

Event = Sequence[Any]
_KINDS: Final = {"text": TEXT, "reasoning": REASONING}


class Entry:
    """What one write appended to a journal."""

    __slots__ = ("events", "first", "last", "prev", "size")

    def __init__(self, prev: int, first: int, events: Sequence[Event], size: int) -> None:
        self.prev = prev
        """Seq of the event before the first one."""
        self.first = first
        self.last = first + len(events) - 1
        self.events = events
        self.size = size
        """Packed bytes, for limits."""

    def __repr__(self) -> str:
        return f"Entry(prev={self.prev}, first={self.first}, last={self.last})"

    def holds(self, cursor: int) -> bool:
        """Whether a reader that stands at `cursor` may read this entry next, or has part of it."""
        return cursor == self.prev or self.first <= cursor <= self.last

    def after(self, cursor: int) -> Sequence[Event]:
        """The events later than `cursor`."""
        return self.events if cursor < self.first else self.events[cursor - self.first + 1 :]

    @property
    def ends(self) -> bool:
        """Whether the last event ends the message."""
        return bool(self.events) and self.events[-1][0] == END


def pack(prev: int, first: int, events: Sequence[Event]) -> bytes:
    """The entry as it stands in Redis."""
    packed: bytes = msgpack.packb((prev, first, events))
    return packed


def unpack(data: bytes) -> Entry:
    """The entry in `data`. Raises `ValueError` for anything else."""
    prev, first, events = msgpack.unpackb(data)
    return Entry(prev, first, events, len(data))


class NewEvents:
    """Events that wait to be journaled: neighbours of one kind merge until they would exceed `EVENT_BYTES`."""

    __slots__ = ("_kind", "_parts", "_sha", "event_bytes", "events", "size", "text_bytes")

    def __init__(self, event_bytes: int = EVENT_BYTES) -> None:
        self.event_bytes = event_bytes
        self.events: list[Event] = []
        self.size = 0
        """Characters waiting, roughly bytes."""
        self.text_bytes = 0
        """UTF-8 bytes of the visible text that stands, journaled or waiting."""
        self._sha = hashlib.sha256()
        self._kind = ""
        self._parts: list[str] = []

    def starts_over(self) -> None:
        """What follows replaces the text so far."""
        self._close()
        self.text_bytes = 0
        self._sha = hashlib.sha256()

    def standing(self, text: bytes) -> None:
        """`text` stands already, written by another owner."""
        self.text_bytes += len(text)
        self._sha.update(text)

    def text_sha256(self) -> str:
        """Hex SHA-256 of the visible text that stands."""
        self._close()
        return self._sha.hexdigest()

    def add(self, pieces: Iterable[Piece]) -> None:
        """Append new output, in order."""
        for piece in pieces:
            if piece[0] == "tool_calls":
                for delta in split_calls(piece[1], self.event_bytes):
                    self.put((CALLS, [delta]), _calls_size(delta))
            else:
                self._text(_KINDS[piece[0]], piece[1])

    def put(self, event: Event, size: int = 256) -> None:
        """Append an event that merges with nothing."""
        self._close()
        self.events.append(event)
        self.size += size

    def _text(self, kind: str, text: str) -> None:
        if not text:
            return
        if kind != self._kind:
            self._close()
            self._kind = kind
        self._parts.append(text)
        self.size += len(text)

    def _close(self) -> None:
        if not self._parts:
            return
        text = clean_text("".join(self._parts))
        data = text.encode()
        if self._kind == TEXT:
            self.text_bytes += len(data)
            self._sha.update(data)
        if len(data) <= self.event_bytes:
            self.events.append((self._kind, text))
        else:
            self.events += [(self._kind, part) for part in split_bytes(data, self.event_bytes)]
        self._parts, self._kind = [], ""

    def take(self, limit: int) -> list[Event]:
        """Take events of at most about `limit` bytes (at least one), in order."""
        self._close()
        if self.size <= limit:
            taken, self.events, self.size = self.events, [], 0
            return taken
        size = count = 0
        for event in self.events:
            weight = _weight(event)
            if count and size + weight > limit:
                break
            size += weight
            count += 1
        taken, self.events = self.events[:count], self.events[count:]
        self.size = sum(map(_weight, self.events))
        return taken

    def drop(self) -> None:
        """Forget what waits."""
        self.events, self._parts, self._kind, self.size = [], [], "", 0

    def __bool__(self) -> bool:
        return bool(self.events or self._parts)


def _weight(event: Event) -> int:
    if event[0] in (TEXT, REASONING):
        return len(event[1])
    return _calls_size(event[1][0]) if event[0] == CALLS else 256


def _calls_size(delta: dict[str, Any]) -> int:
    arguments = (delta.get("function") or {}).get("arguments")
    return 64 + (len(arguments) if isinstance(arguments, str) else 0)


def split_bytes(data: bytes, limit: int) -> list[str]:
    """Split UTF-8 at code points so that no part has more than `limit` bytes (`limit` ≥ 4)."""
    parts = []
    start = 0
    while start < len(data):
        end = min(start + limit, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(data[start:end].decode())
        start = end
    return parts


def split_calls(deltas: Iterable[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Tool-call deltas whose argument strings are at most `limit` UTF-8 bytes each; merging them gives the same."""
    parts: list[dict[str, Any]] = []
    for raw in deltas:
        delta = clean(raw)
        function = delta.get("function") or {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str) or len(arguments) * 4 <= limit:
            parts.append(delta)
            continue
        first, *rest = split_bytes(arguments.encode(), limit)
        parts.append({**delta, "function": {**function, "arguments": first}})
        parts += [{"index": delta.get("index", 0), "function": {"arguments": part}} for part in rest]
    return parts


def clean(value: Any) -> Any:
    """The same JSON value with text that UTF-8 can carry."""
    if isinstance(value, str):
        return value if value.isascii() else clean_text(value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def merge_calls(calls: list[dict[str, Any]], deltas: Iterable[dict[str, Any]]) -> None:
    """Merge tool-call deltas into `calls` by `index`, as the chat-completions format means them."""
    for delta in deltas:
        index = delta.get("index", len(calls))
        call = next((c for c in calls if c.get("index") == index), None)
        if call is None:
            calls.append({**delta, "index": index, "function": dict(delta.get("function") or {})})
            continue
        for key, value in delta.items():
            if key == "function":
                function = call["function"]
                for name, part in (value or {}).items():
                    old = function.get(name)
                    if name == "arguments" and isinstance(old, str) and isinstance(part, str):
                        function[name] = old + part
                    elif part is not None:  # some providers say `"name": null` where they mean nothing new
                        function[name] = part
            elif value is not None:
                call[key] = value
