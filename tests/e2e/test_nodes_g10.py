"""G10 deploys are invisible: a rolling restart under load costs clients a reconnect, nothing else."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

from protocol.client.aio import Client, ClientEvent, connect
from protocol.client.events import AttemptStarted, GoingAway, Resyncing
from protocol.client.message import MessageState
from protocol.client.timing import Backoff
from server.node import RECONNECT_SPREAD_MS
from tests.chaos.audit import Verdict
from tests.chaos.proxy import proxying, shuffled
from tests.chaos.rig import Rig, ask, rig
from tests.processes import ServeProcess
from tests.upstreams.script import expected_text
from tests.wire import wire

CLIENTS = 12
DRAIN_SECONDS = 5.0
SOCKETS = 128


class _User:
    """Asks for one message after another, and notes what it noticed."""

    def __init__(self, url: str, number: int) -> None:
        self.number = number
        self.asked: dict[str, list[dict[str, str]]] = {}
        self.goaways = 0
        self.restarts: list[str] = []
        self.gaps = 0
        self.client: Client = connect(
            url, on_event=self._note, backoff=Backoff(random.random, cap_seconds=1.0), proxy=None, connect_seconds=30.0
        )

    def _note(self, event: ClientEvent) -> None:
        self.goaways += isinstance(event, GoingAway)
        self.gaps += isinstance(event, Resyncing)
        if isinstance(event, AttemptStarted) and event.info.mode != "fresh":
            self.restarts.append(event.message.id)

    async def run(self, over: asyncio.Event) -> None:
        async with self.client as client:
            turn = 0
            while not over.is_set():
                turn += 1
                message_id = f"u{self.number}-{turn}"
                messages = self.asked[message_id] = ask("tokens=60 rate=60 unicode=1", message_id)
                message = client.ask(id=message_id, messages=messages)
                view = await message.done()  # raises on any refusal, loss or failure
                assert view.state is MessageState.DONE
                assert view.text == expected_text(messages, "scripted")


async def _roll(nodes: list[ServeProcess], over: asyncio.Event) -> list[int]:
    """Restart one node after another."""
    codes = []
    try:
        for node in nodes:
            codes.append(await node.stop())
            await node.start()
    finally:
        over.set()
    return codes


async def _check(r: Rig, users: list[_User]) -> None:
    stored = await r.stored()
    for user in users:
        for message_id, messages in user.asked.items():
            assert r.verdict(messages, stored[message_id]) == Verdict()
            assert len(stored[message_id].records) == 1, "a message was handed over, though it had time to finish"


async def test_g10_a_rolling_restart_of_four_nodes_under_load_costs_only_reconnects(valkey_url: str) -> None:
    chance = random.Random(10)
    async with rig(valkey_url, 4, server={"drain_seconds": DRAIN_SECONDS}) as r:
        nodes = r.nodes

        def up() -> list[int]:
            return shuffled([n.port for n in nodes if n.process is not None and n.process.returncode is None], chance)

        async with proxying(up) as proxy:
            users = [_User(proxy.url, number) for number in range(CLIENTS)]
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                rolling = group.create_task(_roll(nodes, over))
                for user in users:
                    group.create_task(user.run(over))
        assert rolling.result() == [0, 0, 0, 0]
        assert sum(user.goaways for user in users) >= CLIENTS / 2
        assert sum(user.client.reconnects for user in users) >= CLIENTS / 2
        assert [user.restarts for user in users] == [[]] * CLIENTS
        assert [user.gaps for user in users] == [0] * CLIENTS
        await _check(r, users)
        asked = sum(len(user.asked) for user in users)
        print(f"{asked} messages, {sum(user.client.reconnects for user in users)} reconnects")


async def test_g10_the_clients_of_a_node_that_leaves_are_told_to_come_back_spread_over_time(valkey_url: str) -> None:
    async with rig(valkey_url, 1, server={"drain_seconds": DRAIN_SECONDS}) as r, AsyncExitStack() as stack:
        (leaving,) = r.nodes
        sockets = [await stack.enter_async_context(wire(leaving.url)) for _ in range(SOCKETS)]
        await sockets[0].ask("running", "script tokens=20 hang=mid")  # so that the drain takes its time
        await sockets[0].type("delta")
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(leaving.stop())
            told = [(await socket.type("goaway"))["reconnect_after_ms"] for socket in sockets]
            await sockets[0].send({"type": "cancel", "id": "running"})
        assert stopping.result() == 0
    assert 0 <= min(told) <= max(told) <= RECONNECT_SPREAD_MS
    quarters = Counter(min(3, 4 * wait // RECONNECT_SPREAD_MS) for wait in told)
    assert all(quarters[number] >= SOCKETS / 16 for number in range(4)), "a quarter of the time stays nearly unused"


async def test_g10_what_cannot_finish_in_time_is_handed_over_at_once_and_visibly(valkey_url: str) -> None:
    async with rig(valkey_url, 2, server={"drain_seconds": 1.0}) as r:
        leaving, other = r.nodes
        messages = ask("tokens=240 rate=60", "long")
        user = _User(leaving.url, 1)
        async with user.client as client, connect(other.url, proxy=None) as follower:
            await client.send(id="long", messages=messages)
            there = follower.resume("long")
            await there.accepted()
            began = asyncio.get_running_loop().time()
            assert await leaving.stop() == 0
            await r.called(messages, 2)
            await r.hurry()
            view = await there.done()
            seconds = asyncio.get_running_loop().time() - began
        assert view.text == expected_text(messages, "scripted")
        assert [(a.mode, (a.reason or {}).get("code")) for a in view.attempts] == [
            ("fresh", None),
            ("restart", "owner_lost"),
        ]
        assert seconds < 30.0  # drain, answer and takeover: 10 s on a machine at rest
        await r.check_once("long", messages, calls=2)
