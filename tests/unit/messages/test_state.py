"""The life of a message: its table, and that nothing outside it can happen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages.state import TRANSITIONS, Happening, IllegalTransition, State, after, diagram

DOCS = Path(__file__).resolve().parents[3] / "docs"
EVERY = [(state, what) for state in State for what in Happening]


@pytest.mark.parametrize(("state", "what"), EVERY)
def test_every_pair_is_in_the_table_or_illegal(state: State, what: Happening) -> None:
    if (state, what) in TRANSITIONS:
        assert after(state, what) is TRANSITIONS[state, what]
    else:
        with pytest.raises(IllegalTransition, match=f"{what}.*{state}"):
            after(state, what)


@given(st.lists(st.sampled_from(Happening), max_size=30))
def test_an_illegal_happening_leaves_the_state_unchanged(happenings: list[Happening]) -> None:
    state = State.ADMITTING
    for what in happenings:
        before = state
        try:
            state = after(state, what)
        except IllegalTransition:
            assert state is before
            assert (before, what) not in TRANSITIONS
        else:
            assert TRANSITIONS[before, what] is state


def test_only_a_failure_can_be_left_again() -> None:
    leaves = {state for state, _ in TRANSITIONS if state.ended}
    assert leaves == {State.FAILED}
    assert TRANSITIONS[State.FAILED, Happening.REOPEN] is State.ADMITTING
    assert {state for state in State if state.ended} == {State.DONE, State.FAILED, State.CANCELLED}


def test_every_state_can_be_reached_and_every_running_one_can_end() -> None:
    reached = {State.ADMITTING}
    while more := {new for (old, _), new in TRANSITIONS.items() if old in reached} - reached:
        reached |= more
    assert reached == set(State)
    for state in State:
        if not state.ended:
            assert TRANSITIONS[state, Happening.CANCEL] is State.CANCELLED
            assert TRANSITIONS[state, Happening.FAIL] is State.FAILED


def test_the_diagram_is_the_table() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[0] == "stateDiagram-v2"
    for (old, what), new in TRANSITIONS.items():
        assert f"{old} --> {new}: {what}" in lines
    assert sum(": " in line for line in lines) == len(TRANSITIONS)
    for state in State:
        assert (f"{state} --> [*]" in lines) == state.ended


def test_the_diagram_in_the_documentation_is_current() -> None:
    drawn = [path for path in DOCS.glob("*.md") if "stateDiagram-v2" in path.read_text()]
    assert drawn, "no page of docs/ shows the life of a message"
    assert any(diagram() in path.read_text() for path in drawn), "docs/ shows another table"
