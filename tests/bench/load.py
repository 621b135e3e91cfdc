"""The load script: `python -m tests.bench.load --url ws://127.0.0.1:8400/v1/ws --clients 300 --tokens 300 --pace 50`.

Every client holds one WebSocket and the shipped client session, and checks every character of every answer, as it
arrives and at the end, against the text that the scripted upstream (`tests.upstreams.script`) must have said. The
server under test therefore needs a route whose targets are scripted upstreams.

Without `--rate` each client asks its next message when the last one ended; with it, so many messages per second begin
in all, whether or not the earlier ones are through. Latencies count from the moment of asking, so waiting for a
connection counts too. Exit code: 0 if every answer was right or honestly refused, 1 if any was wrong or lost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import json
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from protocol.client.events import (
    AttemptStarted,
    ErrorReceived,
    Event,
    GoingAway,
    MessageEnded,
    Output,
    Replaced,
    Resyncing,
    Stalled,
    Welcomed,
)
from protocol.client.message import ClientMessage, MessageState
from protocol.client.session import ClientSession, MalformedFrame
from protocol.client.timing import Backoff, Beat, Heartbeat
from protocol.codec import JSON, MSGPACK, Codec, DecodeError
from protocol.errors import may_reconnect
from tests.bench.lean_socket import LeanSocket
from tests.upstreams.script import expected_text

TICK_SECONDS = 1.0
STALL_SECONDS = 1.0
REFUSED_MS = 1000
"""When to ask again after a failure that doesn't say."""
GRACE_SECONDS = 30.0
"""How long answers may take beyond their own pace once nothing new is asked."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to do. Times in seconds."""

    url: str
    clients: int = 100
    rate: float | None = None
    """New messages per second in all; None: each client asks again when its message ended."""
    seconds: float = 20.0
    """For how long new messages are asked."""
    tokens: int = 300
    """Of each answer."""
    pace: float = 50.0
    """Tokens per second of each answer at the upstream; 0: as fast as it can."""
    codec: str = "json"
    token: str | None = None
    model: str = "default"
    script: str = ""
    """More directives for the upstream, as in `unicode=1 reasoning=20`."""
    ramp_seconds: float = 2.0
    """Clients connect spread over this time."""
    grace_seconds: float = GRACE_SECONDS
    max_wait_seconds: float = 30.0
    """For the first greeting of every client; those that have none by then ask all the same."""
    seed: str = ""
    """Of the texts; random by default."""


class Histogram:
    """Durations in buckets 4 % wide from 1 µs up, so that memory does not grow with the run."""

    WIDTH = math.log(1.04)

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self._buckets[int(math.log(seconds * 1e6) / self.WIDTH) if seconds > 1e-6 else 0] += 1

    def percentile(self, share: float) -> float:
        """The duration in seconds that a `share` (0 … 1) of all stays below; nan if there are none."""
        left = share * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return math.exp((bucket + 0.5) * self.WIDTH) / 1e6
        return math.nan

    def summary(self) -> dict[str, float]:
        """p50, p90, p99 in milliseconds."""
        return {name: round(self.percentile(share) * 1e3, 2) for name, share in _SHARES}


_COUNTS = (
    "asked",
    "right",
    "wrong",
    "wrong_characters",
    "lost",
    "refused",
    "failed",
    "deltas",
    "characters",
    "tokens",
    "restarts",
    "connects",
    "reconnects",
    "resyncs",
    "stalls",
)
_SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


