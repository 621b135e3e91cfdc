"""`/v1/jobs`: what goes in, what comes out, who may see it, how it is stopped; on a real node and Valkey."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.http.job_models import JobAnswer, JobItemList, JobList, JobResult
from tests.integration.http.client import CHAT, Place, place, refused, turns
from tests.upstreams.script import expected_text
from tests.wire import wire

JOBS = "/v1/jobs"
SECONDS = 20.0


def item(number: int, script: str = "tokens=3", **fields: Any) -> dict[str, Any]:
    """An item that is unlike any other."""
    return {"messages": turns(f"script {script}\nitem {number}"), **fields}


def jsonl(*items: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in items)


async def post(here: Place, body: Any, key: str | None = None, status: int = 202, **query: str) -> dict[str, Any]:
    """Make a job of JSON (anything) or of JSONL (bytes)."""
    headers = {} if key is None else {"Idempotency-Key": key}
    sent: dict[str, Any] = {"json": body}
    if isinstance(body, bytes):
        sent, headers["Content-Type"] = {"data": body}, "application/jsonl"
    async with here.request("POST", JOBS, headers=headers, params=query, **sent) as answer:
        assert answer.status == status, await answer.text()
        job: dict[str, Any] = await answer.json()
        assert answer.headers["Location"] == f"{JOBS}/{job['id']}"
        JobAnswer.model_validate(job)
        return job


async def look(here: Place, job: str) -> dict[str, Any]:
    async with here.request("GET", f"{JOBS}/{job}") as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        JobAnswer.model_validate(found)
        return found


async def until(check: Callable[[], Awaitable[bool]], seconds: float = SECONDS) -> None:
    """Ask again and again until it is so; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            if await check():
                return
            await asyncio.sleep(0.03)


async def ended(here: Place, job: str, seconds: float = SECONDS) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update(await look(here, job))
        return found["status"] not in ("queued", "running")

    await until(over, seconds)
    return found


async def results(here: Place, job: str) -> list[dict[str, Any]]:
    async with here.request("GET", f"{JOBS}/{job}/results") as answer:
        assert answer.status == 200
        assert answer.content_type == "application/jsonl"
        lines = [json.loads(line) for line in (await answer.read()).splitlines()]
    for one in lines:
        JobResult.model_validate(one)
    return lines


async def states(here: Place, job: str, **query: Any) -> dict[str, Any]:
    async with here.request("GET", f"{JOBS}/{job}/items", params=query) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        JobItemList.model_validate(found)
        return found


async def test_one_input_is_a_job(here: Place) -> None:
    made = await post(here, item(1))
    assert made["status"] in ("queued", "running", "done")
    assert made["items"]["total"] == 1
    job = await ended(here, made["id"])
    assert (job["status"], job["items"]["done"], job["progress"]) == ("done", 1, 1.0)
    (line,) = await results(here, made["id"])
    assert line["response"]["body"]["choices"][0]["message"]["content"] == expected_text(
        item(1)["messages"], "scripted"
    )
    assert job["usage"]["output_tokens"] == 3
    assert job["expires_at"] - job["ended_at"] == 7 * 86_400


@pytest.mark.parametrize("form", ["array", "jsonl", "object", "openai"])
async def test_a_batch_in_every_form_keeps_order_and_names(here: Place, form: str) -> None:
    items = [item(n, f"tokens={3 + n % 5}", custom_id=f"row {n}") for n in range(30)]
    lines = [
        {"custom_id": f"row {n}", "method": "POST", "url": CHAT, "body": item(n, f"tokens={3 + n % 5}")}
        for n in range(30)
    ]
    body: Any = {"array": items, "jsonl": jsonl(*items), "object": {"items": items}, "openai": jsonl(*lines)}[form]
    made = await post(here, body)
    job = await ended(here, made["id"])
    assert job["items"] == {"total": 30, "done": 30, "failed": 0, "cancelled": 0, "pending": 0}
    found = await results(here, made["id"])
    assert [(line["index"], line["custom_id"]) for line in found] == [(n, f"row {n}") for n in range(30)]
    for number, line in enumerate(found):
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        assert text == expected_text(items[number]["messages"], "scripted")
    assert job["usage"]["output_tokens"] == sum(3 + n % 5 for n in range(30))
    starts = [entry for entry in here.upstream.records if entry["event"] == "end"]
    assert len(starts) == 30


