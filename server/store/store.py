"""Redis as the rest of the server sees it: scripts and commands, routed to the primary that holds their key."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from server.store.link import STALL_SECONDS, Address, Link, StoreReply, StoreUnavailable
from server.store.topology import SLOTS, ClusterTopology, SingleTopology, Topology, slot_of, topology_of
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("store")

IMPATIENT: Final = -1.0
"""For calls with a client waiting: they fail as soon as Redis falls silent (`redis.stall_ms`), so that a refusal is out
within 150 ms; as long as it answers others, they wait."""
START_SECONDS: Final = 10.0
ASK_AGAIN_SECONDS: Final = 0.2
MOST_TAGS: Final = 10_000
"""So many tags are tried to find one for every primary."""
LANES: Final = 8
"""Of a cluster, at least so many tags are looked at for what was written beside what lies on a primary."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its version is in its name, its KEYS and ARGV are described at its head."""

    name: str
    source: bytes
    sha: bytes

    @classmethod
    def load(cls, path: Path, common: Path | None = None) -> Script:
        """Read a `.lua` file, behind the one of what it shares with others."""
        source = (common.read_bytes() if common else b"") + path.read_bytes()
        return cls(path.stem, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


class LinkMaker(Protocol):
    """Makes links; the simulation makes its own."""

    def __call__(
        self,
        address: Address,
        scripts: Sequence[bytes] = (),
        on_push: Callable[[list[Any]], bool] | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> Link:
        """See `Link`."""
        ...


class Store:
    """The Redis connections of one process: a link per primary, kept in line with the topology."""

    def __init__(self, topology: Topology, scripts: Sequence[Script], make_link: LinkMaker = Link) -> None:
        self.scripts = scripts
        self._topology = topology
        self._make_link = make_link
        self._sources = [script.source for script in scripts]
        self._slots: list[Link | None] = []
        """Slot → who holds it; empty while one primary holds all of them."""
        self._links: dict[Address, Link] = {}
        self._tags: dict[Link, str] = {}
        self._lanes = [_tag(0)]
        self._whole: Link | None = None
        """The only link, where there is only one: no slot needs to be computed."""
        self._owner = TaskOwner("store")
        self._asking = False
        self.on_connected: Callable[[], None] = lambda: None
        """Called when a primary was connected to (again): it may have lost what was written last."""
        self.on_moved: Callable[[], None] = lambda: None
        """Called when some primary has another address than before."""

    @classmethod
    async def connect(cls, url: str, scripts: Sequence[Script], stall_seconds: float = STALL_SECONDS) -> Store:
        """Connect to the Redis at `url`, which counts as down once it is silent for `stall_seconds`.

        Raises `StoreUnavailable` if it does not answer within 10 s.
        """
        store = cls(topology_of(url), scripts, partial(Link, stall_seconds=stall_seconds))
        try:
            await store.start()
        except BaseException:
            await store.close()
            raise
        return store

    async def start(self) -> None:
        """Learn the topology and connect to every primary. Raises `StoreUnavailable`."""
        self._arrange(await self._topology.ask())
        for link in self.links():
            await link.ready(START_SECONDS)

    def link(self, key: bytes) -> Link:
        """The link to the primary that holds `key`. Raises `StoreUnavailable` if no primary does."""
        if self._whole is not None:
            return self._whole
        link = self._holder(slot_of(key))
        if link is None:
            raise StoreUnavailable("no primary of the cluster holds this slot")
        return link

    def links(self) -> list[Link]:
        """Every primary's link."""
        return list(self._links.values())

    @property
    def available(self) -> bool:
        """Whether every primary answers."""
        return bool(self._links) and all(link.available for link in self.links())

    @property
    def reachable(self) -> bool:
        """Whether some primary answers: what lies there goes on."""
        return any(link.available for link in self.links())

    def subscriber(self, link: Link, on_push: Callable[[list[Any]], bool], on_change: Callable[[bool], None]) -> Link:
        """A second connection to the primary of `link`, for shard-channel subscriptions."""
        return self._make_link(link.address, (), on_push, on_change)

    def aside(self, link: Link) -> Link:
        """Another connection to the primary of `link`, for commands that hold up what comes behind them."""
        return self._make_link(link.address)

    def tags(self) -> dict[Link, str]:
        """Every primary's link and a tag whose keys lie on it: the first of `hb0`, `hb1`, … that does."""
        return self._tags

    def near(self, key: bytes) -> str:
        """The one of `tags` whose keys lie on the primary of `key`; another one while that has hardly a slot.

        Raises `StoreUnavailable` if no primary holds the key.
        """
        return self._tags.get(self.link(key), _tag(0))

    def lanes(self) -> list[str]:
        """Every tag that `near` names, or may have named before slots were moved."""
        return self._lanes

    def _holder(self, slot: int) -> Link | None:
        return self._slots[slot] if self._slots else self._whole

    def _find_tags(self) -> None:
        links = set(self._links.values())
        found: dict[Link, str] = {}
        number = 0
        while len(found) < len(links) and number < MOST_TAGS:
            link = self._holder(slot_of(b"{%s}" % _tag(number).encode()))
            if link is not None:
                found.setdefault(link, _tag(number))
            number += 1
        self._tags = found
        if isinstance(self._topology, ClusterTopology):
            self._lanes = [_tag(n) for n in range(max(number, len(self._lanes), LANES))]

    # --- topology -------------------------------------------------------------------------------------------------

    def _arrange(self, ranges: Sequence[tuple[int, int, Address]]) -> None:
        """Take over a topology. A primary whose place another took keeps its link, turned to the new address."""
        wanted = {address for _, _, address in ranges}
        gone = [address for address in self._links if address not in wanted]
        for first, _, address in ranges:
            if address in self._links:
                continue
            old = self._holder(first)
            if old is not None and old.address in gone:
                gone.remove(old.address)
                self._links[address] = self._links.pop(old.address)
                log.warning("primary_moved", old=str(old.address), new=str(address))
                old.turn_to(address)
            else:
                self._links[address] = self._make_link(address, self._sources, None, self._changed)
        if len(wanted) == 1:
            self._slots, self._whole = [], self._links[ranges[0][2]]
        else:
            slots = self._slots or [self._whole] * SLOTS
            for first, last, address in ranges:
                slots[first : last + 1] = [self._links[address]] * (last + 1 - first)
            self._slots, self._whole = slots, None
        self._find_tags()
        self.on_moved()

    def _changed(self, up: bool) -> None:
        """A connection was made or lost; a lost one may mean that another server is the primary now."""
        if up:
            self.on_connected()
        elif not isinstance(self._topology, SingleTopology):
            self.ask_again()

    def ask_again(self) -> None:
        """The topology may have changed: ask, at most one question at a time."""
        if not self._asking:
            self._asking = True
            self._owner.start(self._ask(), "topology")

    async def _ask(self) -> None:
        try:
            while True:
                try:
                    self._arrange(await self._topology.ask())
                except StoreUnavailable as error:
                    log.warning("topology_unknown", error=str(error))
                if all(link.connected for link in self.links()):
                    return
                await asyncio.sleep(ASK_AGAIN_SECONDS)
        finally:
            self._asking = False

    def misplaced(self, error: StoreReply) -> bool:
        """Whether Redis says that another server has this key or may write it; then the topology is asked again."""
        if str(error).startswith(("MOVED", "ASK", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")):
            self.ask_again()
            return True
        return False

    # --- commands -------------------------------------------------------------------------------------------------

    def send(self, script: Script, keys: Sequence[bytes], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Start a script on the primary of its first key; see `Link.call` for what it raises."""
        return self.link(keys[0]).call("EVALSHA", script.sha, len(keys), *keys, *args)

    async def run(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Any], seconds: float | None = IMPATIENT
    ) -> Any:
        """Run a script and wait for its reply.

        Raises `StoreUnavailable` at once if the primary does not answer anybody, `StoreLost` or `TimeoutError` if it
        stopped answering with this call on the wire (then it may have happened), `StoreReply` for Redis' own errors.
        """
        try:
            return await self._reply(keys[0], seconds, "EVALSHA", script.sha, len(keys), *keys, *args)
        except StoreReply as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await self._reply(keys[0], seconds, "EVAL", script.source, len(keys), *keys, *args)

    async def call(
        self, key: bytes, *command: Any, seconds: float | None = IMPATIENT, stalled_too: bool = False
    ) -> Any:
        """Run a command on the primary of `key`; raises like `run`.

        `stalled_too`: also where it has just fallen silent, and may answer in these seconds yet.
        """
        return await self._reply(key, seconds, *command, stalled_too=stalled_too)

    async def _reply(self, key: bytes, seconds: float | None, *command: Any, stalled_too: bool = False) -> Any:
        link = self.link(key)
        if seconds is not None and not (link.connected if stalled_too else link.available):
            raise StoreUnavailable(f"Redis at {link.address} does not answer")
        reply = link.call(*command)
        if seconds == IMPATIENT:
            link.impatient(reply)
            seconds = None
        try:
            return await within(reply, seconds)
        except StoreReply as error:
            if self.misplaced(error):
                raise StoreUnavailable(str(error)) from None
            raise

    async def close(self) -> None:
        """Close every connection."""
        await self._owner.close()
        for link in self.links():
            await link.close()


def _tag(number: int) -> str:
    """The tag with this number, which lies on some primary."""
    return f"hb{number}"


async def within(future: asyncio.Future[Any], seconds: float | None) -> Any:
    """The future's result; `TimeoutError` after `seconds` unless it was our own loop that was slow.

    `asyncio.timeout` around `asyncio.shield` would do the same at several times the price, and every command pays it.
    """
    if seconds is None or future.done():
        return await future
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(*_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(seconds, wake)
    future.add_done_callback(wake)
    try:
        await waiter
        if not future.done():
            await asyncio.sleep(0)  # one turn of the loop: a reply may lie in the socket already
    finally:
        timer.cancel()
        if not future.done():
            future.remove_done_callback(wake)
            future.add_done_callback(forget)
    if not future.done():
        raise TimeoutError
    return future.result()


def forget(future: asyncio.Future[Any]) -> None:
    """Take a late answer nobody waits for, so that it is not reported as never retrieved."""
    if not future.cancelled():
        future.exception()
