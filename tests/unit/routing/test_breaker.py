"""The breaker's table, and what must hold on every way through it."""

from __future__ import annotations

from itertools import count, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.config.sections import BreakerSettings
from server.routing.breaker import (
    BUCKETS,
    FIRST_SHARE,
    JITTER,
    RAMP_CALLS,
    TRANSITIONS,
    Breaker,
    Cause,
    Condition,
    Happening,
    Lease,
    State,
    Window,
    advance,
    diagram,
)

SETTINGS = BreakerSettings(
    window_seconds=30.0, minimum_calls=10, open_seconds=10.0, open_seconds_max=100.0, probes=2, ramp_seconds=20.0
)
LEASE_SECONDS = 35.0


def step(condition: Condition, happening: Happening, now: float, cause: Cause | None = None) -> Condition | None:
    return advance(condition, happening, cause or Cause(), now, 0.5, SETTINGS)


def open_at(now: float, streak: int = 0) -> Condition:
    after = step(Condition(streak=streak), Happening.TRIP, now, Cause("server_error"))
    assert after is not None
    return after


@pytest.mark.parametrize(("state", "happening"), list(product(State, Happening)))
def test_only_the_table_moves_it(state: State, happening: Happening) -> None:
    lease = Lease("a", 1000.0)
    before = Condition(state, 1.0, 50.0, 1, "x", (lease,) if state is State.HALF_OPEN else ())
    wished = Lease("b", 1000.0) if happening is Happening.PROBE else lease
    now = 60.0 if state is State.OPEN else 10.0
    after = step(before, happening, now, Cause("y", 100.0, wished))
    to = TRANSITIONS.get((state, happening))
    if happening is Happening.LAPSE or to is None:
        assert after is None
    else:
        assert after is not None
        assert after.state is to


def test_throttling_and_ramp_end_by_themselves() -> None:
    for state in (State.THROTTLED, State.RAMPING):
        condition = Condition(state, 0.0, 5.0, 3, "x")
        assert condition.settled(4.9) is condition
        assert condition.settled(5.0) == Condition(State.CLOSED, 5.0)
    assert open_at(0.0).settled(1e9).state is State.OPEN, "a pause ends by a probe only"


def test_the_pause_doubles_up_to_its_limit() -> None:
    pauses = [open_at(0.0, streak).until for streak in range(6)]
    assert pauses == [10.0, 20.0, 40.0, 80.0, 100.0, 100.0]
    assert [open_at(0.0, streak).streak for streak in range(3)] == [1, 2, 3]


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 50))
def test_the_jitter_stays_within_its_bounds(chance: float, streak: int) -> None:
    after = advance(Condition(streak=streak), Happening.TRIP, Cause(), 0.0, chance, SETTINGS)
    assert after is not None
    plain = min(10.0 * 2.0**streak, 100.0)
    assert plain * (1 - JITTER) <= after.until <= min(plain * (1 + JITTER), 100.0)


def test_a_retry_after_prolongs_the_pause() -> None:
    after = step(Condition(), Happening.TRIP, 0.0, Cause("server_error", 600.0))
    assert after is not None
    assert after.until == 600.0


def test_throttling_lasts_as_long_as_the_provider_says_and_is_never_shortened() -> None:
    first = step(Condition(), Happening.THROTTLE, 0.0, Cause("rate_limited", 30.0))
    assert first is not None
    assert first.until == 30.0
    assert step(first, Happening.THROTTLE, 1.0, Cause("rate_limited", 5.0)) is None
    later = step(first, Happening.THROTTLE, 1.0, Cause("rate_limited", 60.0))
    assert later is not None
    assert later.until == 61.0
    unsaid = step(Condition(), Happening.THROTTLE, 0.0, Cause("rate_limited"))
    assert unsaid is not None
    assert unsaid.until == SETTINGS.open_seconds


def test_a_rate_limit_prolongs_a_pause_and_never_shortens_it() -> None:
    opened = open_at(0.0)
    assert step(opened, Happening.THROTTLE, 1.0, Cause("rate_limited", 5.0)) is None
    later = step(opened, Happening.THROTTLE, 1.0, Cause("rate_limited", 60.0))
    assert later is not None
    assert (later.state, later.since, later.until, later.streak) == (State.OPEN, opened.since, 61.0, opened.streak)


def test_a_probe_that_meets_a_rate_limit_is_followed_by_a_pause_and_a_probe() -> None:
    """It has not been answered: nobody but a probe comes after the Retry-After."""
    mine, hangs = Lease("mine", 60.0), Lease("hangs", 60.0)
    trial = Condition(State.HALF_OPEN, 20.0, 0.0, 1, "x", (mine, hangs))
    after = step(trial, Happening.THROTTLE, 21.0, Cause("rate_limited", 30.0, mine))
    assert after is not None
    assert (after.state, after.until, after.streak, after.leases) == (State.OPEN, 51.0, 1, (hangs,))
    assert after.settled(1e9).state is State.OPEN
    assert step(after, Happening.PROBE, 50.0, Cause(lease=Lease("next", 90.0))) is None
    again = step(after, Happening.PROBE, 51.0, Cause(lease=Lease("next", 90.0)))
    assert again is not None
    assert again.state is State.HALF_OPEN


