"""Which nodes live, and what becomes of the messages of those that do not (G4).

A node lives as long as its heartbeat counter moves. There is no time to live in it and no clock of anybody else: a
node is taken for dead when its counter stood still for `takeover_seconds` of the **observer's own** monotonic time,
over uninterrupted fast reads. Any error, slow read, pause of the observer's own event loop or fresh start begins the
observation anew, so that after a freeze of Redis or of the observer nobody is taken for dead. In a cluster each
primary has its own heartbeats, and each message is judged by those of its primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from server.messages.openlist import Listed, OpenList
from server.store.keys import GONE, NODES, heartbeat
from server.store.link import Link, StoreError, StoreLost, StoreUnavailable
from server.store.store import Store, forget, within
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("ownership")

BEAT_SECONDS: Final = 0.25
"""How often a node raises its counters and reads those of the others."""
SLOW_READ_SECONDS: Final = 0.5
"""A read that took longer proves nothing about anybody's life."""
PAUSE_SECONDS: Final = 1.0
"""Two readings further apart than this were not uninterrupted."""
RECONCILE_SECONDS: Final = 5.0
"""How often a node looks for messages it owns but does not run."""
FORGET_SECONDS: Final = 60.0
"""How long after a node's death its empty traces are removed."""
ADOPT_AT_ONCE: Final = 32


class Observer:
    """Judges by the counters of one primary. Pure: times are seconds of the observer's monotonic clock."""

    def __init__(self, takeover_seconds: float) -> None:
        self.takeover_seconds = takeover_seconds
        self._seen: dict[str, tuple[int, float]] = {}
        """Node → its counter and since when it has stood there, as far as an uninterrupted observation tells."""
        self._read_at: float | None = None

    @property
    def observing(self) -> bool:
        """Whether an uninterrupted observation has begun."""
        return self._read_at is not None

    def interrupted(self) -> None:
        """An error, a pause, a start: the observation begins anew."""
        self._seen.clear()
        self._read_at = None

    def read(self, counters: Mapping[str, int | None], started: float, ended: float) -> set[str]:
        """Take one reading; the nodes that are dead by it. A missing counter stands still at -1."""
        gap = 0.0 if self._read_at is None else started - self._read_at
        if ended - started > SLOW_READ_SECONDS or gap > PAUSE_SECONDS:
            self.interrupted()
        dead = set()
        for node, counter in counters.items():
            value = -1 if counter is None else counter
            before = self._seen.get(node)
            if before is None or before[0] != value:
                self._seen[node] = (value, ended)
            elif started - before[1] >= self.takeover_seconds:
                dead.add(node)
        for node in self._seen.keys() - counters.keys():
            del self._seen[node]
        self._read_at = ended
        return dead


Adopt = Callable[[str, str], Awaitable[bool]]
"""Take over the message with this tag from this node; True if nothing is left to do with it."""


