"""The rule of quotas in the simplest words there are: fractions, dictionaries, no script. What Redis does is held
against it (`tests/integration/test_quota_scripts.py`), and what nodes did (`tests/e2e/test_nodes_quotas.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, floor
from typing import Any

MINUTE_US = 60_000_000


def month(now: int) -> tuple[int, int]:
    """(year, month) of a time in microseconds."""
    at = datetime.fromtimestamp(now // 1_000_000, UTC)
    return at.year, at.month


def month_end(now: int) -> int:
    """The first microsecond of the next month."""
    year, number = month(now)
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * 1_000_000


@dataclass
class Level:
    """A bucket: an exact fraction of tokens."""

    limit: int
    level: Fraction
    at: int

    def at_time(self, now: int) -> Fraction:
        """What is in it."""
        self.level = min(Fraction(self.limit), self.level + Fraction((now - self.at) * self.limit, MINUTE_US))
        self.at = now
        return self.level

    def add(self, tokens: int, now: int) -> None:
        """Give or take."""
        self.level = min(Fraction(self.limit), self.at_time(now) + tokens)

    def wait(self, tokens: int, now: int) -> int:
        """Microseconds until so many are there."""
        return max(0, ceil((tokens - self.at_time(now)) * MINUTE_US / self.limit))


@dataclass
class Owner:
    """A user or a tenant."""

    tokens: Level | None
    requests: Level | None
    slots: int | None
    money: int | None
    leases: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Hold → (end, nano-dollars)."""
    unslotted: set[str] = field(default_factory=set)
    """Holds that are none of the messages at once."""
    spent: int = 0
    month: tuple[int, int] = (0, 0)

    def sweep(self, now: int) -> None:
        """Forget leases that are over."""
        self.leases = {hold: lease for hold, lease in self.leases.items() if lease[0] > now}

    @property
    def used(self) -> int:
        """Nano-dollars spent and held."""
        return self.spent + sum(nano for _, nano in self.leases.values())

    def turn(self, now: int) -> None:
        """A new month begins with nothing spent."""
        if month(now) != self.month:
            self.spent, self.month = 0, month(now)

    def show(self, now: int) -> list[int]:
        """As the scripts do."""
        found: list[int] = []
        for level in (self.tokens, self.requests):
            found += [-1, -1] if level is None else [floor(level.at_time(now)), level.wait(level.limit, now)]
        return [*found, self.slots_taken, self.used]

    @property
    def slots_taken(self) -> int:
        """Messages at once."""
        return len(self.leases.keys() - self.unslotted)


@dataclass
class Hold:
    """A reservation."""

    tokens: int
    nano: int
    debits: list[int]
    settled: bool = False


Counted = list[str]
"""Of each owner: the numbers of the limits that a hold is counted in."""


class Book:
    """Owners and holds; every call says what the script must answer. A hold is counted the same in all of its calls."""

    def __init__(self, limits: list[tuple[int | None, int | None, int | None, int | None]], now: int) -> None:
        def full(limit: int | None) -> Level | None:
            return None if limit is None else Level(limit, Fraction(limit), now)

        self.owners = [Owner(full(tpm), full(rpm), slots, money) for tpm, rpm, slots, money in limits]
        self.holds: dict[str, Hold] = {}

    def _begin(self, now: int, counted: Counted) -> None:
        for owner, numbers in zip(self.owners, counted, strict=True):
            if numbers:
                owner.sweep(now)
            owner.turn(now)

    def reserve(
        self, now: int, lease: int, hold: str, tokens: int, nano: int, forced: bool, counted: Counted
    ) -> list[Any]:
        """Verdict, wait, limit, shows."""
        self._begin(now, counted)
        have = self.holds.get(hold)
        if have is not None and have.settled:
            return ["settled", -1, "", *self._shows(now)]
        more, more_nano = max(0, tokens - (have.tokens if have else 0)), max(0, nano - (have.nano if have else 0))
        lacks = [] if forced else self._lacks(now, more, more_nano, have is None, counted)
        if lacks:
            wait, limit = max(lacks, key=lambda lack: lack[0])  # the first of the longest
            return ["refused", wait, limit, *self._shows(now)]
        new = have or Hold(0, 0, [0 for _ in self.owners])
        new.tokens, new.nano = new.tokens + more, new.nano + more_nano
        for number, owner in enumerate(self.owners):
            if owner.tokens is not None and "1" in counted[number]:
                owner.tokens.add(-more, now)
                new.debits[number] += more
            if owner.requests is not None and have is None and "2" in counted[number]:
                owner.requests.add(-1, now)
            if counted[number]:
                owner.leases[hold] = (now + lease, new.nano)
                if "3" not in counted[number]:
                    owner.unslotted.add(hold)
        self.holds[hold] = new
        return ["again" if have else "held", -1, "", *self._shows(now)]

    def _lacks(self, now: int, more: int, more_nano: int, fresh: bool, counted: Counted) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for number, owner in enumerate(self.owners, 1):
            numbers = counted[number - 1]
            if owner.tokens is not None and "1" in numbers and more and owner.tokens.at_time(now) < more:
                found.append((owner.tokens.wait(more, now), f"{number}:1"))
            if owner.requests is not None and "2" in numbers and fresh and owner.requests.at_time(now) < 1:
                found.append((owner.requests.wait(1, now), f"{number}:2"))
            if owner.slots is not None and "3" in numbers and fresh and owner.slots_taken >= owner.slots:
                found.append((0, f"{number}:3"))
            too_dear = owner.money is not None and owner.used + more_nano > owner.money
            if "4" in numbers and (fresh or more_nano) and too_dear:
                found.append((month_end(now) - now, f"{number}:4"))
        return found

    def settle(self, now: int, hold: str, tokens: int, nano: int, undispatched: bool, counted: Counted) -> list[Any]:
        """Verdict, shows."""
        self._begin(now, counted)
        have = self.holds.get(hold)
        if have is not None and have.settled:
            return ["again", *self._shows(now)]
        for number, owner in enumerate(self.owners):
            if owner.tokens is not None and "1" in counted[number]:
                owner.tokens.add((have.debits[number] if have else 0) - tokens, now)
            if owner.requests is not None and "2" in counted[number] and undispatched and have is not None:
                owner.requests.add(1, now)
            if counted[number]:
                owner.spent = max(0, owner.spent + nano)
                owner.leases.pop(hold, None)
        self.holds[hold] = have or Hold(0, 0, [0 for _ in self.owners])
        self.holds[hold].settled = True
        return ["settled" if have else "unknown", *self._shows(now)]

    def renew(self, now: int, lease: int, holds: list[str], counted: Counted) -> list[int]:
        """One number a hold."""
        answer = []
        for name in holds:
            have = self.holds.get(name)
            answer.append(int(have is not None and not have.settled))
            if have is not None and not have.settled:
                for owner, numbers in zip(self.owners, counted, strict=True):
                    if numbers:
                        owner.leases[name] = (now + lease, have.nano)
        return answer

    def _shows(self, now: int) -> list[int]:
        return [number for owner in self.owners for number in owner.show(now)]
