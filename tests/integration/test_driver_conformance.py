"""One suite for all drivers: what `server.upstreams.base` promises, asked of each with what it declares it can.

Scripted drivers talk to upstreams whose every character is known; the embedded one talks to a real model, of which
only the promises that do not depend on its words can be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from server.upstreams.base import Batch, Call, Driver, Fault, Piece, TargetSpec, TokenUsage, UpstreamFailure
from server.upstreams.chat import extend
from server.upstreams.embedded import MODEL_NAME, SLOTS, EmbeddedModel
from server.upstreams.litellm import LitellmPool
from server.upstreams.registry import Addresses, MissingPart, Parts, build
from tests.upstreams import scripted
from tests.upstreams.anthropic import AnthropicUpstream
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls
from tests.upstreams.scripted import ScriptedUpstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("drivers")]

OPENAI = TargetSpec("direct", "openai", "scripted", api_key="sk-secret-direct")
LITELLM_OPENAI = TargetSpec("via-litellm", "litellm", "openai/scripted", api_key="sk-secret-litellm")
LITELLM_ANTHROPIC = TargetSpec("via-anthropic", "litellm", "anthropic/claude-sonnet-4-5", api_key="sk-secret-anthropic")
QUICK = {"first_token_seconds": 0.6, "idle_seconds": 0.3, "total_seconds": 30.0}
CANCEL_SECONDS = 0.1
"""How soon an upstream must see that nobody wants its answer."""
MEGABYTE = 1_000_000


@dataclass
class Subject:
    """A driver under test and the upstream behind it."""

    driver: Driver
    upstream: ScriptedUpstream
    quick: Driver
    """The same with short time limits."""
    model: str

    @property
    def is_direct(self) -> bool:
        return self.model == "scripted"


@dataclass
class Heard:
    """A whole answer."""

    pieces: list[Piece] = field(default_factory=list)
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    batches: int = 0
    chunks: int = 0

    @property
    def text(self) -> str:
        return "".join(value for kind, value in self.pieces if kind == "text" and isinstance(value, str))

    @property
    def reasoning(self) -> str:
        return "".join(value for kind, value in self.pieces if kind == "reasoning" and isinstance(value, str))

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        calls: dict[int, dict[str, Any]] = {}
        for kind, value in self.pieces:
            for delta in value if kind == "tool_calls" and isinstance(value, list) else ():
                function = delta.get("function", {})
                call = calls.setdefault(delta["index"], {"id": delta.get("id"), "type": "function", "function": {}})
                known = call["function"]
                known["name"] = known.get("name") or function.get("name")
                known["arguments"] = known.get("arguments", "") + (function.get("arguments") or "")
        return [calls[index] for index in sorted(calls)]

    def add(self, batch: Batch) -> None:
        assert batch.pieces or batch.finish_reason
        assert self.finish_reason is None
        kinds = [kind for kind, _ in batch.pieces]
        assert all(kinds[at] != kinds[at + 1] for at in range(len(kinds) - 1)), "neighbours of one kind were not merged"
        extend(self.pieces, batch.pieces)
        self.finish_reason, self.usage = batch.finish_reason, batch.usage
        self.batches += 1
        self.chunks += batch.chunks


def asking(script: str, **options: Any) -> Call:
    limit = options.pop("max_output_tokens", None)
    user = options.pop("user", None)
    messages = [{"role": "user", "content": script}]
    return Call(messages, options=options, max_output_tokens=limit, user=user)


async def hear(driver: Driver, call: Call, heard: Heard | None = None) -> Heard:
    heard = heard or Heard()
    async with contextlib.aclosing(driver.stream(call)) as stream:
        async for batch in stream:
            heard.add(batch)
    assert heard.finish_reason in ("stop", "length", "tool_calls", "content_filter")
    return heard


async def failing(driver: Driver, call: Call) -> tuple[UpstreamFailure, Heard]:
    heard = Heard()
    with pytest.raises(UpstreamFailure) as found:
        await hear(driver, call, heard)
    assert "secret" not in str(found.value)
    return found.value, heard


@dataclass
class Stage:
    """Both upstreams, and drivers of every kind for them."""

    chat: ScriptedUpstream
    messages: ScriptedUpstream
    pool: LitellmPool
    parts: Parts

    def subject(self, kind: str) -> Subject:
        spec = {"openai": OPENAI, "litellm": LITELLM_OPENAI, "anthropic": LITELLM_ANTHROPIC}[kind]
        upstream = self.messages if kind == "anthropic" else self.chat
        spec = replace(spec, base_url=upstream.url + ("" if kind == "anthropic" else "/v1"))
        driver, quick = build(spec, self.parts), build(replace(spec, **QUICK), self.parts)  # type: ignore[arg-type]
        return Subject(driver, upstream, quick, spec.model.rpartition("/")[2])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with scripted.serving() as chat, scripted.serving(kind=AnthropicUpstream) as messages:
        pool = LitellmPool(
            [
                replace(LITELLM_OPENAI, base_url=f"{chat.url}/v1"),
                replace(LITELLM_ANTHROPIC, base_url=messages.url),
            ]
        )
        parts = Parts.of(Addresses(litellm=tuple(map(str, pool.paths))))
        await pool.ready()
        try:
            yield Stage(chat, messages, pool, parts)
        finally:
            await parts.close()
            await pool.stop()


@pytest.fixture(params=["openai", "litellm", "anthropic"])
def subject(request: pytest.FixtureRequest, stage: Stage) -> Subject:
    return stage.subject(request.param)


@pytest.fixture
def direct(stage: Stage) -> Subject:
    return stage.subject("openai")


def said(script: str, subject: Subject) -> str:
    return expected_text([{"role": "user", "content": script}], subject.model)


# What is said


@pytest.mark.parametrize(
    "script", ["hello", "script tokens=1", "script tokens=300 seed=7", "script tokens=200 unicode"]
)
async def test_the_text_is_exact(subject: Subject, script: str) -> None:
    heard = await hear(subject.driver, asking(script))
    assert heard.text == said(script, subject)
    assert heard.finish_reason == "stop"
    assert heard.chunks >= 1


async def test_characters_split_over_network_writes(subject: Subject) -> None:
    script = "script tokens=60 unicode split=5"
    assert (await hear(subject.driver, asking(script))).text == said(script, subject)


async def test_usage_is_the_providers(subject: Subject) -> None:
    heard = await hear(subject.driver, asking("script tokens=30"))
    assert heard.usage is not None
    assert heard.usage.output == 30
    assert heard.usage.input > 0


async def test_reasoning_comes_apart_from_the_text(subject: Subject) -> None:
    script = "script tokens=5 reasoning=4"
    assert subject.driver.capabilities.reasoning
    heard = await hear(subject.driver, asking(script))
    assert heard.text == said(script, subject)
    assert heard.reasoning == expected_reasoning([{"role": "user", "content": script}], subject.model)


@pytest.mark.parametrize("count", [1, 3])
async def test_tool_calls(subject: Subject, count: int) -> None:
    script = f"script tokens=3 tool=weather tools={count}"
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    assert subject.driver.capabilities.tools
    heard = await hear(subject.driver, asking(script, tools=[tool]))
    assert heard.tool_calls == expected_tool_calls([{"role": "user", "content": script}], subject.model)
    assert heard.finish_reason == "tool_calls"


async def test_the_token_limit_is_kept(subject: Subject) -> None:
    heard = await hear(subject.driver, asking("script tokens=50", max_output_tokens=7))
    assert heard.finish_reason == "length"
    assert said("script tokens=50", subject).startswith(heard.text)
    assert (await subject.upstream.wait_for("start"))[-1]["max_tokens"] == 7


async def test_parallel_streams_do_not_mix(subject: Subject) -> None:
    scripts = [f"script tokens=40 rate=200 unicode seed={number}" for number in range(12)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hear(subject.driver, asking(script))) for script in scripts]
    assert [task.result().text for task in tasks] == [said(script, subject) for script in scripts]


# Ending it


async def test_closing_a_stream_closes_the_upstream(subject: Subject) -> None:
    ended = subject.upstream.count("end")
    stream = subject.driver.stream(asking("script tokens=5000 rate=50"))
    await anext(stream)
    asked = time.time()
    await stream.aclose()
    await closed_in_time(subject.upstream, ended, asked)


@pytest.mark.parametrize("script", ["script tokens=5000 rate=50", "script hang=headers", "script hang=first"])
async def test_cancelling_closes_the_upstream(subject: Subject, script: str) -> None:
    started, ended = subject.upstream.count("start"), subject.upstream.count("end")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(hear(subject.driver, asking(script)))
        await subject.upstream.wait_for("start", started + 1)
        asked = time.time()
        task.cancel()
    await closed_in_time(subject.upstream, ended, asked)


async def closed_in_time(upstream: ScriptedUpstream, ended: int, asked: float) -> None:
    async with asyncio.timeout(5):
        end = (await upstream.wait_for("end", ended + 1))[-1]
    assert end["client_gone"]
    assert end["t"] - asked < CANCEL_SECONDS


async def test_a_consumer_that_stops_reading_stops_the_upstream(subject: Subject) -> None:
    """At most socket and connection buffers fill; the upstream feels it and pauses."""
    upstream, ended = subject.upstream, subject.upstream.count("end")
    stream = subject.driver.stream(asking(f"script bytes={200 * MEGABYTE}"))
    first = await anext(stream)
    async with asyncio.timeout(20):
        await upstream.wait_until(lambda: any(connection.paused for connection in upstream.connections))
    await stream.aclose()
    end = (await upstream.wait_for("end", ended + 1))[-1]
    assert sum(len(value) for _, value in first.pieces) < 4 * MEGABYTE
    assert end["text_bytes"] < 20 * MEGABYTE


async def test_a_large_answer_is_whole(subject: Subject) -> None:
    script = f"script bytes={2 * MEGABYTE} unicode"
    assert (await hear(subject.driver, asking(script))).text == said(script, subject)


# What goes wrong

FAULTS = [
    ("status=400", Fault.REJECTED),
    ("status=400 code=context_length_exceeded", Fault.CONTEXT_LENGTH),
    ("status=401", Fault.UNAUTHORIZED),
    ("status=403", Fault.UNAUTHORIZED),
    ("status=404", Fault.NOT_FOUND),
    ("status=429", Fault.RATE_LIMITED),
    ("status=500", Fault.SERVER_ERROR),
    ("status=503", Fault.SERVER_ERROR),
    ("status=529", Fault.SERVER_ERROR),
    ("error_in_200", Fault.SERVER_ERROR),
    ("cut=headers", Fault.BROKEN_STREAM),
    ("cut=event", Fault.BROKEN_STREAM),
    ("cut=clean", Fault.BROKEN_STREAM),
    ("cut=mid-chunk", Fault.BROKEN_STREAM),
    ("cut=utf8", Fault.BROKEN_STREAM),
    ("reset", Fault.BROKEN_STREAM),
    ("no_finish no_done", Fault.BROKEN_STREAM),
    ("empty", Fault.EMPTY),
]


@pytest.mark.parametrize(("script", "fault"), FAULTS)
async def test_faults(subject: Subject, script: str, fault: Fault) -> None:
    started = subject.upstream.count("start")
    failure, _ = await failing(subject.driver, asking(f"script {script}"))
    assert failure.fault is fault
    assert subject.upstream.count("start") == started + 1, "drivers do not retry"


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("hang=headers", Fault.FIRST_TOKEN_TIMEOUT),
        ("hang=first", Fault.FIRST_TOKEN_TIMEOUT),
        ("hang=mid at=5", Fault.IDLE_TIMEOUT),
    ],
)
async def test_silence(subject: Subject, script: str, fault: Fault) -> None:
    ended = subject.upstream.count("end")
    failure, heard = await failing(subject.quick, asking(f"script {script}"))
    assert failure.fault is fault
    assert bool(heard.text) == (fault is Fault.IDLE_TIMEOUT)
    async with asyncio.timeout(5):
        assert (await subject.upstream.wait_for("end", ended + 1))[-1]["client_gone"]


async def test_retry_after(subject: Subject) -> None:
    failure, _ = await failing(subject.driver, asking("script status=429 retry_after=7"))
    assert failure.retry_after_seconds == 7
    failure, _ = await failing(subject.driver, asking("script status=503 retry_after=date:30"))
    assert failure.retry_after_seconds == pytest.approx(30, abs=2)


async def test_what_came_before_a_cut_is_heard(subject: Subject) -> None:
    script = "script tokens=20 rate=200 cut=event at=10"
    _, heard = await failing(subject.driver, asking(script))
    assert heard.text
    assert said(script, subject).startswith(heard.text)


async def test_nobody_listens(subject: Subject, stage: Stage) -> None:
    if subject.is_direct:
        driver = build(replace(OPENAI, base_url="http://127.0.0.1:1/v1"), stage.parts)
        failure, _ = await failing(driver, asking("hello"))
        assert failure.fault is Fault.REFUSED
        assert "127.0.0.1:1" in (await driver.check() or "")


# The direct driver's own: forms of the stream


@pytest.mark.parametrize(
    "form",
    [
        "gzip", "crlf", "cr", "bom", "comments", "events", "nospace", "multiline", "doubled_done", "drip", "split=3",
        "one_chunk", "json", "escape unicode", "chunk=7", "no_usage", "no_done", "no_finish", "gzip drip unicode",
        "crlf comments events nospace multiline split=7 unicode", "reasoning=3 reasoning_field=reasoning",
    ],
)  # fmt: skip
async def test_forms_of_the_stream(direct: Subject, form: str) -> None:
    script = f"script tokens=30 {form}"
    heard = await hear(direct.driver, asking(script))
    assert heard.text == said(script, direct)
    assert (heard.usage is None) == (form == "no_usage")


@pytest.mark.parametrize(
    ("script", "fault"),
    [("malformed", Fault.GARBLED), ("content_type=html", Fault.GARBLED), ("big=9000000", Fault.GARBLED)],
)
async def test_garbled_answers(direct: Subject, script: str, fault: Fault) -> None:
    failure, _ = await failing(direct.driver, asking(f"script {script}"))
    assert failure.fault is fault


async def test_comments_do_not_count_as_tokens(direct: Subject) -> None:
    failure, _ = await failing(direct.quick, asking("script hang=first keepalive=0.05"))
    assert failure.fault is Fault.FIRST_TOKEN_TIMEOUT


async def test_a_lost_end_after_the_finish_reason_does_no_harm(direct: Subject) -> None:
    upstream_text = said("script tokens=9 no_usage no_done", direct)
    assert (await hear(direct.driver, asking("script tokens=9 no_usage no_done"))).text == upstream_text


async def test_one_read_is_one_batch(direct: Subject) -> None:
    heard = await hear(direct.driver, asking("script tokens=5000"))
    assert heard.chunks == 5000
    assert heard.batches < 200


async def test_connections_are_used_again(direct: Subject) -> None:
    await hear(direct.driver, asking("hello"))
    before = set(direct.upstream.connections)
    await hear(direct.driver, asking("hello again"))
    assert set(direct.upstream.connections) == before


async def test_the_user_reaches_the_provider(direct: Subject) -> None:
    await hear(direct.driver, asking("hello", user="u-hash"))
    assert (await direct.upstream.wait_for("start"))[-1]["user"] == "u-hash"


async def test_faults_from_outside_let_one_target_die(direct: Subject) -> None:
    direct.upstream.fail("status=500", model="scripted", times=1)
    failure, _ = await failing(direct.driver, asking("hello"))
    assert failure.fault is Fault.SERVER_ERROR
    assert (await hear(direct.driver, asking("hello"))).text == said("hello", direct)


async def test_check(direct: Subject, stage: Stage) -> None:
    assert await direct.driver.check() is None
    other = build(replace(OPENAI, base_url=f"{stage.chat.url}/v1", model="unheard-of"), stage.parts)
    assert "unheard-of" in (await other.check() or "")


@pytest.mark.parametrize(
    ("base_url", "name"),
    [(None, "max_completion_tokens"), ("https://api.openai.com/v1", "max_completion_tokens"),
     ("http://localhost:8000/v1", "max_tokens")],
)  # fmt: skip
async def test_the_limit_has_the_name_the_host_knows(stage: Stage, base_url: str | None, name: str) -> None:
    driver: Any = build(replace(OPENAI, base_url=base_url), stage.parts)
    assert f'"{name}":5'.encode() in driver.body(asking("hello", max_output_tokens=5))


async def test_a_target_whose_process_is_missing() -> None:
    parts = Parts()
    with pytest.raises(MissingPart):
        build(LITELLM_OPENAI, parts)
    with pytest.raises(MissingPart):
        build(TargetSpec("local", "embedded", MODEL_NAME), parts)
    await parts.close()


# litellm's own: its worker


async def test_a_dead_worker_is_a_failure_and_comes_back(stage: Stage) -> None:
    subject = stage.subject("litellm")
    stream = subject.driver.stream(asking("script tokens=5000 rate=50"))
    await anext(stream)
    [pid] = stage.pool.pids
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UpstreamFailure) as found:
        async for _ in stream:
            pass
    assert found.value.fault is Fault.WORKER_LOST
    await until(lambda: stage.pool.pids not in ([], [pid]))
    await stage.pool.ready()
    assert (await hear(subject.driver, asking("hello"))).text == said("hello", subject)


async def test_litellm_never_enters_this_process(stage: Stage) -> None:
    assert "litellm" not in sys.modules


async def until(condition: Callable[[], bool]) -> None:
    """For what a process does, which nothing here can await."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# The embedded model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[EmbeddedModel]:
    model = EmbeddedModel()
    await model.ready()
    try:
        yield model
    finally:
        await model.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def embedded(model: EmbeddedModel) -> AsyncIterator[Driver]:
    parts = Parts.of(Addresses(embedded=model.address))
    yield build(TargetSpec("local", "embedded", MODEL_NAME), parts)
    await parts.close()