async def test_the_same_upload_under_the_same_key_is_the_same_job(here: Place) -> None:
    body = [item(n) for n in range(3)]
    first, again = await asyncio.gather(post(here, body, "k1"), post(here, body, "k1"))
    as_lines = await post(here, jsonl(*body), "k1")
    assert first["id"] == again["id"] == as_lines["id"]
    await ended(here, first["id"])
    assert (await post(here, body, "k1"))["status"] == "done"
    async with here.request("POST", JOBS, json=body[:2], headers={"Idempotency-Key": "k1"}) as answer:
        await refused(answer, 422, "idempotency_mismatch")
    other = await post(here, body, "k2")
    assert other["id"] != first["id"]
    await ended(here, other["id"])
    assert len([entry for entry in here.upstream.records if entry["event"] == "end"]) == 6


async def test_bad_items_are_named_by_number_and_nothing_is_made(here: Place) -> None:
    lines = [
        json.dumps(item(1, custom_id="a")),
        "",
        "{not json",
        json.dumps({"messages": []}),
        json.dumps(item(2, model="nothing")),
        json.dumps(item(3, custom_id="a")),
        "[1]",
        json.dumps(item(4, stream=True)),
        json.dumps(item(5, temprature=1)),
        json.dumps({"messages": 5}),
        json.dumps(item(6, custom_id=7)),
    ]
    headers = {"Content-Type": "application/jsonl"}
    async with here.request("POST", JOBS, data="\n".join(lines), headers=headers) as answer:
        error = await refused(answer, 400, "invalid_request")
    assert [fault["line"] for fault in error["details"]["items"]] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert error["details"]["count"] == 9
    assert error["message"].startswith("line 3: ")
    cut = json.dumps(item(1)).encode() + b'\n{"messages":[{"role":"user","content":"\xc3'
    for kind in ("application/jsonl", "application/json"):
        async with here.request("POST", JOBS, data=cut, headers={"Content-Type": kind}) as answer:
            error = await refused(answer, 400, "invalid_request")
        assert ("line 2" in error["message"]) == (kind == "application/jsonl"), error
    async with here.request("POST", JOBS, json=[item(1), {"messages": "x"}]) as answer:
        error = await refused(answer, 400, "invalid_request")
    assert error["details"]["items"][0]["index"] == 1
    async with here.request("GET", JOBS) as answer:
        assert (await answer.json())["data"] == []
    store = here.node.node.store
    await eventually_no_upload(store)
    assert not here.upstream.records


async def test_no_more_than_ten_thousand_items(here: Place) -> None:
    line = json.dumps(item(1)).encode() + b"\n"
    async with here.request("POST", JOBS, data=line * 10_001, headers={"Content-Type": "application/jsonl"}) as answer:
        error = await refused(answer, 400, "invalid_request")
    assert "at most 10000 items" in error["message"].replace(",", "")
    await eventually_no_upload(here.node.node.store)


async def eventually_no_upload(store: Any) -> None:
    keys = [key async for key in scan(store)]
    assert not [key for key in keys if b":i" in key or b":n" in key], keys


