"""What of a branch of a conversation a model is sent. Pure.

A branch of a thousand entries is looked at with every question: each entry is measured once, and what was found for one
room is kept for the next who asks for the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from server.messages.conversation import NO_RESULT, PINNED_ROLES, Map
from server.messages.request import bytes_of

BYTES_PER_TOKEN: Final = 3
MESSAGE_TOKENS: Final = 4
IMAGE_TOKENS: Final = 1_000
"""What a part that is not text is taken for; providers count differently."""
DEFAULT_CONTEXT_TOKENS: Final = 131_072
"""What a target without `context_tokens` is taken for."""
MAX_RESERVE_TOKENS: Final = 4_096
"""Room kept for the answer, if the request names no limit; at most a quarter of the context."""


def count_tokens(message: Mapping[str, Any]) -> int:
    """An estimate that errs on the safe side: a token per three bytes of text, four per message, `IMAGE_TOKENS` per
    other part."""
    content = message.get("content")
    size, others = 0, 0
    if isinstance(content, str):
        size = bytes_of(content)
    elif isinstance(content, list):
        for part in content:
            if part.get("type") != "text":
                others += 1
            elif "ref" in part:
                size += part.get("bytes", 0)
            else:
                size += bytes_of(str(part.get("text", "")))
    if calls := message.get("tool_calls"):
        size += len(orjson.dumps(calls))
    return MESSAGE_TOKENS + -(-size // BYTES_PER_TOKEN) + others * IMAGE_TOKENS


def room_of(context_tokens: int | None, max_output_tokens: int | None) -> int:
    """How many tokens of input fit: the context without what is kept for the answer."""
    context = context_tokens or DEFAULT_CONTEXT_TOKENS
    return context - (max_output_tokens or min(MAX_RESERVE_TOKENS, context // 4))


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is sent of a branch."""

    messages: list[Map]
    """Chat messages, large parts still by reference."""
    entries: list[str]
    """Their entries, in order; '' for a result that never came."""
    dropped: int
    """Entries of the branch that were left out, as far as they were looked at."""
    tokens: int


class TooLong(Exception):
    """What may not be left out is more than fits."""

    def __init__(self, needed: int, room: int) -> None:
        super().__init__(f"{needed} tokens of input, room for {room}")
        self.needed = needed
        self.room = room


@dataclass(slots=True)
class _Unit:
    """What is kept or left out as one: a message, or an answer with tool calls and the results of these."""

    ids: list[str]
    messages: list[Map]
    turn: int
    fixed: bool
    tokens: int
    waits: set[str] = field(default_factory=set)
    """Calls without a result so far."""

    def add(self, entry_id: str, message: Map) -> None:
        """A result of one of its calls."""
        self.ids.append(entry_id)
        self.messages.append(message)
        self.tokens += count_tokens(message)


class Branch:
    """Entries of a conversation from the root to what is answered, oldest first, as `Entry.as_map`."""

    def __init__(self, entries: Sequence[Map], units: list[_Unit] | None = None) -> None:
        self.entries = list(entries)
        self._units = _units(self.entries) if units is None else units
        self._last: tuple[int, Context] | None = None
        """A room, and what was found for it."""

    def trim(self, room: int) -> Context:
        """Choose what is sent. Raises `TooLong`.

        System and pinned entries stay; so does the current input: the last question and the last tool results with
        their calls. Of the rest the oldest turns go first, each as a whole; in the turn that is being answered, the
        oldest steps of tool use. An answer without text is not sent; a tool call without a result gets one that says
        so.
        """
        if self._last is None or self._last[0] != room:
            self._last = (room, self._trim(room))
        return self._last[1]

    def within(self, room: int) -> Branch:
        """Without what no target of the route has room for; the same, if nothing of it may be left out."""
        try:
            kept = set(self.trim(room).entries)
        except TooLong:
            return self
        entries = [entry for entry in self.entries if entry["id"] in kept]
        if len(entries) == len(self.entries):
            return self
        return Branch(entries, [unit for unit in self._units if unit.ids[0] in kept])

    def _trim(self, room: int) -> Context:
        units = self._units
        last_turn = units[-1].turn if units else 0
        total = sum([unit.tokens for unit in units])
        gone: set[int] = set()
        if total > room:
            needed = sum([unit.tokens for unit in units if unit.fixed])
            if needed > room:
                raise TooLong(needed, room)
            for index, unit in enumerate(units):
                if total <= room:
                    break
                if unit.fixed or index in gone:
                    continue
                for other in range(index, len(units)):
                    if units[other].turn != unit.turn or (unit.turn == last_turn and other > index):
                        break
                    if not units[other].fixed:
                        gone.add(other)
                        total -= units[other].tokens
        kept = [unit for index, unit in enumerate(units) if index not in gone] if gone else units
        return Context(
            [message for unit in kept for message in unit.messages],
            [entry for unit in kept for entry in unit.ids],
            sum([len(units[index].ids) for index in gone]),
            total,
        )


def _units(entries: Sequence[Map]) -> list[_Unit]:
    units: list[_Unit] = []
    turn, asker = 0, ""
    for entry in entries:
        message, role = entry["message"], entry["role"]
        waits: set[str] = set()
        if role == "tool" and units and message.get("tool_call_id") in units[-1].waits:
            units[-1].waits.discard(message["tool_call_id"])
            units[-1].add(entry["id"], message)
            continue
        if role == "assistant":
            if calls := message.get("tool_calls"):
                if entry["state"] == "done":
                    waits = {str(call.get("id")) for call in calls}
                else:
                    message = {name: value for name, value in message.items() if name != "tool_calls"}
            if not message.get("content") and not message.get("tool_calls"):
                continue
        elif role == "user" and entry["of"] != asker:
            turn, asker = turn + 1, entry["of"]
        fixed = role in PINNED_ROLES or bool(entry.get("pinned"))
        units.append(_Unit([entry["id"]], [message], turn, fixed, count_tokens(message), waits))
    for index, unit in enumerate(units):
        for call in sorted(unit.waits):
            unit.add("", {"role": "tool", "tool_call_id": call, "content": NO_RESULT})
        question = unit.turn == turn and unit.messages[0]["role"] == "user"
        unit.fixed = unit.fixed or question or index == len(units) - 1
    return units
