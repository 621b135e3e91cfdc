"""The shell around the quota scripts: reserve, settle, renew, show; and what happens while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from protocol.errors import ProtocolError
from server.quotas.base import SETTLE_SECONDS, Hold, Order, Payer, Unsure, Used
from server.quotas.bucket import Bucket
from server.quotas.figures import read, sender
from server.quotas.limits import ALL_FOUR, MICRO, NAMES, SHOWN, Meter, Policies, Policy, refused, shown
from server.quotas.scripts import RENEW, RESERVE, SETTLE, VIEW
from server.store.keys import quota_channel, quota_clock, quota_hold, quota_owner, quota_tag, tenant_tag, usage_stream
from server.store.link import StoreError
from server.store.store import Store
from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("quotas")

LEASE_SECONDS: Final = 30.0
"""How long a slot or held money outlives a node that does not renew it."""
RENEW_HOLDS: Final = 100
"""Most leases renewed by one call, so that the script stays short."""
STEP_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.25
HOLDS_RETRY_MS: Final = 1_000
"""When to ask again for a slot: nobody knows when the next one is free."""
RECENT_SECONDS: Final = 1.0
"""For so long a user's figures that this node has just been told serve HTTP headers without asking Redis again."""
RECENT_USERS: Final = 1_000

Rows = list[dict[str, Any]]
"""The `limits` of a `quota` frame."""
Say = Callable[[Payer, Rows, int], None]


class QuotaWatch(Protocol):
    """What is told of quotas, for metrics."""

    def quota(self, outcome: str) -> None:
        """`held`, `refused`, `too_large`, `unavailable`, `degraded` (admitted without Redis) or `settled`."""
        ...

    def settled(self, tenant: str, tokens: int, nano_dollars: int) -> None:
        """A tenant's message was settled with so much."""
        ...


