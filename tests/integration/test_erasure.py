"""Deletion while the text of an ended message is being gathered, and after a node has died over it: nothing stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from server.access.identity import Principal
from server.messages.personal import Personal
from server.messages.scripts import FINALIZE, GATHER
from tests.integration.test_conversations import Place, ask, everything_in, here, user
from tests.wire import eventually, wire

__all__ = ["here"]
ASKED = "script tokens=24000 seed=gathered"
TAG = "swordfish-of-the-tag"


class Finishing:
    """Stops a node where it has gathered a part of the text."""

    def __init__(self, here: Place, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
        store = here.nodes[0].node.store
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        run = store.run

        async def stopping(script: Any, *args: Any, **named: Any) -> Any:
            if script is FINALIZE and at == "before it is kept":
                await self.stop()
            answer = await run(script, *args, **named)
            if script is GATHER and at == "in the middle":
                await self.stop()
            return answer

        monkeypatch.setattr(store, "run", stopping)

    async def stop(self) -> None:
        self.reached.set()
        await self.go_on.wait()


async def records_in(redis_url: str) -> str:
    """What the records of all messages hold."""
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        return repr([await server.hgetall(key) async for key in server.scan_iter(match="tw:{*}:m")])


@pytest.mark.parametrize("at", ["in the middle", "before it is kept", "after it is kept"])
@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("of", ["conversation", "user"])
async def test_nothing_of_a_message_outlives_its_deletion(
    here: Place, monkeypatch: pytest.MonkeyPatch, at: str, dies: bool, of: str
) -> None:
    node = here.nodes[0].node
    finishing = Finishing(here, monkeypatch, at)
    turn = {"conversation": "c1", "input": ASKED} if of == "conversation" else {"messages": [user(ASKED)]}
    async with wire(here.url) as client:
        await client.send({"type": "send", "id": "m1", "metadata": {"project": TAG}, **turn})
        text = (await client.ended("m1")).text
        if at == "after it is kept":
            await eventually(lambda: not node.keeper.finishing)
        else:
            await finishing.reached.wait()
        before = await everything_in(here.redis_url)
        assert text[:200].encode() in before
        assert TAG in await records_in(here.redis_url)
        if dies:
            await node.keeper.owner.close()
        if of == "conversation":
            assert (await ask(client, "delete"))["op"] == "delete"
        else:
            who = next(iter(node.sessions)).principal
            assert isinstance(who, Principal)
            assert (await Personal(node.messages, who).delete()).left == 0
        for _ in ("what is left", "what a node that was slow adds"):
            left = await everything_in(here.redis_url)
            for found in (text[:200], text[-200:], ASKED):
                assert found.encode() not in left
            assert TAG not in await records_in(here.redis_url)  # the ledger has it, for the bill
            finishing.go_on.set()
            await eventually(lambda: not node.keeper.finishing)
