"""Backoff and heartbeats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.client.timing import Backoff, Beat, Heartbeat


def test_backoff_doubles_up_to_its_cap() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next_delay() for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert backoff.next_delay() == 0.25


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 5000))
def test_backoff_is_a_share_of_the_ceiling(dice: float, failures: int) -> None:
    backoff = Backoff(lambda: dice)
    backoff.failures = failures
    ceiling = backoff.ceiling_seconds
    assert 0 <= backoff.next_delay() <= ceiling <= 30
    assert backoff.failures == failures + 1


def test_two_missed_beats_are_one_dead_connection() -> None:
    heart = Heartbeat(20, now=100)
    assert heart.poll(119) is Beat.WAIT
    assert heart.poll(120) is Beat.PING
    assert heart.poll(130) is Beat.WAIT
    assert heart.poll(140) is Beat.PING
    assert heart.missed == 1
    assert heart.poll(160) is Beat.DEAD


def test_anything_heard_is_a_sign_of_life() -> None:
    heart = Heartbeat(20, now=0)
    for now in range(20, 400, 20):
        assert heart.poll(now) is Beat.PING
        heart.heard()
    assert heart.missed == 0
    assert [heart.poll(400), heart.poll(420), heart.poll(440)] == [Beat.PING, Beat.PING, Beat.DEAD]


def test_what_was_heard_before_the_first_ping_does_not_count_for_it() -> None:
    heart = Heartbeat(20, now=0)
    heart.heard()
    assert [heart.poll(20), heart.poll(40), heart.poll(60)] == [Beat.PING, Beat.PING, Beat.DEAD]
