"""The quota scripts on real servers give the answers of `tests.quota_book`, step by step.

The servers' own clock is led by the hand: it never runs backward, so `seen` in the future is the time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from server.quotas.scripts import RENEW, RESERVE, SETTLE, VIEW
from server.store.keys import quota_channel, quota_clock, quota_hold, quota_owner, usage_stream
from server.store.store import Script
from tests.quota_book import Book, Counted

LEASE = 30_000_000
REMEMBER_MS = 100_000
TAG = "q7"
CHANNEL = quota_channel(TAG, "owner0")
FUTURE = 4_000_000_000_000_000
HOLDS = st.sampled_from([f"hold{number}" for number in range(6)])
Limits = tuple[int | None, int | None, int | None, int | None]


class Scripts:
    """The scripts, called as a node does."""

    def __init__(self, url: str, limits: list[Limits], counted: Counted | None = None) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True, protocol=2)
        self.limits = limits
        self.keys: list[Any] = [key for n in range(len(limits)) for key in quota_owner(TAG, f"owner{n}")]
        self.counted = counted or ["1234"] * len(limits)
        """Of each owner: the limits that the next calls are counted in."""

    @property
    def args(self) -> list[Any]:
        found: list[Any] = []
        for number, (four, counted) in enumerate(zip(self.limits, self.counted, strict=True), 1):
            found += ["" if limit is None else limit for limit in four]
            found += [number if counted else "", counted]
        return found

    def _run(self, script: Script, keys: list[Any], args: list[Any]) -> list[Any]:
        found: Any = self.client.eval(script.source, len(keys), *keys, *args)
        return [int(x) if isinstance(x, str) and x.lstrip("-").isdigit() else x for x in found]

    def reserve(self, hold: str, tokens: int, nano: int = 0, forced: bool = False) -> list[Any]:
        keys = [quota_clock(TAG), quota_hold(TAG, hold), CHANNEL, *self.keys]
        args = [hold, tokens, nano, LEASE, REMEMBER_MS, "1" if forced else "", "who", *self.args]
        return self._run(RESERVE, keys, args)

    def settle(
        self, hold: str, tokens: int, nano: int = 0, undispatched: bool = False, entry: str = "", attempts: int = 0
    ) -> list[Any]:
        keys = [quota_clock(TAG), quota_hold(TAG, hold), CHANNEL, usage_stream(TAG), *self.keys]
        args = [hold, tokens, nano, LEASE, REMEMBER_MS, "1" if undispatched else "", "who", entry, attempts, *self.args]
        return self._run(SETTLE, keys, args)

    def renew(self, holds: list[str]) -> list[Any]:
        keys: list[Any] = [quota_clock(TAG)]
        mine = [number for number, counted in enumerate(self.counted) if counted]
        for hold in holds:
            keys += [quota_hold(TAG, hold), *(key for n in mine for key in self.keys[3 * n : 3 * n + 3])]
        unslotted = "".join("0" if "3" in self.counted[n] else "1" for n in mine)
        return self._run(RENEW, keys, [LEASE, REMEMBER_MS, unslotted, *holds])

    def view(self) -> list[Any]:
        return self._run(VIEW, [quota_clock(TAG), *self.keys], self.args)

    def seen(self, at: int | None = None) -> int:
        """The newest time under the tag; set it."""
        if at is not None:
            self.client.hset(quota_clock(TAG), "seen", at)  # type: ignore[arg-type]
        return int(self.client.hget(quota_clock(TAG), "seen") or 0)  # type: ignore[arg-type]


LIMIT = st.one_of(st.none(), st.integers(1, 50), st.integers(1, 10**12), st.sampled_from([60_000_000, 59_999_999]))
FOUR = st.tuples(LIMIT, LIMIT, st.none() | st.integers(1, 3), st.none() | st.integers(0, 10**15))


COUNTED = st.sampled_from(["1234", "1234", "4", "24", "134", "14", ""])
"""What routes with limits of their own leave to be counted: always money, or nothing at all."""


class ScriptMachine(RuleBasedStateMachine):
    """Every step on Redis and in the book. A hold is one route's, and each route is counted in its own way."""

    url = ""

    @initialize(
        limits=st.lists(FOUR, min_size=1, max_size=4),
        start=st.integers(0, 10**13),
        routes=st.lists(st.lists(COUNTED, min_size=4, max_size=4), min_size=3, max_size=3),
    )
    def begin(self, limits: list[Limits], start: int, routes: list[Counted]) -> None:
        self.routes = [counted[: len(limits)] for counted in routes]
        self.scripts = Scripts(self.url, limits)
        self.scripts.client.flushall()
        self.now = FUTURE + start
        self.scripts.seen(self.now)
        self.book = Book(limits, self.now)
        self.sizes = [limit for limit, *_ in limits if limit is not None] or [1000]

    def count(self, hold: str) -> Counted:
        """How the hold is counted; the scripts are told from here on."""
        self.scripts.counted = self.routes[int(hold[-1]) % len(self.routes)]
        return self.scripts.counted

    @rule(by=st.one_of(st.integers(0, 1000), st.integers(0, 70_000_000), st.integers(0, 3 * 10**12)))
    def clock(self, by: int) -> None:
        self.now += by
        self.scripts.seen(self.now)

    @rule(
        hold=HOLDS, share=st.floats(0, 1.5), nano=st.integers(0, 10**14), forced=st.sampled_from([False] * 5 + [True])
    )
    def reserve(self, hold: str, share: float, nano: int, forced: bool) -> None:
        tokens, counted = int(min(self.sizes) * share), self.count(hold)
        expected = self.book.reserve(self.now, LEASE, hold, tokens, nano, forced, counted)
        verdict, now, *rest = self.scripts.reserve(hold, tokens, nano, forced)
        assert ([verdict, *rest], now) == (expected, self.now)

    @rule(hold=HOLDS, share=st.floats(-0.5, 2), nano=st.integers(-(10**13), 10**14), undispatched=st.booleans())
    def settle(self, hold: str, share: float, nano: int, undispatched: bool) -> None:
        tokens, counted = int(min(self.sizes) * share), self.count(hold)
        expected = self.book.settle(self.now, hold, tokens, nano, undispatched, counted)
        verdict, now, *rest = self.scripts.settle(hold, tokens, nano, undispatched)
        assert ([verdict, *rest], now) == (expected, self.now)

    @rule(holds=st.lists(HOLDS, unique=True))
    def renew(self, holds: list[str]) -> None:
        for counted in self.routes:
            mine = [hold for hold in holds if self.count(hold) is counted]
            self.scripts.counted = counted
            assert self.scripts.renew(mine) == self.book.renew(self.now, LEASE, mine, counted)

    @rule()
    def view(self) -> None:
        """It shows what a call that changes nothing shows, leases that are not swept yet included."""
        before = self.scripts.view()
        assert before == self.scripts.view()

    def teardown(self) -> None:
        if hasattr(self, "scripts"):
            self.scripts.client.close()