class Quotas:
    """See the module, and `server.quotas.base.Quota`."""

    def __init__(
        self,
        store: Store,
        policies: Policies,
        watch: QuotaWatch,
        remember_seconds: float,
        node: str,
        nodes: Callable[[], int] = lambda: 1,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.policies = policies
        self.say: Say = lambda payer, limits, at_us: None
        """Called with a user's limits, and the time at which they stood, after each admission and settlement."""
        self.held: dict[str, Hold] = {}
        """What this node renews, by hold id."""
        self._store = store
        self._watch = watch
        self._node = node
        self._nodes = nodes
        self._lease_us = round(lease_seconds * MICRO)
        self._renew_seconds = lease_seconds / 3
        self._remember_ms = round(remember_seconds * 1000)
        self._tags: set[str] = set()
        """Tags this node has used: it keeps their clocks going."""
        self._outage: dict[str, dict[str, Bucket]] = {}
        """Quota tag whose primary is silent → its buckets, each this node's share."""
        self._recent: dict[str, tuple[float, Rows]] = {}
        """User → when it was told what."""
        self._unsure: dict[str, Payer] = {}
        """Users whose sessions may have missed something."""
        self._looking = self._closed = False
        self._owner = TaskOwner("quotas")

    def start(self) -> None:
        """Begin to renew leases."""
        self._owner.start(self._renew_forever(), "leases")

    async def close(self) -> None:
        """Stop renewing. What was not settled is settled by who takes the messages over."""
        self._closed = True
        await self._owner.close()

    # --- reserve ---------------------------------------------------------------------------------------------------

    async def reserve(self, order: Order) -> Hold:
        """See `Quota`."""
        policy = self.policies.of(order.payer)
        try:
            tokens, cap = policy.size(order, self.policies.route_output.get(order.payer.route))
        except ProtocolError:
            if not order.forced:
                self._watch.quota("too_large")
                raise
            most = policy.counting(order.payer.route).max_output_tokens
            cap = min(order.max_output_tokens or most, most)
            tokens = order.input_tokens + cap
        counts_money = policy.counting(order.payer.route).counts_money
        nano = (order.price(order.input_tokens, cap) or 0) if counts_money else 0
        hold = Hold(order.hold, order.payer, cap, tokens, nano)
        try:
            reply = await self._reserve(policy, hold, order.forced)
        except (StoreError, TimeoutError) as error:
            log.info("quota_unavailable", hold=hold.id, error=str(error))
            return self._in_outage(policy, hold, order.forced)
        self._outage.pop(quota_tag(hold.payer.tenant), None)
        limits = self._learn(policy, hold.payer, reply[1], reply[4:])
        if reply[0] == b"refused":
            self._watch.quota("refused")
            raise _refusal(refused(policy.meters, reply[3].decode()), int(reply[2]), limits)
        self._watch.quota(reply[0].decode())
        if reply[0] != b"settled":  # else the bill was paid before Redis forgot that the message had ended
            self.held[hold.id] = hold
        self.say(hold.payer, limits, int(reply[1]))
        return hold

    async def _reserve(self, policy: Policy, hold: Hold, forced: bool, seconds: float | None = None) -> list[Any]:
        tag = quota_tag(hold.payer.tenant)
        self._tags.add(tag)
        args = [
            hold.id,
            hold.tokens,
            hold.nano_dollars,
            self._lease_us,
            self._remember_ms,
            "1" if forced else "",
            sender(self._node, hold.payer),
        ]
        timing = {} if seconds is None else {"seconds": seconds}
        reply: list[Any] = await self._store.run(
            RESERVE, _keys(hold.payer, hold.id, policy), [*args, *policy.counting(hold.payer.route).args], **timing
        )
        return reply

    # --- settle ----------------------------------------------------------------------------------------------------

    async def settle(self, payer: Payer, hold: str, used: Used, seconds: float = SETTLE_SECONDS) -> None:
        """See `Quota`."""
        policy = self.policies.of(payer)
        counting = policy.counting(payer.route)
        args = [
            hold,
            used.tokens,
            used.nano_dollars if counting.counts_money else 0,
            self._lease_us,
            self._remember_ms,
            "" if used.dispatched else "1",
            sender(self._node, payer),
            used.entry,
            used.attempts,
        ]
        keys = _keys(payer, hold, policy)
        keys[3:3] = [usage_stream(quota_tag(payer.tenant))]
        reply = await self._store.run(SETTLE, keys, [*args, *counting.args], seconds)
        self.held.pop(hold, None)
        if reply[0] != b"again":
            self._watch.quota("settled")
            self._watch.settled(payer.tenant, used.tokens, used.nano_dollars)
        # also what was done already: its answer was lost, and our own notification of it is not for us
        self.say(payer, self._learn(policy, payer, reply[1], reply[2:]), int(reply[1]))

    def let_go(self, hold: str) -> None:
        """See `Quota`."""
        self.held.pop(hold, None)

    # --- renew -----------------------------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._renew_seconds)
            await self.renew()

    async def renew(self) -> None:
        """Renew the leases of everything that is held here; a tag that does not answer is tried again next time."""
        groups: dict[tuple[str, str], list[Hold]] = {(tag, ""): [] for tag in self._tags}
        for hold in self.held.values():
            unslotted = self.policies.of(hold.payer).counting(hold.payer.route).unslotted
            groups.setdefault((quota_tag(hold.payer.tenant), unslotted), []).append(hold)
        batches = [
            (tag, unslotted, holds[first : first + RENEW_HOLDS])
            for (tag, unslotted), holds in groups.items()
            for first in range(0, max(len(holds), 1), RENEW_HOLDS)
        ]
        await asyncio.gather(*(self._renew(*batch) for batch in batches))

    async def _renew(self, tag: str, unslotted: str, holds: Sequence[Hold]) -> None:
        keys = [quota_clock(tag)]
        for hold in holds:
            charged = self.policies.of(hold.payer).counting(hold.payer.route).charged
            keys += [quota_hold(tag, hold.id), *_owner_keys(tag, hold.payer, [meter for meter, _ in charged])]
        args = [self._lease_us, self._remember_ms, unslotted, *(hold.id for hold in holds)]
        try:
            reply = await self._store.run(RENEW, keys, args, STEP_SECONDS)
        except (StoreError, TimeoutError) as error:
            log.warning("leases_not_renewed", tag=tag, holds=len(holds), error=str(error))
            return
        for hold, renewed in zip(holds, reply, strict=True):
            if not renewed and not hold.degraded:
                self.held.pop(hold.id, None)

    # --- show ------------------------------------------------------------------------------------------------------

    async def view(self, payer: Payer) -> Rows:
        """The `limits` of a user as they stand; empty if Redis does not answer."""
        limits, _ = await self.standing(payer)
        return limits

    async def recent(self, payer: Payer) -> Rows:
        """The `limits` of a user for HTTP headers: those of the admission just made here, else as `view`."""
        told, limits = self._recent.get(payer.user, (0.0, []))
        if limits and asyncio.get_running_loop().time() - told < RECENT_SECONDS:
            return limits
        return await self.view(payer)

    async def standing(self, payer: Payer) -> tuple[Rows, int]:
        """As `view`, and when they stood so, in microseconds of the tag's clock; 0 if Redis does not answer."""
        policy, tag = self.policies.of(payer), quota_tag(payer.tenant)
        keys = [quota_clock(tag), *_owner_keys(tag, payer, policy.meters)]
        try:
            reply = await self._store.run(VIEW, keys, policy.counting(payer.route).args)
        except (StoreError, TimeoutError):
            return [], 0
        return self._learn(policy, payer, reply[0], reply[1:]), int(reply[0])

    def _learn(self, policy: Policy, payer: Payer, now: bytes, numbers: Iterable[bytes]) -> Rows:
        """What a script's reply says is left; it is kept for `recent`."""
        limits = _rows(policy, int(now), [int(number) for number in numbers])
        self._recent.pop(payer.user, None)
        self._recent[payer.user] = asyncio.get_running_loop().time(), limits
        if len(self._recent) > RECENT_USERS:
            del self._recent[next(iter(self._recent))]
        return limits

    # --- hear ------------------------------------------------------------------------------------------------------

    def channel(self, payer: Payer) -> bytes:
        """The shard channel on which other nodes tell of this user's limits."""
        return quota_channel(quota_tag(payer.tenant), payer.user)

    def heard(self, payer: Payer, data: bytes) -> None:
        """Something was published on the channel of `payer`; empty: something may have been missed."""
        if not data:
            self._unsure[payer.user] = payer
            if not self._looking and not self._closed:
                self._looking = True
                self._owner.start(self._look_again(), "look again")
            return
        figures = read(data)
        policy = self.policies.of(figures.payer)
        if figures.node != self._node and len(figures.numbers) == SHOWN * len(policy.meters):
            self.say(figures.payer, _rows(policy, figures.at_us, figures.numbers), figures.at_us)

    async def _look_again(self) -> None:
        """Tell of what may have been missed as soon as Redis answers; one user after the other, for after a failover
        all of them are unsure."""
        try:
            while self._unsure:
                payer = self._unsure.pop(next(iter(self._unsure)))
                limits, at_us = await self.standing(payer)
                if at_us:
                    self.say(payer, limits, at_us)
                else:
                    self._unsure.setdefault(payer.user, payer)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._looking = False

    # --- without Redis ----------------------------------------------------------------------------------------------

    def _in_outage(self, policy: Policy, hold: Hold, forced: bool) -> Hold:
        """Admit by this node's share of the limits, or refuse. What is admitted is reserved as debt afterwards."""
        if not forced:
            counts_money = policy.counting(hold.payer.route).counts_money
            if policy.outage == "refuse" or counts_money:  # nobody here knows what was spent elsewhere
                self._watch.quota("unavailable")
                raise Unsure("store_unavailable", "the store does not answer; nothing was started", retry_after_ms=1000)
            self._take_share(policy, hold)
        hold = replace(hold, degraded=True)
        self.held[hold.id] = hold
        self._watch.quota("degraded")
        self._owner.start(self._reserve_later(policy, hold), "debt")
        return hold

    def _take_share(self, policy: Policy, hold: Hold) -> None:
        """Take from this node's share of every bucket, or from none. Raises `quota_exceeded`."""
        now, nodes = round(asyncio.get_running_loop().time() * MICRO), max(1, self._nodes())
        shares = self._outage.setdefault(quota_tag(hold.payer.tenant), {})
        taken: dict[str, Bucket] = {}
        for meter, counted in policy.counting(hold.payer.route).charged:
            limits, owner = meter.limits, _owner(hold.payer, meter)
            slots = limits.concurrent_messages
            if slots is not None and "3" in counted and self._running(owner) >= max(1, slots // nodes):
                self._refuse_share(meter.name(2), 0)
            sizes = ((0, limits.tokens_per_minute, hold.tokens), (1, limits.requests_per_minute, 1))
            for which, limit, size in sizes:
                if limit is None or ALL_FOUR[which] not in counted:
                    continue
                key = f"{owner}:{NAMES[which]}"
                bucket = shares.get(key) or Bucket.full(max(1, limit // nodes), now)
                left = bucket.take(size, now)
                if left is None:
                    self._refuse_share(meter.name(which), bucket.wait(size, now))
                else:
                    taken[key] = left
        shares.update(taken)

    def _running(self, owner: str) -> int:
        """How many of the messages at once that an owner may have run on this node."""
        return sum(
            "3" in counted and _owner(hold.payer, meter) == owner
            for hold in self.held.values()
            for meter, counted in self.policies.of(hold.payer).counting(hold.payer.route).charged
        )

    def _refuse_share(self, limit: str, wait_us: int) -> None:
        self._watch.quota("refused")
        details = {"limit": limit, "degraded": True}
        raise Unsure("quota_exceeded", _used_up(limit), retry_after_ms=_wait_ms(wait_us), details=details)

    async def _reserve_later(self, policy: Policy, hold: Hold) -> None:
        """Count what was admitted without Redis as soon as it answers; after its settlement this changes nothing."""
        while True:
            try:
                reply = await self._reserve(policy, hold, True, STEP_SECONDS)
                break
            except (StoreError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
        self.say(hold.payer, self._learn(policy, hold.payer, reply[1], reply[4:]), int(reply[1]))
        if hold.id in self.held:
            self.held[hold.id] = replace(hold, degraded=False)


def _owner(payer: Payer, meter: Meter) -> str:
    """A name for whom a meter belongs to."""
    who = tenant_tag(payer.tenant) if meter.whose else payer.user
    return f"{who}@{meter.route}"


def _keys(payer: Payer, hold: str, policy: Policy) -> list[bytes]:
    tag = quota_tag(payer.tenant)
    channel = quota_channel(tag, payer.user)
    return [quota_clock(tag), quota_hold(tag, hold), channel, *_owner_keys(tag, payer, policy.meters)]


def _owner_keys(tag: str, payer: Payer, meters: Iterable[Meter]) -> list[bytes]:
    keys: list[bytes] = []
    for meter in meters:
        keys += quota_owner(tag, tenant_tag(payer.tenant) if meter.whose else payer.user, meter.route)
    return keys


def _rows(policy: Policy, at_us: int, numbers: Sequence[int]) -> Rows:
    return shown(policy.meters, numbers, at_us, month_end_us(at_us))


def _refusal(limit: str, wait_us: int, limits: Rows) -> ProtocolError:
    row = next((row for row in limits if row["name"] == limit), None)
    details = {"limit": limit, **({"limits": [row]} if row else {})}
    return ProtocolError("quota_exceeded", _used_up(limit), retry_after_ms=_wait_ms(wait_us), details=details)


def _used_up(limit: str) -> str:
    return f"the limit {limit} is used up"


def _wait_ms(wait_us: int) -> int:
    return -(-wait_us // 1000) or HOLDS_RETRY_MS


def month_end_us(now_us: int) -> int:
    """When the calendar month (UTC) of `now_us` ends."""
    now = datetime.fromtimestamp(now_us / MICRO, UTC)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return round(following.timestamp()) * MICRO
