"""A job's end told to another server: signed, at least once, the same id every time, until it is taken."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from tests.integration.http.client import Place, place, refused
from tests.integration.http.test_jobs import JOBS, ended, item, look, post, until

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OWN = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


class Receiver:
    """Verifies what it gets, and answers as it is told: one status after the other, the last one for ever."""

    def __init__(self, secret: str, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[dict[str, Any]] = []
        self.url = ""
        self._webhook = Webhook(secret)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        data = self._webhook.verify(body, dict(request.headers))
        self.got.append({"id": request.headers["webhook-id"], "payload": data})
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        headers = {"Location": self.url} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)


@asynccontextmanager
async def receiving(*statuses: int, secret: str = SECRET) -> AsyncIterator[Receiver]:
    receiver = Receiver(secret, *statuses)
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def signing(redis_url: str, folder: Path, private: bool = True, **jobs: Any) -> AsyncIterator[Place]:
    """A node that may call this machine, and has secrets."""
    (folder / "secret").write_text(SECRET + "\n")
    sections = {
        "jobs": {
            "webhook_secret_file": str(folder / "secret"),
            "webhook_private": private,
            "webhook_retry_seconds": [0.1, 0.1, 0.1],
            **jobs,
        }
    }
    async with place(redis_url, sections) as here:
        yield here


async def hook_state(here: Place, job: str, state: str) -> None:
    async def so() -> bool:
        return bool((await look(here, job))["webhook"]["state"] == state)

    await until(so)


async def test_the_end_is_told_until_it_is_taken(valkey_url: str, tmp_path: Path) -> None:
    async with receiving(500, 302, 204) as receiver, signing(valkey_url, tmp_path) as here:
        made = await post(here, [item(1), item(2)], webhook_url=receiver.url)
        await hook_state(here, made["id"], "delivered")
        assert [got["id"] for got in receiver.got] == [made["id"]] * 3
        payload = receiver.got[-1]["payload"]
        assert payload["type"] == "job.done"
        job = await ended(here, made["id"])
        assert payload["data"]["items"] == job["items"]
        assert payload["data"]["usage"] == job["usage"]
        await asyncio.sleep(0.5)
        assert len(receiver.got) == 3, "it is told once it was taken"


@pytest.mark.parametrize(("statuses", "tries"), [([410], 1), ([500], 4)])
async def test_who_does_not_take_it_is_given_up(
    valkey_url: str, tmp_path: Path, statuses: list[int], tries: int
) -> None:
    async with receiving(*statuses) as receiver, signing(valkey_url, tmp_path) as here:
        made = await post(here, {**item(1), "webhook_url": receiver.url})
        await hook_state(here, made["id"], "given_up")
        assert len(receiver.got) == tries


async def test_nobody_is_called_who_must_not_be(valkey_url: str, tmp_path: Path) -> None:
    async with receiving(200) as receiver, signing(valkey_url, tmp_path, private=False) as here:
        for url in (receiver.url, "https://127.0.0.1/hook", "https://[::1]/", "ftp://example.com/"):
            async with here.request("POST", JOBS, json={**item(1), "webhook_url": url}) as answer:
                error = await refused(answer, 400, "invalid_request")
            assert error["param"] == "webhook_url"
        made = await post(
            here, {**item(1), "webhook_url": receiver.url.replace("http://127.0.0.1", "https://localhost")}
        )
        await hook_state(here, made["id"], "given_up")
        assert not receiver.got


async def test_without_a_secret_there_are_no_webhooks(valkey_url: str) -> None:
    async with place(valkey_url) as here:
        async with here.request("POST", JOBS, json={**item(1), "webhook_url": "https://example.com/"}) as answer:
            error = await refused(answer, 400, "invalid_request")
        assert "webhook_secret_env" in error["message"]


async def test_a_tenant_signs_with_its_own_secret(valkey_url: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(OWN)
    tenants = {"demo": {"webhook_secret_file": str(tmp_path / "own")}}
    jobs = {"webhook_private": True}
    async with receiving(200, secret=OWN) as receiver, place(valkey_url, {"tenants": tenants, "jobs": jobs}) as here:
        made = await post(here, {**item(1), "webhook_url": receiver.url})
        await hook_state(here, made["id"], "delivered")
        assert len(receiver.got) == 1
