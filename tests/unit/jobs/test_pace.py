"""How many items run beside people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.jobs.pace import CALM_SECONDS, GAP_SECONDS, LATE_SECONDS, SHARE, Pace

NOW = 100.0


def loaded(pace: Pace, load: float) -> Pace:
    """A pace that was told for long enough how busy the loop is."""
    for _ in range(200):
        pace.turned(NOW, 0.0, 0.05, 0.05 * load)
    return pace


def test_alone_a_node_runs_as_many_as_it_may() -> None:
    pace = loaded(Pace(8), 1.0)
    assert pace.room(NOW, 0) == 8
    assert pace.room(NOW, 7) == 1
    assert pace.room(NOW, 9) == 0
    assert pace.wait(NOW) == 0.0


def test_beside_people_half_as_many_begin_one_by_one_at_a_distance() -> None:
    pace = Pace(8)
    pace.people(NOW, 1)
    assert pace.room(NOW, 0) == 1
    pace.began(NOW)
    assert pace.room(NOW + GAP_SECONDS / 2, 1) == 0
    assert 0 < pace.wait(NOW + GAP_SECONDS / 2) <= GAP_SECONDS / 2
    assert pace.room(NOW + GAP_SECONDS * 1.01, 1) == 1
    assert pace.room(NOW + GAP_SECONDS * 1.01, 4) == 0


def test_people_are_remembered_for_a_while() -> None:
    pace = Pace(8)
    pace.people(NOW, 1)
    pace.people(NOW + 0.1, 0)
    assert pace.in_use(NOW + CALM_SECONDS * 0.99)
    assert not pace.in_use(NOW + CALM_SECONDS)
    assert pace.room(NOW + CALM_SECONDS, 0) == 8


def test_beside_people_items_take_a_small_share_of_a_loaded_loop() -> None:
    pace = loaded(Pace(1000), 0.4)
    pace.people(NOW, 97)
    room = [pace.room(NOW, running) for running in range(20)]
    assert room.index(0) == 13  # 13 of 110 messages take 0.047 of the 0.4, 14 of 111 would take more than SHARE
    assert set(room[: room.index(0)]) == {1}


def test_beside_people_an_idle_loop_takes_half_of_what_it_may() -> None:
    pace = loaded(Pace(1000), SHARE)
    pace.people(NOW, 1)
    assert pace.room(NOW, 499) == 1
    assert pace.room(NOW, 500) == 0


@given(most=st.integers(1, 10_000), people=st.integers(1, 10_000), running=st.integers(0, 10_000), load=st.floats(0, 1))
def test_beside_people_items_never_take_more_than_their_share(
    most: int, people: int, running: int, load: float
) -> None:
    pace = loaded(Pace(most), load)
    pace.people(NOW, people)
    room = pace.room(NOW, running)
    assert room in (0, 1)
    if running == 0:
        assert room == 1, "a job goes on, if slowly"
    elif room:
        assert running + 1 <= max(1, most // 2)
        assert load * (running + 1) / (people + running) <= SHARE * 1.001 or load <= SHARE


def test_the_load_of_the_loop_is_that_of_the_last_second() -> None:
    pace = loaded(Pace(1000), 1.0)
    pace.people(NOW, 1)
    assert pace.room(NOW, 1) == 0
    loaded(pace, 0.0)
    assert pace.room(NOW, 1) == 1
    pace.turned(NOW, 0.0, 3.0, 3.0)  # it was away for so long: that is all that counts
    assert pace.room(NOW, 1) == 0


@pytest.mark.parametrize("people", [0, 1])
def test_a_late_event_loop_begins_nothing(people: int) -> None:
    pace = Pace(8)
    pace.people(NOW, people)
    before = 1 if people else 8
    pace.turned(NOW, LATE_SECONDS / 2, 0.05, 0.0)
    assert pace.room(NOW, 0) == before
    pace.turned(NOW, LATE_SECONDS * 4, 0.05, 0.0)
    assert pace.room(NOW, 0) == 0
    assert pace.wait(NOW) == pytest.approx(LATE_SECONDS * 4)
    assert pace.room(NOW + LATE_SECONDS * 4.01, 0) == before


def test_progress_is_never_stopped_for_good() -> None:
    pace = Pace(1)
    pace.people(NOW, 1)
    assert pace.room(NOW, 0) == 1
    assert Pace(0).room(NOW, 0) == 0


def lasting(pace: Pace, items: int, seconds: float, asks_every: float) -> float:
    """How many seconds such items take beside somebody who asks so often, each time for a second."""
    now, ends = NOW, list[float]()
    began = 0
    while began < items or ends:
        ends = [end for end in ends if end > now]
        pace.people(now, int(now % asks_every < 1.0))
        if began < items:
            for _ in range(min(items - began, pace.room(now, len(ends)))):
                pace.began(now)
                ends.append(now + seconds)
                began += 1
        now += 0.05
    return now - NOW


@pytest.mark.parametrize(
    ("asks_every", "least", "most"),
    [(1.0, 250, 300), (20.0, 250, 300), (120.0, 125, 180), (math.inf, 125, 140)],
    ids=["always", "every 20 s", "every 2 min", "never"],
)
def test_a_thousand_items_take_minutes_however_often_people_come(asks_every: float, least: float, most: float) -> None:
    took = lasting(loaded(Pace(8), 0.04), 1_000, 1.0, asks_every)
    assert least <= took <= most