class Ownership:
    """One node's heartbeats and its view of the others."""

    def __init__(self, store: Store, node: str, takeover_seconds: float, adopt: Adopt) -> None:
        self.store = store
        self.node = node
        self.takeover_seconds = takeover_seconds
        self.adopt = adopt
        self.reconcile: Callable[[bool], Awaitable[None]] | None = None
        """Called now and then: look for own messages that nobody runs. True: Redis may have lost some of them."""
        self.adopting = True
        """False while draining: the others take what there is."""
        self._observers: dict[Link, Observer] = {}
        self._owner = TaskOwner("ownership")
        self._doubted = asyncio.Event()
        """Redis may have lost what was written last."""
        self._busy: set[tuple[str, Link]] = set()
        self._idle_since: dict[str, float] = {}
        self.others = 0
        """How many other nodes are on the list and have not let go."""
        self._known: dict[bytes, set[str]] = {}
        """What the lists of nodes held when their primary last answered."""

    async def start(self) -> None:
        """Say that this node is there and begin to beat. Raises `StoreError` or `TimeoutError`."""
        await self.store.call(NODES, "SADD", NODES, self.node, seconds=5.0)
        self.store.on_connected = self._list_again
        await self._beat()
        self._owner.start(self._run(), "beat")
        self._owner.start(self._reconcile(), "reconcile")

    def _list_again(self) -> None:
        """Redis may have lost that this node is there: say so before anything else, or nobody would miss it."""
        self._doubted.set()
        try:
            self.store.link(NODES).call("SADD", NODES, self.node).add_done_callback(forget)
        except StoreError:
            log.info("listing_put_off", node=self.node)  # `_watch` comes round

    async def leave(self) -> None:
        """Stop beating. With nothing open this node strikes itself off; else it tells the others not to wait."""
        self.store.on_connected = lambda: None
        await self._owner.close()
        listed = await OpenList(self.store, self.node).read(5.0)
        if listed.lanes or not listed.complete:
            await self.store.call(GONE, "SADD", GONE, self.node, seconds=5.0)
        else:
            await self._strike_off(self.node)

    async def bequeath(self, heir: str) -> None:
        """Tell the others to take what is listed under `heir`, a name that never beats. May be repeated."""
        for key in (GONE, NODES):
            await self.store.call(key, "SADD", key, heir, seconds=5.0)

    async def close(self) -> None:
        """Stop beating."""
        self.store.on_connected = lambda: None
        await self._owner.close()

    # --- beating and watching -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._beat()
                await self._watch()
            except (StoreError, TimeoutError) as error:
                self._interrupted(str(error))
            await asyncio.sleep(max(0.0, began + BEAT_SECONDS - loop.time()))

    def _interrupted(self, why: str) -> None:
        for observer in self._observers.values():
            observer.interrupted()
        log.debug("observation_interrupted", why=why)

    async def _beat(self) -> None:
        """Raise the counter on every primary; one that is silent doesn't keep the others waiting."""
        beats = []
        for link, tag in self.store.tags().items():
            if link.available:
                beats.append(link.call("INCR", heartbeat(self.node, tag)))
        if beats:
            await asyncio.wait(beats, timeout=SLOW_READ_SECONDS)
            for beat in beats:
                if beat.done():
                    beat.exception()

    async def _watch(self) -> None:
        nodes, gone = await asyncio.gather(self._members(NODES), self._members(GONE))
        if self.node not in nodes:  # struck off while it was paused
            await self.store.call(NODES, "SADD", NODES, self.node, seconds=SLOW_READ_SECONDS)
        self.others = len(nodes - gone - {self.node})
        others = sorted(nodes - {self.node})
        if not others:
            return
        tags = self.store.tags()
        dead_by = await asyncio.gather(*(self._read(link, tag, others) for link, tag in tags.items()))
        for node in others:
            links = [link for link, dead in zip(tags, dead_by, strict=True) if node in gone or node in dead]
            if links:
                self._adopt_soon(node, links)
            else:
                self._idle_since.pop(node, None)

    async def _members(self, key: bytes) -> set[str]:
        """A list of nodes; as it was, while its primary is silent: the messages of the others must not wait for it."""
        try:
            found = await self.store.call(key, "SMEMBERS", key, seconds=SLOW_READ_SECONDS, stalled_too=True)
        except (StoreError, TimeoutError):
            if key not in self._known or not self.store.reachable:
                raise
            return self._known[key]
        self._known[key] = {member.decode() for member in found}
        return self._known[key]

    async def _read(self, link: Link, tag: str, nodes: list[str]) -> set[str]:
        loop = asyncio.get_running_loop()
        observer = self._observers.setdefault(link, Observer(self.takeover_seconds))
        started = loop.time()
        try:
            if not link.available and not observer.observing:  # nothing to lose by not waiting for it
                raise link.unavailable()
            values = await within(link.call("MGET", *(heartbeat(node, tag) for node in nodes)), SLOW_READ_SECONDS)
        except (StoreUnavailable, StoreLost, TimeoutError):
            observer.interrupted()
            return set()
        counters = {node: None if value is None else int(value) for node, value in zip(nodes, values, strict=True)}
        return observer.read(counters, started, loop.time())

    # --- adopting -------------------------------------------------------------------------------------------------

    def _adopt_soon(self, node: str, links: Iterable[Link]) -> None:
        """Begin with what `node` has open on these primaries, but for those where it is being taken over already."""
        free = [link for link in links if (node, link) not in self._busy]
        if self.adopting and free:
            self._busy.update((node, link) for link in free)
            self._owner.start(self._adopt_all(node, free), f"adopt from {node}")

    async def _adopt_all(self, node: str, links: Sequence[Link]) -> None:
        """Read once what `node` has open, and take it over on each of these primaries by itself: one may be silent."""
        begun: set[Link] = set()
        try:
            listed = await OpenList(self.store, node).read(5.0)
            if listed.lanes:
                for link in links:
                    self._owner.start(self._adopt_on(node, link, listed), f"adopt from {node} on {link.address}")
                    begun.add(link)
            elif listed.complete:
                await self._forget_later(node)
        except (StoreError, TimeoutError) as error:
            log.info("adoption_put_off", dead=node, error=str(error))
        finally:
            self._busy.difference_update((node, link) for link in links if link not in begun)

    async def _adopt_on(self, node: str, link: Link, listed: Listed) -> None:
        """Take over what `node` has open on the primary of `link`, each message once, in random order."""
        try:
            mine = [tag for tag in listed.lanes if self.store.link(b"{%s}" % tag.encode()) is link]
            log.warning("node_dead", dead=node, open=len(mine))
            random.shuffle(mine)
            slots = asyncio.Semaphore(ADOPT_AT_ONCE)
            await asyncio.gather(*(self._adopt_one(node, tag, listed.lanes[tag], slots) for tag in mine))
        except (StoreError, TimeoutError) as error:
            log.info("adoption_put_off", dead=node, error=str(error))
        finally:
            self._busy.discard((node, link))

    async def _adopt_one(self, node: str, tag: str, lanes: Iterable[str], slots: asyncio.Semaphore) -> None:
        async with slots:
            if await self.adopt(tag, node):
                await OpenList(self.store, node).remove(tag, 5.0, lanes)

    async def _forget_later(self, node: str) -> None:
        """A dead node that has nothing open is struck off the list, after a while."""
        now = asyncio.get_running_loop().time()
        since = self._idle_since.setdefault(node, now)
        if now - since < FORGET_SECONDS:
            return
        await self._strike_off(node)
        self._idle_since.pop(node, None)
        log.info("node_forgotten", dead=node)

    async def _strike_off(self, node: str) -> None:
        for tag in self.store.tags().values():
            key = heartbeat(node, tag)
            await self.store.call(key, "DEL", key, seconds=5.0)
        for key in (NODES, GONE):
            await self.store.call(key, "SREM", key, node, seconds=5.0)

    async def _reconcile(self) -> None:
        doubted = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECONCILE_SECONDS):
                    await self._doubted.wait()
            doubted = doubted or self._doubted.is_set()
            self._doubted.clear()
            if self.reconcile is not None:
                try:
                    await self.reconcile(doubted)
                    doubted = False
                except (StoreError, TimeoutError) as error:
                    log.info("reconcile_put_off", error=str(error))
