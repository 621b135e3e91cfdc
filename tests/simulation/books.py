"""What must hold of quotas (G6), judged by books of our own: every call of the quota scripts is entered as it ran.

The books know the rule in the simplest words (`tests.quota_book`: fractions, dictionaries) and nothing that the nodes
say. After each call what Redis holds must be what the books say, to the sixty-millionth of a token; at the end each
hold was settled exactly once, with what the message's own records say the user pays, and nothing is leased any more.
Where Redis loses writes the books go on from what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import msgpack

from server.quotas.scripts import ALL
from server.store.keys import hold_id
from tests.quota_book import MINUTE_US, Level, Owner, month_end
from tests.simulation.loop import Host

if TYPE_CHECKING:
    from tests.simulation.check import Check

NAMES: Final = {script.sha: script.name.partition("_v")[0] for script in ALL}


@dataclass(slots=True)
class Held:
    """One hold."""

    tokens: int = 0
    nano: int = 0
    debits: list[int] = field(default_factory=list)
    """Tokens taken from each owner, and requests."""
    requests: list[int] = field(default_factory=list)
    settled: int | None = None


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _limit(arg: Any) -> int | None:
    return int(arg) if _bytes(arg) else None


class Books:
    """See the module."""

    def __init__(self, check: Check, lease_seconds: float, local: bool) -> None:
        self.check = check
        self.lease = round(lease_seconds * 1_000_000)
        self.local = local
        """Whether nodes may admit by their share while Redis is away; what they admitted is debt afterwards."""
        self.owners: dict[bytes, Owner] = {}
        self.holds: dict[bytes, Held] = {}
        self.clocks: dict[bytes, tuple[int, int]] = {}
        """(newest time seen, by how much the clock of leases is behind) of each tag."""
        self.told: dict[bytes, int] = {}
        """Channel → time of the last publication."""

    def ran(self, host: Host, name: str, keys: Sequence[Any], args: Sequence[Any], reply: Any) -> None:
        """A quota script has run."""
        if name == "view":
            return
        now, leased = self._tick(keys[0])
        if name == "renew":
            self._renewed(keys, args, reply, leased)
            return
        if int(reply[1]) != now:
            self._fail(f"{name} says it is {int(reply[1])}, where it is {now}")
        first_key, first_limit = (3, 7) if name == "reserve" else (4, 9)  # a settlement also has the ledger's stream
        buckets = keys[first_key::3]
        owners = [self._owner(key, args[first_limit + 6 * i :], now) for i, key in enumerate(buckets)]
        for owner in owners:
            owner.sweep(leased)
            owner.turn(now)
        if name == "reserve":
            self._reserved(keys, args, reply, owners, now, leased)
        else:
            self._settled(keys, args, reply, owners, now)
        for key, owner in zip(buckets, owners, strict=True):
            self._compare(name, key, owner, now)

    def _fail(self, text: str) -> None:
        self.check.fail("G6", text)

    def _stored(self, key: bytes) -> Any:
        return self.check.world.server.space.data.get(key, {})

    # --- time ---

    def _tick(self, key: bytes) -> tuple[int, int]:
        """The time, and the time by which leases are measured."""
        time = int(self.check.world.server.space.now() * 1_000_000)
        seen, lost = self.clocks.get(key, (time, 0))
        if time - seen > self.lease / 2:
            lost += time - seen
        seen = max(seen, time)
        self.clocks[key] = seen, lost
        return seen, seen - lost

    def _owner(self, key: bytes, args: Sequence[Any], now: int) -> Owner:
        owner = self.owners.get(key)
        if owner is None:
            tpm, rpm, slots, money = map(_limit, args[:4])
            levels = [None if limit is None else Level(limit, Fraction(limit), now) for limit in (tpm, rpm)]
            owner = self.owners[key] = Owner(levels[0], levels[1], slots, money)
        return owner

    # --- the calls ---

    def _reserved(
        self, keys: Sequence[Any], args: Sequence[Any], reply: Any, owners: list[Owner], now: int, leased: int
    ) -> None:
        tokens, nano, forced = int(args[1]), int(args[2]), _bytes(args[5]) == b"1"
        have, verdict = self.holds.get(keys[1]), reply[0].decode()
        more = max(0, tokens - (have.tokens if have else 0))
        more_nano = max(0, nano - (have.nano if have else 0))
        lacks = self._lacks(owners, have is None, more, more_nano, now)
        if have is not None and have.settled is not None:
            expected = "settled"
        elif lacks and not forced:
            expected = "refused"
        else:
            expected = "held" if have is None else "again"
        if verdict != expected:
            why = f"; {lacks}" if lacks else ""
            self._fail(f"a reservation of {more} tokens is {verdict}, where it should be {expected}{why}")
        if verdict == "refused" and lacks and int(reply[2]) != max(wait for wait, _ in lacks):
            self._fail(f"a refusal says {int(reply[2])} us, where it is {lacks}")
        if verdict not in ("held", "again"):
            return
        if forced and have is None and not self._may_be_forced(keys[1]):
            self._fail("a message of which nothing was spent yet was counted without looking whether there was room")
        if have is None:
            have = self.holds[keys[1]] = Held(debits=[0 for _ in owners], requests=[0 for _ in owners])
        for number, owner in enumerate(owners):
            if owner.tokens is not None:
                owner.tokens.add(-more, now)
                have.debits[number] += more
            if owner.requests is not None and verdict == "held":
                owner.requests.add(-1, now)
                have.requests[number] = 1
            owner.leases[_bytes(args[0]).decode()] = (leased + self.lease, have.nano + more_nano)
        have.tokens, have.nano = have.tokens + more, have.nano + more_nano
        self.told[keys[2]] = now

    def _lacks(self, owners: list[Owner], fresh: bool, more: int, more_nano: int, now: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for owner in owners:
            if owner.tokens is not None and more and owner.tokens.at_time(now) < more:
                found.append((owner.tokens.wait(more, now), f"tokens: {float(owner.tokens.level):.3f}"))
            if owner.requests is not None and fresh and owner.requests.at_time(now) < 1:
                found.append((owner.requests.wait(1, now), f"requests: {float(owner.requests.level):.3f}"))
            if owner.slots is not None and fresh and len(owner.leases) >= owner.slots:
                found.append((0, f"holds at once: {sorted(owner.leases)}"))
            if owner.money is not None and (fresh or more_nano) and owner.used + more_nano > owner.money:
                found.append((month_end(now) - now, f"money: {owner.used}"))
        return found

    def _may_be_forced(self, key: bytes) -> bool:
        if self.local or self.check.losses:
            return True
        for truth in self.check.truths.values():
            record = self.check._record(truth.record)
            if record and key.endswith(self._hold(truth.record, record, int(record[b"run"])).encode()):
                return int(record[b"attempts"]) > 0
        return False

    def _settled(self, keys: Sequence[Any], args: Sequence[Any], reply: Any, owners: list[Owner], now: int) -> None:
        tokens, nano, undispatched = int(args[1]), int(args[2]), _bytes(args[5]) == b"1"
        have, verdict = self.holds.get(keys[1]), reply[0].decode()
        expected = "unknown" if have is None else "settled" if have.settled is None else "again"
        if verdict != expected:
            self._fail(f"a settlement with {tokens} tokens is {verdict}, where it should be {expected}")
        if verdict == "again":
            return
        hold = have or Held(debits=[0 for _ in owners], requests=[0 for _ in owners])
        for number, owner in enumerate(owners):
            if owner.tokens is not None:
                owner.tokens.add(hold.debits[number] - tokens, now)
            if owner.requests is not None and undispatched:
                owner.requests.add(hold.requests[number], now)
            owner.spent = max(0, owner.spent + nano)
            owner.leases.pop(_bytes(args[0]).decode(), None)
        hold.settled = tokens
        self.holds[keys[1]] = hold
        self.told[keys[2]] = now

    def _renewed(self, keys: Sequence[Any], args: Sequence[Any], reply: Any, leased: int) -> None:
        width = 3 * len(_bytes(args[2])) + 1
        for number, hold in enumerate(args[3:]):
            mine = keys[1 + width * number : 1 + width * (number + 1)]
            have = self.holds.get(mine[0])
            if reply[number] != int(have is not None and have.settled is None):
                self._fail(f"a renewal of {hold} answers {reply[number]}")
            if have is not None and have.settled is None:
                for key in mine[1::3]:
                    self.owners[key].leases[_bytes(hold).decode()] = (leased + self.lease, have.nano)

    # --- what Redis holds ---

    def _compare(self, name: str, key: bytes, owner: Owner, now: int) -> None:
        bucket, leases = self._stored(key), self._stored(key.replace(b":b:", b":l:"))
        for level, tokens, part in ((owner.tokens, b"t", b"tp"), (owner.requests, b"r", b"rp")):
            if level is None:
                continue
            have = level.limit * MINUTE_US
            if tokens in bucket:
                stood = int(bucket[tokens]) * MINUTE_US + int(bucket[part])
                have = min(have, stood + max(0, now - int(bucket[b"at"])) * level.limit)
            if have != level.at_time(now) * MINUTE_US:
                self._fail(
                    f"after {name} there are {have / MINUTE_US:.6f} {tokens.decode()} in a bucket of {level.limit}, "
                    f"by the books {float(level.level):.6f}"
                )
        if {member.decode() for member in leases} != set(owner.leases):
            self._fail(f"after {name} the leases are {sorted(leases)}, by the books {sorted(owner.leases)}")
        money = int(bucket.get(b"spent", 0)) + int(bucket.get(b"held", 0))
        if money != owner.used:
            self._fail(f"after {name} {money} nano-dollars are spent and held, by the books {owner.used}")

    def lost(self) -> None:
        """Redis lost writes: go on from what it has."""
        for key in list(self.clocks):
            clock = self._stored(key)
            if clock:
                self.clocks[key] = int(clock[b"seen"]), int(clock[b"lost"])
            else:
                del self.clocks[key]
        for key, owner in list(self.owners.items()):
            self._restore(key, owner)
        for key in list(self.holds):
            stored = self._stored(key)
            if not stored:
                del self.holds[key]
                continue
            hold = self.holds[key]
            hold.tokens, hold.nano = int(stored[b"tokens"]), int(stored.get(b"nano", 0))
            hold.debits = [int(stored.get(b"t%d" % n, 0)) for n, _ in enumerate(hold.debits, 1)]
            hold.requests = [int(stored.get(b"r%d" % n, 0)) for n, _ in enumerate(hold.requests, 1)]
            hold.settled = int(stored[b"settled"]) if b"settled" in stored else None

    def _restore(self, key: bytes, owner: Owner) -> None:
        bucket, leases = self._stored(key), self._stored(key.replace(b":b:", b":l:"))
        if not bucket:  # it will be made anew, full
            del self.owners[key]
            return
        at = int(bucket[b"at"])
        if owner.tokens is not None:
            level = Fraction(int(bucket[b"t"]) * MINUTE_US + int(bucket[b"tp"]), MINUTE_US)
            owner.tokens.level, owner.tokens.at = level, at
        if owner.requests is not None:
            level = Fraction(int(bucket[b"r"]) * MINUTE_US + int(bucket[b"rp"]), MINUTE_US)
            owner.requests.level, owner.requests.at = level, at
        amounts = self._stored(key.replace(b":b:", b":a:"))
        owner.leases = {m.decode(): (int(till), int(amounts.get(m, 0))) for m, till in leases.items()}
        owner.spent = int(bucket[b"spent"])

    # --- the end ---

    @staticmethod
    def _hold(record_key: bytes, record: dict[bytes, bytes], run: int) -> str:
        tag = record_key.partition(b"{")[2].partition(b"}")[0].decode()
        return hold_id(tag, record[b"gen"], run)

    def finally_(self) -> None:
        """Everything is quiet."""
        world = self.check.world
        for node in world.nodes:
            if node.quotas is not None and node.quotas.held:
                self._fail(f"{node.id} renews the leases of {sorted(node.quotas.held)}, though nothing runs")
        if self.check.losses:
            return
        for key, hold in self.holds.items():
            if hold.settled is None:
                self._fail(f"{key.decode()} was never settled")
        for key, owner in self.owners.items():
            if owner.leases:
                self._fail(f"{key.decode()}: {sorted(owner.leases)} are held for ever")
        for truth in self.check.truths.values():
            record = self.check._record(truth.record)
            if record:
                self._billed(truth.id, truth.record, record)

    def _billed(self, message_id: str, key: bytes, record: dict[bytes, bytes]) -> None:
        """What was settled is what the records say the user pays."""
        wanted = {self._hold(key, record, run).encode() for run in range(1, int(record[b"run"]) + 1)}
        settled = sum(h.settled or 0 for k, h in self.holds.items() if k.rpartition(b":")[2] in wanted)
        payers = [r for r in msgpack.unpackb(record[b"records"]) if r["payer"] == "user"]
        pays = sum(r["output_tokens"] for r in payers) + (payers[0]["input_tokens"] if payers else 0)
        if settled != pays:
            self._fail(f"{message_id}: {settled} tokens were settled, the user pays {pays}")

    def untold(self) -> list[str]:
        """Nodes with a session that has not heard of the last change of its user's limits."""
        world = self.check.world
        if self.check.losses:
            return []
        return [
            node.id
            for node in world.nodes
            if node.audience is not None and not node.host.dead
            for crowd in node.audience._crowds.values()
            if any(known < self.told.get(crowd.channel, 0) for known in crowd.sessions.values())
        ]