def test_same_commands_same_answers(redis_url: str) -> None:
    machine = type("OnRedis", (ScriptMachine,), {"url": redis_url})
    config = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=config)  # type: ignore[no-untyped-call]


@pytest.fixture
def scripts(redis_url: str) -> Any:
    made = Scripts(redis_url, [(1000, 100, 2, 5_000), (5000, None, None, None)])
    yield made
    made.client.close()


def test_a_refusal_changes_no_counter(scripts: Scripts) -> None:
    scripts.seen(FUTURE)
    scripts.reserve("a", 900, 4_000)
    before = scripts.view()
    assert scripts.reserve("b", 1000)[0] == "refused"
    assert scripts.reserve("c", 1, 2_000)[0] == "refused"
    assert scripts.view() == before
    assert not scripts.client.exists(quota_hold(TAG, "b"), quota_hold(TAG, "c"))


def test_what_changes_is_published_and_nothing_else(scripts: Scripts) -> None:
    listener = scripts.client.pubsub()
    listener.ssubscribe(CHANNEL)
    listener.get_message(timeout=5)
    scripts.seen(FUTURE)
    told = [scripts.reserve("a", 900)[4:], scripts.reserve("a", 950)[4:]]
    assert scripts.reserve("b", 1000)[0] == "refused"
    told += [scripts.settle("a", 100)[2:], scripts.settle("never-held", 5)[2:]]
    scripts.settle("a", 100)
    scripts.reserve("a", 900)
    for numbers in told:
        message = listener.get_message(timeout=5)
        assert message is not None
        assert message["data"] == f"{FUTURE} {' '.join(map(str, numbers))}\nwho"
    assert listener.get_message(timeout=0.05) is None
    listener.close()


