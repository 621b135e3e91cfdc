"""What a node counts between two samples."""

from __future__ import annotations

from server.telemetry.counts import REST, TENANTS_TOLD, Counts


def test_what_was_told_is_counted_anew() -> None:
    counts = Counts()
    counts.chunks += 7
    counts.quota("refused")
    counts.quota("too_large")
    counts.quota("held")
    counts.message_ended("done")
    counts.attempt_ended("a", "done")
    counts.attempt_ended("a", "done")
    counts.settled("acme", 10, 500)
    counts.settled("acme", 5, 250)
    assert counts.take() == {
        "chunks": 7,
        "refused": 2,
        "ended": {"done": 1},
        "outcomes": {"a": {"done": 2}},
        "spent": {"acme": [2, 15, 750]},
    }
    assert counts.take() == {"chunks": 0, "refused": 0, "ended": {}, "outcomes": {}, "spent": {}}


def test_of_many_tenants_those_who_spend_most_are_named_and_nothing_is_lost() -> None:
    counts = Counts()
    for number in range(TENANTS_TOLD + 5):
        counts.settled(f"tenant-{number}", 10, number)
    told = counts.take()["spent"]
    assert len(told) == TENANTS_TOLD + 1
    assert f"tenant-{TENANTS_TOLD + 4}" in told
    assert "tenant-0" not in told
    assert told[REST] == [5, 50, sum(range(5))]
    assert sum(row[2] for row in told.values()) == sum(range(TENANTS_TOLD + 5))
