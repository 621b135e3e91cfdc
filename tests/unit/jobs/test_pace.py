"""How many items run beside people."""

from __future__ import annotations

import pytest

from server.jobs.pace import CALM_SECONDS, GAP_SECONDS, LATE_SECONDS, Pace


def test_alone_a_node_runs_as_many_as_it_may() -> None:
    pace = Pace(8)
    assert pace.room(100.0, 0) == 8
    assert pace.room(100.0, 7) == 1
    assert pace.room(100.0, 9) == 0
    assert pace.wait(100.0) == 0.0


def test_beside_people_half_as_many_begin_one_by_one_at_a_distance() -> None:
    pace = Pace(8)
    pace.people(100.0)
    assert pace.room(100.0, 0) == 1
    pace.began(100.0)
    assert pace.room(100.0 + GAP_SECONDS / 2, 1) == 0
    assert 0 < pace.wait(100.0 + GAP_SECONDS / 2) <= GAP_SECONDS / 2
    assert pace.room(100.0 + GAP_SECONDS * 1.01, 1) == 1
    assert pace.room(100.0 + GAP_SECONDS * 1.01, 4) == 0


def test_people_are_remembered_for_a_while() -> None:
    pace = Pace(8)
    pace.people(100.0)
    assert pace.in_use(100.0 + CALM_SECONDS * 0.99)
    assert not pace.in_use(100.0 + CALM_SECONDS)
    assert pace.room(100.0 + CALM_SECONDS, 0) == 8


@pytest.mark.parametrize("people", [True, False])
def test_a_late_event_loop_begins_nothing(people: bool) -> None:
    pace = Pace(8)
    if people:
        pace.people(100.0)
    pace.late(100.0, LATE_SECONDS / 2)
    assert pace.room(100.0, 0) == (1 if people else 8)
    pace.late(100.0, LATE_SECONDS * 4)
    assert pace.room(100.0, 0) == 0
    assert pace.wait(100.0) == pytest.approx(LATE_SECONDS * 4)
    assert pace.room(100.0 + LATE_SECONDS * 4.01, 0) == (1 if people else 8)


def test_progress_is_never_stopped_for_good() -> None:
    pace = Pace(1)
    pace.people(100.0)
    assert pace.room(100.0, 0) == 1
    assert Pace(0).room(100.0, 0) == 0
