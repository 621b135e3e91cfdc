"""Conversations: entries, the tree they form, what of a branch a model is sent. Pure.

An **entry** is a turn of a user, an answer, a tool's result or an instruction. Each has an id and a `parent`; so edit
and regenerate are branches, and a branch is the path from one entry up to the root. An answer's entry has the id of
its message; what was given with a message gets ids derived from it, so that entering it twice makes nothing twice.

Who is next, and where entries hang, is decided by the scripts `conversation_*_v1.lua`, in one place for all nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import ValidationError

from protocol.errors import ProtocolError
from protocol.frames import ChatMessage

ROOT: Final = "."
"""What the scripts call the place above the first entries."""
PART_BYTES: Final = 32_768
"""A text or part larger than this is stored once and sent by reference."""
MAX_INPUTS: Final = 256
"""Most messages (or parts of one) in an `input`: one script enters them all, while Redis serves nobody else."""
BYTES_PER_TOKEN: Final = 3
MESSAGE_TOKENS: Final = 4
IMAGE_TOKENS: Final = 1_000
"""What a part that is not text is taken for; providers count differently."""
DEFAULT_CONTEXT_TOKENS: Final = 131_072
"""What a target without `context_tokens` is taken for."""
MAX_RESERVE_TOKENS: Final = 4_096
"""Room kept for the answer, if the request names no limit; at most a quarter of the context."""
NO_RESULT: Final = "no result"
"""Content that stands for a tool's answer that never came."""
PINNED_ROLES: Final = frozenset({"system", "developer"})

Map = dict[str, Any]

TOLD_OF_AN_END: Final = (
    "finish_reason", "model", "target", "attempts", "usage", "cost_usd", "prompt", "text_bytes", "text_sha256", "error",
)  # fmt: skip
"""What an answer's entry keeps of the frame that ended it."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry before it is in the tree."""

    id: str
    role: str
    body: Map
    """The chat message under `message`; what we know of it beside."""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the tree."""

    id: str
    parent: str | None
    depth: int
    role: str
    state: str
    """`running`, or how it ended: `done`, `failed`, `cancelled`, `interrupted` (by a later input)."""
    message_id: str
    """The message with which it came, or whose answer it is."""
    body: Map
    siblings: tuple[str, ...] = ()
    """Everything that hangs below the same parent, itself included, oldest first."""

    @property
    def message(self) -> Map:
        """It as a chat message."""
        found: Map = self.body.get("message", {})
        return found

    def shown(self) -> Map:
        """As clients see it."""
        given = {key: value for key, value in self.body.items() if key != "message"}
        shown = {"id": self.id, "parent": self.parent, "state": self.state, **self.message, **given, "role": self.role}
        if self.message_id != self.id:
            shown["message"] = self.message_id
        if len(self.siblings) > 1:
            shown["siblings"] = list(self.siblings)
        return shown

    def as_map(self) -> Map:
        """What the history of a message keeps of it."""
        return {
            "id": self.id, "role": self.role, "state": self.state, "of": self.message_id, "message": self.message,
        }  # fmt: skip


def entry_of(entry_id: str, header: str, body: bytes, below: str) -> Entry:
    """The entry as the scripts tell it."""
    parent, _, depth, role, state, _, _, _, message = header.split("|")
    siblings = tuple(below.split(",")) if below else ()
    return Entry(
        entry_id, parent or None, int(depth), role, state, message, orjson.loads(body) if body else {}, siblings
    )


def entry_id(message_id: str, index: int | str) -> str:
    """The id of what came with a message: always the same for the same message and place."""
    return "e_" + hashlib.sha256(f"{message_id}/{index}".encode()).hexdigest()[:30]


def inputs_of(given: Any) -> list[Map]:
    """The chat messages in `input`: a text, a list of parts, one message, or a list of messages.

    Raises `ProtocolError("invalid_frame")`.
    """
    if given is None:
        return []
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    elif isinstance(given, dict | ChatMessage):
        given = [given]
    given = [item.model_dump(exclude_none=True) if isinstance(item, ChatMessage) else item for item in given]
    if not given:
        raise ProtocolError("invalid_frame", "send: `input` must not be empty")
    if len(given) > MAX_INPUTS:
        raise ProtocolError("invalid_frame", f"send: `input` has more than {MAX_INPUTS} messages or parts")
    if not any("role" in item for item in given):
        given = [{"role": "user", "content": given}]
    try:
        return [ChatMessage.model_validate(item).model_dump(exclude_none=True) for item in given]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError("invalid_frame", f"send: `input.{where}`: {first['msg']}") from None


def new_entries(message_id: str, given: Any, created: float) -> tuple[list[NewEntry], dict[str, bytes]]:
    """What a message brings: its input, then its answer, still empty; and the large parts in it, by hash."""
    entries: list[NewEntry] = []
    parts: dict[str, bytes] = {}
    for index, message in enumerate(inputs_of(given)):
        pinned = bool(message.pop("pinned", False)) or message["role"] in PINNED_ROLES
        body: Map = {"message": by_reference(message, parts), "created": created}
        if pinned:
            body["pinned"] = True
        entries.append(NewEntry(entry_id(message_id, index), message["role"], body, pinned))
    answer = {"message": {"role": "assistant"}, "created": created}
    return [*entries, NewEntry(message_id, "assistant", answer)], parts


# --- large parts ------------------------------------------------------------------------------------------------------


def by_reference(message: Map, parts: dict[str, bytes]) -> Map:
    """The message with every large text or part replaced by `{type, ref, bytes}`; the data goes into `parts`."""
    content = message.get("content")
    if isinstance(content, str) and len(content.encode()) > PART_BYTES:
        reference = _put_by({"type": "text", "text": content}, parts) | {"whole": True}
        return {**message, "content": [reference]}
    if isinstance(content, list):
        return {**message, "content": [_put_by(part, parts) for part in content]}
    return message


def _put_by(part: Map, parts: dict[str, bytes]) -> Map:
    if "ref" in part:
        return {key: part[key] for key in ("type", "ref", "bytes", "whole") if key in part}
    data = orjson.dumps(part)
    if len(data) <= PART_BYTES:
        return part
    digest = hashlib.sha256(data).hexdigest()
    parts[digest] = data
    return {"type": part.get("type", "text"), "ref": digest, "bytes": len(data)}


def size_of(body: Map) -> int:
    """Bytes that an entry takes, those of its large parts included."""
    content = body.get("message", {}).get("content")
    parts = content if isinstance(content, list) else ()
    return len(orjson.dumps(body)) + sum(int(part.get("bytes", 0)) for part in parts if "ref" in part)


def references(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hashes of the parts that these messages refer to, each once."""
    found: dict[str, None] = {}
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if "ref" in part:
                found[str(part["ref"])] = None
    return list(found)


