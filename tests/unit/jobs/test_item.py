"""When a message that ended may be begun again, and what is written down of one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.http.job_models import JobResult
from server.http.standing import Whole
from server.jobs.item import REOPEN_MS, Item, line_without_message, reopen_after_ms, result
from server.jobs.job import FIELDS, Job, job_id, job_of, message_id, tag_of
from server.messages.reader import Details, Record
from server.messages.scripts import MAX_RUNS

WHO = Principal("acme", "sub", "anna", "free", frozenset({"chat"}), None)
USAGE = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12, "cached_tokens": 1, "reasoning_tokens": 2}
RECORD = {
    "id": job_id("k"), "tenant": "acme", "kind": "sub", "user": "anna", "tier": "free", "status": "running",
    "total": "10", "next": "4", "done": "2", "failed": "1", "cancelled": "0", "input": "50", "output": "70",
    "cached": "1", "reasoning": "2", "created": "1000000", "deadline": "2000000", "keep": "5000",
}  # fmt: skip


def job(**fields: str) -> Job:
    stored = {**RECORD, **fields}
    found = job_of(tag_of(WHO, RECORD["id"]), [stored[f].encode() if f in stored else None for f in FIELDS])
    assert found is not None
    return found


def item() -> Item:
    return Item.of(
        job(), 3, json.dumps({"custom_id": "row", "request": {"messages": [{"role": "user", "content": "x"}]}}).encode()
    )


def details(state: str, end: dict[str, Any], runs: int = 1, may_reopen: bool = True, ended_at: float = 0.0) -> Details:
    attempts = [
        {"attempt": 1, "payer": "operator", "cost_nano_usd": 1000, "ended_at": ended_at},
        {"attempt": 2, "payer": "user", "cost_nano_usd": 30, "ended_at": ended_at},
    ]
    return Details(Record(state, 9, 0, end, None), 100.0, "default", may_reopen, runs, attempts)


def failure(retry_after_ms: int | None = None, partial: bool = False) -> dict[str, Any]:
    error = ProtocolError("upstream_unavailable", "broke", retry_after_ms=retry_after_ms)
    return {"error": error.as_dict(), "usage": USAGE, "partial": partial}


def test_ids_hang_together() -> None:
    assert job_id("k") == job_id("k") != job_id("l")
    assert job_id(None) != job_id(None)
    assert message_id(job_id("k"), 9999) == f"{job_id('k')}-9999"
    other = replace(WHO, user="ben")
    assert tag_of(WHO, job_id("k")) != tag_of(other, job_id("k"))


def test_a_job_reads_back() -> None:
    found = job(nano="1500000000", hook="https://x", hook_tries="2", hook_state="pending")
    assert (found.who.tenant, found.who.user, found.total, found.begun) == ("acme", "anna", 10, 4)
    assert (found.cost_usd, found.over) == (1.5, False)
    assert found.webhook is not None
    assert found.webhook.tries == 2
    assert job().cost_usd is None
    assert job_of("x", [None] * len(FIELDS)) is None


@pytest.mark.parametrize(
    ("state", "runs", "may_reopen", "stated", "elapsed", "wait"),
    [
        ("done", 1, True, None, 0.0, None),
        ("failed", 1, False, None, 0.0, None),
        ("failed", MAX_RUNS, True, None, 0.0, None),
        ("failed", 1, True, None, 0.0, REOPEN_MS),
        ("failed", 3, True, None, 0.0, 4 * REOPEN_MS),
        ("failed", 1, True, 5000, 2.0, 3000),
        ("failed", 1, True, 5000, 9.0, 0),
    ],
)
def test_a_temporary_failure_is_begun_again_after_its_wait(
    state: str, runs: int, may_reopen: bool, stated: int | None, elapsed: float, wait: int | None
) -> None:
    found = details(state, failure(stated), runs, may_reopen, ended_at=100.0)
    assert reopen_after_ms(found, 100.0 + elapsed) == wait


def test_what_is_written_down() -> None:
    done = {"usage": USAGE, "finish_reason": "stop", "target": "t", "model": "m", "attempts": 2}
    kept = result(item(), Whole(details("done", done), "hello", "", []))
    assert (kept.outcome, kept.tokens, kept.nano_dollars) == ("done", (5, 7, 1, 2), 30)
    line = JobResult.model_validate_json(kept.line)
    assert line.response is not None
    assert line.response.body.choices[0].message.content == "hello"
    assert (line.index, line.custom_id, line.id) == (3, "row", message_id(RECORD["id"], 3))

    failed = result(item(), Whole(details("failed", failure(partial=True)), "hel", "", []))
    line = JobResult.model_validate_json(failed.line)
    assert (failed.outcome, line.response, line.partial_text) == ("failed", None, "hel")
    assert line.error is not None
    assert line.error.code == "upstream_unavailable"


def test_the_lines_of_what_was_never_begun() -> None:
    cancelled = JobResult.model_validate_json(line_without_message("job_x", "cancelled", 7, None))
    assert (cancelled.status, cancelled.index, cancelled.error) == ("cancelled", 7, None)
    expired = JobResult.model_validate_json(line_without_message("job_x", "expired", 7, "row"))
    assert expired.error is not None
    assert (expired.status, expired.error.code, expired.custom_id) == ("failed", "job_expired", "row")
