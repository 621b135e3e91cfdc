"""Clients with one defect each, for the conformance kit to find: python broken_adapter.py DEFECT."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from protocol.client import aio
from protocol.client.message import ClientMessage, MessageState
from protocol.client.outbox import Outbox
from protocol.client.progress import Progress
from protocol.client.session import ClientSession
from tests.clients.tidewire_adapter import main

Map = dict[str, Any]


def deaf_to_gaps(self: Progress, message: ClientMessage, reason: str) -> list[Any]:
    return []


def doubling(self: ClientSession, frame: Map) -> list[Any]:
    message = self.messages.get(frame["id"])
    if message is not None and message.state is MessageState.FOLLOWING:
        message._add(frame.get("text"), frame.get("reasoning"), frame.get("tool_calls"))
        message.cursor = max(message.cursor, frame["seq"])
    return []


def trusting(self: Any, text_bytes: int, text_sha256: str) -> bool:
    return True


def forgetful(self: ClientSession) -> Map:
    return {"type": "hello", "client": self.client}


def renaming(self: Any, message: ClientMessage) -> None:
    if message._uncertain:
        message.id = f"{message.id}-again"
    self.put({"type": "send", "id": message.id, **(message.request or {})})


def stubborn(code: int) -> bool:
    return True


DEFECTS: dict[str, tuple[Any, str, Any]] = {
    "deaf": (Progress, "_resync", deaf_to_gaps),
    "doubling": (ClientSession, "_on_delta", doubling),
    "trusting": (type(ClientMessage("", None, MessageState.SENDING)._visible), "matches", trusting),
    "forgetful": (ClientSession, "hello", forgetful),
    "renaming": (Outbox, "send", renaming),
    "stubborn": (aio, "may_reconnect", stubborn),
}

if __name__ == "__main__":
    owner, name, defect = DEFECTS[sys.argv[1]]
    setattr(owner, name, defect)
    asyncio.run(main())
