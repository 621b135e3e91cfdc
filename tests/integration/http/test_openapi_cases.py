"""schemathesis: what the OpenAPI document says against what the server does, with made-up requests of every kind."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation.meta import TestPhase

from server.http.openapi import JSONL, document
from server.jobs.job import job_id
from tests.integration.http.client import CHAT, Place, place, turns
from tests.servers import RedisServer

KEY = "tw_key-for-made-up-requests"
KNOWN = "known"
TO_DELETE = "to-delete"
JOBS = "/v1/jobs"
CASES, FEW_CASES = 30, 4
"""Per operation and run: the long one and the short one."""
BUSY = 5
"""How often a request that was refused for want of time is made again."""

ALL_DERIVED, SAMPLED = 60, 20
"""In the short run: so many derived cases of an operation, then one of so many."""

_NUMBERS = itertools.count()
_derived: Counter[str] = Counter()
load_all_checks()


@schemathesis.serializer(JSONL)
def as_lines(_context: Any, value: Any) -> bytes:
    """A body of JSONL is a text in the document."""
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


schema = schemathesis.openapi.from_dict(document())


async def make_known(here: Place) -> None:
    """A message, a conversation and two jobs that made-up requests can find, one of them to delete."""
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": KNOWN}
    async with here.request("POST", CHAT, json={"messages": turns("script tokens=3")}, headers=headers) as answer:
        assert answer.status == 200
    async with here.request("POST", JOBS, json={"messages": turns("script tokens=3")}, headers=headers) as answer:
        assert (await answer.json())["id"] == job_id(KNOWN)
    headers["Idempotency-Key"] = TO_DELETE
    async with here.request("POST", JOBS, json={"messages": turns("script tokens=4")}, headers=headers) as answer:
        assert (await answer.json())["id"] == job_id(TO_DELETE)
    headers["Idempotency-Key"] = "in-known"
    body = {"messages": turns("script tokens=3"), "conversation": KNOWN}
    async with here.request("POST", CHAT, json=body, headers=headers) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def url(_valkey_process: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node in a thread of its own: schemathesis asks and waits."""
    secret = Path(tmp_path_factory.mktemp("secret")) / "secret"
    secret.write_text("a secret of at least thirty-two bytes, for tests")
    keys = [{"name": "fuzz", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    auth = {"anonymous": False, "api_keys": keys, "jwt_secret_file": str(secret)}
    found: list[str] = []
    up = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        ending = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ending))
        try:
            async with place(_valkey_process.url, {"auth": auth}) as here:
                await make_known(here)
                found.append(here.node.http)
                up.set()
                await ending.wait()
        finally:
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    up.wait(30)
    assert found, "the node did not start"
    yield found[0]
    loop, ending = stop[0]
    loop.call_soon_threadsafe(ending.set)
    thread.join(30)


EXCLUDED = ["positive_data_acceptance"]
"""A request may fit the schema and still contradict itself (two caps, no such model): that is a 4xx."""


def make_sensible(case: Any) -> None:
    """Give every other request that fits the schema what a schema can't say, so that it is served."""
    known = job_id(KNOWN) if case.path.startswith(JOBS) else KNOWN
    if case.method == "DELETE" and case.path.startswith(JOBS):
        known = job_id(TO_DELETE)
    if not (case.method == "DELETE" and "conversations" in case.path):  # that one is needed by the others
        sensible = (("id", known), ("model", "default"), ("user", "anna"))
        case.path_parameters.update({n: v for n, v in sensible if n in case.path_parameters})
    case.query.pop("before", None)
    if "/title" in case.path:
        case.body = {}
    if case.path in (CHAT, JOBS) and isinstance(case.body, dict) and "items" not in case.body:
        unsaid = ("model", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options")
        unsaid += ("response_format", "conversation", "parent", "on_busy")
        body = {name: value for name, value in case.body.items() if name not in unsaid}
        case.body = {**body, "messages": turns("script tokens=3")}


def check(case: Any, url: str) -> None:
    """Make one request, and hold the answer against the document."""
    fits = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if fits and next(_NUMBERS) % 2:
        make_sensible(case)
    key = {"Authorization": f"Bearer {KEY}"}
    case.headers.update(key)  # where it was left out on purpose, the judgement is on all the rest
    for _ in range(BUSY):
        response = case.call(base_url=url, headers=key, timeout=20)
        if response.status_code != 503:
            break  # a machine with too much to do may not answer in time: that is what 503 says
    case.validate_response(
        response,
        headers=key,
        excluded_checks=[CHECKS.get_one(name) for name in EXCLUDED],
        transport_kwargs={"base_url": url, "timeout": 20},
    )


@schema.parametrize()
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@pytest.mark.slow
def test_the_server_does_what_the_document_says(case: Any, url: str) -> None:
    check(case, url)


@schema.parametrize()
@settings(max_examples=FEW_CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_few_requests_of_every_operation(case: Any, url: str) -> None:
    """All that schemathesis derives from small operations, and a sample of the thousands that it does from items."""
    if case.meta is not None and case.meta.phase.name is TestPhase.COVERAGE:
        _derived[case.operation.label] += 1
        if _derived[case.operation.label] > ALL_DERIVED and _derived[case.operation.label] % SAMPLED:
            return
    check(case, url)
