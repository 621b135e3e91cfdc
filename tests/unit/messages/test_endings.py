"""For how long, and how many, the ends of messages are kept. That they are written again: `test_lost_writes.py`."""

from __future__ import annotations

import pytest

from server.messages import endings
from server.messages.endings import KEPT_BYTES, KEPT_SECONDS, Endings
from server.messages.events import Entry, pack
from server.messages.journal import End, Ending, Journal, _Flight
from server.store.keys import MessageKeys
from server.store.store import Store


class NoStore(Store):
    """One that nothing is asked of."""

    def __init__(self) -> None:
        pass


def kept(claim_seconds: float = 3600.0) -> Endings:
    return Endings(Journal(NoStore()), claim_seconds)


def an_end(size: int) -> Ending:
    """One of so many bytes."""
    event = ("e", "done", {})
    data = pack(0, 1, [event])
    end = End("done", b"x" * (size - len(data)), b"", may_reopen=False)
    flight = _Flight(Entry(0, 1, [event], len(data)), data, None, 1, end)
    ending = Ending(MessageKeys.of("a" * 64), b"fence", flight, (), {}, True, lambda: None)
    assert ending.size == size
    return ending


def test_it_is_kept_for_half_a_minute() -> None:
    ends = kept()
    ends.keep("old", an_end(100), 0, now=5.0)
    ends.keep("young", an_end(100), 0, now=5.0 + KEPT_SECONDS)
    assert ends.tags(now=5.0 + KEPT_SECONDS) == ["old", "young"]
    assert ends.tags(now=5.1 + KEPT_SECONDS) == ["young"]


def test_it_is_kept_no_longer_than_the_claim() -> None:
    ends = kept(claim_seconds=2.0)
    ends.keep("m", an_end(100), 0, now=5.0)
    assert ends.tags(now=7.0) == ["m"]
    assert ends.tags(now=7.1) == []


def test_a_new_one_makes_room_for_itself() -> None:
    ends = kept()
    ends.keep("old", an_end(100), 0, now=5.0)
    ends.keep("new", an_end(KEPT_BYTES - 100), 0, now=5.1 + KEPT_SECONDS)
    assert ends.tags(now=5.1 + KEPT_SECONDS) == ["new"]


def test_the_oldest_go_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "KEPT_BYTES", 1000)
    ends = kept()
    for number in range(30):
        ends.keep(f"m{number}", an_end(100), 0, now=0.0)
    assert ends.tags(now=0.0) == [f"m{number}" for number in range(20, 30)]


def test_one_that_ends_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "KEPT_BYTES", 1000)
    ends = kept()
    ends.keep("other", an_end(100), 0, now=0.0)
    for _ in range(30):
        ends.keep("m", an_end(900), 0, now=0.0)
    assert "other" in ends.tags(now=0.0)
    ends.forget("m")
    ends.forget("m")
    ends.keep("third", an_end(900), 0, now=0.0)
    assert "other" in ends.tags(now=0.0)


def test_what_they_answer_counts() -> None:
    ends = kept()
    ends.keep("old", an_end(100), KEPT_BYTES - 1000, now=0.0)
    ends.keep("m", an_end(100), 700, now=0.0)
    assert "old" in ends.tags(now=0.0)
    ends.keep("n", an_end(100), 1, now=0.0)
    assert "old" not in ends.tags(now=0.0)


def test_one_larger_than_all_may_be_is_not_kept() -> None:
    ends = kept()
    ends.keep("m", an_end(KEPT_BYTES + 1), 0, now=0.0)
    assert "m" not in ends.tags(now=0.0)