@dataclass(slots=True)
class Report:
    """What happened."""

    asked: int = 0
    right: int = 0
    """Done, every character as it must be."""
    wrong: int = 0
    """Done, or shown on the way, with other characters."""
    wrong_characters: int = 0
    lost: int = 0
    """Without an end, or no longer known, or never verified."""
    refused: int = 0
    failed: int = 0
    deltas: int = 0
    characters: int = 0
    tokens: int = 0
    """As the server counts the output of answers that ended."""
    restarts: int = 0
    connects: int = 0
    reconnects: int = 0
    resyncs: int = 0
    stalls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By code, or `close 1006` and the like."""
    first_token: Histogram = field(default_factory=Histogram)
    gap: Histogram = field(default_factory=Histogram)
    elapsed_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process."""

    @property
    def ok(self) -> bool:
        """Whether there were answers, and none was wrong or lost."""
        return self.connects > 0 and self.wrong == 0 and self.lost == 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; latencies in milliseconds."""
        seconds = self.elapsed_seconds or math.nan
        return {name: getattr(self, name) for name in _COUNTS} | {
            "errors": dict(self.errors),
            "first_token_ms": self.first_token.summary(),
            "delta_gap_ms": self.gap.summary(),
            "seconds": round(self.elapsed_seconds, 2),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "messages_per_second": round((self.asked - self.lost) / seconds, 2),
            "own_cpu_share": round(self.cpu_seconds / seconds, 3),
            "own_cpu_us_per_delta": round(self.cpu_seconds / max(1, self.deltas) * 1e6, 1),
        }


@dataclass(slots=True)
class Answer:
    """One message under way, and what it must be."""

    expected: str
    asked_at: float
    last_at: float = 0.0
    shown: int = 0
    """Characters that have arrived and were right."""
    wrong: bool = False


class LoadClient:
    """One user: a session, a socket that comes and goes, and the answers under way."""

    def __init__(
        self, number: int, options: Options, report: Report, on_end: Callable[[LoadClient, float], None]
    ) -> None:
        self.session = ClientSession(token=options.token)
        self.answers: dict[str, Answer] = {}
        self._number = number
        self._options = options
        self._report = report
        self._on_end = on_end
        self._codec: Codec = MSGPACK if options.codec == "msgpack" else JSON
        self._socket: LeanSocket | None = None
        self._heart = Heartbeat(20, 0)
        self._asked = 0
        self._retire_at = math.inf
        self.ready = asyncio.Event()
        """Greeted for the first time, or given up."""
        self.given_up = False

    def ask(self) -> None:
        """Ask for the next message."""
        options = self._options
        self._asked += 1
        seed = f"{options.seed}-{self._number}-{self._asked}"
        content = f"script tokens={options.tokens} rate={options.pace} seed={seed} {options.script}".rstrip()
        messages = [{"role": "user", "content": content}]
        message_id = f"load-{seed}"
        self.answers[message_id] = Answer(expected_text(messages, options.model), time.monotonic())
        self._report.asked += 1
        self.session.send(message_id, {"model": options.model, "messages": messages})
        self._flush()

    async def run(self) -> None:
        """Stay connected until cancelled, or until the server says not to come again."""
        backoff = Backoff(random.random)
        try:
            while True:
                code = await self._connection()
                if code is not None and not may_reconnect(code):
                    return
                delay = backoff.next_delay()
                if self.session.open:
                    backoff.reset()
                self.session.disconnected()
                await asyncio.sleep(delay if self._retire_at == math.inf else 0)
        finally:
            self.given_up = True
            self.ready.set()
            self._on_end(self, 0.0)
            if self._socket is not None:
                self._socket.close()

    async def _connection(self) -> int | None:
        """One connection from beginning to end; its close code, None if it did not come about."""
        self._retire_at = math.inf
        try:
            socket = await LeanSocket.open(self._options.url, self._codec.subprotocol, self._on_message)
        except OSError as error:
            self._report.errors[f"connect: {type(error).__name__}"] += 1
            return None
        self._socket = socket
        self._report.connects += 1
        self._heart = Heartbeat(20, time.monotonic())
        socket.send(self._codec.encode(self.session.hello()))
        code = await socket.closed
        self._socket = None
        if self._retire_at == math.inf:
            self._report.errors[f"close {code}"] += 1
        return code

    def tick(self, now: float) -> None:
        """Heartbeats and planned departures; called every second or so."""
        if self._socket is None:
            return
        if now >= self._retire_at:
            self._socket.close()
            return
        beat = self._heart.poll(now)
        if beat is Beat.DEAD:
            self._socket.abort()
        elif beat is Beat.PING:
            self.session.ping(int(now * 1000))
            self._flush()

    def _on_message(self, data: bytes) -> None:
        self._heart.heard()
        now = time.monotonic()
        receive = self.session.receive
        try:
            for frame in self._codec.decode_trusted(data):
                for event in receive(frame):
                    if type(event) is Output:
                        self._on_output(event, now)
                    else:
                        self._on_event(event, now)
        except (DecodeError, MalformedFrame) as error:
            self._report.errors[f"malformed: {error}"] += 1
            if self._socket is not None:
                self._socket.abort()
        if self.session.has_outgoing:
            self._flush()

    def _on_output(self, event: Output, now: float) -> None:
        answer = self.answers[event.message.id]
        report = self._report
        report.deltas += 1
        if answer.last_at:
            report.gap.add(now - answer.last_at)
        else:
            report.first_token.add(now - answer.asked_at)
        answer.last_at = now
        text = event.text
        if text:
            if not answer.expected.startswith(text, answer.shown):
                answer.wrong = True
            answer.shown += len(text)

    def _on_event(self, event: Event, now: float) -> None:
        report = self._report
        match event:
            case MessageEnded(message):
                self._on_message_end(message)
            case AttemptStarted(message, info) if info.mode != "continue":
                self._check_again(message)
                report.restarts += info.mode == "restart"
            case Replaced(message):
                self._check_again(message)
            case Resyncing():
                report.resyncs += 1
            case Stalled(message, _, after):
                report.stalls += 1
                delay = STALL_SECONDS if after is None else after
                asyncio.get_running_loop().call_later(delay, self._resume_stalled, message.id)
            case ErrorReceived(_, _, error):
                report.errors[error["code"]] += 1
            case GoingAway(_, delay):
                self._retire_at = now + delay
            case Welcomed():
                report.reconnects += self.ready.is_set()
                self._heart = Heartbeat(event.heartbeat_seconds, now)
                self.ready.set()

    def _check_again(self, message: ClientMessage) -> None:
        """Output was dropped or replaced: what stands now must be right from its first character."""
        answer = self.answers[message.id]
        answer.shown = len(message.text)
        if not answer.expected.startswith(message.text):
            answer.wrong = True

    def _on_message_end(self, message: ClientMessage) -> None:
        answer = self.answers.pop(message.id)
        report = self._report
        state = message.state
        if message.error:
            report.errors[message.error["code"]] += 1
        report.refused += state is MessageState.REFUSED
        report.failed += state is MessageState.FAILED
        report.lost += state in (MessageState.LOST, MessageState.BROKEN)
        report.tokens += (message.usage or {}).get("output_tokens", 0)
        report.characters += len(message.text)
        if state is MessageState.DONE:
            differing = wrong_characters(message.text, answer.expected)
            report.wrong_characters += differing
            report.wrong += bool(differing or answer.wrong)
            report.right += not (differing or answer.wrong)
        elif answer.wrong:
            report.wrong += 1
        self.session.forget(message.id)
        after_ms = (message.error or {}).get("retry_after_ms", REFUSED_MS)
        self._on_end(self, after_ms / 1000 if message.error else 0.0)

    def _resume_stalled(self, message_id: str) -> None:
        message = self.session.messages.get(message_id)
        if message is not None and message.state in (MessageState.STALLED, MessageState.SENDING):
            self.session.resume(message_id)
            self._flush()

    def _flush(self) -> None:
        if self._socket is not None and (frames := self.session.outgoing()):
            self._socket.send(self._codec.join([self._codec.encode(frame) for frame in frames]))


def wrong_characters(found: str, expected: str) -> int:
    """How many characters differ, those missing or too many included."""
    if found == expected:
        return 0
    return sum(a != b for a, b in zip(found, expected, strict=False)) + abs(len(found) - len(expected))


class Load:
    """The whole run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.report = Report()
        self.clients = [LoadClient(n, options, self.report, self._on_end) for n in range(options.clients)]
        self.asking = False
        """Whether new messages are asked; at a rate, False ends it."""
        self._one_ended = asyncio.Event()

    @property
    def under_way(self) -> int:
        """Messages asked and not ended."""
        return sum(len(client.answers) for client in self.clients)

    def _on_end(self, client: LoadClient, wait_seconds: float = 0.0) -> None:
        """A message ended, or a client gave up. A refused user comes again after a while."""
        self._one_ended.set()
        if self.asking and self.options.rate is None and not client.given_up:
            # Not from within `receive`, whatever the delay: a refusal at once must not recurse.
            asyncio.get_running_loop().call_later(wait_seconds, self._ask_again, client)

    def _ask_again(self, client: LoadClient) -> None:
        if self.asking and not client.given_up:
            client.ask()

    async def run(self, on_tick: Callable[[Load], None] = lambda load: None) -> Report:
        """Connect, ask for `seconds`, wait for the rest; `on_tick` is called every second."""
        began, cpu = time.monotonic(), _cpu_seconds()
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._tick(on_tick))]
            for client in self.clients:
                helpers.append(group.create_task(client.run()))
                await asyncio.sleep(self.options.ramp_seconds / len(self.clients))
            await self._greetings()
            await self._ask()
            await self._drain()
            for helper in helpers:
                helper.cancel()
        self.report.lost += self.under_way
        self.report.elapsed_seconds = time.monotonic() - began
        self.report.cpu_seconds = _cpu_seconds() - cpu
        return self.report

    async def _greetings(self) -> None:
        try:
            async with asyncio.timeout(self.options.max_wait_seconds):
                for client in self.clients:
                    await client.ready.wait()
        except TimeoutError:
            return

    async def _ask(self) -> None:
        self.asking = True
        end = time.monotonic() + self.options.seconds
        if self.options.rate is None:
            for client in self.clients:  # not in one moment: users don't
                client.ask()
                await asyncio.sleep(self.options.ramp_seconds / len(self.clients))
            await asyncio.sleep(max(0.0, end - time.monotonic()))
        else:
            await self._ask_at_rate(self.options.rate, end)
        self.asking = False

    async def _ask_at_rate(self, rate: float, end: float) -> None:
        """An open loop: on an absolute schedule, whatever the server makes of it."""
        began = time.monotonic()
        for number in range(int(rate * self.options.seconds)):
            due = began + number / rate
            if due > end or not self.asking:
                return
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self.clients[number % len(self.clients)].ask()

    async def _drain(self) -> None:
        own_pace = self.options.tokens / self.options.pace if self.options.pace else 0.0
        try:
            async with asyncio.timeout(own_pace + self.options.grace_seconds):
                while any(client.answers and not client.given_up for client in self.clients):
                    self._one_ended.clear()
                    await self._one_ended.wait()
        except TimeoutError:
            return

    async def _tick(self, on_tick: Callable[[Load], None]) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for client in self.clients:
                client.tick(now)
            on_tick(self)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine only."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def table(report: Report, under_way: int | None = None) -> Table:
    """The report, or its present state, for a terminal."""
    shown = Table(show_header=False, box=None)
    values = report.as_dict()
    if under_way is not None:
        values = {"under_way": under_way} | {k: v for k, v in values.items() if k not in _ONLY_AT_THE_END}
    for name, value in values.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {item}" for key, item in value.items()) or "none"
        shown.add_row(name.replace("_", " "), str(value))
    return shown


