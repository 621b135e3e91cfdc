"""What is kept of a user, as a whole: told line by line, or deleted.

The lists of a user are written before what they list begins and changed after it ended, so nothing is left out. Counts
that bills and limits need are no part of it: they hold no content.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import orjson

from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.messages import request as asked
from server.messages.conversation import Map
from server.messages.conversations import ERASE_AT_ONCE, ERASE_SECONDS, Conversations
from server.messages.events import merge_calls
from server.messages.place import Place
from server.messages.service import Messages
from server.store.keys import MessageKeys, active_set, conversation_index, message_index, message_tag, user_tag

AT_ONCE: Final = 100
"""So many entries are read in one round trip."""
SNAPSHOT_BYTES: Final = 65_536
READ_SECONDS: Final = 5.0
LOOK_AGAIN_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion came to."""

    conversations: int
    messages: int
    left: int
    """Messages that had not ended in time; asked again, they are deleted too."""


class Personal:
    """The data of one user. Everything raises `StoreError` or `TimeoutError`."""

    def __init__(self, messages: Messages, who: Principal) -> None:
        self.who = who
        self.messages = messages
        self.conversations: Conversations = messages.means.conversations
        self._store = messages.means.store
        self._user = user_tag(who.tenant, who.kind, who.user)

    # --- telling ------------------------------------------------------------------------------------------------------

    async def lines(self) -> AsyncGenerator[Map, None]:
        """Everything, an object a line."""
        who = self.who
        yield {"object": "user", "tenant": who.tenant, "kind": who.kind, "user": who.user, "exported": time.time()}
        for name in await self._conversation_ids():
            async for line in self._conversation(name):
                yield line
        for message_id in await self._message_ids():
            message = await self._message(message_id)
            if message is not None:
                yield message

    async def _conversation(self, name: str) -> AsyncGenerator[Map, None]:
        place = Place.of(self._user, name)
        try:
            overview = await self.conversations.overview(place, READ_SECONDS)
        except ProtocolError:
            return  # listed first, made afterwards; or it has expired
        yield {"object": "conversation", "id": name, **overview.shown()}
        ids = await self.conversations.entry_ids(place)
        for begin in range(0, len(ids), AT_ONCE):
            for entry in await self.conversations.entries(place, ids[begin : begin + AT_ONCE]):
                yield {"object": "entry", "conversation": name, **entry.shown()}
        for ref in await self.conversations.part_ids(place):
            try:
                data = await self.conversations.part(place, ref)
            except ProtocolError:
                continue  # deleted meanwhile
            yield {"object": "part", "conversation": name, "ref": ref, "part": orjson.loads(data)}

    async def _message(self, message_id: str) -> Map | None:
        keys, reader = self._keys(message_id), self.messages.reader
        details = await reader.details(keys)
        if details is None:
            return None
        record = details.record
        text, reasoning, calls = [], [], []  # type: list[str], list[str], list[Map]
        whole = False
        while not whole:
            text, reasoning, calls = [], [], []
            async for part in reader.snapshot(message_id, keys, record, SNAPSHOT_BYTES):
                text.append(part["text"])
                reasoning.append(part.get("reasoning", ""))
                merge_calls(calls, part.get("tool_calls", ()))
                whole = part["last"]
            if not whole:  # a restart came in between
                fresh = await reader.record(keys)
                if fresh is None:
                    return None
                record = fresh
        packed, history = await self._store.call(
            keys.record, "HMGET", keys.record, "req", "history", seconds=READ_SECONDS
        )
        line: Map = {
            "object": "message", "id": message_id, "state": record.state, "created": details.created,
            "model": details.model, "conversation": record.conversation, "text": "".join(text),
            "reasoning": "".join(reasoning) or None, "tool_calls": calls or None,
            "request": asked.unpack(packed) if packed else None,
            "history": orjson.loads(history) if history else None,
            "attempts": details.attempts, "end": record.end,
        }  # fmt: skip
        return {name: value for name, value in line.items() if value is not None}

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def delete(self) -> Deleted:
        """Stop what runs and erase everything. The ids stay used up, so that nothing is generated twice."""
        names = await self._conversation_ids()
        for name in names:
            place = Place.of(self._user, name)
            try:
                await self.conversations.delete(self.who, place)
            except ProtocolError:  # it has expired, or was never made
                await self.conversations.unlist(self.who, place)
        ids = await self._message_ids()
        left = await self._erase(ids)
        return Deleted(len(names), len(ids) - len(left), len(left))

    async def _erase(self, ids: list[str]) -> list[str]:
        """Erase messages, running ones as soon as they have stopped; those that had not in time."""
        until = asyncio.get_running_loop().time() + ERASE_SECONDS
        while True:
            left: list[str] = []
            for begin in range(0, len(ids), ERASE_AT_ONCE):
                some = ids[begin : begin + ERASE_AT_ONCE]
                gone = await asyncio.gather(*(self._stop_and_erase(message_id) for message_id in some))
                left += [message_id for message_id, erased in zip(some, gone, strict=True) if not erased]
            if not left or asyncio.get_running_loop().time() > until:
                return left
            ids = left
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _stop_and_erase(self, message_id: str) -> bool:
        keys = self._keys(message_id)
        try:
            await self.messages.cancel(self.who, message_id)
        except ProtocolError as error:
            if error.code != "message_unknown":
                raise TimeoutError from None
        if not await self.conversations.erase(keys, DELETED):
            return False
        index, active = message_index(self._user), active_set(self._user)
        await self._store.call(index, "ZREM", index, message_id, seconds=READ_SECONDS)
        await self._store.call(active, "SREM", active, message_id, seconds=READ_SECONDS)
        return True

    # --- lists --------------------------------------------------------------------------------------------------------

    async def _conversation_ids(self) -> list[str]:
        index = conversation_index(self._user)
        return [name.decode() for name in await self._store.call(index, "ZRANGE", index, 0, -1, seconds=READ_SECONDS)]

    async def _message_ids(self) -> list[str]:
        """Every message that may still be there: those that are kept, oldest first, then those that run."""
        index, active = message_index(self._user), active_set(self._user)
        running = await self._store.call(active, "SMEMBERS", active, seconds=READ_SECONDS)
        kept = await self._store.call(index, "ZRANGE", index, 0, -1, seconds=READ_SECONDS)
        return list(dict.fromkeys(name.decode() for name in (*kept, *running)))

    def _keys(self, message_id: str) -> MessageKeys:
        return MessageKeys.of(message_tag(self.who.tenant, self.who.kind, self.who.user, message_id))


DELETED: Final = ProtocolError("message_unknown", "the message was deleted")
