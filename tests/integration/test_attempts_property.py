"""G7: for any schedule of faults over a route the final text is one attempt's, or an unbroken continuation, and every
attempt has its usage record, the withdrawn ones paid by the operator.

The shipped messages, journal and scripts over a real store; only the models are made up.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from protocol.errors import ERRORS, ProtocolError
from protocol.frames import Send
from server.access import scopes
from server.access.identity import Principal
from server.messages import scripts
from server.messages.conversations import Conversations
from server.messages.events import ATTEMPT, END, TEXT
from server.messages.hub import Hub
from server.messages.journal import Journal
from server.messages.keeper import Keeper, Times
from server.messages.means import Means, Target
from server.messages.origin import Origin
from server.messages.reader import Reader
from server.messages.service import Messages
from server.prompts.service import Prompts
from server.routing.attempts import Route
from server.routing.gate import Held, Ticket
from server.store.keys import MessageKeys, control_channel, message_tag
from server.store.replicas import Replicas
from server.store.store import Store
from server.telemetry.metrics import Metrics
from server.upstreams.base import Batch, Call, Capabilities, Fault, TokenUsage, UpstreamFailure
from server.upstreams.faults import CONSEQUENCES
from tests.permissive import NoQuota, OpenGate, OpenTicket

WHO = Principal("t", "sub", "u", "free", scopes.ALL, None)
SILENT_SECONDS = 0.004
HEDGE_SECONDS = 0.001
NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Behaviour:
    """How a target answers one call."""

    pieces: int
    fault: Fault | None
    """After the pieces; None: it ends well."""
    silent: bool = False
    kind: str = "text"
    """What comes first: `text`, `reasoning` or `tool_calls`."""


@dataclass(frozen=True)
class Schedule:
    """What befalls one message."""

    targets: tuple[tuple[Behaviour, ...], ...]
    prefill: frozenset[str]
    mode: str
    held: frozenset[str]
    hedges: bool
    structured: bool
    cancel_at: int | None
    """Stop after so many batches of the whole message."""


@dataclass
class Called:
    """One call, as the model saw it."""

    target: str
    prefilled: str | None
    said: str = ""
    other: bool = False
    ended: str = "open"


@dataclass
class World:
    """The models of one message, and the truth about what they were asked."""

    schedule: Schedule
    calls: list[Called] = field(default_factory=list)
    batches: int = 0
    tickets: list[CountedTicket] = field(default_factory=list)
    stop: Any = None

    def driver(self, index: int) -> ScriptedDriver:
        return ScriptedDriver(self, "abcd"[index], list(self.schedule.targets[index]))


class ScriptedDriver:
    capabilities = Capabilities(tools=True, reasoning=True, usage_in_stream=True, prefill=True, images=False)

    def __init__(self, world: World, target: str, behaviours: list[Behaviour]) -> None:
        self.world = world
        self.target = target
        self.behaviours = behaviours

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        last = call.messages[-1]
        called = Called(self.target, last["content"] if last["role"] == "assistant" else None)
        self.world.calls.append(called)
        number = len(self.world.calls)
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        try:
            await asyncio.sleep(SILENT_SECONDS if behaviour.silent else 0)
            for index in range(behaviour.pieces):
                self.world.batches += 1
                if self.world.batches == self.world.schedule.cancel_at:
                    self.world.stop()
                if index == 0 and behaviour.kind == "reasoning":
                    called.other = True
                    yield Batch([("reasoning", f"hm {number}")], chunks=1)
                elif index == 0 and behaviour.kind == "tool_calls":
                    called.other = True
                    delta = {"index": 0, "id": f"c{number}", "function": {"name": "f", "arguments": "{}"}}
                    yield Batch([("tool_calls", [delta])], chunks=1)
                else:
                    piece = f"<{self.target}{number}.{index} wätér 🌊>"
                    called.said += piece
                    yield Batch([("text", piece)], chunks=1)
                await asyncio.sleep(0)
            if behaviour.fault is not None:
                called.ended = behaviour.fault
                raise UpstreamFailure(behaviour.fault, "the schedule says so")
            called.ended = "done"
            yield Batch(finish_reason="stop", usage=TokenUsage(10, max(1, behaviour.pieces)))
        finally:
            if called.ended == "open":
                called.ended = "closed"

    async def check(self) -> str | None:
        return None

    async def close(self) -> None:
        """Nothing is open."""


class CountedTicket(OpenTicket):
    """A ticket that must be told of the end once at least, and of success only after one."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def well(self, longest_gap_seconds: float) -> None:
        self.told.append("well")

    def failed(self, fault: Fault, retry_after_seconds: float | None) -> None:
        self.told.append(fault)

    def void(self, silent_seconds: float = 0.0) -> None:
        self.told.append("void")


