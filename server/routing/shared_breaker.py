"""The breakers of one node, kept in step with those of the other nodes through Redis.

A condition changes by compare-and-set on its version, under the server's TIME, and is published on one shard channel;
every node works from its own copy, so no call waits for Redis. Only a probe does: its lease must stand in Redis before
it is sent. A copy that a lost notification left behind is put right by the look that every node takes every
`LOOK_SECONDS`, or by the first compare-and-set that fails.

Without Redis each node goes on alone, with the same rules; what it closed off meanwhile is told to the others once
Redis is back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import structlog

from server.config.sections import BreakerSettings
from server.routing.attempts import Route
from server.routing.breaker import Breaker, Cause, Condition, Happening, Lease, State, advance
from server.routing.gate import BreakerWatch, Held, TargetState, Ticket
from server.routing.hedging import HedgeBudget, Latencies
from server.store.keys import BREAKERS_CHANNEL, breaker
from server.store.link import Link, StoreError
from server.store.store import Script, Store
from server.telemetry.tasks import TaskOwner
from server.upstreams.base import Fault, TargetSpec
from server.upstreams.faults import CONSEQUENCES

log = structlog.get_logger("breaker")

LOOK_SECONDS: Final = 2.0
"""How often the shared conditions are read, in case a notification was lost."""
LEASE_MARGIN_SECONDS: Final = 5.0
"""By so much a lease outlives the longest silence that the target's time limits allow a probe."""
KEEP_MS: Final = 24 * 3600 * 1000
"""How long a condition is kept after its last change; then the target is as good as new."""
TRIES: Final = 5
"""Of a compare-and-set, each beaten by another node."""

_LUA: Final = Path(__file__).parent / "lua"
SWAP: Final = Script.load(_LUA / "swap_condition_v1.lua")
READ: Final = Script.load(_LUA / "read_conditions_v1.lua")
ALL: Final = (SWAP, READ)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a breaker needs to know of its target."""

    name: str
    model: str
    credential: tuple[str, ...]
    """Targets with the same one share the provider's rate limit."""
    silence_seconds: float
    """The longest a call may take to its first content: then the driver has given it up."""

    @classmethod
    def of(cls, spec: TargetSpec) -> Watched:
        """As its settings say. A target without a key has a credential of its own."""
        shared = (spec.driver, spec.base_url or "", spec.api_key) if spec.api_key else (spec.name,)
        return cls(spec.name, spec.model, shared, spec.connect_seconds + spec.first_token_seconds)


