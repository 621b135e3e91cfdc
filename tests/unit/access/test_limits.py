"""How fast and how often."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from throttled import per_min, per_sec

from protocol.errors import ProtocolError
from server.access.limits import (
    REMEMBERED,
    TICK_SECONDS,
    ConnectionLimits,
    Pace,
    Penalty,
    client_address,
    frame_pace,
    handshake_pace,
)
from server.config import ServerSettings


class Clock:
    """What the library takes for the monotonic clock."""

    def __init__(self, now: float) -> None:
        self.now = now


@contextmanager
def clock_at(now: float) -> Iterator[Clock]:
    clock = Clock(now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("throttled.utils.now_mono_f", lambda: clock.now)
        yield clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with clock_at(1024.0) as stopped:
        yield stopped


def test_pace_lets_a_burst_through_then_the_rate(clock: Clock) -> None:
    pace = Pace(per_sec(8, burst=3))
    assert [pace.take() for _ in range(3)] == [0, 0, 0]
    assert pace.take() == 0.125
    clock.now += 0.0625
    assert pace.take() == 0.0625, "a refusal changes nothing"
    clock.now += 0.0625
    assert pace.take() == 0
    assert pace.take() > 0


def test_pace_takes_several_at_once(clock: Clock) -> None:
    pace = Pace(per_sec(8, burst=5))
    assert pace.take(4) == 0
    assert pace.take(2) == 0.125
    assert pace.take(1) == 0
    clock.now += 0.5
    assert pace.take(5) == 0.125
    clock.now += 0.125
    assert pace.take(5) == 0


def test_more_than_a_burst_never_fits(clock: Clock) -> None:
    pace = Pace(per_sec(8, burst=5))
    assert pace.take(6) == 0.125
    clock.now += 60.0
    assert pace.take(6) == 0.125
    assert pace.take(5) == 0, "a refusal changes nothing"


def test_a_refusal_is_none_without_a_wait() -> None:
    with clock_at(0.0):
        pace = Pace(per_sec(5, burst=4))
        assert pace.take(3) == 0
        assert pace.take() == TICK_SECONDS, "3 * 0.2 is more than 3 intervals, and the difference is less than any wait"


@given(st.integers(1, 6000), st.integers(1, 20), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 3)), max_size=60))
def test_pace_never_exceeds_burst_plus_rate_and_its_wait_is_the_shortest(
    per_minute: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    start, taken = 2.6e6, 0  # a month up
    with clock_at(start) as clock:
        pace = Pace(per_min(per_minute, burst))
        for gap, count in steps:
            clock.now += gap
            wait = pace.take(count)
            if wait == 0:
                taken += count
            elif count <= burst:
                arrival = clock.now + wait
                clock.now = max(clock.now, arrival - 1e-6)
                assert wait < 1e-6 or pace.take(count) > 0
                clock.now = arrival + 1e-6
                assert pace.take(count) == 0
                taken += count
            assert taken <= burst + per_minute / 60 * (clock.now - start) + 1e-3


def test_pace_keeps_monotonic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, start = Pace(per_min(1, burst=1)), time.monotonic()
    assert pace.take() == 0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    wait = pace.take()
    assert 60 - (time.monotonic() - start) <= wait <= 60


def test_a_penalty_grows_while_things_are_refused_and_goes_when_they_are_right() -> None:
    penalty = Penalty()
    assert [penalty.refused() for _ in range(9)] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]
    for _ in range(8):
        penalty.served()
    assert penalty.seconds == 0.0
    assert penalty.refused(0.3) == 0.3
    assert penalty.refused(60.0) == 0.5


def test_handshakes_per_address(clock: Clock) -> None:
    limits = ConnectionLimits(ServerSettings(handshakes_per_minute=60))
    for _ in range(10):
        limits.handshake("203.0.113.1")
    with pytest.raises(ProtocolError) as caught:
        limits.handshake("203.0.113.1")
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_ms == 1000
    limits.handshake("203.0.113.2")
    clock.now += 1.0
    limits.handshake("203.0.113.1")
    for _ in range(100):
        limits.handshake("127.0.0.1")


def test_handshakes_per_user_from_any_address(clock: Clock) -> None:
    limits = ConnectionLimits(ServerSettings(handshakes_per_minute_per_user=60))
    ann = ("acme", "sub", "ann")
    for _ in range(10):
        limits.greet_user(ann)
    with pytest.raises(ProtocolError, match="user") as caught:
        limits.greet_user(ann)
    assert (caught.value.code, caught.value.retry_after_ms) == ("rate_limited", 1000)
    limits.greet_user(("acme", "sub", "bob"))
    limits.greet_user(("acme", "key", "ann"))
    clock.now += 1.0
    limits.greet_user(ann)


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 10), (60, 10), (65, 10), (66, 11), (6000, 1000)])
def test_ten_seconds_of_handshakes_come_at_once_and_ten_of_them_at_any_rate(
    clock: Clock, per_minute: int, burst: int
) -> None:
    pace = handshake_pace(per_minute)
    assert pace.take(burst, "203.0.113.1") == 0
    assert pace.take(1, "203.0.113.1") == pytest.approx(60 / per_minute)


def test_a_flood_of_addresses_fills_no_memory_and_frees_only_the_silent(clock: Clock) -> None:
    limits = ConnectionLimits(ServerSettings(handshakes_per_minute=60, handshakes_per_minute_per_user=60))
    ann = ("acme", "sub", "ann")
    for _ in range(10):
        limits.handshake("203.0.113.1")
        limits.greet_user(ann)
    for number in range(2 * REMEMBERED):
        limits.handshake(f"2001:db8::{number:x}")
        if number % (REMEMBERED - 1) == 0:
            with pytest.raises(ProtocolError):
                limits.handshake("203.0.113.1")
    for number in range(REMEMBERED):
        limits.handshake(f"2001:db8:1::{number:x}")
    limits.handshake("203.0.113.1")  # it is among those forgotten: no more are kept
    with pytest.raises(ProtocolError):
        limits.greet_user(ann)


def test_open_sockets_per_address_and_user() -> None:
    limits = ConnectionLimits(ServerSettings(max_connections_per_address=2, max_connections_per_user=1))
    limits.enter_address("203.0.113.1")
    limits.enter_address("203.0.113.1")
    with pytest.raises(ProtocolError, match="address"):
        limits.enter_address("203.0.113.1")
    limits.leave_address("203.0.113.1")
    limits.enter_address("203.0.113.1")
    user = ("acme", "sub", "ann")
    limits.enter_user(user)
    with pytest.raises(ProtocolError, match="user"):
        limits.enter_user(user)
    limits.leave_user(user)
    limits.enter_user(user)
    limits.leave_user(user)
    for _ in range(2):
        limits.leave_address("203.0.113.1")
    assert not limits._open, "nothing is remembered of those who left"
    for _ in range(5):
        limits.enter_address("::1")


def test_frame_pace(clock: Clock) -> None:
    pace = frame_pace(2)
    assert [pace.take() == 0 for _ in range(11)] == [True] * 10 + [False]


def test_the_frames_of_a_user_and_of_an_address_are_counted_together(clock: Clock) -> None:
    limits = ConnectionLimits(ServerSettings(frames_per_second_per_user=2, frames_per_second_per_address=4))
    user = ("acme", "sub", "ann")
    one, two = limits.enter_user(user), limits.enter_user(user)
    assert one is two
    assert [one.frames.take() == 0 for _ in range(11)] == [True] * 10 + [False]
    assert limits.enter_user(("acme", "sub", "bob")).frames.take() == 0
    limits.leave_user(user)
    assert limits.enter_user(user) is one, "somebody of the user is still here"
    address = limits.enter_address("203.0.113.1")
    assert address is not None
    assert [address.take() == 0 for _ in range(21)] == [True] * 20 + [False]
    assert limits.enter_address("127.0.0.1") is None
    for who in (user, user, ("acme", "sub", "bob")):
        limits.leave_user(who)
    limits.leave_address("203.0.113.1")
    assert not limits._shared, "nothing is remembered of those who left"


@pytest.mark.parametrize(
    ("peer", "header", "expected"),
    [
        ("203.0.113.9", "1.1.1.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1, nonsense", "10.0.0.1"),
        ("unix", "1.1.1.1", "unix"),
    ],
)
def test_client_address(peer: str, header: str | None, expected: str) -> None:
    assert client_address(peer, header, ("10.0.0.0/8",)) == expected
    assert client_address(peer, header, ()) == peer