def test_redis_clock_stepping_back_refills_nothing_twice(scripts: Scripts) -> None:
    scripts.reserve("a", 1000)
    ahead = scripts.seen() + 3_600_000_000
    scripts.seen(ahead)  # the clock was an hour ahead, and is now stepped back: TIME is below what was seen
    assert scripts.reserve("b", 1000)[0:2] == ["held", ahead]
    for number in range(3):
        verdict, now, wait, *_ = scripts.reserve(f"c{number}", 1)
        assert (verdict, now, wait) == ("refused", ahead, 60_000)
    assert scripts.view()[1] == 0


def test_leases_outlive_a_freeze_once_and_are_swept_when_nobody_renews(scripts: Scripts) -> None:
    scripts.reserve("a", 1)
    scripts.reserve("b", 1)
    assert scripts.reserve("c", 1)[0] == "refused"
    frozen = 3 * LEASE
    now = scripts.seen()
    scripts.seen(now - frozen)  # Redis stood still for so long: its last sign of life is old
    for key in scripts.client.scan_iter("*:l:*"):
        for hold, till in scripts.client.zrange(key, 0, -1, withscores=True):  # type: ignore[union-attr]
            scripts.client.zadd(key, {hold: till - frozen})
    refused = scripts.reserve("c", 1)
    assert refused[0] == "refused", "a slot was granted twice after the thaw"
    assert refused[3] == "1:3"
    scripts.seen(scripts.seen() + LEASE + 1)  # from here on nobody renews
    assert scripts.reserve("c", 1)[0] == "held"
    assert scripts.client.exists(quota_hold(TAG, "a")), "a sweep deleted a hold"
    assert scripts.settle("a", 1)[0] == "settled"


def test_months_of_two_centuries(redis_url: str) -> None:
    scripts = Scripts(redis_url, [(None, None, None, 1)])
    for year in range(2027, 2200, 7):
        for number in range(1, 13):
            start = int(datetime(year, number, 1, tzinfo=UTC).timestamp()) * 1_000_000
            end = int(datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
            for at in (start, end - 1):
                scripts.seen(at)
                verdict, now, wait, limit, *_ = scripts.reserve("a", 1, 2)
                assert (verdict, now, now + wait, limit) == ("refused", at, end, "1:4")
    scripts.client.close()


def test_usage_records_are_written_with_the_settlement_and_once(scripts: Scripts) -> None:
    stream = usage_stream(TAG)
    scripts.reserve("a", 10)
    assert scripts.settle("a", 10, entry="first", attempts=1)[0] == "settled"
    assert scripts.settle("a", 10, entry="first", attempts=1)[0] == "again"
    assert [fields for _, fields in scripts.client.xrange(stream)] == [{"e": "first"}]  # type: ignore[union-attr]
    before = scripts.view()
    assert (
        scripts.settle("a", 20, entry="ran again", attempts=2)[0] == "again"
    )  # its end was lost, and it has a new one
    assert scripts.settle("b", 10, entry="no hold", attempts=1)[0] == "unknown"
    assert scripts.settle("c", 0, undispatched=True)[0] == "unknown"
    assert [fields["e"] for _, fields in scripts.client.xrange(stream)] == ["first", "ran again", "no hold"]  # type: ignore[union-attr]
    assert scripts.view()[1] >= before[1] - 10, "what was settled again was debited again"