async def scan(store: Any) -> Any:
    for link in store.links():
        for key in await link.call("KEYS", "tw:{j*"):
            yield key


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"[]", "application/json", 400, "invalid_request"),
        (b"", "application/jsonl", 400, "invalid_request"),
        (b"[1", "application/json", 400, "invalid_request"),
        (b'[{"messages":[{"role":"user","content":"x"}]}] x', "application/json", 400, "invalid_request"),
        (b"7", "application/json", 400, "invalid_request"),
        (b'{"items": []}', "application/json", 400, "invalid_request"),
        (b"{}", "application/json", 400, "invalid_request"),
        (b'{"model": "x", "messages":[{"role":"user","content":"x"}]}', "application/json", 404, "model_not_found"),
        (b"x", "text/plain", 415, "unsupported_media_type"),
        (
            b'{"messages":[{"role":"user","content":"' + b"x" * 5000 + b'"}]}',
            "application/jsonl",
            400,
            "invalid_request",
        ),
        (b'{"messages":[{"role":"user","content":"' + b"x" * 5000 + b'"}]}', "application/json", 413, "body_too_large"),
        (b"\n" * 20_000, "application/jsonl", 413, "body_too_large"),
    ],
)
async def test_what_is_no_job_is_refused(valkey_url: str, body: bytes, kind: str, status: int, code: str) -> None:
    small = {"server": {"max_frame_bytes": 4096}, "jobs": {"max_bytes": 10_000, "max_items": 3}}
    async with place(valkey_url, small) as here:
        async with here.request("POST", JOBS, data=body, headers={"Content-Type": kind}) as answer:
            await refused(answer, status, code)
        async with here.request("POST", JOBS, json=[item(n) for n in range(4)]) as answer:
            error = await refused(answer, 400, "invalid_request")
        assert "at most 3 items" in error["message"]


async def test_pages_of_jobs_and_items(here: Place) -> None:
    made = [await post(here, [item(n * 10 + m) for m in range(3)]) for n in range(5)]
    for job in made:
        await ended(here, job["id"])
    async with here.request("GET", JOBS, params={"limit": 2}) as answer:
        first = await answer.json()
    JobList.model_validate(first)
    async with here.request("GET", JOBS, params={"limit": 10, "after": first["last_id"]}) as answer:
        rest = await answer.json()
    assert sorted(j["id"] for j in first["data"] + rest["data"]) == sorted(j["id"] for j in made)
    assert (first["has_more"], rest["has_more"]) == (True, False)
    rows = await states(here, made[0]["id"], limit=2)
    more = await states(here, made[0]["id"], limit=2, after=rows["data"][-1]["index"])
    assert [row["index"] for row in rows["data"] + more["data"]] == [0, 1, 2]
    assert {row["status"] for row in rows["data"]} == {"done"}
    for path in (f"{JOBS}/job_{'0' * 32}", f"{JOBS}/job_{'0' * 32}/items", f"{JOBS}/job_{'0' * 32}/results"):
        async with here.request("GET", path) as answer:
            await refused(answer, 404, "job_unknown")
    async with here.request("GET", f"{JOBS}/x") as answer:
        await refused(answer, 400, "invalid_request")
    async with here.request("GET", JOBS, params={"limit": "0"}) as answer:
        await refused(answer, 400, "invalid_request")


async def test_a_running_item_is_followed_over_the_socket(here: Place) -> None:
    made = await post(here, [item(1, "tokens=60 rate=60"), item(2, "tokens=3")])
    async with wire(here.node.url) as socket:
        row: dict[str, Any] = {}

        async def runs() -> bool:
            row.update((await states(here, made["id"]))["data"][0])
            return bool(row["status"] == "running")

        await until(runs)
        await socket.send({"type": "resume", "id": row["message_id"], "after": 0})
        view = await socket.ended(row["message_id"])
    assert view.text == expected_text(item(1, "tokens=60 rate=60")["messages"], "scripted")
    await ended(here, made["id"])
    lines = await results(here, made["id"])
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == view.text


async def test_a_permanent_failure_fails_the_item_and_a_temporary_one_is_begun_again(here: Place) -> None:
    made = await post(here, [item(1, "status=400"), item(2), item(3, "status=503 times=1")])
    job = await ended(here, made["id"])
    assert (job["status"], job["items"]["done"], job["items"]["failed"]) == ("done", 2, 1)
    lines = await results(here, made["id"])
    assert [line["status"] for line in lines] == ["failed", "done", "done"]
    assert lines[0]["response"] is None
    assert lines[0]["error"]["code"] == "upstream_rejected"
    only = await ended(here, (await post(here, item(9, "status=400")))["id"])
    assert only["status"] == "failed"


