"""The large parts of a conversation: each stored once, referred to by its hash. Everything raises `StoreError`, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.errors import ProtocolError
from server.messages import conversation as pure
from server.messages.conversation import Map
from server.messages.place import GONE, STEP_SECONDS
from server.store.keys import ConversationKeys
from server.store.store import Store


def given_parts(parts: Mapping[str, bytes]) -> list[Any]:
    """Large parts as the scripts take them, which store each once, together with what refers to it."""
    return [len(parts), *(value for part in parts.items() for value in part)]


async def referred(
    store: Store, keys: ConversationKeys, messages: Sequence[Map], seconds: float = STEP_SECONDS
) -> list[Map]:
    """An input with its references as they are stored, whatever a client says of their type and size.

    Raises `ProtocolError("invalid_frame")` for one that this conversation does not have, `StoreError`, `TimeoutError`.
    """
    parts = await _read(store, keys, messages, seconds)
    try:
        return [pure.with_known(message, parts) for message in messages]
    except KeyError as error:
        raise ProtocolError("invalid_frame", f"send: this conversation has no part {error.args[0]!r}") from None


async def whole(store: Store, keys: ConversationKeys, messages: Sequence[Map]) -> list[Map]:
    """The messages with their large parts in place. Raises `StoreError`, `TimeoutError`, `ProtocolError`."""
    parts = await _read(store, keys, messages, STEP_SECONDS)
    try:
        return [pure.resolved(message, parts) for message in messages]
    except KeyError:
        raise GONE from None


async def _read(store: Store, keys: ConversationKeys, messages: Sequence[Map], seconds: float) -> dict[str, bytes]:
    wanted = pure.references(messages)
    if not wanted:
        return {}
    found = await store.call(keys.parts, "HMGET", keys.parts, *wanted, seconds=seconds)
    return {name: data for name, data in zip(wanted, found, strict=True) if data is not None}
