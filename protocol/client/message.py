"""What a client holds about one message, and the table of its states.

Theory of operation. A message is *asked for* (`sending`), then *followed*. While it is followed, each journaled frame
either continues the cursor and is applied, or does not and makes the client ask again (`resyncing`) from where it
stands. Three states are the message's own ends (`done`, `failed`, `cancelled`), three are ours: the server refused to
start it (`refused`), can't find it any more (`lost`), or keeps telling things that contradict each other (`broken`).
What the server lost and this client asked for is asked for anew: it is `sending` again.
Whatever the table has no row for is a frame that lost a race; it changes nothing.
"""

from __future__ import annotations

import hashlib
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple

Map = dict[str, Any]

FOLD_PARTS: Final = 128
"""Pieces of text are hashed and joined this many at a time: a call per piece costs more than the hash itself."""
MAX_MISMATCHES: Final = 3
"""How often the text may contradict its hash before the client gives up."""
MAX_GAPS: Final = 5
"""How often a resume from one cursor may be answered with another gap before the client gives up."""


class MessageState(StrEnum):
    """Where a message stands, seen from the client."""

    SENDING = "sending"
    """Asked for; no answer yet."""
    FOLLOWING = "following"
    """The server sends what comes; the text is right up to the cursor."""
    RESYNCING = "resyncing"
    """A resume is on its way; until it is answered, only what fits the cursor is applied."""
    STALLED = "stalled"
    """The server can't tell more just now; resume later. The message itself goes on."""
    DETACHED = "detached"
    """Not followed, on the client's own wish."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """Never started; nothing is billed, and the id is free again."""
    LOST = "lost"
    """The server does not know it (any more), or may not show it."""
    BROKEN = "broken"
    """What the server tells contradicts itself, and asking again did not help."""


class Trigger(Enum):
    """What can happen to a message."""

    ACCEPT = "accept"
    DATA = "data"
    GAP = "gap"
    RECONNECT = "reconnect"
    STALL = "stall"
    DETACH = "detach"
    RESUME = "resume"
    RETRY = "retry"
    ASK_ANEW = "ask_anew"
    DONE = "done"
    FAIL = "fail"
    CANCEL = "cancel"
    REFUSE = "refuse"
    LOSE = "lose"
    BREAK = "break"


_ENDS: Final = {
    Trigger.DONE: MessageState.DONE,
    Trigger.FAIL: MessageState.FAILED,
    Trigger.CANCEL: MessageState.CANCELLED,
    Trigger.LOSE: MessageState.LOST,
    Trigger.BREAK: MessageState.BROKEN,
}

TRANSITIONS: Final[dict[MessageState, dict[Trigger, MessageState]]] = {
    MessageState.SENDING: {
        Trigger.ACCEPT: MessageState.FOLLOWING,
        Trigger.DATA: MessageState.FOLLOWING,
        Trigger.GAP: MessageState.RESYNCING,
        Trigger.DETACH: MessageState.DETACHED,
        Trigger.REFUSE: MessageState.REFUSED,
        **_ENDS,
    },
    MessageState.FOLLOWING: {
        Trigger.ACCEPT: MessageState.FOLLOWING,
        Trigger.ASK_ANEW: MessageState.SENDING,
        Trigger.DATA: MessageState.FOLLOWING,
        Trigger.GAP: MessageState.RESYNCING,
        Trigger.RECONNECT: MessageState.RESYNCING,
        Trigger.RESUME: MessageState.RESYNCING,
        Trigger.STALL: MessageState.STALLED,
        Trigger.DETACH: MessageState.DETACHED,
        Trigger.REFUSE: MessageState.REFUSED,
        **_ENDS,
    },
    MessageState.RESYNCING: {
        Trigger.ACCEPT: MessageState.FOLLOWING,
        Trigger.ASK_ANEW: MessageState.SENDING,
        Trigger.DATA: MessageState.FOLLOWING,
        Trigger.RECONNECT: MessageState.RESYNCING,
        Trigger.RESUME: MessageState.RESYNCING,
        Trigger.STALL: MessageState.STALLED,
        Trigger.DETACH: MessageState.DETACHED,
        Trigger.REFUSE: MessageState.REFUSED,
        **_ENDS,
    },
    MessageState.STALLED: {
        Trigger.ACCEPT: MessageState.FOLLOWING,
        Trigger.ASK_ANEW: MessageState.SENDING,
        Trigger.DATA: MessageState.FOLLOWING,
        Trigger.RECONNECT: MessageState.RESYNCING,
        Trigger.RESUME: MessageState.RESYNCING,
        Trigger.STALL: MessageState.STALLED,
        Trigger.DETACH: MessageState.DETACHED,
        **_ENDS,
    },
    MessageState.DETACHED: {Trigger.RESUME: MessageState.RESYNCING},
    MessageState.DONE: {},
    MessageState.FAILED: {Trigger.RETRY: MessageState.SENDING},
    MessageState.CANCELLED: {},
    MessageState.REFUSED: {Trigger.RETRY: MessageState.SENDING},
    MessageState.LOST: {},
    MessageState.BROKEN: {},
}
"""Every transition there is."""

ENDED: Final = frozenset(
    {
        MessageState.DONE,
        MessageState.FAILED,
        MessageState.CANCELLED,
        MessageState.REFUSED,
        MessageState.LOST,
        MessageState.BROKEN,
    }
)
"""States in which nothing more is expected."""


class AttemptInfo(NamedTuple):
    """One `attempt` frame: which target answers now, and why it is not the one before."""

    attempt: int
    target: str
    model: str
    mode: str
    """`fresh`, `restart` (earlier text was dropped) or `continue`."""
    reason: Map | None


class TextBuffer:
    """Text that grows by pieces: joined, counted and hashed in runs of `FOLD_PARTS`."""

    __slots__ = ("_bytes", "_hash", "_parts", "_text")

    def __init__(self, text: str = "") -> None:
        self._text = ""
        self._bytes = 0
        self._hash = hashlib.sha256()
        self._parts = [text] if text else []

    def append(self, piece: str) -> None:
        """Add `piece` at the end."""
        parts = self._parts
        parts.append(piece)
        if len(parts) >= FOLD_PARTS:
            self._fold()

    def _fold(self) -> None:
        piece = "".join(self._parts)
        self._parts.clear()
        self._text += piece
        data = piece.encode(errors="replace")
        self._bytes += len(data)
        self._hash.update(data)

    @property
    def text(self) -> str:
        """All of it."""
        if self._parts:
            self._fold()
        return self._text

    def matches(self, text_bytes: int, text_sha256: str) -> bool:
        """Whether this is the text, in UTF-8, that has so many bytes and this SHA-256 (lower-case hex)."""
        if self._parts:
            self._fold()
        return self._bytes == text_bytes and self._hash.hexdigest() == text_sha256


class ToolCallBuffer:
    """Tool-call deltas, merged by `index` as in the chat-completions format."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, Map] = {}

    def merge(self, deltas: list[Map]) -> None:
        """Add deltas; one without `index` belongs to the call at its position in the list."""
        for position, delta in enumerate(deltas):
            call = self._calls.setdefault(delta.get("index", position), {})
            for key, value in delta.items():
                if key == "function":
                    _merge_function(call.setdefault("function", {"name": "", "arguments": ""}), value)
                elif key != "index" and value is not None:
                    call[key] = value

    @property
    def calls(self) -> list[Map]:
        """The calls so far, in the order of their indexes."""
        return [self._calls[index] for index in sorted(self._calls)]


