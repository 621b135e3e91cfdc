"""The tool calls at the end of a conversation, which clients answer: each once, all of them, and in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from protocol.errors import ProtocolError
from server.messages import conversation as pure
from server.messages.branch import count_tokens
from server.messages.conversation import Entry, Map
from server.messages.parts import given_parts, referred
from server.messages.place import LOG_EVENTS, STEP_SECONDS, Limits, Place, allowed, over_limit, run, unknown
from server.messages.scripts import CONVERSATION_APPEND
from server.store.keys import ConversationKeys
from server.store.store import IMPATIENT, Store

TOOL_SECONDS: Final = 600.0
"""How long the answers to an answer's tool calls may take; then they are marked as lost."""


class ToolCalls:
    """See the module. Everything raises `StoreError` or `TimeoutError`."""

    def __init__(self, store: Store, keep_seconds: float) -> None:
        self.store = store
        self._keep_ms = round(keep_seconds * 1000)

    async def answer(self, place: Place, given: Sequence[Map], limits: Limits | None = None) -> list[str]:
        """Record answers to tool calls, each once; the calls that are still open. Raises `ProtocolError`, …"""
        keys = place.keys
        calls = await self.all(keys, STEP_SECONDS)
        if strangers := [message["tool_call_id"] for message in given if message["tool_call_id"] not in calls]:
            raise _not_open("conversation", strangers)
        asker = await self.store.call(keys.meta, "HGET", keys.meta, "asker", seconds=STEP_SECONDS)
        args: list[Any] = []
        for message in await referred(self.store, keys, given):
            args += _tool_entry(asker or b"", message, time.time())
        return await self._append(keys, asker, args, False, limits)

    async def expire(self, keys: ConversationKeys) -> None:
        """Answers that did not come in time are marked as lost, for everybody to see.

        Done by whoever comes next: who watches, reads, answers or goes on. Raises `StoreError` or `TimeoutError`.
        """
        asker = await self.store.call(keys.meta, "HGET", keys.meta, "asker", seconds=STEP_SECONDS)
        args: list[Any] = []
        for call, answered in (await self.all(keys, STEP_SECONDS)).items():
            if not answered:
                message = {"role": "tool", "tool_call_id": call, "content": pure.NO_RESULT}
                args += _tool_entry(asker or b"", message, time.time(), timed_out=True)
        await self._append(keys, asker, args, True, None)

    async def _append(
        self, keys: ConversationKeys, asker: bytes | None, entries: Sequence[Any], only_late: bool,
        limits: Limits | None,
    ) -> list[str]:  # fmt: skip
        args = [
            repr(time.time()), self._keep_ms, LOG_EVENTS, "1" if only_late else "", asker or "", *allowed(limits),
            *entries,
        ]  # fmt: skip
        reply = await run(self.store, CONVERSATION_APPEND, keys, args)
        if reply[0] == b"over":
            raise over_limit(reply[1], limits)
        if reply[0] == b"deleted":
            raise unknown("")
        return [call.decode() for call in reply[1:]]

    async def wrong_results(
        self, place: Place, given: Sequence[Map], parent: str | None, current: str
    ) -> ProtocolError | None:
        """Results have to be of open calls and complete their set, and none may be there already.

        What the message `current`, if there is one, will call is not known yet.
        """
        results = [message["tool_call_id"] for message in given if message["role"] == "tool"]
        if not results:
            return None
        calls = await self.all(place.keys)
        if missing := [call for call, answered in calls.items() if not answered and call not in results]:
            return ProtocolError(
                "invalid_frame", "send: results of other tool calls are missing", details={"missing": missing}
            )
        if parent is None and not current and (strangers := _strangers(given, results, calls)):
            return _not_open("send", strangers)
        if parent is None and (again := [call for call in results if calls.get(call)]):
            return ProtocolError(
                "invalid_frame",
                "send: these tool calls have results already; go on without theirs",
                details={"answered": again},
            )
        return None

    async def all(self, keys: ConversationKeys, seconds: float = IMPATIENT) -> dict[str, bool]:
        """The tool calls at the end of the conversation: whether each has its result. Raises `StoreError`, …"""
        flat = await self.store.call(keys.calls, "HGETALL", keys.calls, seconds=seconds)
        return {flat[i].decode(): bool(flat[i + 1]) for i in range(0, len(flat), 2)}


def is_late(due: bytes | None) -> bool:
    """Whether the time for answers to tool calls is over."""
    return float(due or "inf") <= time.time()


def _strangers(given: Sequence[Map], results: Sequence[str], calls: Mapping[str, bool]) -> list[str]:
    """Results of calls that are neither open nor part of the input itself, as they are in an imported thread."""
    imported = {str(call.get("id")) for message in given for call in message.get("tool_calls") or ()}
    return [call for call in results if call not in calls and call not in imported]


def _not_open(frame: str, strangers: Sequence[str]) -> ProtocolError:
    message = f"{frame}: there are no such tool calls at the end of the conversation"
    return ProtocolError("invalid_frame", message, details={"unknown": list(strangers)})


def _tool_entry(asker: bytes, message: Map, now: float, **known: Any) -> list[Any]:
    """A tool's result as the script takes it; its id follows from the message that called the tool."""
    parts: dict[str, bytes] = {}
    call = message["tool_call_id"]
    body = {"message": pure.by_reference(message, parts), "created": now, **known}
    name = pure.entry_id(asker.decode(), call)
    shown = Entry(name, None, 0, "tool", "done", "", body).shown()
    del shown["parent"], shown["message"]
    return [
        call, name, pure.size_of(body), count_tokens(body["message"]), orjson.dumps(body),
        orjson.dumps({"type": "message", **shown}), *given_parts(parts),
    ]  # fmt: skip