def test_an_expired_lease_makes_room_for_another_probe() -> None:
    condition = open_at(0.0)
    for number in range(SETTINGS.probes):
        after = step(condition, Happening.PROBE, 20.0, Cause(lease=Lease(str(number), 50.0)))
        assert after is not None
        condition = after
    extra = Cause(lease=Lease("extra", 90.0))
    assert step(condition, Happening.PROBE, 49.0, extra) is None
    assert condition.wait(49.5, SETTINGS.probes) == 0.5
    again = step(condition, Happening.PROBE, 50.0, extra)
    assert again is not None
    assert [lease.id for lease in again.leases] == ["extra"]
    assert again.since == condition.since


def test_a_probe_that_hangs_is_counted_when_another_one_has_failed() -> None:
    """Both are asked, one fails, the pause is shorter than the other one's silence: there is room for one more."""
    hangs, fails = Lease("hangs", 60.0), Lease("fails", 60.0)
    condition: Condition | None = open_at(0.0)
    for happening, now, lease in (
        (Happening.PROBE, 20.0, hangs),
        (Happening.PROBE, 20.0, fails),
        (Happening.ILL, 21.0, fails),
    ):
        assert condition is not None
        condition = step(condition, happening, now, Cause("server_error", lease=lease))
    assert condition is not None
    assert condition.leases == (hangs,)
    again = step(condition, Happening.PROBE, 45.0, Cause(lease=Lease("third", 90.0)))
    assert again is not None
    assert again.living(46.0) == (hangs, Lease("third", 90.0))
    assert again.wait(46.0, SETTINGS.probes) == pytest.approx(1.0)
    assert step(again, Happening.PROBE, 46.0, Cause(lease=Lease("fourth", 90.0))) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.booleans()), max_size=60))
def test_the_window_holds_what_it_should(calls: list[tuple[float, bool, bool]]) -> None:
    window, seconds, now = Window(10.0), 10.0, 100.0
    made: list[tuple[float, bool, bool]] = []
    for wait, failed, slow in calls:
        now += wait
        window.add(now, failed=failed, slow=slow)
        made.append((now, failed, slow))
        counts = window.counts(now)
        surely = [call for call in made if call[0] > now - seconds * (1 - 1 / BUCKETS)]
        perhaps = [call for call in made if call[0] > now - seconds * (1 + 1 / BUCKETS)]
        assert len(surely) <= counts.calls <= len(perhaps)
        assert sum(call[1] for call in surely) <= counts.failed <= sum(call[1] for call in perhaps)
        assert sum(call[2] for call in surely) <= counts.slow <= sum(call[2] for call in perhaps)
        assert len(window._buckets) <= BUCKETS


def test_too_few_calls_never_trip_it() -> None:
    breaker = Breaker(SETTINGS)
    trips = [breaker.count(float(n) / 10, failed=True, slow=True) for n in range(SETTINGS.minimum_calls)]
    assert trips == [False] * (SETTINGS.minimum_calls - 1) + [True]


def test_the_rates_trip_it() -> None:
    breaker = Breaker(SETTINGS)
    for number in range(11):
        assert not breaker.count(1.0, failed=number in (1, 3, 5, 7, 10), slow=False)
    assert breaker.count(1.0, failed=True, slow=False), "half of twelve"
    slow = Breaker(SETTINGS)
    outcomes = [slow.count(1.0, failed=False, slow=number > 1) for number in range(10)]
    assert outcomes == [False] * 9 + [True]
    good = Breaker(SETTINGS)
    assert not any(good.count(1.0, failed=False, slow=False) for _ in range(100))


def test_a_dead_target_trips_it_however_good_it_was() -> None:
    breaker = Breaker(SETTINGS)
    assert not any(breaker.count(1.0, failed=False, slow=False) for _ in range(1000))
    trips = [breaker.count(2.0, failed=True, slow=False) for _ in range(SETTINGS.minimum_calls)]
    assert trips == [False] * (SETTINGS.minimum_calls - 1) + [True]


def test_fewer_calls_trip_it_while_it_ramps() -> None:
    breaker = Breaker(SETTINGS)
    breaker.adopt(Condition(State.RAMPING, 0.0, 20.0, 1))
    trips = [breaker.count(1.0, failed=True, slow=False) for _ in range(RAMP_CALLS)]
    assert trips == [False] * (RAMP_CALLS - 1) + [True]


