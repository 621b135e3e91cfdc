"""The check of the ledger against the upstream's own log finds what is wrong; else a chaos run would prove nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.ledger.book import Book
from server.ledger.report import LATEST_MS, Query
from tests.chaos.audit import Tokens, UpstreamLog, Usage, audit_ledger, audit_totals, match_usage
from tests.chaos.rig import MODEL, ask
from tests.upstreams.script import message_hash, reply_to
from tests.upstreams.scripted import serving
from tests.usage_records import attempt, rows

MESSAGES = ask("tokens=30", "m1")
TOLD = reply_to(MESSAGES, MODEL)
RIGHT = {"input_tokens": TOLD.input_tokens, "output_tokens": TOLD.output_tokens}
LOST = {"outcome": "owner_lost", "payer": "operator", "source": "estimated", "input_tokens": 9, "output_tokens": 5}
Row = dict[str, Any]


def log_of(path: Path, *ends: dict[str, Any]) -> UpstreamLog:
    """The log of calls for `MESSAGES` that ended so."""
    whole = {"chunks": 30, "text_bytes": 150, "client_gone": False, "whole": True}
    usage = {"input": TOLD.input_tokens, "output": TOLD.output_tokens}
    lines = []
    for number, end in enumerate(ends):
        about = {"request": f"r{number}", "t": float(number)}
        lines.append({"event": "start", **about, "hash": message_hash(MESSAGES)})
        lines.append({"event": "end", **about, **whole, "usage": usage, **end})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return UpstreamLog(path)


@pytest.fixture
def log(tmp_path: Path) -> UpstreamLog:
    """One call that was cut off before it told its usage, and one that was heard to its end."""
    return log_of(tmp_path / "log", {"usage": None, "whole": False, "chunks": 5, "client_gone": True}, {})


def booked(**second: Any) -> list[Row]:
    """The rows of a message whose first owner died; what is given is wrong with the second."""
    return list(rows(attempt(1, **LOST), attempt(2, **{**RIGHT, **second})))


def test_rows_as_the_upstream_told_them_pass(log: UpstreamLog) -> None:
    assert audit_ledger(MESSAGES, None, booked(), log, MODEL) == []
    usage = match_usage(MESSAGES, booked(), log)
    assert usage == Usage(Tokens(input=TOLD.input_tokens, output=TOLD.output_tokens))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"output_tokens": TOLD.output_tokens + 1}, "the upstream told"),
        ({"output_tokens": TOLD.output_tokens - 1}, "the upstream told"),
        ({"input_tokens": TOLD.input_tokens + 1}, "the upstream told"),
        ({"source": "counted"}, "is done and booked as counted"),
    ],
)
def test_a_row_that_is_off_by_a_token_or_by_its_source_is_found(
    wrong: dict[str, Any], said: str, log: UpstreamLog
) -> None:
    assert any(said in text for text in audit_ledger(MESSAGES, None, booked(**wrong), log, MODEL))


WRONG: dict[str, Callable[[list[Row]], list[Row]]] = {
    "missing": lambda found: found[:1],
    "all missing": lambda _: [],
    "twice": lambda found: [*found, found[1]],
    "twice under another number": lambda found: [*found, {**found[1], "attempt": 3}],
    "cut off, booked as told": lambda found: [{**found[0], **RIGHT, "source": "provider"}, found[1]],
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_are_missing_or_too_many_are_found(name: str, tmp_path: Path) -> None:
    cut = {"usage": None, "whole": False, "chunks": 5, "client_gone": True}
    found, log = booked(), log_of(tmp_path / "log", cut, {})
    if "missing" in name:  # nothing that a row of unsure figures could stand for
        log = log_of(tmp_path / "log", {}, {})
    assert audit_ledger(MESSAGES, None, WRONG[name](found), log, MODEL)


def test_a_usage_that_a_dead_node_did_not_book_is_not_heard_and_not_wrong(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", {"client_gone": True}, {})
    usage = match_usage(MESSAGES, booked(), log)
    assert (usage.wrong, usage.unheard) == ([], Tokens(TOLD.input_tokens, TOLD.output_tokens))


def test_a_message_that_redis_forgot_may_have_calls_without_rows(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", {}, {}, {})
    assert match_usage(MESSAGES, booked(), log).wrong
    assert match_usage(MESSAGES, booked(), log, forgotten=True).wrong == []


@pytest.mark.parametrize("change", [0, 1, -1])
def test_the_sums_of_the_report_are_held_against_all_that_was_told(
    change: int, log: UpstreamLog, tmp_path: Path
) -> None:
    book = Book.open(f"sqlite:///{tmp_path}/ledger.db")
    try:
        book.insert(booked(output_tokens=TOLD.output_tokens + change))
        (found,) = [group for group in book.report(Query(("source",), 0, LATEST_MS)) if group["by_0"] == "provider"]
    finally:
        book.close()
    sums = {"provider": Tokens(found["input_tokens"], found["output_tokens"])}
    problems = audit_totals([match_usage(MESSAGES, booked(), log)], sums, log)
    assert bool(problems) == bool(change), problems


async def test_the_log_has_the_usage_that_was_written_and_none_that_was_not(tmp_path: Path) -> None:
    log = UpstreamLog(tmp_path / "log")
    whole, cut = MESSAGES, ask("tokens=30 cut=clean", "m2")
    async with serving(log.path) as upstream, aiohttp.ClientSession(upstream.url) as http:
        for messages in (whole, cut):
            body = {"model": MODEL, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
            async with http.post("/v1/chat/completions", json=body) as answer:
                await answer.read()
        async with asyncio.timeout(10):
            await upstream.wait_for("end", 2)
    told = [log.end(call) for messages in (whole, cut) for call in log.calls(messages)]
    assert [end and end["usage"] for end in told] == [{"input": TOLD.input_tokens, "output": 30}, None]
    assert log.usage() == Tokens(TOLD.input_tokens, 30)
