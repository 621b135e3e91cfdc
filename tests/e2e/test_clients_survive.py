"""Both client libraries against server processes that die, sleep and restart: every character, one bill.

The programs are those of the conformance kit, so that one set of tests holds for every language.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from protocol.codec import JSON
from server.conformance.clients import Program, started
from tests.chaos.proxy import Proxy, proxying
from tests.chaos.rig import MODEL, Rig, ask, rig
from tests.processes import ServeProcess
from tests.upstreams.script import expected_text

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "tests" / "clients"
SECONDS = 30.0
LOOK_SECONDS = 0.02
SECRET = "a secret of at least thirty-two bytes"
TOKEN_SECONDS = 2.0
Map = dict[str, Any]
pytestmark = pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            f"node {ADAPTERS / 'tidewire_adapter.mjs'}",
            id="typescript",
            marks=[
                pytest.mark.node,
                pytest.mark.skipif(shutil.which("node") is None, reason="node is missing"),
                pytest.mark.skipif(not (ADAPTERS / "node_modules").exists(), reason="npm install in tests/clients"),
                pytest.mark.skipif(not (ROOT / "web-demo" / "dist").exists(), reason="npm run library in web-demo"),
            ],
        ),
        pytest.param(f"{sys.executable} -m tests.clients.tidewire_adapter", id="python"),
    ],
)


class Device:
    """A client program whose connections go to whichever node is up."""

    def __init__(self, program: Program, proxy: Proxy) -> None:
        self.program = program
        self.proxy = proxy
        self.asleep: set[int] = set()
        """Ports of nodes that a load balancer has taken out."""

    async def send(self, message_id: str, messages: list[Map]) -> None:
        """Ask, and wait until some of the answer stands."""
        await self.program.tell(do="send", id=message_id, request={"messages": messages})
        await self.until(message_id, lambda held: len(held.get("text", "")) > 100)

    async def until(self, message_id: str, condition: Callable[[Map], bool]) -> Map:
        """What it holds of the message, once the condition does."""
        async with asyncio.timeout(SECONDS):
            while True:
                held: Map = (await self.program.tell(do="report"))["messages"].get(message_id, {})
                if condition(held):
                    return held
                await asyncio.sleep(LOOK_SECONDS)

    async def whole(self, message_id: str, messages: list[Map]) -> None:
        """It holds the whole answer, every character."""
        held = await self.until(message_id, lambda held: held.get("state") not in ("sending", "following", "resyncing"))
        assert (held["state"], held["text"]) == ("done", expected_text(messages, MODEL))


@asynccontextmanager
async def device(command: str, r: Rig, **options: Any) -> AsyncIterator[Device]:
    """Connections go to the nodes in turn, past those that are down or asleep."""
    turn = itertools.count()

    def up() -> list[int]:
        running = [node.port for node in r.nodes if node.process is not None and node.process.returncode is None]
        ports = [port for port in running if port not in subject.asleep]
        start = next(turn) % max(1, len(ports))
        return ports[start:] + ports[:start]

    async with proxying(up) as proxy, started(command) as program:
        subject = Device(program, proxy)
        await program.tell(do="begin", url=proxy.url, subprotocol=JSON.subprotocol, vector="", **options)
        try:
            yield subject
        finally:
            await program.tell(do="end")


def streaming(r: Rig, subject: Device) -> ServeProcess:
    """The node that the device is connected to."""
    (link,) = subject.proxy.links
    return next(node for node in r.nodes if node.port == link.port)


async def test_the_node_is_killed_in_mid_answer(command: str, valkey_url: str) -> None:
    messages = ask("tokens=200 rate=60 unicode=1", "survive-kill")
    async with rig(valkey_url, 2) as r, device(command, r) as subject:
        await subject.send("survive-kill", messages)
        await streaming(r, subject).kill()
        await subject.whole("survive-kill", messages)
        await r.check_once("survive-kill", messages, calls=2)


@pytest.mark.slow
async def test_the_node_falls_asleep_and_the_connection_stands(command: str, valkey_url: str) -> None:
    messages = ask("tokens=200 rate=60 unicode=1", "survive-stop")
    async with rig(valkey_url, 2) as r, device(command, r) as subject:
        await subject.send("survive-stop", messages)
        sleeper = streaming(r, subject)
        subject.asleep.add(sleeper.port)
        sleeper.signal(signal.SIGSTOP)
        try:
            await subject.program.tell(do="ping")  # as a page does that becomes visible
            await subject.whole("survive-stop", messages)
        finally:
            sleeper.signal(signal.SIGCONT)
        await r.check_once("survive-stop", messages, calls=2)


async def test_the_client_sleeps_while_the_answer_is_given(command: str, valkey_url: str) -> None:
    messages = ask("tokens=150 rate=60", "survive-sleep")
    async with rig(valkey_url, 1) as r, device(command, r) as subject:
        await subject.send("survive-sleep", messages)
        os.kill(subject.program.pid, signal.SIGSTOP)
        try:
            await r.settled("survive-sleep")
            for link in tuple(subject.proxy.links):
                link.cut()  # as a network does that forgets who sleeps
        finally:
            os.kill(subject.program.pid, signal.SIGCONT)
        await subject.whole("survive-sleep", messages)
        await r.check_once("survive-sleep", messages)


@pytest.mark.slow
async def test_a_rolling_restart_in_mid_answer(command: str, valkey_url: str) -> None:
    messages = ask("tokens=240 rate=60 unicode=1", "survive-roll")
    async with rig(valkey_url, 2, server={"drain_seconds": 10.0}) as r, device(command, r) as subject:
        await subject.send("survive-roll", messages)
        for node in r.nodes:
            assert await node.stop() == 0
            await node.start()
        await subject.whole("survive-roll", messages)
        assert (await subject.program.tell(do="report"))["connections"] >= 2
        await r.check_once("survive-roll", messages)


def _tokens() -> list[str]:
    """Each good for some seconds more than the one before."""
    now = time.time()
    claims = [
        {"sub": "ann", "tenant": "acme", "aud": "tidewire", "exp": now + TOKEN_SECONDS * n} for n in range(1, 200)
    ]
    return [jwt.encode(claim, SECRET, "HS256") for claim in claims]


@pytest.mark.slow
async def test_tokens_are_renewed_before_they_expire_without_a_new_connection(
    command: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURVIVE_SECRET", SECRET)
    auth = {"anonymous": False, "jwt_secret_env": "SURVIVE_SECRET", "algorithms": ["HS256"]}
    messages = ask("tokens=300 rate=60", "survive-token")
    async with rig(valkey_url, 1, auth=auth) as r, device(command, r, tokens=_tokens()) as subject:
        await subject.send("survive-token", messages)
        await subject.whole("survive-token", messages)
        report = await subject.program.tell(do="report")
        assert report["connections"] == 1
        assert report["tokens"] >= 3
        await r.check_once("survive-token", messages)
