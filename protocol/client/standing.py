"""How a message stands with the server: accepted, refused, unknown, lost; and what heads say of what we have."""

from __future__ import annotations

from typing import Any, Final

from protocol.client.events import ErrorReceived, Event, MessageAccepted, MessageEnded, Replaced, Resyncing, Stalled
from protocol.client.message import ENDED, ClientMessage, MessageState, Trigger
from protocol.client.outbox import Outbox
from protocol.client.progress import Progress

Map = dict[str, Any]
UNPROVEN: Final = frozenset({"store_unavailable", "draining", "internal", "rate_limited", "too_many_messages"})
"""Refusals that don't tell whether the same request, sent on an earlier connection, was started."""
UNANSWERED_PONGS: Final = 3
"""After so many heartbeats a request without any answer is sent again, under its id."""
MAX_ASKED_ANEW: Final = 3
"""How often a message that the server lost is asked for anew before it is given up as `lost`."""

_SENDING: Final = MessageState.SENDING
_FOLLOWING: Final = MessageState.FOLLOWING
_DETACHED: Final = MessageState.DETACHED


class Standing:
    """Acceptances, refusals and heads of messages that a client knows."""

    def __init__(self, outbox: Outbox, progress: Progress) -> None:
        self._outbox = outbox
        self._progress = progress

    def on_accepted(self, message: ClientMessage, frame: Map) -> list[Event]:
        """The server has it."""
        message.move(Trigger.ACCEPT)
        message._pong_mark = None
        message.server_state = frame["state"]
        message.queue_position = frame.get("queue_position")
        events: list[Event] = [MessageAccepted(message, frame["replay"]), *self._same_or_anew(message, frame)]
        if frame["state"] == "failed":
            message._reopened_at = -1
            if message._earlier_end is not None and frame["seq"] == message.cursor:
                events += self._progress.fail(message, message._earlier_end)  # not reopened, so it is over, as it was
        return events

    def _same_or_anew(self, message: ClientMessage, head: Map) -> list[Event]:
        """Whether what the server tells the head of is what we followed; else its events begin anew at 1."""
        generation: str | None = head.get("generation")
        known, message._made = message._made, generation or message._made
        if head["seq"] >= message._reopened_at and (known is None or generation is None or known == generation):
            return []
        told = message.cursor > 0
        events = self._begin_anew(message)
        return [*events, *self._progress.resume_now(message, "lost")] if told else events

    def _begin_anew(self, message: ClientMessage) -> list[Event]:
        """The server lost what it had told: nothing of it stands."""
        told = message.cursor > 0
        message.cursor, message.attempt = 0, 0
        message._reopened_at, message._gap_at, message._earlier_end, message._assembly = -1, -1, None, None
        if told:
            message._drop_output()
        return [Replaced(message)] if told else []

    def on_error(self, message: ClientMessage, re: str | None, error: Map) -> list[Event]:
        """An error about a message that has not ended."""
        if message.state is _SENDING:
            return self._on_send_error(message, re, error)
        if error["code"] == "message_unknown" and re != "send":
            return self._ask_anew(message, error)
        if re == "send" and message.cursor == 0:
            return self._progress.fail_here(message, Trigger.REFUSE, error)
        if error["retryable"]:
            message.move(Trigger.STALL)
            return [self._stalled(message, error)]
        return self._progress.fail_here(message, Trigger.LOSE, error)

    def _on_send_error(self, message: ClientMessage, re: str | None, error: Map) -> list[Event]:
        code: str = error["code"]
        if re in ("hello", "resume") or (code == "message_unknown" and re != "send"):
            if code == "message_unknown" and message._probed:  # it never arrived, so ask for it
                message._probed = False
                return self._ask_again(message)
            return [ErrorReceived(message, re, error)]  # the request itself gets an answer of its own
        if code == "draining" and self._outbox.draining:
            message._transmitted = False
            return [ErrorReceived(message, re, error)]
        if message._uncertain and code in UNPROVEN:
            return [self._stalled(message, error)]
        return self._progress.fail_here(message, Trigger.REFUSE, error)

    def _stalled(self, message: ClientMessage, error: Map) -> Stalled:
        after_ms: int | None = error.get("retry_after_ms")
        return Stalled(message, error, None if after_ms is None else after_ms / 1000)

    def reattach(self, message: ClientMessage, head: Map | None) -> list[Event]:
        """Pick a message up on a new connection; `head` is what `welcome` says of it, if it was asked about."""
        if message.state in ENDED or message.state is _DETACHED:
            return []
        if head is not None:
            message.move(Trigger.ACCEPT)
            message.server_state = head["state"]
            events: list[Event] = [MessageAccepted(message, True), *self._same_or_anew(message, head)]
        elif message.state is _SENDING:
            message._probed = False
            return self._ask_again(message)
        else:
            self._outbox.resume(message)
            events = []
        if message.cancel_requested:
            self._outbox.put({"type": "cancel", "id": message.id})
        return events

    def _ask_again(self, message: ClientMessage) -> list[Event]:
        """The server may not have got it: the same request under the same id, or nothing if it was cancelled."""
        if not message.cancel_requested:
            self._outbox.send(message)
            return []
        self._outbox.put({"type": "cancel", "id": message.id})  # in case it is on its way to another node
        message.move(Trigger.CANCEL)
        return [MessageEnded(message)]

    def _ask_anew(self, message: ClientMessage, error: Map) -> list[Event]:
        """The server lost a message that it had accepted: ask for it again, if it was this client that asked."""
        if message.request is None or message.asked_anew >= MAX_ASKED_ANEW:
            return self._progress.fail_here(message, Trigger.LOSE, error)
        if message.cancel_requested:
            return self._ask_again(message)
        message.asked_anew += 1
        message.resyncs += 1
        message.move(Trigger.ASK_ANEW)
        message._transmitted, message._probed, message._pong_mark, message._made = False, False, None, None
        events = self._begin_anew(message)
        self._outbox.send(message)
        return [*events, Resyncing(message, "lost")]

    def compare_head(self, message: ClientMessage, head: int | None) -> list[Event]:
        """Whether the server's head and our cursor tell that something got lost.

        A pong overtakes data, so being behind is normal once; being behind at the same place twice is not.
        """
        if message.state is _SENDING and head is None:
            return self._count_unanswered(message)
        mark, reason = (message.cursor, 0), "unanswered"
        if message.state is _FOLLOWING:
            if head is None:
                return self._progress.resume_now(message, "missing")
            if head <= message.cursor:
                message._pong_mark = None
                return []
            mark, reason = (message.cursor, 1), "behind"
        if message._pong_mark != mark:
            message._pong_mark = mark
            return []
        return self._progress.resume_now(message, reason)

    def _count_unanswered(self, message: ClientMessage) -> list[Event]:
        """A request without an answer over several pongs is asked again; if it is only slow, that attaches to it."""
        _, count = message._pong_mark or (-1, 0)
        if not message._transmitted or count + 1 < UNANSWERED_PONGS:
            message._pong_mark = (-1, count + 1)
            return []
        message._pong_mark = None
        message.resyncs += 1
        self._outbox.send(message)
        return [Resyncing(message, "unanswered")]
