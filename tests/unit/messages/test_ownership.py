"""Who is dead, as one observer judges it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.messages.ownership import BEAT_SECONDS, PAUSE_SECONDS, SLOW_READ_SECONDS, Observer

TAKEOVER = 3.0
READ = 0.002


def watch(observer: Observer, counters: dict[str, int], start: float, seconds: float) -> tuple[set[str], float]:
    """Read unchanging counters until somebody is dead, at most for `seconds`."""
    now = start
    while now < start + seconds:
        dead = observer.read(counters, now, now + READ)
        if dead:
            return dead, now
        now += BEAT_SECONDS
    return set(), now


def test_a_counter_that_stands_still_is_a_dead_node() -> None:
    dead, when = watch(Observer(TAKEOVER), {"a": 7}, 100.0, 10.0)
    assert dead == {"a"}
    assert TAKEOVER <= when - 100.0 <= TAKEOVER + 2 * BEAT_SECONDS


def test_a_node_without_a_counter_is_judged_the_same() -> None:
    observer = Observer(TAKEOVER)
    now, dead = 0.0, set()
    while not dead and now < 10:
        dead = observer.read({"a": None}, now, now + READ)
        now += BEAT_SECONDS
    assert dead == {"a"}
    assert now > TAKEOVER


@given(st.lists(st.floats(min_value=0.0, max_value=TAKEOVER - 0.01), min_size=1, max_size=50))
def test_a_counter_that_moves_in_time_never_dies(gaps: list[float]) -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for counter, gap in enumerate(gaps):
        end = now + gap
        while now < end:
            assert not observer.read({"a": counter}, now, now + READ)
            now += BEAT_SECONDS
        now = end


def test_a_pause_of_the_observer_kills_nobody() -> None:
    observer = Observer(TAKEOVER)
    observer.read({"a": 1}, 0.0, READ)
    assert not observer.read({"a": 1}, 30.0, 30.0 + READ), "the pause is the observer's own"
    dead, when = watch(observer, {"a": 1}, 30.0 + BEAT_SECONDS, 10.0)
    assert dead == {"a"}
    assert when - 30.0 >= TAKEOVER


def test_a_slow_read_proves_nothing() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for _ in range(20):
        assert not observer.read({"a": 1}, now, now + SLOW_READ_SECONDS + 0.01)
        now += SLOW_READ_SECONDS + 0.02


def test_an_error_begins_the_observation_anew() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for turn in range(40):
        if turn % 8 == 7:
            observer.interrupted()
        assert not observer.read({"a": 1}, now, now + READ)
        now += BEAT_SECONDS


@given(
    st.lists(
        st.tuples(st.floats(0.0, 40.0), st.floats(0.0, 2.0), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_nobody_is_dead_before_an_uninterrupted_takeover_time(steps: list[tuple[float, float, bool]]) -> None:
    """Whatever the readings: a verdict needs `takeover_seconds` of readings that were close, fast and without error."""
    observer = Observer(TAKEOVER)
    now = 0.0
    watched_since: float | None = None
    last_end: float | None = None
    for gap, slowness, error in steps:
        now += gap
        if error:
            observer.interrupted()
            watched_since = last_end = None
        ended = now + slowness
        if slowness > SLOW_READ_SECONDS or (last_end is not None and now - last_end > PAUSE_SECONDS):
            watched_since = None
        dead = observer.read({"a": 1}, now, ended)
        if watched_since is None:
            watched_since = ended
        if dead:
            assert now - watched_since >= TAKEOVER
        last_end = now = ended


def test_a_node_that_left_the_list_is_forgotten() -> None:
    observer = Observer(TAKEOVER)
    now = 0.0
    for _ in range(8):
        observer.read({"a": 1}, now, now + READ)
        now += BEAT_SECONDS
    observer.read({}, now, now + READ)
    now += BEAT_SECONDS
    assert not observer.read({"a": 1}, now, now + READ), "it is seen for the first time again"
