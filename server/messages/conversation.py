"""Conversations: entries and the tree they form. Pure.

An **entry** is a turn of a user, an answer, a tool's result or an instruction. Each has an id and a `parent`; so edit
and regenerate are branches, and a branch is the path from one entry up to the root. An answer's entry has the id of
its message; what was given with a message gets ids derived from it, so that entering it twice makes nothing twice.

Who is next, and where entries hang, is decided by the scripts `conversation_*_v1.lua`, in one place for all nodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
REFERENCE_PATTERN: Final = "[0-9a-f]{64}"
"""SHA-256 of a stored part."""
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
        messages = [ChatMessage.model_validate(item).model_dump(exclude_none=True) for item in given]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError("invalid_frame", f"send: `input.{where}`: {first['msg']}") from None
    for digest in references(messages):
        if not re.fullmatch(REFERENCE_PATTERN, digest):
            raise ProtocolError("invalid_frame", "send: the `ref` of a part has to be one that `history` told")
    return messages


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
        return part
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


def with_known(message: Map, parts: Mapping[str, bytes]) -> Map:
    """The message with every reference as it is stored: a client's word for type and size is not taken.

    Raises `KeyError` for a part that is not there.
    """
    content = message.get("content")
    if not isinstance(content, list) or not any("ref" in part for part in content):
        return message
    return {**message, "content": [_known(part, parts, len(content) == 1) for part in content]}


def _known(part: Map, parts: Mapping[str, bytes], alone: bool) -> Map:
    if "ref" not in part:
        return part
    data = parts[part["ref"]]
    kind = orjson.loads(data).get("type", "text")
    whole = {"whole": True} if alone and kind == "text" and part.get("whole") is True else {}
    return {"type": kind, "ref": part["ref"], "bytes": len(data), **whole}


def resolved(message: Map, parts: Mapping[str, bytes]) -> Map:
    """The message with its parts in place of the references. Raises `KeyError` for one that is not there."""
    content = message.get("content")
    if not isinstance(content, list) or not any("ref" in part for part in content):
        return message
    whole = [orjson.loads(parts[part["ref"]]) if "ref" in part else part for part in content]
    if len(content) == 1 and content[0].get("whole"):
        return {**message, "content": whole[0]["text"]}
    return {**message, "content": whole}


# --- answers --------------------------------------------------------------------------------------------------------


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