def _merge_function(function: Map, delta: Map) -> None:
    for key, value in delta.items():
        if key == "arguments":
            function["arguments"] += value or ""
        elif value is not None:
            function[key] = value


class Assembly:
    """A snapshot of which some parts have arrived."""

    __slots__ = ("attempt", "next_part", "reasoning", "seq", "text", "tool_calls")

    def __init__(self, seq: int, attempt: int) -> None:
        self.seq = seq
        self.attempt = attempt
        self.next_part = 1
        self.text = TextBuffer()
        self.reasoning = TextBuffer()
        self.tool_calls: ToolCallBuffer | None = None

    def add(self, frame: Map) -> None:
        """Add the next part."""
        self.next_part += 1
        self.text.append(frame.get("text") or "")
        self.reasoning.append(frame.get("reasoning") or "")
        if calls := frame.get("tool_calls"):
            self.tool_calls = self.tool_calls or ToolCallBuffer()
            self.tool_calls.merge(calls)


class ClientMessage:
    """One message as the client has it. Read freely; only `ClientSession` writes."""

    __slots__ = (
        "_asked_about",
        "_assembly",
        "_earlier_end",
        "_gap_at",
        "_gaps",
        "_made",
        "_mismatches",
        "_pong_mark",
        "_probed",
        "_reasoning",
        "_reopened_at",
        "_tool_calls",
        "_transmitted",
        "_uncertain",
        "_visible",
        "asked_anew",
        "attempt",
        "attempts",
        "cancel_requested",
        "cursor",
        "end",
        "error",
        "generation",
        "id",
        "partial",
        "queue_position",
        "request",
        "resyncs",
        "server_state",
        "state",
        "usage",
    )

    def __init__(self, message_id: str, request: Map | None, state: MessageState) -> None:
        self.id = message_id
        self.request = request
        """What was asked, so that it can be asked again under the same id; None if another client asked."""
        self.state = state
        self.server_state = ""
        """As the server last told it: `queued`, `streaming`, … ; empty before it did."""
        self.queue_position: int | None = None
        self.cursor = 0
        """`seq` of the last event applied; 0 = none."""
        self.attempt = 0
        """Number of the attempt whose output this is; 0 = none yet."""
        self.attempts: list[AttemptInfo] = []
        """Those attempts that were seen."""
        self.usage: Map | None = None
        self.error: Map | None = None
        """Why it failed, was refused or lost (`protocol.frames.ErrorBody`)."""
        self.partial = False
        """Whether text stands although the message failed."""
        self.end: Map | None = None
        """The `done`, `failed` or `cancelled` frame."""
        self.cancel_requested = False
        self.generation = 0
        """Rises whenever earlier output is withdrawn or replaced, so that a reader knows to start over."""
        self.resyncs = 0
        """How often this client had to ask again on an open connection; 0 on a healthy one."""
        self.asked_anew = 0
        """How often the server lost it, and it was asked for again."""
        self._visible = TextBuffer()
        self._reasoning: TextBuffer | None = None
        self._tool_calls: ToolCallBuffer | None = None
        self._assembly: Assembly | None = None
        self._earlier_end: Map | None = None
        self._transmitted = False
        self._uncertain = False
        self._probed = False
        self._asked_about = (-1, -1)
        self._made: str | None = None
        self._gap_at = -1
        self._gaps = 0
        self._mismatches = 0
        self._pong_mark: tuple[int, int] | None = None
        self._reopened_at = -1

    @property
    def text(self) -> str:
        """The visible text that stands."""
        return self._visible.text

    @property
    def reasoning(self) -> str:
        """The reasoning that stands; not part of the text."""
        return self._reasoning.text if self._reasoning else ""

    @property
    def tool_calls(self) -> list[Map]:
        """The tool calls that stand, each as far as it has arrived."""
        return self._tool_calls.calls if self._tool_calls else []

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.state in ENDED

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped (`stop`, `length`, `tool_calls`, …); None unless done."""
        return self.end.get("finish_reason") if self.end else None

    def move(self, trigger: Trigger) -> bool:
        """Go where the table says; False, and nothing changes, if it has no row for this."""
        state = TRANSITIONS[self.state].get(trigger)
        if state is None:
            return False
        self.state = state
        return True

    def save(self) -> Map:
        """What another process needs to go on with the message; JSON can carry it."""
        # Tool calls are not kept: what has some is told whole again.
        whole = self._tool_calls is not None
        return {
            "id": self.id,
            "request": self.request,
            "acknowledged": self.state is not MessageState.SENDING,
            "cursor": 0 if whole else self.cursor,
            "text": "" if whole else self.text,
            "reasoning": "" if whole else self.reasoning,
            "reopened_at": self._reopened_at,
            "made": self._made,
            "cancel_requested": self.cancel_requested,
        }

    @classmethod
    def restore(cls, saved: Map) -> ClientMessage:
        """The message that was saved. Raises `KeyError` and `TypeError` for what is none."""
        message = cls(
            saved["id"],
            saved["request"],
            MessageState.FOLLOWING if saved["acknowledged"] else MessageState.SENDING,
        )
        message.cursor = saved["cursor"]
        message._add(saved["text"], saved["reasoning"], None)
        message._reopened_at = saved["reopened_at"]
        message._made = saved["made"]
        message.cancel_requested = saved["cancel_requested"]
        message._transmitted = True  # it may have been
        return message

    def _drop_output(self) -> None:
        self.generation += 1
        self._visible = TextBuffer()
        self._reasoning = None
        self._tool_calls = None

    def _add(self, text: str | None, reasoning: str | None, tool_calls: list[Map] | None) -> None:
        if text:
            self._visible.append(text)
        if reasoning:
            if self._reasoning is None:
                self._reasoning = TextBuffer()
            self._reasoning.append(reasoning)
        if tool_calls:
            if self._tool_calls is None:
                self._tool_calls = ToolCallBuffer()
            self._tool_calls.merge(tool_calls)

    def _replace(self, whole: Assembly) -> None:
        self.generation += 1
        self._visible = whole.text
        self._reasoning = whole.reasoning
        self._tool_calls = whole.tool_calls
        self._assembly = None
        self.cursor = whole.seq
        self.attempt = whole.attempt
