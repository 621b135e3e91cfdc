"""How fast and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from server.access.limits import SWEEP_ENTRIES, ConnectionLimits, Pace, Penalty, client_address, frame_pace
from server.config import ServerSettings


def test_pace_lets_a_burst_through_then_the_rate() -> None:
    pace = Pace(rate=10, burst=3)
    assert [pace.take(0.0) for _ in range(3)] == [0, 0, 0]
    assert pace.take(0.0) == pytest.approx(0.1)
    assert pace.take(0.05) == pytest.approx(0.05), "a refusal changes nothing"
    assert pace.take(0.1) == 0
    assert pace.take(0.1) > 0


def test_pace_takes_several_at_once() -> None:
    pace = Pace(rate=10, burst=5)
    assert pace.take(0.0, 4) == 0
    assert pace.take(0.0, 2) == pytest.approx(0.1)
    assert pace.take(0.0, 1) == 0
    assert not pace.is_idle(0.4)
    assert pace.is_idle(0.51)


@given(st.floats(0.1, 100), st.integers(1, 20), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 3)), max_size=60))
def test_pace_never_exceeds_burst_plus_rate_and_its_wait_is_enough(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    pace, now, taken = Pace(rate, burst), 0.0, 0
    for gap, count in steps:
        now += gap
        wait = pace.take(now, count)
        if wait == 0:
            taken += count
        elif count <= burst:
            now += wait + 1e-6
            assert pace.take(now, count) == 0
            taken += count
        assert taken <= burst + rate * now + 1e-3


def test_a_penalty_grows_while_things_are_refused_and_goes_when_they_are_right() -> None:
    penalty = Penalty()
    assert [penalty.refused() for _ in range(9)] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]
    for _ in range(8):
        penalty.served()
    assert penalty.seconds == 0.0
    assert penalty.refused(0.3) == 0.3
    assert penalty.refused(60.0) == 0.5


def test_handshakes_per_address() -> None:
    limits = ConnectionLimits(ServerSettings(handshakes_per_minute=60))
    for _ in range(10):
        limits.handshake("203.0.113.1", 0.0)
    with pytest.raises(ProtocolError) as caught:
        limits.handshake("203.0.113.1", 0.0)
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_ms == 1000
    limits.handshake("203.0.113.2", 0.0)
    limits.handshake("203.0.113.1", 1.0)
    for _ in range(100):
        limits.handshake("127.0.0.1", 0.0)


def test_handshakes_per_user_from_any_address() -> None:
    limits = ConnectionLimits(ServerSettings(handshakes_per_minute_per_user=60))
    ann = ("acme", "sub", "ann")
    for _ in range(10):
        limits.greet_user(ann, 0.0)
    with pytest.raises(ProtocolError, match="user") as caught:
        limits.greet_user(ann, 0.0)
    assert (caught.value.code, caught.value.retry_after_ms) == ("rate_limited", 1000)
    limits.greet_user(("acme", "sub", "bob"), 0.0)
    limits.greet_user(("acme", "key", "ann"), 0.0)
    limits.greet_user(ann, 1.0)


def test_idle_addresses_are_forgotten() -> None:
    limits = ConnectionLimits(ServerSettings())
    for number in range(SWEEP_ENTRIES * 3):
        limits.handshake(f"2001:db8::{number:x}", number * 1.0)
    assert len(limits._paces) <= SWEEP_ENTRIES


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


def test_frame_pace() -> None:
    pace = frame_pace(2)
    assert [pace.take(0.0) == 0 for _ in range(11)] == [True] * 10 + [False]


def test_the_frames_of_a_user_and_of_an_address_are_counted_together() -> None:
    limits = ConnectionLimits(ServerSettings(frames_per_second_per_user=2, frames_per_second_per_address=3))
    user = ("acme", "sub", "ann")
    one, two = limits.enter_user(user), limits.enter_user(user)
    assert one is two
    assert [one.frames.take(0.0) == 0 for _ in range(11)] == [True] * 10 + [False]
    assert limits.enter_user(("acme", "sub", "bob")).frames.take(0.0) == 0
    limits.leave_user(user)
    assert limits.enter_user(user) is one, "somebody of the user is still here"
    address = limits.enter_address("203.0.113.1")
    assert address is not None
    assert [address.take(0.0) == 0 for _ in range(16)] == [True] * 15 + [False]
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
