"""What a message's own frames do to it: output that continues the cursor, gaps, and the ends with their hashes."""

from __future__ import annotations

from typing import Any, Final

from protocol.client.events import AttemptStarted, Event, MessageEnded, Output, Replaced, Resyncing
from protocol.client.message import (
    ENDED,
    MAX_GAPS,
    MAX_MISMATCHES,
    Assembly,
    AttemptInfo,
    ClientMessage,
    MessageState,
    Trigger,
)
from protocol.client.outbox import Outbox

Map = dict[str, Any]
TAKEOVER_JUMP: Final = 2**20
"""A takeover continues the journal at least so many numbers ahead; a smaller hole is never a jump."""

_FOLLOWING: Final = MessageState.FOLLOWING
_RESYNCING: Final = MessageState.RESYNCING
_DETACHED: Final = MessageState.DETACHED


class Progress:
    """Applies the frames of messages that a client knows."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def on_delta(self, message: ClientMessage, frame: Map) -> list[Event]:
        """New output: it continues the cursor, was had already, or leaves a gap."""
        if message.state is not _FOLLOWING or message.cursor != frame["after"]:
            aside = self._delta_aside(message, frame)
            if aside is not None:
                return aside
        text = frame.get("text")
        reasoning = frame.get("reasoning")
        tool_calls = frame.get("tool_calls")
        message.cursor = frame["seq"]
        if text is not None and reasoning is None and tool_calls is None:
            message._visible.append(text)
        else:
            message._add(text, reasoning, tool_calls)
        return [Output(message, text, reasoning, tool_calls)]

    def _delta_aside(self, message: ClientMessage, frame: Map) -> list[Event] | None:
        """A delta that does not simply continue: what to report, or None if it may be applied after all."""
        if message.state in ENDED or message.state is _DETACHED:
            return []
        if frame["after"] == message.cursor and message.move(Trigger.DATA):
            return None
        if frame["seq"] <= message.cursor:
            return []
        return self._resync(message, "gap")

    def on_attempt(self, message: ClientMessage, frame: Map) -> list[Event]:
        """A target starts to answer."""
        seq: int = frame["seq"]
        if seq <= message.cursor:
            return []
        info = AttemptInfo(frame["attempt"], frame["target"], frame["model"], frame["mode"], frame.get("reason"))
        if info.mode == "continue":
            if self._is_hole(message, frame):
                return self._resync(message, "gap")
        else:
            message._drop_output()
        message.move(Trigger.DATA)
        message.cursor = seq
        message.attempt = info.attempt
        message.attempts.append(info)
        message.server_state = "streaming"
        return [AttemptStarted(message, info)]

    def on_snapshot(self, message: ClientMessage, frame: Map) -> list[Event]:
        """A part of everything that stands."""
        if frame["part"] == 1:
            message.move(Trigger.DATA)
            message._assembly = Assembly(frame["seq"], frame["attempt"])
        whole = message._assembly
        if whole is None or whole.next_part != frame["part"] or whole.seq != frame["seq"]:
            message._assembly = None
            return self._resync(message, "snapshot")
        whole.add(frame)
        if not frame["last"]:
            return []
        message._replace(whole)
        return [Replaced(message)]

    def _is_hole(self, message: ClientMessage, frame: Map, *, verified: bool = False) -> bool:
        """Whether events are missing before `frame`; without its `after`, a jump is believed once asked about."""
        after: int | None = frame.get("after")
        if after is not None:
            return after != message.cursor
        seq: int = frame["seq"]
        missing = seq - message.cursor - 1
        if missing <= 0:
            return False
        asked = message._asked_about == (message.cursor, seq) and message.state is _FOLLOWING
        if message.state is _FOLLOWING:
            message._asked_about = (message.cursor, seq)
        return not (asked and (verified or missing >= TAKEOVER_JUMP))

    def _resync(self, message: ClientMessage, reason: str) -> list[Event]:
        """Ask for everything after the cursor, once until it is answered."""
        if message._gap_at != message.cursor:
            message._gap_at, message._gaps = message.cursor, 0
        if not message.move(Trigger.GAP):
            return []
        message._gaps += 1
        if message._gaps > MAX_GAPS:
            return self._break(message, "the server keeps leaving out events")
        message.resyncs += 1
        self._outbox.resume(message)
        return [Resyncing(message, reason)]

    def _start_over(self, message: ClientMessage) -> list[Event]:
        """The text is not what its hash says: drop it and ask for everything."""
        message._mismatches += 1
        if message._mismatches > MAX_MISMATCHES:
            return self._break(message, "the text does not match its hash")
        message._drop_output()
        message.cursor = 0
        return [*self.resume_now(message, "mismatch"), Replaced(message)]

    def _break(self, message: ClientMessage, why: str) -> list[Event]:
        message.move(Trigger.BREAK)
        message.error = {
            "code": "text_unverified",
            "class": "permanent",
            "status": 502,
            "message": why,
            "retryable": False,
        }
        self._outbox.put({"type": "detach", "id": message.id})
        return [MessageEnded(message)]

    def on_verified_end(self, message: ClientMessage, frame: Map) -> list[Event]:
        """`done` and `cancelled`, which carry the hash of the text."""
        if frame["seq"] <= message._reopened_at:
            return []
        verified = message._visible.matches(frame["text_bytes"], frame["text_sha256"])
        if self._is_hole(message, frame, verified=verified):
            return self._resync(message, "gap")
        if verified:
            return self._end(message, Trigger.DONE if frame["type"] == "done" else Trigger.CANCEL, frame)
        if message.state is _RESYNCING:
            return []
        return self._start_over(message)

    def on_failed(self, message: ClientMessage, frame: Map) -> list[Event]:
        """It ended without a whole answer."""
        if frame["seq"] <= message._reopened_at:
            return []
        if self._is_hole(message, frame):
            return self._resync(message, "gap")
        return self.fail(message, frame)

    def fail(self, message: ClientMessage, frame: Map) -> list[Event]:
        """It failed as `frame` tells."""
        message.error = frame["error"]
        message.partial = frame.get("partial", False)
        return self._end(message, Trigger.FAIL, frame)

    def _end(self, message: ClientMessage, trigger: Trigger, frame: Map) -> list[Event]:
        message.move(trigger)
        message.cursor = frame["seq"]
        message.server_state = frame["type"]
        message.usage = frame.get("usage")
        message.end = frame
        message._assembly = None
        return [MessageEnded(message)]

    def fail_here(self, message: ClientMessage, trigger: Trigger, error: Map) -> list[Event]:
        """It ends by our own finding, or by a frame that stands in no journal."""
        message.move(trigger)
        message.error = error
        message._assembly = None
        return [MessageEnded(message)]

    def resume_now(self, message: ClientMessage, reason: str) -> list[Event]:
        """Ask for everything after the cursor, whatever is under way."""
        message._pong_mark = None
        if not (message.move(Trigger.RESUME) or message.move(Trigger.GAP)):
            return []
        message.resyncs += 1
        self._outbox.resume(message)
        return [Resyncing(message, reason)]
