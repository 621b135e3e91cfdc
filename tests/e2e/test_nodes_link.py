"""A connection to Redis that has just been lost: a command given at that very moment must not wait for ever."""

from __future__ import annotations

import asyncio

import pytest

from server.store.link import Address, Link, StoreError, StoreLost
from tests.servers import RedisServer


async def test_a_command_given_while_the_connection_is_being_lost_is_refused_or_fails() -> None:
    """The journal gives its next command as soon as one has failed, before the link knows that it has no connection:
    a future of that dead connection would never come, and with it nothing that this process generates."""
    with RedisServer() as server:
        link = Link(Address(port=server.port))
        await link.ready(5.0)
        outcome: list[object] = []

        def next_command(_: object) -> None:
            try:
                outcome.append(link.call("PING"))
            except StoreError as error:
                outcome.append(error)

        server.freeze()
        unanswered = link.call("PING")
        unanswered.add_done_callback(next_command)
        server.kill()
        with pytest.raises(StoreLost):
            await asyncio.wait_for(unanswered, 5.0)
        await asyncio.sleep(0)
        [first] = outcome
        if isinstance(first, asyncio.Future):
            with pytest.raises(StoreLost):
                await asyncio.wait_for(first, 5.0)
        else:
            assert isinstance(first, StoreError)
        assert not link.available
        await link.close()