class SharedBreakers:
    """The `Gate` of a node."""

    def __init__(
        self,
        targets: Iterable[Watched],
        routes: Mapping[str, Route],
        settings: BreakerSettings,
        store: Store,
        watch: BreakerWatch,
        chance: random.Random,
        lease_margin_seconds: float = LEASE_MARGIN_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.lease_margin_seconds = lease_margin_seconds
        self.store = store
        self.watch = watch
        self._targets = {target.name: target for target in targets}
        self._breakers = {name: Breaker(settings) for name in self._targets}
        self._known: dict[str, tuple[int, Condition]] = dict.fromkeys(self._targets, (0, Condition()))
        """Version and condition as Redis last told them."""
        self._unsaid: set[str] = set()
        """Targets whose last change could not be told to Redis."""
        self._latencies = {name: Latencies() for name in self._targets}
        self._budgets = {name: HedgeBudget(route.hedge_budget) for name, route in routes.items()}
        self._shown: dict[str, State] = {}
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._ahead = wall_clock() - self._loop.time()
        """The server's clock minus this loop's; until it has told it, the wall clock's."""
        self._owner = TaskOwner("breakers")
        self._subscriber: Link | None = None
        self._primary: Link | None = None
        self._looking = asyncio.Event()

    async def start(self) -> None:
        """Learn what the others know, and listen. Without Redis: go on alone."""
        self._subscribe()
        await self._look()
        self._owner.start(self._keep_looking(), "look")

    async def close(self) -> None:
        """Stop listening. Leases that are still held expire by themselves."""
        await self._owner.close()
        if self._subscriber is not None:
            await self._subscriber.close()

    def now(self) -> float:
        """The shared clock: Redis' TIME, as far as this node knows it, in seconds."""
        return self._loop.time() + self._ahead

    # --- the gate -----------------------------------------------------------------------------------------------------

    async def enter(self, target: str) -> Ticket | Held:
        """See `Gate`."""
        mine = self._breakers[target]
        verdict = mine.ask(self.now(), self._chance.random())
        if verdict == "needs_lease":
            lease = await self._lease(target)
            if lease is not None:
                return _Ticket(self, target, lease, mine.condition.since)
        elif verdict == "admitted":
            return _Ticket(self, target, None, 0.0)
        state = mine.condition.settled(self.now()).state
        self.watch.target_held(target, state)
        return Held(mine.wait(self.now()), state)

    async def _lease(self, target: str) -> Lease | None:
        """Ask for a probe's lease; one that is granted after the caller has gone is given back."""
        length = self.silence_seconds(target) + self.lease_margin_seconds
        lease = Lease(f"{self._chance.getrandbits(64):x}", self.now() + length)
        asking = self._owner.start(self._move(target, Happening.PROBE, Cause(lease=lease)), "lease")
        try:
            granted = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda _: self._give_back(target, lease))
            raise
        return lease if granted else None

    def _give_back(self, target: str, lease: Lease) -> None:
        if any(held.id == lease.id for held in self._breakers[target].condition.leases):
            self.happened(target, Happening.RETURN, Cause(lease=lease))

    def silence_seconds(self, target: str) -> float:
        """The longest a call may take to its first content."""
        return self._targets[target].silence_seconds

    def wait_seconds(self, target: str) -> float:
        """See `Gate`."""
        return self._breakers[target].wait(self.now())

    def hedge_after(self, route: Route, target: str) -> float | None:
        """See `Gate`."""
        self._budgets[route.name].call()
        observed = self._latencies[target].p95 if route.hedge_at_p95 else None
        return observed if observed is not None else route.hedge_after_seconds

    def may_hedge(self, route: Route) -> bool:
        """See `Gate`."""
        return self._budgets[route.name].take()

    def hedged(self, route: Route, won: bool) -> None:
        """See `Gate`."""
        self.watch.hedge_ended(route.name, "second" if won else "first")

    def target_states(self) -> list[TargetState]:
        """How every target stands, as this node sees it."""
        return [self._state_of(target) for target in self._targets.values()]

    def _state_of(self, target: Watched) -> TargetState:
        now, mine = self.now(), self._breakers[target.name]
        condition, counts, p95 = mine.condition.settled(now), mine.window.counts(now), self._latencies[target.name].p95
        return state_of(target, condition, now, self.settings, counts.calls, counts.failed, counts.slow, p95)

    # --- what calls tell ----------------------------------------------------------------------------------------------

    def running(self, target: str, step: int) -> None:
        """A call began (1) or ended (-1)."""
        self._breakers[target].running += step

    def began(self, target: str, seconds: float) -> None:
        """A first content came."""
        self._latencies[target].add(seconds)

    def count(self, target: str, *, failed: str, slow: bool) -> None:
        """An ordinary call ended; `failed` is the code of its failure, or empty."""
        if self._breakers[target].count(self.now(), failed=bool(failed), slow=slow):
            self.happened(target, Happening.TRIP, Cause(failed or "slow"))

    def refused(self, target: str, code: str) -> None:
        """401, 403, 404: somebody has to look at this."""
        log.error("target_refuses_us", target=target, fault=code, hint="check its key, base_url and model")
        self.watch.target_alarm(target, code)
        self.happened(target, Happening.BAR, Cause(code))

    def throttled(self, target: str, code: str, wait_seconds: float | None, lease: Lease | None) -> None:
        """429: the limit is the credential's, so every target that has it rests. `lease`: that of the probe it was."""
        credential = self._targets[target].credential
        for other in self._targets.values():
            if other.credential == credential:
                mine = lease if other.name == target else None
                self.happened(other.name, Happening.THROTTLE, Cause(code, wait_seconds, mine))

    def is_half_open_since(self, target: str, episode: float) -> bool:
        """Whether the period in which a probe got its lease still lasts."""
        condition = self._breakers[target].condition
        return condition.state is State.HALF_OPEN and condition.since == episode

    def happened(self, target: str, happening: Happening, cause: Cause) -> None:
        """Apply it here at once, and tell the others."""
        mine, chance = self._breakers[target], self._chance.random()
        seen = mine.condition
        after = advance(seen, happening, cause, self.now(), chance, self.settings)
        if after is not None:
            self._adopt(target, after)
            self._owner.start(self._move(target, happening, cause, seen, chance), happening)

    # --- compare and set ----------------------------------------------------------------------------------------------

    async def _move(
        self,
        target: str,
        happening: Happening,
        cause: Cause,
        seen: Condition | None = None,
        chance: float = 0.5,
    ) -> bool:
        """Make a transition everybody's; False if it is no longer one, or was not granted.

        `seen` is what it was decided on: where others have moved on since, it is news of the past.
        """
        for _ in range(TRIES):
            if target in self._unsaid:
                return self._alone(target, happening, cause, seen is None)
            version, theirs = self._known[target]
            after = advance(theirs, happening, cause, self.now(), chance, self.settings)
            if after is None or (seen is not None and not _same(theirs, seen, self.now())):
                self._adopt(target, theirs)
                return False
            try:
                outcome = await self._swap(target, version, after, _not_before(theirs, after, self.now()))
            except (StoreError, TimeoutError):
                return self._alone(target, happening, cause, seen is None)
            if outcome > 0:
                return True
            if outcome < 0:
                return False
        return False

    def _alone(self, target: str, happening: Happening, cause: Cause, not_yet: bool) -> bool:
        """Redis is gone: the node goes by its own copy."""
        self._unsaid.add(target)
        if not not_yet:
            return True  # it was applied when it happened
        after = advance(self._breakers[target].condition, happening, cause, self.now(), 0.5, self.settings)
        if after is not None:
            self._adopt(target, after)
        return after is not None

    async def _swap(self, target: str, version: int, after: Condition, not_before: float) -> int:
        """1 if `after` is the shared condition now, 0 if another one is, -1 if it is too early."""
        keys = [breaker(target), BREAKERS_CHANNEL]
        args = [version, pack(after), f"{not_before:.6f}", target, KEEP_MS]
        before = self._known[target]
        reply: list[Any] = await self.store.run(SWAP, keys, args)
        self._set_clock(reply[1])
        told = int(reply[2])
        if self._known[target] is before or told > self._known[target][0]:  # else a notification overtook the answer
            self._learn(target, told, after if reply[0] == 1 else unpack(reply[3]))
        return int(reply[0])

    def _learn(self, target: str, version: int, condition: Condition) -> None:
        """Redis has told what stands there."""
        self._unsaid.discard(target)
        if (version, condition) != self._known[target]:
            self._known[target] = (version, condition)
            self._adopt(target, condition)

    def _adopt(self, target: str, condition: Condition) -> None:
        if self._breakers[target].adopt(condition):
            state = condition.settled(self.now()).state
            log.info("target_state", target=target, state=state, why=condition.why, openings=condition.streak)
            self.watch.breaker_moved(target, state, condition.why)
        self._show(target)

    def _show(self, target: str) -> None:
        """Tell the metrics, also of what time alone has changed."""
        state = self._breakers[target].condition.settled(self.now()).state
        if self._shown.get(target) is not state:
            self._shown[target] = state
            self.watch.target_state(target, state)

    def _set_clock(self, told: bytes) -> None:
        self._ahead = float(told) - self._loop.time()

    # --- hearing of others --------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        """Listen on the primary that has the channel, wherever it is now."""
        try:
            primary = self.store.link(BREAKERS_CHANNEL)
        except StoreError:
            return
        if self._subscriber is None or primary is not self._primary:
            if self._subscriber is not None:
                self._owner.start(self._subscriber.close(), "old primary")
            self._primary = primary
            self._subscriber = self.store.subscriber(primary, self._pushed, self._connected)
        elif self._subscriber.address != primary.address:
            self._subscriber.turn_to(primary.address)

    def _connected(self, up: bool) -> None:
        if up and self._subscriber is not None:
            self._subscriber.push("SSUBSCRIBE", BREAKERS_CHANNEL)

    def _pushed(self, reply: list[Any]) -> bool:
        if reply[0] == b"smessage":
            self._heard(reply[2])
        elif reply[0] == b"ssubscribe":
            self._looking.set()  # what was said before is read now
        return reply[0] in (b"smessage", b"ssubscribe", b"sunsubscribe")

    def _heard(self, data: bytes) -> None:
        told, version, length, rest = data.split(b" ", 3)
        target, packed = rest[: int(length)].decode(), rest[int(length) :]
        self._set_clock(told)
        if target in self._known and int(version) > self._known[target][0]:
            self._learn(target, int(version), unpack(packed))

    async def _keep_looking(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._looking.wait()
            except TimeoutError:
                pass
            self._looking.clear()
            self._subscribe()
            await self._look()

    async def _look(self) -> None:
        """Read every shared condition, tell what could not be told, and show what time has changed."""
        names = list(self._targets)
        before = dict(self._known)
        try:
            told, *found = await self.store.run(READ, [breaker(name) for name in names], [])
        except (StoreError, TimeoutError):
            found = []
        else:
            self._set_clock(told)
        for name, version, packed in zip(names, found[::2], found[1::2], strict=False):
            if self._known[name] is not before[name]:
                continue  # a notification overtook the answer
            if name in self._unsaid:
                await self._tell(name, int(version), unpack(packed))
            else:
                self._learn(name, int(version), unpack(packed))
        for name in names:
            self._show(name)

    async def _tell(self, target: str, version: int, theirs: Condition) -> None:
        """Redis is back: what is shut here and open there is shut; otherwise what the others say holds."""
        now, mine = self.now(), self._breakers[target].condition
        shut = (State.OPEN, State.THROTTLED)
        if mine.settled(now).state in shut and theirs.settled(now).state not in (*shut, State.HALF_OPEN):
            try:
                await self._swap(target, version, mine, 0.0)
            except (StoreError, TimeoutError):
                return
        else:
            self._unsaid.discard(target)
            self._known[target] = (version, theirs)
            self._adopt(target, theirs)


class _Ticket:
    """One admitted call, and the lease it goes under if it is a probe."""

    __slots__ = ("_board", "_episode", "_first", "_lease", "_over", "_target", "_timer")

    def __init__(self, board: SharedBreakers, target: str, lease: Lease | None, episode: float) -> None:
        self._board = board
        self._target = target
        self._lease = lease
        self._episode = episode
        self._first: float | None = None
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        board.running(target, 1)
        if lease is not None:
            wait = lease.expires - board.now() - board.lease_margin_seconds / 2
            self._timer = asyncio.get_running_loop().call_later(wait, self._streams_on)

    def late(self) -> bool:
        """See `Ticket`."""
        lease, board = self._lease, self._board
        return lease is not None and board.now() + board.silence_seconds(self._target) > lease.expires

    def began(self, seconds: float) -> None:
        """See `Ticket`."""
        if self._first is None:
            self._first = seconds
            self._board.began(self._target, seconds)

    def well(self, longest_gap_seconds: float) -> None:
        """See `Ticket`."""
        if self._end():
            self._answered(longest_gap_seconds)

    def failed(self, fault: Fault, retry_after_seconds: float | None) -> None:
        """See `Ticket`."""
        if not self._end():
            return
        board, target, row = self._board, self._target, CONSEQUENCES[fault]
        match row.breaker:
            case "ignored":
                self._verdict(Happening.RETURN, "none", Cause())
            case "throttles":
                lease = self._lease
                self._told("throttled")
                board.throttled(target, fault, retry_after_seconds, lease)
            case "opens":
                self._told("ill")
                board.refused(target, fault)
            case "counts":
                cause = Cause(fault, retry_after_seconds)
                if not self._verdict(Happening.ILL, "ill", cause):
                    board.count(target, failed=fault, slow=self._slow(0.0))

    def void(self, silent_seconds: float = 0.0) -> None:
        """See `Ticket`."""
        if not self._end():
            return
        if silent_seconds:
            self._board.began(self._target, silent_seconds)  # at least so long; else hedges would hide how slow it is
        slow = silent_seconds > self._board.settings.slow_first_token_seconds
        if slow and not self._verdict(Happening.ILL, "ill", Cause("slow")):
            self._board.count(self._target, failed="", slow=True)
        elif self._first is not None:
            self._verdict(Happening.WELL, "well", Cause())
        else:
            self._verdict(Happening.RETURN, "none", Cause())

    def _answered(self, longest_gap_seconds: float) -> None:
        slow = self._slow(longest_gap_seconds)
        happening, cause = (Happening.ILL, Cause("slow")) if slow else (Happening.WELL, Cause())
        if not self._verdict(happening, "ill" if slow else "well", cause):
            self._board.count(self._target, failed="", slow=slow)

    def _streams_on(self) -> None:
        """The lease is about to expire: a probe that brings content is well, whenever it ends."""
        if self._first is not None and not self._over:
            slow = self._slow(0.0)
            self._verdict(Happening.ILL if slow else Happening.WELL, "ill" if slow else "well", Cause())

    def _verdict(self, happening: Happening, outcome: str, cause: Cause) -> bool:
        """If this is a probe whose lease holds, say how it went; False if it counts as any other call."""
        lease = self._lease
        if lease is None:
            return False
        self._told(outcome)
        if self._board.is_half_open_since(self._target, self._episode):
            self._board.happened(self._target, happening, Cause(cause.why, cause.wait_seconds, lease))
        else:  # it says nothing about the trials of now, but it no longer takes the place of one
            self._board.happened(self._target, Happening.RETURN, Cause(lease=lease))
        return True

    def _told(self, outcome: str) -> None:
        if self._lease is not None:
            self._lease = None
            self._board.watch.probe_ended(self._target, outcome)

    def _slow(self, gap_seconds: float) -> bool:
        settings = self._board.settings
        return (self._first or 0.0) > settings.slow_first_token_seconds or gap_seconds > settings.slow_gap_seconds

    def _end(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._board.running(self._target, -1)
        if self._timer is not None:
            self._timer.cancel()
        return True


async def read_states(store: Store, targets: Iterable[Watched], settings: BreakerSettings) -> list[TargetState]:
    """What all nodes together know of these targets, without being one. Raises `StoreError` or `TimeoutError`."""
    watched = list(targets)
    told, *found = await store.run(READ, [breaker(target.name) for target in watched], [], seconds=None)
    return [
        state_of(target, unpack(packed), float(told), settings)
        for target, packed in zip(watched, found[1::2], strict=True)
    ]


def state_of(
    target: Watched,
    condition: Condition,
    now: float,
    settings: BreakerSettings,
    calls: int = 0,
    failed: int = 0,
    slow: int = 0,
    p95: float | None = None,
) -> TargetState:
    """A condition as people are shown it."""
    condition = condition.settled(now)
    return TargetState(
        name=target.name,
        model=target.model,
        state=condition.state,
        why=condition.why if condition.state is not State.CLOSED else "",
        retry_after_ms=round(condition.wait(now, settings.probes) * 1000),
        share=round(condition.share(now), 3),
        probes=len(condition.living(now)),
        openings=condition.streak,
        calls=calls,
        failed=failed,
        slow=slow,
        first_token_p95_ms=None if p95 is None else round(p95 * 1000),
    )


def pack(condition: Condition) -> bytes:
    """As it stands in Redis."""
    leases = [(lease.id, lease.expires) for lease in condition.leases]
    return bytes(
        msgpack.packb(
            (condition.state, condition.since, condition.until, condition.streak, condition.why, leases),
        )
    )


def unpack(data: bytes) -> Condition:
    """The condition in `data`; empty: a target nothing is known of."""
    if not data:
        return Condition()
    state, since, until, streak, why, leases = msgpack.unpackb(data)
    return Condition(State(state), since, until, streak, why, tuple(Lease(*lease) for lease in leases))


def _same(theirs: Condition, seen: Condition, now: float) -> bool:
    """Whether what was decided on still stands: leases may come and go, another period is another matter."""
    one, other = theirs.settled(now), seen.settled(now)
    return one.state is other.state and (one.state in (State.CLOSED, State.THROTTLED) or one.since == other.since)


def _not_before(before: Condition, after: Condition, now: float) -> float:
    """By Redis' own clock: before a trial a pause must be over, an expired lease expired."""
    if after.state is not State.HALF_OPEN:
        return 0.0
    gone = [lease.expires for lease in before.leases if lease not in after.leases and lease.expires <= now]
    return max([before.until if before.state is State.OPEN else 0.0, *gone])
