"""Which target comes next, in which mode, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from server.routing.attempts import RETRY_SECONDS, GiveUp, Plan, Reason, Route, Shown, Try
from server.upstreams.base import Fault
from server.upstreams.faults import CONSEQUENCES


def route(count: int = 3, **fields: Any) -> Route:
    return Route("default", tuple("abc"[:count]), **fields)


def fails(plan: Plan, step: Try, fault: Fault, shown: Shown | None = None, wait_ms: int | None = None) -> GiveUp | None:
    row = CONSEQUENCES[fault]
    return plan.failed(step, row, Reason(row.code, "why", row.error_class, wait_ms), shown or Shown())


def begin(plan: Plan, shown: Shown | None = None) -> Try:
    name = plan.candidate()
    assert name is not None
    return plan.start(name, shown or Shown())


def no_wait(_: str) -> float:
    return 0.0


def test_targets_are_asked_in_order_each_once_with_rising_numbers() -> None:
    plan = Plan(route(), made=2)
    assert plan.opening(Shown()) is None
    tries = []
    while plan.candidate():
        tries.append(begin(plan))
        assert fails(plan, tries[-1], Fault.SERVER_ERROR) is None
    assert [(t.number, t.target, t.mode) for t in tries] == [(3, "a", "fresh"), (4, "b", "fresh"), (5, "c", "fresh")]
    assert tries[1].reason is not None
    assert tries[1].reason.code == "upstream_unavailable"


def test_a_held_target_takes_no_number_and_is_never_asked() -> None:
    plan = Plan(route())
    plan.hold("a", 7.0, "open")
    assert begin(plan) == Try(1, "b", "fresh", None)


def test_everything_held_tells_the_earliest_time() -> None:
    plan = Plan(route())
    for name, wait in (("a", 30.0), ("b", 4.5), ("c", 9.0)):
        plan.hold(name, wait, "open")
    verdict = plan.exhausted(no_wait)
    assert (verdict.code, verdict.error_class, verdict.retry_after_ms) == ("all_targets_failed", "temporary", 4500)
    assert verdict.details is not None
    assert [held["target"] for held in verdict.details["held"]] == ["a", "b", "c"]


def test_failed_targets_are_worth_retrying_when_their_breaker_or_the_provider_says_so() -> None:
    plan = Plan(route(2))
    fails(plan, begin(plan), Fault.SERVER_ERROR, wait_ms=8000)
    fails(plan, begin(plan), Fault.UNAUTHORIZED)
    assert plan.exhausted({"a": 2.0, "b": 20.0}.__getitem__).retry_after_ms == 8000
    assert plan.exhausted(no_wait).retry_after_ms == RETRY_SECONDS * 1000


def test_a_single_failure_keeps_its_own_code() -> None:
    plan = Plan(route(1))
    fails(plan, begin(plan), Fault.IDLE_TIMEOUT)
    verdict = plan.exhausted(no_wait)
    assert (verdict.code, verdict.error_class) == ("upstream_timeout", "temporary")


@pytest.mark.parametrize("fault", [Fault.REJECTED, Fault.CONTENT_FILTER, Fault.TOTAL_TIMEOUT])
def test_where_no_target_would_do_better_none_is_asked(fault: Fault) -> None:
    plan = Plan(route())
    verdict = fails(plan, begin(plan), fault)
    assert verdict is not None
    assert (verdict.code, verdict.error_class) == (CONSEQUENCES[fault].code, CONSEQUENCES[fault].error_class)


def test_a_long_input_goes_to_larger_contexts_only() -> None:
    plan = Plan(route(context_tokens={"a": 8000, "b": 4000, "c": 32_000}))
    assert fails(plan, begin(plan), Fault.CONTEXT_LENGTH) is None
    assert plan.candidate() == "c"
    assert fails(plan, begin(plan), Fault.CONTEXT_LENGTH) is None
    assert plan.candidate() is None
    verdict = plan.exhausted(no_wait)
    assert (verdict.code, verdict.error_class, verdict.retry_after_ms) == ("context_length_exceeded", "permanent", None)


def test_contexts_of_unknown_size_are_tried() -> None:
    plan = Plan(route(context_tokens={"a": 8000}))
    fails(plan, begin(plan), Fault.CONTEXT_LENGTH)
    assert plan.candidate() == "b"


def test_an_input_that_cannot_fit_is_refused_before_the_call() -> None:
    plan = Plan(route(2, context_tokens={"a": 1000, "b": 1000}), least_tokens=1001)
    assert plan.candidate() is None
    verdict = plan.exhausted(no_wait)
    assert (verdict.code, verdict.error_class) == ("context_length_exceeded", "permanent")
    assert verdict.details == {"input_tokens": 1001, "room_tokens": 1000}


def test_what_fits_nowhere_is_told_with_the_counts_of_the_largest_room() -> None:
    plan = Plan(route())
    for name, room in (("a", 500), ("b", 800), ("c", 700)):
        assert plan.candidate() == name
        counts = {"input_tokens": 900, "room_tokens": room}
        plan.too_long(name, Reason("context_length_exceeded", f"room for {room}", "permanent"), counts)
    verdict = plan.exhausted(no_wait)
    assert (verdict.code, verdict.message, verdict.error_class) == (
        "context_length_exceeded",
        "room for 800",
        "permanent",
    )
    assert verdict.details == {"input_tokens": 900, "room_tokens": 800}


def test_counts_are_told_only_where_every_target_was_too_small() -> None:
    plan = Plan(route(2))
    reason = Reason("context_length_exceeded", "room for 5", "permanent")
    plan.too_long("a", reason, {"input_tokens": 9, "room_tokens": 5})
    verdict = fails(plan, begin(plan), Fault.REJECTED)
    assert verdict is not None
    assert (verdict.code, verdict.details) == ("upstream_rejected", None)


def test_temporary_and_permanent_are_not_confused() -> None:
    plan = Plan(route(2))
    plan.hold("b", 3.0, "open")
    fails(plan, begin(plan), Fault.CONTEXT_LENGTH)
    assert plan.exhausted(no_wait).error_class == "temporary"
    plan = Plan(route(2))
    fails(plan, begin(plan), Fault.CONTEXT_LENGTH)
    fails(plan, begin(plan), Fault.SERVER_ERROR)
    assert plan.exhausted(no_wait).error_class == "temporary"


def test_modes_after_something_was_shown() -> None:
    shown = Shown(anything=True)
    for wish, prefill, structured, mode in (
        ("restart", "abc", False, "restart"),
        ("continue", "abc", False, "continue"),
        ("continue", "a", False, "restart"),
        ("continue", "abc", True, "restart"),
    ):
        plan = Plan(route(on_midstream_failure=wish, prefill=frozenset(prefill)))
        assert fails(plan, begin(plan), Fault.BROKEN_STREAM, shown) is None
        shown.structured = structured
        assert begin(plan, shown).mode == mode


def test_fail_ends_with_what_stands() -> None:
    plan = Plan(route(on_midstream_failure="fail"))
    assert fails(plan, begin(plan), Fault.BROKEN_STREAM) is None, "nothing stands"
    verdict = fails(plan, begin(plan), Fault.BROKEN_STREAM, Shown(anything=True))
    assert verdict is not None
    assert verdict.code == "upstream_unavailable"
    lost = Plan(route(on_midstream_failure="fail")).opening(Shown(anything=True), Reason("owner_lost", "lost"))
    assert lost is not None


@pytest.mark.parametrize("fault", [Fault.REJECTED, Fault.EMPTY, Fault.CONTEXT_LENGTH])
def test_a_target_that_does_not_go_on_after_all_starts_over(fault: Fault) -> None:
    shown = Shown(anything=True)
    plan = Plan(route(2, on_midstream_failure="continue", prefill=frozenset("ab")))
    fails(plan, begin(plan), Fault.BROKEN_STREAM, shown)
    goes_on = begin(plan, shown)
    assert (goes_on.target, goes_on.mode) == ("b", "continue")
    assert fails(plan, goes_on, fault, shown) is None
    again = begin(plan, shown)
    assert (again.number, again.target, again.mode) == (3, "b", "restart")
    assert (fails(plan, again, fault, shown) is not None) == (fault is Fault.REJECTED)
    assert plan.candidate() is None