def resolved(message: Map, parts: Mapping[str, bytes]) -> Map:
    """The message with its parts in place of the references. Raises `KeyError` for one that is not there."""
    content = message.get("content")
    if not isinstance(content, list) or not any("ref" in part for part in content):
        return message
    whole = [orjson.loads(parts[part["ref"]]) if "ref" in part else part for part in content]
    if content[0].get("whole"):
        return {**message, "content": whole[0]["text"]}
    return {**message, "content": whole}


# --- what a model is sent ---------------------------------------------------------------------------------------------


def count_tokens(message: Mapping[str, Any]) -> int:
    """An estimate that errs on the safe side: a token per three bytes of text, four per message, `IMAGE_TOKENS` per
    other part."""
    content = message.get("content")
    size, others = 0, 0
    if isinstance(content, str):
        size = len(content.encode())
    elif isinstance(content, list):
        for part in content:
            if part.get("type") != "text":
                others += 1
            elif "ref" in part:
                size += part.get("bytes", 0)
            else:
                size += len(str(part.get("text", "")).encode())
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
    tokens: int = 0
    answers: set[str] = field(default_factory=set)


def trim(entries: Sequence[Map], room: int) -> Context:
    """Choose what of a branch (oldest first, as `Entry.as_map`) is sent. Raises `TooLong`.

    System and pinned entries stay; so does the current input: the last question and the last tool results with their
    calls. Of the rest the oldest turns go first, each as a whole; in the turn that is being answered, the oldest steps
    of tool use. An answer without text is not sent; a tool call without a result gets one that says so.
    """
    units = _units(entries)
    for unit in units:
        unit.tokens = sum(count_tokens(message) for message in unit.messages)
    last_turn = units[-1].turn if units else 0
    for index, unit in enumerate(units):
        question = unit.turn == last_turn and unit.messages[0]["role"] == "user"
        unit.fixed = unit.fixed or question or index == len(units) - 1
    total = sum(unit.tokens for unit in units)
    needed = sum(unit.tokens for unit in units if unit.fixed)
    if needed > room:
        raise TooLong(needed, room)
    gone: set[int] = set()
    for index, unit in enumerate(units):
        if total <= room:
            break
        if unit.fixed or index in gone:
            continue
        turn = unit.turn
        for other in range(index, len(units)):
            if units[other].turn != turn or (turn == last_turn and other > index):
                break
            if not units[other].fixed:
                gone.add(other)
                total -= units[other].tokens
    kept = [unit for index, unit in enumerate(units) if index not in gone]
    return Context(
        [message for unit in kept for message in unit.messages],
        [entry for unit in kept for entry in unit.ids],
        sum(len(units[index].ids) for index in gone),
        total,
    )


def shortened(entries: Sequence[Map], room: int) -> list[Map]:
    """The branch without what no target of the route has room for; whole, if nothing of it may be left out."""
    try:
        kept = set(trim(entries, room).entries)
    except TooLong:
        return list(entries)
    return [entry for entry in entries if entry["id"] in kept]


def _units(entries: Sequence[Map]) -> list[_Unit]:
    units: list[_Unit] = []
    turn, asker = 0, ""
    for entry in entries:
        message, role = dict(entry["message"]), entry["role"]
        if role == "tool" and units and message.get("tool_call_id") in units[-1].answers:
            units[-1].answers.discard(message["tool_call_id"])
            units[-1].ids.append(entry["id"])
            units[-1].messages.append(message)
            continue
        if role == "assistant":
            if entry["state"] != "done":
                message.pop("tool_calls", None)
            if not message.get("content") and not message.get("tool_calls"):
                continue
        if role == "user" and entry["of"] != asker:
            turn, asker = turn + 1, entry["of"]
        calls = {str(call.get("id")) for call in message.get("tool_calls") or ()} if role == "assistant" else set()
        fixed = role in PINNED_ROLES or bool(entry.get("pinned"))
        units.append(_Unit([entry["id"]], [message], turn, fixed, answers=calls))
    for unit in units:
        for call in sorted(unit.answers):
            unit.ids.append("")
            unit.messages.append({"role": "tool", "tool_call_id": call, "content": NO_RESULT})
    return units


def open_calls(body: Map) -> list[str]:
    """The ids of the tool calls in an answer."""
    return [str(call["id"]) for call in body.get("message", {}).get("tool_calls") or () if call.get("id")]


def answer_body(text: str, calls: Sequence[Map], end: Map, created: float, parts: dict[str, bytes]) -> Map:
    """What is kept of an answer that has ended."""
    message: Map = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    body: Map = {"message": by_reference(message, parts), "created": created}
    body.update({name: end[name] for name in TOLD_OF_AN_END if end.get(name) is not None})
    return body
