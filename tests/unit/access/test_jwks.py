"""The provider's keys: fetched once, kept through outages, renewed, and not fetched for made-up key ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from server.access.jwks import COOLDOWN_SECONDS, MAX_BYTES, RENEW_SECONDS, KeySet, KeysUnavailable


def public(kid: str) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return {"kid": kid, **jwt.get_algorithm_by_name("ES256").to_jwk(key, as_dict=True)}


class Provider:
    """An identity provider; also the clock of its key set."""

    def __init__(self) -> None:
        self.keys: Any = [public("one")]
        self.status = 200
        self.fetches = 0
        self.now = 1_000.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.body: bytes | None = None

    async def answer(self, _request: web.Request) -> web.Response:
        self.fetches += 1
        await self.gate.wait()
        if self.body is not None:
            return web.Response(body=self.body)
        return web.json_response({"keys": self.keys}, status=self.status, headers={"Location": "/elsewhere"})


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Provider, KeySet]]:
    provider = Provider()
    app = web.Application()
    app.router.add_get("/keys", provider.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    keys = KeySet(f"http://{host}:{port}/keys", monotonic=lambda: provider.now)
    try:
        yield provider, keys
    finally:
        provider.gate.set()
        await keys.close()
        await runner.cleanup()


async def test_one_fetch_serves_everybody() -> None:
    async with running() as (provider, keys):
        found = await asyncio.gather(*(keys.key("one", "ES256") for _ in range(20)))
        assert all(found)
        assert await keys.key(None, "ES256")
        assert provider.fetches == 1


async def test_an_unknown_id_fetches_but_not_again_and_again() -> None:
    async with running() as (provider, keys):
        assert await keys.key("one", "ES256")
        provider.keys.append(public("two"))
        assert await keys.key("two", "ES256") is None
        provider.now += COOLDOWN_SECONDS
        assert await keys.key("two", "ES256")
        for number in range(10):
            assert await keys.key(f"made-up-{number}", "ES256") is None
        assert provider.fetches == 2
        assert await keys.key(None, "ES256") is None, "two keys fit: without an id it is a guess"


@pytest.mark.parametrize("how", ["status", "redirect", "nonsense", "shape", "huge"])
async def test_known_keys_survive_every_kind_of_outage(how: str) -> None:
    async with running() as (provider, keys):
        assert await keys.key("one", "ES256")
        provider.status = {"status": 503, "redirect": 302}.get(how, 200)
        provider.body = {"nonsense": b"<html>", "shape": b"[]", "huge": b" " * (MAX_BYTES + 1)}.get(how)
        provider.now += RENEW_SECONDS + 1
        assert await keys.key("one", "ES256")
        assert await keys.key("two", "ES256") is None
        assert provider.fetches == 2
        assert await keys.key("one", "ES256")


async def test_renewal_does_not_hold_up_known_keys_and_drops_withdrawn_ones() -> None:
    async with running() as (provider, keys):
        assert await keys.key("one", "ES256")
        provider.keys = [public("two")]
        provider.now += RENEW_SECONDS + 1
        provider.gate.clear()
        async with asyncio.timeout(1):
            assert await keys.key("one", "ES256")
        provider.gate.set()
        assert await keys.key("two", "ES256")
        assert await keys.key("one", "ES256") is None


async def test_keys_that_never_came() -> None:
    async with running() as (provider, keys):
        provider.status = 500
        with pytest.raises(KeysUnavailable):
            await keys.key("one", "ES256")
        provider.status = 200
        with pytest.raises(KeysUnavailable):
            await keys.key("one", "ES256")
        assert provider.fetches == 1
        provider.now += COOLDOWN_SECONDS
        assert await keys.key("one", "ES256")


async def test_nobody_there() -> None:
    keys = KeySet("http://127.0.0.1:9/keys")
    with pytest.raises(KeysUnavailable):
        await keys.key("one", "ES256")
    await keys.close()
