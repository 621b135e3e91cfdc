"""What a node has open: a hint on every primary, written before a claim and removed after its end.

In a cluster the hint of a message lies on the message's own primary, under one of the tags that `Store.lanes` names:
a primary that is silent keeps no message of another from being claimed, and a survivor that reaches a message reaches
its hint, too. Where slots have moved, a hint may be left on another primary; readers look at all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.store.keys import MessageKeys, open_set
from server.store.link import StoreError
from server.store.store import IMPATIENT, Store


@dataclass(slots=True)
class Listed:
    """What was found on a node's lists."""

    lanes: dict[str, set[str]] = field(default_factory=dict)
    """Tag of a message → the lanes in which it is listed."""
    complete: bool = True
    """Whether every lane was read."""


class OpenList:
    """The lists of one node, this one or another."""

    def __init__(self, store: Store, node: str) -> None:
        self.store = store
        self.node = node

    async def add(self, *tags: str, seconds: float | None = IMPATIENT) -> None:
        """List messages, each beside its record. Raises `StoreError` or `TimeoutError` (then some may be listed)."""
        by_lane: dict[str, list[str]] = {}
        for tag in tags:
            by_lane.setdefault(self._lane(tag), []).append(tag)
        calls = []
        for lane, some in by_lane.items():
            key = open_set(self.node, lane)
            calls.append(self.store.call(key, "SADD", key, *some, seconds=seconds))
        if len(calls) == 1:
            await calls[0]
        else:
            await asyncio.gather(*calls)

    async def remove(self, tag: str, seconds: float, lanes: Iterable[str] = ()) -> None:
        """Take a message off, where it is listed now and in `lanes`. Raises `StoreError` or `TimeoutError`."""
        for lane in {self._lane(tag), *lanes}:
            key = open_set(self.node, lane)
            await self.store.call(key, "SREM", key, tag, seconds=seconds)

    async def read(self, seconds: float) -> Listed:
        """Everything that is listed, as far as the primaries answer."""
        lanes = self.store.lanes()
        keys = [open_set(self.node, lane) for lane in lanes]
        members = await asyncio.gather(
            *(self.store.call(key, "SMEMBERS", key, seconds=seconds) for key in keys), return_exceptions=True
        )
        listed = Listed()
        for lane, found in zip(lanes, members, strict=True):
            if isinstance(found, StoreError | TimeoutError):
                listed.complete = False
            elif isinstance(found, BaseException):
                raise found
            else:
                for tag in found:
                    listed.lanes.setdefault(tag.decode(), set()).add(lane)
        return listed

    def _lane(self, tag: str) -> str:
        return self.store.near(MessageKeys.of(tag).record)
