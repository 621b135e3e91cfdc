"""Traces, as a real collector's protocol gets them from real processes: one trace a message, also over a death."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.test_serve_process import config, served
from tests.integration.test_main_job import whole
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import JSON, eventually, wire

TRACE = "0af7651916cd43dd8448eb211c80319c"
ABOVE = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE[::-1]}-b7ad6b7169203331-00"


class Collector:
    """Takes OTLP over HTTP; what it got, span by span, as {name: value} with attributes among them."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    async def take(self, request: web.Request) -> web.Response:
        """`POST /v1/traces`."""
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    kinds = {a.key: a.value.WhichOneof("value") for a in span.attributes}
                    told = {a.key: getattr(a.value, kinds[a.key]) for a in span.attributes}
                    ids = {"trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex()}
                    times = {"started": span.start_time_unix_nano, "ended": span.end_time_unix_nano}
                    self.spans.append({"name": span.name, "service": service, **ids, **times, **told})
        return web.Response(content_type="application/x-protobuf")

    def of(self, message: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The span of a message's run, and those below it."""
        [run] = [span for span in self.spans if span.get("tidewire.message.id") == message]
        below = [span for span in self.spans if span["parent"] == run["id"]]
        return run, sorted(below, key=lambda span: int(span["tidewire.attempt"]))


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield collector, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """One that the processes started from here are told of."""
    async with collecting() as (collector, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with serving() as found:
        yield found


async def test_a_message_is_one_trace_from_who_asked_to_the_upstream(
    valkey_url: str, upstream: ScriptedUpstream, collector: Collector, tmp_path: Path
) -> None:
    async with served(config(tmp_path, valkey_url, upstream.url)) as server:
        async with wire(server.url, JSON) as client:
            metadata = {"feature": "tests", "traceparent": ABOVE}
            messages = await client.ask("m1", "script tokens=5", metadata=metadata)
            whole(await client.ended("m1"), messages)
        async with aiohttp.ClientSession() as http:
            body = {"model": "default", "messages": messages}
            headers = {"idempotency-key": "m2", "traceparent": ABOVE}
            async with http.post(f"{server.http}/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == 200
            headers = {"idempotency-key": "m3", "traceparent": NOT_SAMPLED}
            async with http.post(f"{server.http}/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == 200
            headers = {"idempotency-key": "m4", "traceparent": "00-nonsense"}
            async with http.post(f"{server.http}/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == 200
        server.terminate()
        assert await server.exit_code() == 0  # what was left has been sent
    told = {entry["request"]: entry["traceparent"] for entry in upstream.records if entry["event"] == "start"}
    for message, request in (("m1", "r1"), ("m2", "r2")):
        run, [attempt] = collector.of(message)
        assert (run["trace"], run["parent"], run["service"]) == (TRACE, ABOVE.split("-")[2], "chat")
        assert told[request] == f"00-{TRACE}-{attempt['id']}-01"
        assert run["started"] <= attempt["started"] < attempt["ended"] <= run["ended"]
        assert run["tidewire.state"] == attempt_outcome(attempt) == "done"
        assert attempt["gen_ai.usage.output_tokens"] == 5
        assert attempt["gen_ai.request.model"] == "scripted"
    assert collector.of("m1")[0]["tidewire.feature"] == "tests"
    assert told["r3"] == f"00-{TRACE[::-1]}-{told['r3'].split('-')[2]}-00"
    assert not [span for span in collector.spans if span["trace"] == TRACE[::-1]], "whoever asked does not record it"
    assert collector.of("m4")[0]["parent"] == ""


def attempt_outcome(attempt: dict[str, Any]) -> str:
    """`done` unless it tells of an error."""
    return str(attempt.get("error.type", "done"))


async def test_a_survivor_goes_on_with_the_trace(
    valkey_url: str, upstream: ScriptedUpstream, collector: Collector, tmp_path: Path
) -> None:
    path = config(tmp_path, valkey_url, upstream.url)
    async with served(path) as doomed, served(path) as survivor, wire(survivor.url) as watching:
        async with wire(doomed.url) as client:
            await client.ask("m1", "script tokens=60 gap=0.1")
            await client.type("delta")
            doomed.process.kill()
        await watching.send({"type": "resume", "id": "m1", "after": 0})
        await watching.ended("m1")
        await eventually(lambda: bool(collector.spans), 10)
        async with aiohttp.ClientSession() as http, http.get(f"{survivor.http}/metrics") as answer:
            told = await answer.text()
        assert "\ntidewire_takeovers_total 1.0\n" in told
        assert "\ntidewire_store_up 1.0\n" in told
        run, attempts = collector.of("m1")
        starts = [entry for entry in upstream.records if entry["event"] == "start"]
        assert [entry["traceparent"] for entry in starts] == [f"00-{run['trace']}-{span['id']}-01" for span in attempts]
        assert [attempt_outcome(span) for span in attempts] == ["owner_lost", "done"]
        assert attempts[0]["ended"] == attempts[1]["started"]


async def test_a_collector_that_is_down_disturbs_nobody(
    valkey_url: str, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with served(config(tmp_path, valkey_url, upstream.url)) as server:
        async with wire(server.url) as client:
            messages = await client.ask("m1", "script tokens=5")
            whole(await client.ended("m1"), messages)
        server.terminate()
        assert await server.exit_code() == 0