_ONLY_AT_THE_END = frozenset(
    {"seconds", "tokens_per_second", "messages_per_second", "own_cpu_share", "own_cpu_us_per_delta"}
)


def parse(arguments: Sequence[str]) -> tuple[Options, Path | None]:
    """The options on the command line, and where to write the report as JSON. Exits on mistakes, as argparse does."""
    parser = argparse.ArgumentParser(prog="tests.bench.load", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--url", required=True, help="ws://HOST:PORT/v1/ws")
    parser.add_argument("--clients", type=int, default=100, help="WebSockets, one user each")
    parser.add_argument("--rate", type=float, help="new messages per second in all; default: one after another each")
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long new messages are asked")
    parser.add_argument("--tokens", type=int, default=300, help="of each answer")
    parser.add_argument("--pace", type=float, default=50.0, help="tokens per second of each answer; 0: unlimited")
    parser.add_argument("--codec", choices=("json", "msgpack"), default="json")
    parser.add_argument("--token", default=os.environ.get("TIDEWIRE_TOKEN"), help="JWT or API key; or $TIDEWIRE_TOKEN")
    parser.add_argument("--model", default="default", help="route to ask")
    parser.add_argument("--script", default="", help="more directives for the scripted upstream")
    parser.add_argument("--ramp", type=float, default=2.0, help="seconds over which the clients connect")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds to wait for late answers")
    parser.add_argument("--max-wait", type=float, default=30.0, help="seconds to wait for the first greetings")
    parser.add_argument("--seed", default="", help="of the texts; random by default")
    parser.add_argument("--json", type=Path, help="write the report here as well")
    parser.add_argument("--allow-remote", action="store_true", help="the URL may lead to another machine")
    args = parser.parse_args(arguments)
    if not args.allow_remote and not is_loopback(args.url):
        parser.error("this would put load on another machine; if that is yours and meant, add --allow-remote")
    options = Options(
        args.url,
        clients=args.clients,
        rate=args.rate,
        seconds=args.seconds,
        tokens=args.tokens,
        pace=args.pace,
        codec=args.codec,
        token=args.token,
        model=args.model,
        script=args.script,
        ramp_seconds=args.ramp,
        grace_seconds=args.grace,
        max_wait_seconds=args.max_wait,
        seed=args.seed or os.urandom(4).hex(),
    )
    return options, args.json


async def _main(options: Options, console: Console) -> Report:
    load = Load(options)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(now: Load) -> None:
            if console.is_terminal:
                live.update(table(now.report, now.under_way), refresh=True)

        return await load.run(show)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    options, path = parse(sys.argv[1:] if arguments is None else arguments)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    console = Console()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_main(options, console))
    console.print(table(report))
    if path is not None:
        path.write_text(json.dumps(report.as_dict(), indent=2) + "\n", "utf-8")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
