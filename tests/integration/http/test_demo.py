"""The demo's own paths: who may press a button, and links that work once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from server.access.pairing import CODE_SECONDS, NONCE_BYTES, Pairing
from server.demo.parts import DemoNode, DemoParts
from server.demo.primary import BreakablePrimary
from tests.integration.http.client import Place, place, refused

SECRET = "a secret of at least thirty-two bytes, for demos"


@asynccontextmanager
async def demo(valkey_url: str, auth: dict[str, Any], lan: bool) -> AsyncIterator[tuple[Place, list[dict[str, Any]]]]:
    """A node of a demo; what it says to its supervisor, and whether it died."""
    async with place(valkey_url, {"auth": auth}, DemoParts(lan, "http://192.0.2.7:8080")) as here:
        node = here.node.node.demo
        assert node is not None
        said: list[dict[str, Any]] = []
        node.say = said.append
        node.die = lambda: said.append({"died": True})
        yield here, said


def own(here: Place) -> dict[str, str]:
    return {"Origin": here.node.http}


async def test_a_button_needs_the_page_s_own_origin(valkey_url: str) -> None:
    async with demo(valkey_url, {"anonymous": True}, lan=False) as (here, said):
        for origin in ({}, {"Origin": "https://evil.example"}, {"Origin": "http://localhost:1"}, {"Origin": "null"}):
            async with here.request("POST", "/v1/demo/primary", json={"broken": True}, headers=origin) as answer:
                await refused(answer, 403, "forbidden")
        form = {**own(here), "Content-Type": "text/plain"}
        async with here.request("POST", "/v1/demo/primary", data='{"broken": true}', headers=form) as answer:
            await refused(answer, 415, "unsupported_media_type")
        assert said == []
        async with here.request("POST", "/v1/demo/primary", json={"broken": True}, headers=own(here)) as answer:
            assert answer.status == 202
        async with here.request("POST", "/v1/demo/kill", json={"session": "abc"}, headers=own(here)) as answer:
            assert answer.status == 202
        async with here.request("POST", "/v1/demo/kill", json={"session": "../x"}, headers=own(here)) as answer:
            assert answer.status == 400
        async with here.request("POST", "/v1/demo/devices", json={}, headers=own(here)) as answer:
            assert await answer.json() == {"url": "http://192.0.2.7:8080/", "lan": False}
        assert said[0] == {"broken": True}


async def test_a_link_lets_one_device_in_once(valkey_url: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    auth = {"anonymous": False, "jwt_secret_file": str(file)}
    async with demo(valkey_url, auth, lan=True) as (here, _):
        async with here.request("POST", "/v1/demo/devices", json={}, headers=own(here)) as answer:
            await refused(answer, 401, "unauthenticated")
        code = Pairing(SECRET.encode()).code(time.time(), bytes(NONCE_BYTES))
        async with here.request("POST", "/v1/demo/pair", json={"code": code}, headers=own(here)) as answer:
            assert answer.status == 201
            token = (await answer.json())["token"]
        async with here.request("POST", "/v1/demo/pair", json={"code": code}, headers=own(here)) as answer:
            await refused(answer, 401, "unauthenticated")
        old = Pairing(SECRET.encode()).code(time.time() - CODE_SECONDS - 1, bytes(NONCE_BYTES))
        async with here.request("POST", "/v1/demo/pair", json={"code": old}, headers=own(here)) as answer:
            await refused(answer, 401, "unauthenticated")
        signed = {**own(here), "Authorization": f"Bearer {token}"}
        async with here.request("POST", "/v1/demo/devices", json={}, headers=signed) as answer:
            link = await answer.json()
        assert link["lan"]
        assert link["url"].startswith("http://192.0.2.7:8080/#code=")
        async with here.request("GET", "/v1/operator", headers=signed) as answer:
            assert answer.status == 200


def test_only_the_node_that_serves_the_session_dies() -> None:
    node = DemoNode(DemoParts(False, ""))
    died: list[bool] = []
    node.die = lambda: died.append(True)
    node.serves = lambda session: session == "mine"
    node.heard({"kill": "another"})
    assert died == []
    node.heard({"kill": "mine", "broken": True})
    assert died == [True]
    assert node.broken


async def test_the_primary_has_an_address_before_it_serves() -> None:
    primary = BreakablePrimary()
    assert primary.base_url.startswith("http://127.0.0.1:")
    await primary.stop()
