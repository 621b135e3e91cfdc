"""What docs/conversations.md and docs/http.md show is sent as it stands there, and served."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs import DOCS
from tests.integration.http.client import Place, place
from tests.wire import Wire, wire

KEY = "tw_key-of-the-documentation"
Frame = dict[str, Any]


def blocks(file: str, language: str) -> list[str]:
    """What stands in the fences of a language, in order."""
    text = (DOCS / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


async def answer(client: Wire, frame: Frame) -> None:
    """Wait for what the frame is answered by; an error fails the test."""
    kind = frame["type"]

    def is_it(found: Frame) -> bool:
        assert found["type"] != "error", (frame, found)
        op = {"subscribe": "subscribed"}.get(kind, frame.get("op"))
        return bool(found["type"] == ("conversation" if op else kind) and found.get("op") == op)

    if kind == "send":
        await client.until(lambda found: found["type"] == "accepted" and found["id"] == frame["id"])
    elif kind != "unsubscribe":
        await client.until(is_it)


async def test_the_frames_of_the_page_are_served_in_their_order(valkey_url: str) -> None:
    frames = [json.loads(line) for block in blocks("conversations.md", "json") for line in block.splitlines()]
    assert len(frames) > 15
    async with place(valkey_url) as here, wire(here.node.url) as client:
        for frame in frames:
            if frame["type"] != "send":  # a branch is only where its entries are
                for message_id in list(client.views):
                    if client.view(message_id).end is None:
                        await client.ended(message_id)
            await client.send(frame)
            await answer(client, frame)
        assert {frame["id"] for frame in frames if frame["type"] == "send"} <= client.views.keys()


@pytest.fixture
async def documented(valkey_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    secret = tmp_path / "secret"
    secret.write_text("a secret of at least thirty-two bytes, for tests")
    keys = [{"name": "docs", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    auth = {"anonymous": False, "api_keys": keys, "jwt_secret_file": str(secret)}
    async with place(valkey_url, {"auth": auth}) as found:
        yield found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_commands_of_the_page_are_served(documented: Place) -> None:
    commands = [block for block in blocks("http.md", "sh") if "curl" in block]
    script = "\n".join(
        ["set -e", 'curl() { command curl --fail-with-body --max-time 20 "$@" || exit 1; echo; }', *commands]
    )
    environment = {**os.environ, "BASE": documented.node.http, "KEY": KEY}
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    async with asyncio.timeout(60):
        told, _ = await shell.communicate()
    assert shell.returncode == 0, told.decode()
    assert b'"object":"user.deleted"' in told
