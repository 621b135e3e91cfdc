"""Time limits of a stream, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from server.upstreams.base import Fault, UpstreamFailure
from server.upstreams.watchdog import Watchdog


class Timer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """As much of an event loop as a watchdog uses."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if not timer.cancelled and timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watchdog(clock: Any, found: list[UpstreamFailure]) -> Watchdog:
    dog = Watchdog(clock, first_token=10, idle=2, total=20)
    dog.watch(found.append)
    return dog


def faults(found: list[UpstreamFailure]) -> list[Fault]:
    return [failure.fault for failure in found]


def test_the_first_token_has_its_own_limit(clock: Clock) -> None:
    found: list[UpstreamFailure] = []
    dog = watchdog(clock, found)
    for _ in range(4):  # comments and empty chunks do not extend it
        dog.ask()
        clock.advance(2.4)
        dog.answered(content=False, progress=True)
    dog.ask()
    clock.advance(0.3)
    assert not found
    clock.advance(0.2)
    assert faults(found) == [Fault.FIRST_TOKEN_TIMEOUT]


def test_silence_after_content(clock: Clock) -> None:
    found: list[UpstreamFailure] = []
    dog = watchdog(clock, found)
    for _ in range(5):
        dog.ask()
        clock.advance(1.9)
        dog.answered(content=True)
    dog.ask()
    clock.advance(2.1)
    assert faults(found) == [Fault.IDLE_TIMEOUT]


def test_the_whole_answer_has_a_limit(clock: Clock) -> None:
    found: list[UpstreamFailure] = []
    dog = watchdog(clock, found)
    for _ in range(13):
        dog.ask()
        clock.advance(1.5)
        dog.answered(content=True)
    dog.ask()
    clock.advance(1.5)
    assert faults(found) == [Fault.TOTAL_TIMEOUT]


def test_time_in_which_nobody_asks_does_not_count(clock: Clock) -> None:
    found: list[UpstreamFailure] = []
    dog = watchdog(clock, found)
    for _ in range(10):
        dog.ask()
        clock.advance(1)
        dog.answered(content=True)
        clock.advance(1000)
    assert not found
    dog.ask()
    clock.advance(2.1)
    assert faults(found) == [Fault.IDLE_TIMEOUT]


def test_one_timer_however_many_reads(clock: Clock) -> None:
    dog = watchdog(clock, [])
    dog.ask()
    dog.answered(content=True)
    for _ in range(1000):
        dog.ask()
        clock.advance(0.001)
        dog.answered(content=True)
    assert len([timer for timer in clock.timers if not timer.cancelled]) == 1
    dog.stop()
    assert not [timer for timer in clock.timers if not timer.cancelled]
