"""Which target comes next, and how what follows relates to what was shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.routing.attempts import GiveUp, OnMidstream, Plan, Reason, Route, Shown, Try

TEMPORARY = Reason("upstream_unavailable", "it broke")
PERMANENT = Reason("context_length_exceeded", "too long", "permanent")


def plan(mode: OnMidstream = "restart", prefill: str = "", targets: str = "abc", made: int = 0) -> Plan:
    return Plan(Route("r", tuple(targets), mode, frozenset(prefill)), made)


def test_it_begins_with_the_first_target() -> None:
    assert plan().first(Shown()) == Try(1, "a", "fresh", None)
    assert plan(made=4).first(Shown()) == Try(5, "a", "fresh", None)


def test_early_failures_stay_fresh_and_say_why() -> None:
    found = plan()
    found.first(Shown())
    assert found.after_failure("a", TEMPORARY, True, Shown()) == Try(2, "b", "fresh", TEMPORARY)
    assert found.after_failure("b", PERMANENT, True, Shown()) == Try(3, "c", "fresh", PERMANENT)


@pytest.mark.parametrize(
    ("mode", "prefill", "structured", "expected"),
    [
        ("restart", "", False, "restart"), ("restart", "b", False, "restart"), ("continue", "b", False, "continue"),
        ("continue", "a", False, "restart"), ("continue", "", False, "restart"), ("continue", "b", True, "restart"),
        ("fail", "b", False, None),
    ],
)  # fmt: skip
def test_after_the_first_token(mode: OnMidstream, prefill: str, structured: bool, expected: str | None) -> None:
    found = plan(mode, prefill)
    found.first(Shown())
    step = found.after_failure("a", TEMPORARY, True, Shown(True, structured))
    if expected is None:
        assert step == GiveUp("upstream_unavailable", "it broke", "temporary")
    else:
        assert step == Try(2, "b", expected, TEMPORARY)  # type: ignore[arg-type]


def test_fail_still_falls_back_before_the_first_token() -> None:
    found = plan("fail")
    found.first(Shown())
    assert found.after_failure("a", TEMPORARY, True, Shown()) == Try(2, "b", "fresh", TEMPORARY)


def test_what_no_other_target_would_answer_ends_at_once() -> None:
    found = plan()
    found.first(Shown())
    reason = Reason("upstream_rejected", "no", "permanent", 70)
    assert found.after_failure("a", reason, False, Shown()) == GiveUp("upstream_rejected", "no", "permanent", 70)


def test_a_single_target_s_failure_is_told_as_it_is() -> None:
    found = plan(targets="a")
    found.first(Shown())
    assert found.after_failure("a", Reason("upstream_timeout", "slow", "temporary", 900), True, Shown()) == GiveUp(
        "upstream_timeout", "slow", "temporary", 900
    )


@pytest.mark.parametrize(
    ("classes", "expected"), [("tt", "temporary"), ("tp", "temporary"), ("pt", "temporary"), ("pp", "permanent")]
)
def test_all_failed_is_permanent_only_if_every_attempt_was(classes: str, expected: str) -> None:
    found = plan(targets="ab")
    found.first(Shown())
    kinds = {"t": Reason("upstream_timeout", "x", "temporary", 500), "p": PERMANENT}
    found.after_failure("a", kinds[classes[0]], True, Shown())
    step = found.after_failure("b", kinds[classes[1]], True, Shown())
    assert isinstance(step, GiveUp)
    assert (step.code, step.error_class) == ("all_targets_failed", expected)
    assert step.retry_after_ms == (500 if "t" in classes else None)
    assert step.details is not None
    assert [row["target"] for row in step.details["attempts"]] == ["a", "b"]


def test_the_shortest_wait_is_told() -> None:
    found = plan(targets="abc")
    found.first(Shown())
    for target, wait in (("a", 900), ("b", None)):
        found.after_failure(target, Reason("upstream_unavailable", "x", "temporary", wait), True, Shown())
    step = found.after_failure("c", Reason("upstream_unavailable", "x", "temporary", 300), True, Shown())
    assert isinstance(step, GiveUp)
    assert step.retry_after_ms == 300


def test_a_reopened_failure_restarts_what_was_shown() -> None:
    retried = Reason("retried", "again")
    assert plan(made=2).first(Shown(True), retried) == Try(3, "a", "restart", retried)
    assert plan("continue", "a", made=2).first(Shown(True), retried) == Try(3, "a", "continue", retried)
    assert plan("fail", made=2).first(Shown(True), retried) == Try(3, "a", "restart", retried)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8),
    st.sampled_from(["restart", "continue", "fail"]),
    st.text("abcd", min_size=1, max_size=4).filter(lambda text: len(set(text)) == len(text)),
)
def test_every_route_comes_to_an_end_and_tries_each_target_once(
    failures: list[tuple[bool, bool]], mode: OnMidstream, targets: str
) -> None:
    found = plan(mode, "ac", targets)
    shown = Shown()
    step: Try | GiveUp = found.first(shown)
    tried: list[str] = []
    for may_retry, content in [*failures, *[(True, False)] * len(targets)]:
        if isinstance(step, GiveUp):
            break
        assert step.number == len(tried) + 1
        assert (step.mode == "fresh") == (not shown.anything)
        tried.append(step.target)
        shown.anything = shown.anything or content
        step = found.after_failure(step.target, TEMPORARY, may_retry, shown)
    assert isinstance(step, GiveUp)
    assert tried == list(targets[: len(tried)])
