"""Waiting until a replica has what its primary was told, so that a failover does not forget it.

`WAIT` holds up every command behind it, so each primary has a connection of its own for it, on which nothing else
waits. `WAIT` counts from the last write of its own connection: each round writes a counter first, which comes after
everything that was answered before. Whoever asks while a round is on its way is served by the next one, all together.

A replica that does not keep up holds nobody up: after a round that came to nothing nobody waits until one succeeds
again. Then a failover may lose what was acknowledged last, as it may with any asynchronous replication.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from server.store.keys import waited
from server.store.link import Link, StoreError
from server.store.store import Store, forget, within
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("replicas")

ROUND_MS: Final = 80
"""How long one round waits for a replica, in milliseconds; less than a link takes for a stall."""
ANSWER_SECONDS: Final = 0.12
"""Within this Redis must have answered a round, or it counts as come to nothing: a refusal is out within 150 ms."""
LOOK_SECONDS: Final = 1.0
"""How often each primary is asked for its replicas, and a lagging one is tried again."""


class Replicas:
    """What one process knows of the replicas of every primary."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._owner = TaskOwner("replicas")
        self._lanes: dict[Link, Lane] = {}

    async def start(self) -> None:
        """Learn which primaries have replicas, and keep looking."""
        await self._look_once()
        self._owner.start(self._look(), "look")

    def confirmed(self, key: bytes) -> asyncio.Future[bool]:
        """Whether a replica has everything that was written before on the primary of `key`; True without replicas.

        Never raises, and is done after about two rounds at most.
        """
        try:
            lane = self._lanes.get(self.store.link(key))
        except StoreError:
            lane = None
        if lane is not None and lane.count:
            return lane.ask()
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done

    async def have(self, key: bytes, seconds: float) -> bool:
        """The same, asking again for so long. A lagging replica is not waited for."""
        try:
            async with asyncio.timeout(seconds):
                while not await self.confirmed(key):
                    lane = self._lanes.get(self.store.link(key))
                    if lane is None or lane.lagging:
                        return False
        except (TimeoutError, StoreError):
            return False
        return True

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look_once()

    async def _look_once(self) -> None:
        try:
            tags = self.store.tags()
        except StoreError:
            return  # some slot has no primary just now
        for primary, tag in tags.items():
            lane = self._lanes.get(primary)
            if lane is None:
                lane = self._lanes[primary] = Lane(self.store.aside(primary))
                self._owner.start(lane.run(), str(primary.address))
            lane.key = waited(tag)
            if lane.link.address != primary.address:
                lane.link.turn_to(primary.address)
        await asyncio.gather(*(self._lanes[primary].look() for primary in tags))

    async def close(self) -> None:
        """Stop; whoever waits still is told False."""
        await self._owner.close()
        for lane in self._lanes.values():
            lane.answer(False)
            await lane.link.close()


class Lane:
    """The waiting connection to one primary."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.key = b""
        self.count = 0
        """How many replicas are online."""
        self.lagging = False
        """Whether the last round came to nothing."""
        self._waiting: list[asyncio.Future[bool]] = []
        self._wake = asyncio.Event()

    def ask(self) -> asyncio.Future[bool]:
        """Wait for the next round; False at once while the replicas lag."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.lagging:
            future.set_result(False)
        else:
            self._waiting.append(future)
            self._wake.set()
        return future

    def answer(self, verdict: bool) -> None:
        """Tell everybody who waits."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(verdict)

    async def run(self) -> None:
        """Round after round, as long as somebody asks."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._waiting = self._waiting, []
            verdict = await self._round()
            for future in asked:
                if not future.done():
                    future.set_result(verdict)
            if not verdict:
                self.answer(False)

    async def _round(self) -> bool:
        try:
            self.link.call("INCR", self.key).add_done_callback(forget)
            acknowledged = int(await within(self.link.call("WAIT", 1, ROUND_MS), ANSWER_SECONDS))
        except (StoreError, TimeoutError):
            acknowledged = 0
        if self.lagging != (not acknowledged):
            self.lagging = not acknowledged
            log.warning("replicas_lag" if self.lagging else "replicas_keep_up", address=str(self.link.address))
        return acknowledged > 0

    async def look(self) -> None:
        """Count the replicas; where they lagged, try whether they still do."""
        try:
            told: bytes = await within(self.link.call("INFO", "replication"), ANSWER_SECONDS)
        except (StoreError, TimeoutError):
            return
        self.count = told.count(b"state=online")
        if self.count and self.lagging:
            await self._round()