class ScheduledGate(OpenGate):
    """Holds what the schedule holds, and lets everything be hedged if it says so."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def enter(self, target: str) -> Ticket | Held:
        if target in self.world.schedule.held:
            return Held(3.0, "open")
        ticket = CountedTicket()
        self.world.tickets.append(ticket)
        return ticket

    def hedge_after(self, route: Route, target: str) -> float | None:
        return HEDGE_SECONDS if self.world.schedule.hedges else None

    def may_hedge(self, route: Route) -> bool:
        return True


class LateGate(ScheduledGate):
    """Its first probe waits for too long before it may begin, and the target is not to be called after that."""

    async def enter(self, target: str) -> Ticket | Held:
        if target != "a":
            return await super().enter(target)
        if self.world.tickets:
            return Held(3.0, "half_open")
        self.world.tickets.append(LateTicket())
        return self.world.tickets[0]


class LateTicket(CountedTicket):
    """A probe's, whose lease ran meanwhile."""

    def late(self) -> bool:
        return True


class Bench:
    """The parts of a node that messages need."""

    async def start(self, url: str) -> None:
        self.store = await Store.connect(url, scripts.ALL)
        self.hub = Hub(self.store, 262_144)
        await self.hub.start(control_channel("n"))
        self.journal = Journal(self.store)
        self.reader = Reader(self.store)

    async def close(self) -> None:
        await self.journal.close()
        await self.hub.close()
        await self.store.close()

    async def play(self, schedule: Schedule, gate: type[ScheduledGate] = ScheduledGate) -> Outcome:
        world = World(schedule)
        names = tuple("abcd"[: len(schedule.targets)])
        targets = {name: Target(name, f"model-{name}", world.driver(i), None) for i, name in enumerate(names)}
        route = Route("default", names, schedule.mode, schedule.prefill)  # type: ignore[arg-type]
        means = Means(
            store=self.store,
            replicas=Replicas(self.store),
            journal=self.journal,
            hub=self.hub,
            targets=targets,
            routes={"default": route},
            watch=Metrics(),
            event_bytes=4096,
            max_bytes=1_000_000,
            gate=gate(world),
            quotas=NoQuota(),
            conversations=Conversations(self.store, self.hub, self.reader, {}, 60.0, 60.0),
        )
        keeper = Keeper(means, self.reader, "n", Times(60.0, 60.0), random.Random(1))
        messages = Messages(means, self.reader, keeper, "n", random.Random(2), Prompts())
        message_id = f"m{next(NUMBERS)}"
        tag = message_tag(WHO.tenant, WHO.kind, WHO.user, message_id)
        world.stop = lambda: keeper.running[tag].cancel()
        request: dict[str, Any] = {"type": "send", "id": message_id, "messages": [{"role": "user", "content": "?"}]}
        if schedule.structured:  # the words of these models are no JSON, which would be another fault
            request["tools"] = [{"type": "function", "function": {"name": "weather"}}]
        refusal = None
        try:
            async with asyncio.timeout(20):
                await messages.ask(WHO, Send.model_validate(request), Origin("ws"))
                await keeper.idle()
        except ProtocolError as error:
            refusal = error
            async with asyncio.timeout(20):
                await keeper.idle()
        finally:
            await messages.close()
            await keeper.close()
        return await self._outcome(world, MessageKeys.of(tag), refusal)

    async def _outcome(self, world: World, keys: MessageKeys, refusal: ProtocolError | None) -> Outcome:
        record = await self.store.call(keys.record, "HGETALL", keys.record)
        fields = {record[i].decode(): record[i + 1] for i in range(0, len(record), 2)}
        events: list[Any] = []
        cursor = 0
        while entries := await self.reader.page(keys, cursor, cursor == 0):
            events += [event for entry in entries for event in entry.events]
            cursor = entries[-1].last
        return Outcome(world, fields, events, refusal)