async def test_cancel_stops_what_runs_and_begins_nothing_more(valkey_url: str) -> None:
    async with place(valkey_url, {"jobs": {"concurrency": 2}}) as here:
        made = await post(here, [item(n, "tokens=2000 rate=50", custom_id=f"c{n}") for n in range(6)])

        async def two_run() -> bool:
            rows = (await states(here, made["id"]))["data"]
            return sum(row["status"] == "running" for row in rows) == 2

        await until(two_run)
        async with here.request("POST", f"{JOBS}/{made['id']}/cancel") as answer:
            assert answer.status in (200, 202), await answer.text()
        job = await ended(here, made["id"])
        assert (job["status"], job["items"]["cancelled"], job["items"]["pending"]) == ("cancelled", 6, 0)
        lines = await results(here, made["id"])
        assert [line["custom_id"] for line in lines] == [f"c{n}" for n in range(6)]
        assert [line["status"] for line in lines] == ["cancelled"] * 6
        assert sum(line["response"] is not None for line in lines) == 2
        assert len([entry for entry in here.upstream.records if entry["event"] == "end"]) == 2
        async with here.request("POST", f"{JOBS}/{made['id']}/cancel") as answer:
            assert answer.status == 200
        rows = await states(here, made["id"])
        assert {row["status"] for row in rows["data"]} == {"cancelled"}


async def test_delete_leaves_nothing_and_stops_what_runs(here: Place) -> None:
    made = await post(here, [item(n, "tokens=2000 rate=50") for n in range(3)], "k")

    async def runs() -> bool:
        return any(row["status"] == "running" for row in (await states(here, made["id"]))["data"])

    await until(runs)
    async with here.request("DELETE", f"{JOBS}/{made['id']}") as answer:
        assert answer.status == 204
    async with here.request("GET", f"{JOBS}/{made['id']}") as answer:
        await refused(answer, 404, "job_unknown")

    async def still() -> bool:
        return not here.node.node.keeper.running and not here.node.node.jobs.worker.running

    await until(still)
    assert not [key async for key in scan(here.node.node.store)]
    async with here.request("DELETE", f"{JOBS}/{made['id']}") as answer:
        await refused(answer, 404, "job_unknown")


async def test_jobs_wait_for_quotas(valkey_url: str) -> None:
    tier = {"tiers": {"default": {"concurrent_messages": 2, "requests_per_minute": 600}}}
    async with place(valkey_url, {**tier, "jobs": {"concurrency": 8, "quota_reserve": 0.0}}) as here:
        made = await post(here, [item(n, "tokens=20 rate=40") for n in range(8)])
        job = await ended(here, made["id"])
        assert (job["items"]["done"], job["items"]["failed"]) == (8, 0)


async def test_jobs_leave_a_share_of_the_slots_to_people(valkey_url: str) -> None:
    tier = {"tiers": {"default": {"concurrent_messages": 4}}}
    async with place(valkey_url, tier) as here:
        made = await post(here, [item(n, "tokens=40 rate=40") for n in range(6)])

        async def full() -> bool:
            rows = (await states(here, made["id"]))["data"]
            return sum(row["status"] == "running" for row in rows) == 3

        await until(full)
        async with here.ask("script tokens=3") as answer:
            assert answer.status == 200, await answer.text()
        assert (await ended(here, made["id"]))["items"]["done"] == 6


async def test_what_can_never_be_admitted_fails(valkey_url: str) -> None:
    async with place(valkey_url, {"tiers": {"default": {"tokens_per_minute": 100}}}) as here:
        made = await post(here, item(1, max_tokens=5000))
        job = await ended(here, made["id"])
        (line,) = await results(here, made["id"])
        assert (job["status"], line["error"]["code"]) == ("failed", "request_too_large_for_tier")