def test_the_ramp_grows_from_a_tenth_to_all() -> None:
    ramp = Condition(State.RAMPING, 100.0, 120.0)
    assert ramp.share(100.0) == FIRST_SHARE
    assert ramp.share(110.0) == pytest.approx(0.55)
    assert ramp.settled(120.0).share(120.0) == 1.0
    breaker = Breaker(SETTINGS)
    breaker.adopt(ramp)
    breaker.running = 1
    admitted = [breaker.ask(105.0, number / 1000) == "admitted" for number in range(1000)]
    assert sum(admitted) == pytest.approx(1000 * ramp.share(105.0), abs=1)
    breaker.running = 0
    assert breaker.ask(105.0, 0.999) == "admitted", "a quiet node does not refuse its only call"


def test_calls_that_began_before_it_opened_are_no_news() -> None:
    breaker = Breaker(SETTINGS)
    breaker.adopt(open_at(0.0))
    assert not any(breaker.count(1.0, failed=True, slow=False) for _ in range(50))


def test_the_diagram_is_the_table() -> None:
    lines = diagram().splitlines()[2:]
    assert len(lines) == len(TRANSITIONS)
    assert "    half_open --> ramping: well" in lines


class ManyNodes(RuleBasedStateMachine):
    """Any number of nodes that share one condition exactly, as compare-and-set makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.shared = Condition()
        self.mine = Breaker(SETTINGS)
        self.probing: dict[str, float] = {}
        """Id → when the call is over at the latest: before its lease expires."""
        self.names = map(str, count())
        self.last_pause = 0.0

    def happens(self, happening: Happening, cause: Cause, chance: float = 0.5) -> Condition | None:
        before = self.shared.settled(self.now)
        after = advance(self.shared, happening, cause, self.now, chance, SETTINGS)
        if after is not None:
            assert TRANSITIONS[before.state, happening] is after.state
            self.shared = after
            self.mine.adopt(after)
            if happening in (Happening.TRIP, Happening.BAR, Happening.THROTTLE, Happening.WELL):
                self.probing.clear()  # from now on they are calls as any others
        return after

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 9.0, 31.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.probing = {name: end for name, end in self.probing.items() if end > self.now}

    @rule(failed=st.booleans(), slow=st.booleans(), times=st.integers(1, 12))
    def calls_end(self, failed: bool, slow: bool, times: int) -> None:
        for _ in range(times):
            state = self.shared.settled(self.now).state
            if self.mine.count(self.now, failed=failed, slow=slow):
                assert state in (State.CLOSED, State.RAMPING, State.THROTTLED)
                assert failed or slow
                assert self.happens(Happening.TRIP, Cause("server_error")) is not None

    @rule(wait=st.none() | st.floats(0, 50))
    def rate_limited(self, wait: float | None) -> None:
        self.happens(Happening.THROTTLE, Cause("rate_limited", wait))

    @rule()
    def refused(self) -> None:
        self.happens(Happening.BAR, Cause("unauthorized"))
        assert self.mine.ask(self.now, 0.0) != "admitted"

    @rule(chance=st.floats(0, 1, exclude_max=True))
    def asks(self, chance: float) -> None:
        settled = self.shared.settled(self.now)
        verdict = self.mine.ask(self.now, chance)
        if verdict == "admitted":
            assert settled.state in (State.CLOSED, State.RAMPING)
        elif verdict == "needs_lease":
            name = next(self.names)
            lease = Lease(name, self.now + LEASE_SECONDS)
            assert self.happens(Happening.PROBE, Cause(lease=lease)) is not None
            self.probing[name] = self.now + LEASE_SECONDS - 5.0
        else:
            assert settled.state is not State.CLOSED

    @precondition(lambda self: self.probing)
    @rule(happening=st.sampled_from([Happening.WELL, Happening.ILL, Happening.RETURN]), data=st.data())
    def a_probe_ends(self, happening: Happening, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.probing)))
        del self.probing[name]
        if self.shared.state is State.HALF_OPEN:
            before = self.shared
            assert self.happens(happening, Cause("server_error", lease=Lease(name, 0.0))) is not None
            if happening is Happening.ILL:
                assert self.shared.streak == before.streak + 1

    @invariant()
    def at_most_k_probes_even_if_they_hang(self) -> None:
        assert len(self.probing) <= SETTINGS.probes
        assert len(self.shared.living(self.now)) <= SETTINGS.probes

    @invariant()
    def an_open_target_gets_no_call_before_its_time(self) -> None:
        if self.shared.state is State.OPEN and self.now < self.shared.until:
            assert self.mine.ask(self.now, 0.0) == "held"
            assert self.mine.wait(self.now) == pytest.approx(self.shared.until - self.now)

    @invariant()
    def there_is_always_a_way_back(self) -> None:
        assert self.mine.wait(self.now) <= SETTINGS.open_seconds_max + 50.0


TestManyNodes = ManyNodes.TestCase
