"""The doctor, on real servers: says ok only of what is, and names what to mend."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from pathlib import Path

import redis.asyncio
from aiohttp import web

from server.doctor import Finding, examine
from server.routing.breaker import Condition, State
from server.routing.shared_breaker import pack
from server.store.keys import breaker
from tests.prompt_files import plain, put
from tests.servers import RedisServer, free_port

CONFIG = """
[server]
port = {port}
[redis]
url = "{redis}"
[auth]
anonymous = true
[targets.a]
driver = "openai"
model = "m"
base_url = "{upstream}"
[routes.default]
targets = ["a"]
[ledger]
url = "{ledger}"
"""


async def report(
    tmp_path: Path,
    redis: str,
    upstream: str = "http://127.0.0.1:9/v1",
    port: int = 0,
    ledger: str | None = None,
    more: str = "",
    **environ: str,
) -> dict[str, Finding]:
    file = tmp_path / "tidewire.toml"
    url = ledger or f"sqlite:///{tmp_path}/ledger.db"
    file.write_text(CONFIG.format(redis=redis, upstream=upstream, port=port or free_port(), ledger=url) + more)
    return {finding.what: finding for finding in await examine(file, {"HOME": str(tmp_path), **environ})}


async def test_all_is_well(tmp_path: Path, redis_url: str) -> None:
    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        found = await report(tmp_path, redis_url, f"http://{host}:{port}/v1")
    finally:
        await runner.cleanup()
    well = {name: finding for name, finding in found.items() if name not in ("open files", "data folder")}
    assert {finding.status for finding in well.values()} == {"ok"}, well
    assert {"redis", "redis: eviction", "redis: durability", "redis: latency", "redis: clock", "target a"} <= set(found)


async def test_embedded_redis_and_a_target_that_is_not_there(tmp_path: Path) -> None:
    found = await report(tmp_path, "embedded")
    assert "Valkey" in found["redis"].message
    assert found["target a"].status == "fail"
    assert "cannot be reached" in found["target a"].message


async def test_a_redis_that_may_evict_or_forget(tmp_path: Path) -> None:
    options = ("--maxmemory-policy", "allkeys-lru", "--appendonly", "no")
    with RedisServer(options=options) as server:
        found = await report(tmp_path, server.url)
    assert found["redis: eviction"].status == "fail"
    assert "noeviction" in found["redis: eviction"].remedy
    assert found["redis: durability"].status == "warn"


async def test_a_redis_with_a_wrong_password_or_none_at_all(tmp_path: Path) -> None:
    with RedisServer(options=("--requirepass", "secret")) as server:
        found = await report(tmp_path, server.url)
        assert found["redis"].status == "fail"
        assert "password" in found["redis"].remedy
    assert (await report(tmp_path, f"redis://127.0.0.1:{free_port()}"))["redis"].status == "fail"


async def test_a_frozen_redis_does_not_hang_the_doctor(tmp_path: Path) -> None:
    with RedisServer() as server:
        server.freeze()
        async with asyncio.timeout(15):
            found = await report(tmp_path, server.url)
        server.thaw()
    assert found["redis"].status == "fail"


async def test_a_port_in_use(tmp_path: Path, valkey_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = await report(tmp_path, valkey_url, port=taken.getsockname()[1])
    assert found["port"].status == "fail"
    assert "--port" in found["port"].remedy


async def test_target_states_are_those_that_the_nodes_share(tmp_path: Path, redis_url: str) -> None:
    found = await report(tmp_path, redis_url)
    assert found["target a: breaker"].status == "ok"
    now = time.time()
    condition = Condition(State.OPEN, now, now + 40.0, 2, "unauthorized")
    async with redis.asyncio.from_url(redis_url) as client:
        await client.hset(breaker("a"), mapping={"v": 1, "c": pack(condition)})
    finding = (await report(tmp_path, redis_url))["target a: breaker"]
    assert finding.status == "warn"
    assert finding.message.startswith("open (unauthorized), opened 2 times in a row; tried again in ")
    assert "api_key_env" in finding.remedy


async def test_a_ledger_that_cannot_be_used(tmp_path: Path, redis_url: str) -> None:
    away = await report(tmp_path, redis_url, ledger=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert away["ledger"].status == "fail"
    assert "ledger.url" in away["ledger"].remedy
    (tmp_path / "no.db").write_text("this is no database, and longer than the header of one would be " * 20)
    assert (await report(tmp_path, redis_url, ledger=f"sqlite:///{tmp_path}/no.db"))["ledger"].status == "fail"
    assert (await report(tmp_path, redis_url, ledger="sqlite:///:memory:"))["ledger"].status == "warn"


async def test_a_limit_in_money_over_a_target_without_a_price(tmp_path: Path, redis_url: str) -> None:
    found = await report(tmp_path, redis_url, more="[tiers.free]\nmonthly_usd = 5\n")
    assert (found["prices"].status, found["prices"].message) == (
        "warn",
        "tiers.free.monthly_usd does not count what is spent at a",
    )
    assert "prices" not in await report(tmp_path, redis_url)


async def test_jobs_and_webhooks(tmp_path: Path, redis_url: str) -> None:
    found = await report(tmp_path, redis_url)
    assert (found["jobs"].status, found["webhooks"].message) == (
        "ok",
        "none: jobs.webhook_secret_env is not set",
    )
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    signed = '[jobs]\nwebhook_secret_env = "HOOK"\n'
    found = await report(tmp_path, redis_url, more=signed, HOOK=secret)
    assert (found["webhooks"].status, "https" in found["webhooks"].message) == ("ok", True)
    found = await report(tmp_path, redis_url, more=signed + "webhook_private = true\nconcurrency = 0\n", HOOK=secret)
    assert {found["jobs"].status, found["webhooks"].status} == {"warn"}
    found = await report(tmp_path, redis_url, more=signed)
    assert found["jobs.webhook_secret_env"].status == "fail"


async def test_a_prompt_that_asks_for_a_route_that_is_not_there(tmp_path: Path, redis_url: str) -> None:
    folder = tmp_path / "prompts"
    put(folder, "quick", "1.0.0", plain("Be quick.", "[options]\nmodel = 'fast'"))
    found = await report(tmp_path, redis_url, more=f'[prompts]\ndir = "{folder}"\n')
    assert (found["prompts"].status, "quick@1.0.0" in found["prompts"].message) == ("warn", True)
    assert "[routes.fast]" in found["prompts"].remedy