async def test_the_embedded_model_answers(embedded: Driver) -> None:
    heard = await hear(embedded, asking("What is the capital of France?", max_output_tokens=24, temperature=0, seed=1))
    assert heard.text.strip()
    assert heard.usage is not None
    assert 0 < heard.usage.output <= 24
    assert heard.usage.input > 0
    assert heard.batches > 1
    assert await embedded.check() is None


async def test_the_embedded_model_answers_several_at_once(embedded: Driver) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [asking(f"Tell me about the number {number}.", max_output_tokens=12) for number in range(SLOTS + 1)]
        tasks = [group.create_task(hear(embedded, call)) for call in calls]
    assert all(task.result().text for task in tasks)


async def first_of(stream: AsyncGenerator[Batch, None]) -> Batch:
    return await anext(stream)


async def test_the_embedded_model_stops_when_told(embedded: Driver) -> None:
    """All slots are taken and let go; a model that went on would make the next answer wait for thousands of tokens."""
    streams = [embedded.stream(asking("Write a very long story.", max_output_tokens=1900)) for _ in range(SLOTS)]
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(first_of(stream))
    for stream in streams:
        await stream.aclose()
    async with asyncio.timeout(20):
        await hear(embedded, asking("Say hi.", max_output_tokens=4))


async def test_the_embedded_model_names_a_context_that_is_too_small(embedded: Driver) -> None:
    failure, _ = await failing(embedded, asking("word " * 4000))
    assert failure.fault is Fault.CONTEXT_LENGTH


async def test_the_embedded_model_keeps_its_address_over_a_crash(model: EmbeddedModel, embedded: Driver) -> None:
    address, pid = model.address, model.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(partial(lambda: model.pid not in (None, pid)))
    assert await model.ready() == address
    assert (await hear(embedded, asking("Say hi.", max_output_tokens=4))).text