async def test_a_job_whose_time_is_over_fails_what_was_not_begun(valkey_url: str) -> None:
    async with place(valkey_url, {"jobs": {"concurrency": 1, "run_seconds": 0.7, "retention_seconds": 2}}) as here:
        made = await post(here, [item(n, "tokens=50 rate=50") for n in range(4)])
        job = await ended(here, made["id"])
        assert job["status"] == "failed"
        assert job["items"]["done"] >= 1
        assert job["items"]["failed"] == 4 - job["items"]["done"]
        lines = await results(here, made["id"])
        assert lines[-1]["error"]["code"] == "job_expired"

        async def gone() -> bool:
            async with here.request("GET", f"{JOBS}/{made['id']}") as answer:
                return bool(answer.status == 404)

        await until(gone)
        async with here.request("GET", f"{JOBS}/{made['id']}/results") as answer:
            await refused(answer, 404, "job_unknown")
        async with here.request("GET", JOBS) as answer:
            assert (await answer.json())["data"] == []


async def test_other_users_see_nothing(valkey_url: str) -> None:
    keys = [
        {"name": name, "sha256": hashlib.sha256(f"tw_{name}".encode()).hexdigest(), "scopes": scopes}
        for name, scopes in (("anna", ["chat", "jobs"]), ("ben", ["chat", "jobs"]), ("carl", ["chat"]))
    ]
    async with place(valkey_url, {"auth": {"anonymous": False, "api_keys": keys}}) as here:

        def as_user(name: str) -> dict[str, str]:
            return {"Authorization": f"Bearer tw_{name}"}

        async with here.request("POST", JOBS, json=item(1), headers=as_user("anna")) as answer:
            assert answer.status == 202
            job = (await answer.json())["id"]
        for path in (f"{JOBS}/{job}", f"{JOBS}/{job}/items", f"{JOBS}/{job}/results"):
            async with here.request("GET", path, headers=as_user("ben")) as answer:
                await refused(answer, 404, "job_unknown")
        for method, path in (("POST", f"{JOBS}/{job}/cancel"), ("DELETE", f"{JOBS}/{job}")):
            async with here.request(method, path, headers=as_user("ben")) as answer:
                await refused(answer, 404, "job_unknown")
        for path in (f"/v1/messages/{job}-0", f"/v1/messages/{job}-0/events"):
            async with here.request("GET", path, headers=as_user("ben")) as answer:
                await refused(answer, 404, "message_unknown")
        async with here.request("GET", JOBS, headers=as_user("ben")) as answer:
            assert (await answer.json())["data"] == []
        async with here.request("GET", f"{JOBS}/{job}", headers=as_user("anna")) as answer:
            assert (await answer.json())["status"] != "cancelled"
        async with here.request("POST", JOBS, json=item(1), headers=as_user("carl")) as answer:
            await refused(answer, 403, "forbidden")
        async with here.request("POST", JOBS, json=item(1)) as answer:
            await refused(answer, 401, "unauthenticated")


async def test_who_hangs_up_in_the_middle_of_an_upload_leaves_nothing(here: Place) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.node.port)
    body = jsonl(*(item(n) for n in range(5)))
    writer.write(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/jsonl\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body) + 100, body)
    )
    await writer.drain()
    writer.close()
    await asyncio.sleep(0)
    await eventually_no_upload(here.node.node.store)
    assert reader is not None
    async with here.request("GET", JOBS) as answer:
        assert (await answer.json())["data"] == []


async def test_metrics_tell_of_jobs(here: Place) -> None:
    made = await post(here, [item(n) for n in range(4)])
    await ended(here, made["id"])

    async def told() -> str:
        async with here.request("GET", "/metrics") as answer:
            return str(await answer.text())

    text = await told()
    assert 'tidewire_job_items_total{outcome="done"} 4.0' in text
    assert 'tidewire_jobs_total{status="done"} 1.0' in text
    assert "tidewire_job_items_running 0.0" in text
