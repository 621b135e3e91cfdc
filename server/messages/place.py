"""A conversation as the parts that work on it know it: its keys, what is told of it, why something is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from protocol.errors import ProtocolError
from server.messages.conversation import Entry, Map
from server.store.keys import ConversationKeys, conversation_tag
from server.store.store import Script, Store

LOG_EVENTS: Final = 2_048
"""About how many events of a conversation's log are kept; a cursor before them is told to read the history anew."""
QUEUE_LIMIT: Final = 100
"""Most messages that wait in one conversation."""
STEP_SECONDS: Final = 5.0
"""How long a step without a waiting client gives Redis."""
GONE: Final = ProtocolError("conversation_unknown", "the conversation was deleted")


@dataclass(frozen=True, slots=True)
class Place:
    """A conversation of a user."""

    id: str
    tag: str
    keys: ConversationKeys

    @classmethod
    def of(cls, user: str, conversation: str) -> Place:
        """The conversation of this name; `user` is the user's tag."""
        tag = conversation_tag(user, conversation)
        return cls(conversation, tag, ConversationKeys.of(tag))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tier allows."""

    conversations: int
    entries: int
    bytes: int

    def exceeded(self, entries: int, more: int, size: int, given: Sequence[Map]) -> ProtocolError | None:
        """Whether `more` entries with these messages go beyond it, given what is there.

        The scripts decide; this refuses before anything is claimed what they would refuse only after the conversation
        was put on top of its user's list, as if it had changed.
        """
        if entries + more > self.entries:
            return over("entries", self.entries)
        if size + sum(len(orjson.dumps(message)) for message in given) > self.bytes:
            return over("bytes", self.bytes)
        return None


@dataclass(frozen=True, slots=True)
class Turn:
    """What entering came to: the turn (`position` 0), or a place in the queue."""

    position: int
    current: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """What is known of a conversation beside its entries."""

    head: int
    title: str | None
    tip: str
    current: str
    queue: tuple[str, ...]
    entries: int
    bytes: int
    created: float
    updated: float

    def shown(self) -> Map:
        """As clients see it."""
        shown: Map = {
            "seq": self.head, "title": self.title, "tip": self.tip or None, "current": self.current or None,
            "queue": list(self.queue), "entries": self.entries, "bytes": self.bytes, "created": self.created,
            "updated": self.updated,
        }  # fmt: skip
        return shown


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of a branch, oldest first."""

    head: int
    """Where the conversation's log stood."""
    tip: str
    current: str
    queue: tuple[str, ...]
    title: str | None
    more: bool
    """Whether the branch goes on beyond the page."""
    entries: list[Entry]
    pinned: list[Entry]
    """Pinned entries that lie before the page."""
    pins: frozenset[str]
    """All pinned entries."""


class Ended(Exception):
    """The message has had its turn and has ended."""


async def run(
    store: Store, script: Script, keys: ConversationKeys, args: Sequence[Any], seconds: float = STEP_SECONDS
) -> list[Any]:
    """Run a script that takes every key of a conversation. Raises `StoreError` or `TimeoutError`."""
    reply: list[Any] = await store.run(script, [*keys.stored, keys.channel], args, seconds)
    return reply


def title_id(place: Place) -> str:
    """The id of the message that makes a conversation's title."""
    return "title_" + hashlib.sha256(place.tag.encode()).hexdigest()[:32]


def unknown(conversation: str) -> ProtocolError:
    """No such conversation of this user: it never was, has expired, or was deleted."""
    return ProtocolError("conversation_unknown", f"there is no conversation {conversation!r}")


def over(name: str, limit: int) -> ProtocolError:
    """A limit of the tier is reached."""
    return ProtocolError(
        "conversation_limit", f"the limit of {limit} {name} is reached", details={"limit": name, "most": limit}
    )


def too_long(needed: int, room: int) -> ProtocolError:
    """What must be sent does not fit."""
    return ProtocolError(
        "context_length_exceeded",
        f"the input takes about {needed} tokens; there is room for {room}",
        details={"input_tokens": needed, "room_tokens": room},
    )


def allowed(limits: Limits | None) -> tuple[int | str, int | str]:
    """Most entries and most bytes, as the scripts take them."""
    return ("", "") if limits is None else (limits.entries, limits.bytes)


def over_limit(name: bytes, limits: Limits | None) -> ProtocolError:
    """A script did not write, because of this limit."""
    assert limits is not None
    return over(name.decode(), limits.bytes if name == b"bytes" else limits.entries)


def refused(conversation: str, request: Map, reply: Sequence[bytes], limits: Limits | None) -> ProtocolError:
    """Why `conversation_enter_v1.lua` did not let a message in."""
    match reply[0]:
        case b"busy":
            return ProtocolError(
                "conversation_busy", "the conversation is answering", details={"current": reply[1].decode()}
            )
        case b"over":
            return over_limit(reply[1], limits)
        case b"full":
            return over("queued messages", QUEUE_LIMIT)
        case b"parent":
            return ProtocolError("message_unknown", f"there is no entry {request.get('parent')!r} to answer")
        case b"taken":
            return ProtocolError("idempotency_mismatch", "an entry of the conversation has this id")
    return unknown(conversation)
