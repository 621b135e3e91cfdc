"""Entries survive the stream, and two versions of a row make one, in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ledger.record import MOST_NANO, MOST_TOKENS, Account, BadEntry, Row, reconcile, rows_of
from tests.usage_records import account, attempt, rows


def test_an_entry_has_one_row_an_attempt() -> None:
    tags = {"feature": "search", "team": "x"}
    one, two = rows(attempt(1, payer="operator", pays_input=False), attempt(2), tags=tags, prompt="p@1.0.0")
    assert (one["attempt"], one["payer"], two["attempt"], two["payer"]) == (1, "operator", 2, "user")
    assert (one["feature"], one["tags"], one["prompt"]) == ("search", {"team": "x"}, "p@1.0.0")
    assert (one["started_ms"], one["ended_ms"]) == (1_790_000_000_000, 1_790_000_002_500)


@pytest.mark.parametrize(("door", "session", "job"), [("ws", "x", None), ("job", None, "x"), ("http", None, None)])
def test_the_door_says_what_the_origin_is(door: str, session: str | None, job: str | None) -> None:
    (row,) = rows(door=door, origin="x")
    assert (row["door"], row["session_id"], row["job_id"]) == (door, session, job)


def test_the_same_message_gives_the_same_bytes_whatever_the_order_of_its_tags() -> None:
    one, other = account(tags={"a": "1", "b": "2"}), account(tags={"b": "2", "a": "1"})
    assert one.entry([attempt()]) == other.entry([attempt()])


def test_what_no_database_holds_is_cut() -> None:
    (row,) = rows(attempt(model="m\0", input_tokens=10**18, cost_nano_usd=10**18, charged_nano_usd=None, ended_at=None))
    assert (row["model"], row["input_tokens"], row["cost_nano_usd"]) == ("m\ufffd", MOST_TOKENS, MOST_NANO)
    assert row["ended_ms"] == row["started_ms"]


@given(st.binary(max_size=40))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BadEntry):
        rows_of(data)


@pytest.mark.parametrize("change", [lambda e: e[:-1], lambda e: e + b"x", lambda e: b"\x94\x02" + e[2:]])
def test_a_damaged_entry_is_refused(change: Any) -> None:
    with pytest.raises(BadEntry):
        rows_of(change(account().entry([attempt()])))


def version(**more: Any) -> Row:
    return rows(attempt(**more))[0]


FIRST = version()
WITHDRAWN = version(payer="operator", pays_input=False, charged_nano_usd=0, withdrawn_in=2)
LOST = version(payer="operator", pays_input=False, charged_nano_usd=0, source="estimated", output_tokens=3)
OTHER = version(output_tokens=21)


@pytest.mark.parametrize(
    ("first", "other", "kept", "alarm"),
    [
        (FIRST, FIRST, FIRST, False),
        (FIRST, WITHDRAWN, WITHDRAWN, False),
        (WITHDRAWN, FIRST, WITHDRAWN, False),
        (FIRST, OTHER, FIRST, True),
        (WITHDRAWN, OTHER, WITHDRAWN, True),
        (FIRST, LOST, {**FIRST, "payer": "operator", "pays_input": False, "charged_nano_usd": 0}, True),
        (FIRST, {**FIRST, "payer": "operator"}, {**FIRST, "payer": "operator", "charged_nano_usd": 0}, True),
        (WITHDRAWN, {**WITHDRAWN, "withdrawn_in": 3}, WITHDRAWN, True),
    ],
)
def test_two_versions_of_a_row(first: Row, other: Row, kept: Row, alarm: bool) -> None:
    made = reconcile(first, other)
    assert made.row == kept
    assert bool(made.conflict) == alarm
    assert reconcile(made.row, first).row == made.row, "it does not settle"


def test_an_account_has_no_secret_fields() -> None:
    """What is packed is what is declared: a field that is added has to be thought of here."""
    assert Account.__slots__ == (
        "message_key", "generation", "message_id", "tenant", "kind", "user", "tier", "door", "origin", "route",
        "conversation", "prompt", "tags",
    )  # fmt: skip