@dataclass
class Outcome:
    """What became of the message."""

    world: World
    fields: dict[str, bytes]
    events: list[Any]
    refusal: ProtocolError | None

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(msgpack.unpackb(self.fields["records"]))

    def client(self) -> tuple[str, list[int], list[dict[str, Any]]]:
        """What a client that keeps to the rules has at the end: the text, the attempts that it is of, all attempts."""
        text, standing, attempts = "", [], []
        for event in self.events:
            if event[0] == ATTEMPT:
                attempts.append(event[1])
                if event[1]["mode"] != "continue":
                    text, standing = "", []
                standing.append(event[1]["attempt"])
            elif event[0] == TEXT:
                text += event[1] if isinstance(event[1], str) else event[1].decode()
        return text, standing, attempts


@pytest.fixture(scope="module")
def bench(_valkey_process: Any) -> Iterator[tuple[asyncio.Runner, Bench]]:
    with asyncio.Runner() as runner:
        bench = Bench()
        runner.run(bench.start(_valkey_process.url))
        yield runner, bench
        runner.run(bench.close())


_behaviours = st.builds(
    Behaviour,
    pieces=st.integers(0, 4),
    fault=st.sampled_from([None, *Fault]),
    silent=st.booleans(),
    kind=st.sampled_from(["text", "text", "text", "reasoning", "tool_calls"]),
)
_schedules = st.builds(
    Schedule,
    targets=st.lists(st.lists(_behaviours, min_size=1, max_size=2).map(tuple), min_size=1, max_size=4).map(tuple),
    prefill=st.frozensets(st.sampled_from("abcd")),
    mode=st.sampled_from(["restart", "continue", "fail"]),
    held=st.frozensets(st.sampled_from("abcd"), max_size=2),
    hedges=st.booleans(),
    structured=st.booleans(),
    cancel_at=st.none() | st.integers(1, 6),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(_schedules)
def test_g7_the_text_is_one_attempts_or_an_unbroken_continuation(
    bench: tuple[asyncio.Runner, Bench], schedule: Schedule
) -> None:
    runner, parts = bench
    outcome = runner.run(parts.play(schedule))
    assume(outcome.refusal is None or outcome.refusal.code != "store_unavailable")  # a machine that is too busy
    every_ticket_was_used(outcome)
    if outcome.refusal is not None:
        assert outcome.refusal.code == "all_targets_failed"
        assert outcome.refusal.retry_after_ms == 3000
        assert not outcome.world.calls, "nothing was spent"
        assert not outcome.fields, "the id is free again"
        return
    the_text_is_whole(outcome)
    every_attempt_has_its_record(outcome)
    the_ending_is_honest(outcome)


def every_ticket_was_used(outcome: Outcome) -> None:
    assert len(outcome.world.tickets) >= len(outcome.world.calls)
    for ticket in outcome.world.tickets:
        assert ticket.told, "an admitted call told nobody how it went"
        assert len([what for what in ticket.told if what != "void"]) <= 1
    for called in outcome.world.calls:
        assert called.ended != "open", "an upstream was not let go"
        assert called.target not in outcome.world.schedule.held, "the breaker was bypassed"


def the_text_is_whole(outcome: Outcome) -> None:
    text, standing, attempts = outcome.client()
    assert [attempt["attempt"] for attempt in attempts] == sorted({attempt["attempt"] for attempt in attempts})
    said = ""
    for number in standing:
        called = call_of(outcome, number)
        if number != standing[0]:
            assert called.prefilled == said, "it went on with something else than what stood"
            assert not schedule_forbids_continuing(outcome, called)
            assert not any(call_of(outcome, earlier).other for earlier in standing[: standing.index(number)])
        else:
            assert called.prefilled is None
        if number == standing[-1] and outcome.fields["state"] != b"done":
            rest = text.removeprefix(said)
            assert called.said.startswith(rest)
            said += rest
        else:
            said += called.said
    assert text == said


def call_of(outcome: Outcome, number: int) -> Called:
    """Attempts are dispatched in the order of their numbers, none without being allocated."""
    return outcome.world.calls[number - 1]


def schedule_forbids_continuing(outcome: Outcome, called: Called) -> bool:
    schedule = outcome.world.schedule
    return schedule.structured or schedule.mode != "continue" or called.target not in schedule.prefill


def every_attempt_has_its_record(outcome: Outcome) -> None:
    _, standing, _ = outcome.client()
    records = outcome.records
    assert [record["attempt"] for record in records] == list(range(1, len(outcome.world.calls) + 1))
    assert len(records) == int(outcome.fields["attempts"]) or outcome.fields["state"] == b"cancelled"
    for record, called in zip(records, outcome.world.calls, strict=True):
        assert record["target"] == called.target
        assert record["payer"] == ("user" if record["attempt"] in standing else "operator")
        assert record["outcome"] != "running"
    end = msgpack.unpackb(outcome.fields["end"])
    paid = sum(record["output_tokens"] for record in records if record["payer"] == "user")
    assert end["usage"]["output_tokens"] == paid


def the_ending_is_honest(outcome: Outcome) -> None:
    assert outcome.events[-1][0] == END
    end, state = msgpack.unpackb(outcome.fields["end"]), outcome.fields["state"]
    text, standing, _ = outcome.client()
    if state == b"failed":
        error = end["error"]
        assert error["status"] == ERRORS[error["code"]].status
        assert error["retryable"] == (error["class"] == "temporary")
        assert ("retry_after_ms" in error) == error["retryable"], "it does not say when to come back"
        assert end["partial"] == bool(standing)
        faults = [call.ended for call in outcome.world.calls if call.ended in set(Fault)]
        lasting = [CONSEQUENCES[Fault(fault)].error_class == "permanent" for fault in faults]
        assert error["class"] == "temporary" or any(lasting)
        if outcome.world.schedule.held and not any(lasting) and len(faults) > 1:
            assert error["code"] in {CONSEQUENCES[Fault(f)].code for f in faults} | {"all_targets_failed"}
    else:
        assert end["text_bytes"] == len(text.encode())


def test_a_probe_that_is_late_is_not_sent_and_the_next_target_answers(bench: tuple[asyncio.Runner, Bench]) -> None:
    runner, parts = bench
    answers = (Behaviour(3, None),)
    schedule = Schedule((answers, answers), frozenset(), "restart", frozenset(), False, False, None)
    outcome = runner.run(parts.play(schedule, LateGate))
    assert [called.target for called in outcome.world.calls] == ["b"]
    text, standing, (attempt,) = outcome.client()
    assert (text, standing, attempt["mode"]) == (outcome.world.calls[0].said, [2], "fresh")
    told = [(r["outcome"], r["payer"], r["input_tokens"], r["output_tokens"]) for r in outcome.records]
    assert told == [("held", "operator", 0, 0), ("done", "user", 10, 3)]
    assert [ticket.told for ticket in outcome.world.tickets] == [["void"], ["well"]]


def test_a_hedge_that_wins_is_shown_and_its_loser_is_the_operators(bench: tuple[asyncio.Runner, Bench]) -> None:
    runner, parts = bench
    quick, silent = Behaviour(3, None), Behaviour(3, None, silent=True)
    schedule = Schedule(((silent,), (quick,)), frozenset(), "restart", frozenset(), True, False, None)
    outcome = runner.run(parts.play(schedule))
    text, standing, (attempt,) = outcome.client()
    assert standing == [2]
    assert (attempt["mode"], attempt["reason"]["code"]) == ("fresh", "hedged")
    assert [(r["outcome"], r["payer"]) for r in outcome.records] == [("hedged", "operator"), ("done", "user")]
    assert outcome.world.calls[0].ended == "closed"
    assert text == outcome.world.calls[1].said
    the_text_is_whole(outcome)


def test_a_hedge_whose_first_target_fails_goes_on_with_the_second(bench: tuple[asyncio.Runner, Bench]) -> None:
    runner, parts = bench
    falls, comes = Behaviour(0, Fault.SERVER_ERROR, silent=True), Behaviour(3, None, silent=True)
    schedule = Schedule(((falls,), (comes,), (comes,)), frozenset(), "restart", frozenset(), True, False, None)
    outcome = runner.run(parts.play(schedule))
    assert outcome.client()[1] == [2]
    assert [record["outcome"] for record in outcome.records] == ["upstream_unavailable", "done"]


def test_all_of_a_hedge_may_fail_and_the_next_is_asked(bench: tuple[asyncio.Runner, Bench]) -> None:
    runner, parts = bench
    falls = Behaviour(0, Fault.SERVER_ERROR, silent=True)
    schedule = Schedule(
        ((falls,), (falls,), (Behaviour(2, None),)), frozenset(), "restart", frozenset(), True, False, None
    )
    outcome = runner.run(parts.play(schedule))
    assert outcome.client()[1] == [3]
    assert outcome.fields["state"] == b"done"
