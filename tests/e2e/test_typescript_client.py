"""The TypeScript library, built as the npm package, in Node.js against server processes that are killed under it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.rig import MODEL, Rig, ask, rig
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
LIBRARY = CLIENTS.parents[1] / "web-demo" / "dist"
SECONDS = 60.0
pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is missing"),
    pytest.mark.skipif(not (CLIENTS / "node_modules").exists(), reason="npm install in tests/clients is missing"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="npm run library in web-demo is missing"),
]


async def run(script: str, r: Rig, *arguments: str) -> dict[str, Any]:
    """What a script reports; nodes are killed and started when it asks for that."""
    process = await asyncio.create_subprocess_exec(
        "node",
        script,
        ",".join(node.url for node in r.nodes),
        *arguments,
        cwd=CLIENTS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            async for line in process.stdout:
                match json.loads(line):
                    case {"kill": node}:
                        await r.nodes[node].kill()
                    case {"restart": node}:
                        await r.nodes[node].start()
                    case {"report": report}:
                        assert await process.wait() == 0
                        return dict(report)
            _, err = await process.communicate()
            raise AssertionError(f"no report:\n{err.decode()}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_library(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        report = await run("tidewire_library.mjs", r, "json")
        kill = ask("tokens=200 rate=60 unicode=1", "ts-kill")
        assert report["kill"]["text"] == expected_text(kill, MODEL)
        assert report["kill"]["state"] == "done"
        assert report["kill"]["connections"] == 2
        reload = ask("tokens=400 rate=80", "ts-reload")
        assert report["reload"] == {
            "kept": True,
            "sameText": True,
            "text": expected_text(reload, MODEL),
            "left": None,
        }
        assert report["abort"] == {"here": "cancelled", "there": "cancelled"}
        offline = ask("tokens=10", "ts-offline")
        assert report["offline"] == expected_text(offline, MODEL)
        assert report["refused"] == {"name": "MessageRefused", "code": "idempotency_mismatch", "retryable": False}
        await r.check_once("ts-kill", kill, calls=2)
        await r.check_once("ts-reload", reload)
        await r.check_once("ts-offline", offline)


async def test_use_chat_of_the_ai_sdk(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        report = await run("tidewire_use_chat.mjs", r, "msgpack")
        kill = ask("tokens=200 rate=60 unicode=1 reasoning=6", "chat-kill")
        assert report["kill"] == {
            "text": expected_text(kill, MODEL),
            "reasoning": expected_reasoning(kill, MODEL),
            "roles": ["user", "assistant"],
            "status": "ready",
            "finish": ["stop"],
            "connections": 2,
        }
        assert report["regenerate"] == {"sameText": True, "otherMessage": True, "count": 2}
        restart = expected_text(ask("tokens=200 rate=60", "chat-restart"), MODEL)
        withdrawn, notice, text = report["restart"]["every"].partition("\n\n[The answer starts over.]\n\n")
        assert (report["restart"]["text"], text, bool(notice)) == (restart, restart, True)
        assert len(withdrawn) > 100
        assert restart.startswith(withdrawn)
        stop = ask("tokens=4000 rate=50", "chat-stop")
        assert expected_text(stop, MODEL).startswith(report["stop"]["text"])
        assert report["stop"]["status"] == "ready"
        assert (await r.settled(report["stop"]["id"])).state == "cancelled"
        reload = ask("tokens=300 rate=60", "chat-reload")
        assert report["reload"] == {"text": expected_text(reload, MODEL), "count": 2, "id": True, "secondCount": 2}
        assert len(r.log.calls(reload)) == 1
        assert report["nothingToResume"] == 2
        assert report["resumedStop"]["state"] == "cancelled"
        assert (await r.settled(report["resumedStop"]["id"])).state == "cancelled"
        (call,) = expected_tool_calls(ask("tokens=5 tool=weather times=1", "chat-tool"), MODEL)
        assert report["tool"] == {
            "input": json.loads(call["function"]["arguments"]),
            "state": "input-available",
            "messages": 2,
            "output": {"sky": "grey"},
        }
        assert report["error"] == {
            "name": "MessageRefused",
            "code": "model_not_found",
            "retryable": False,
            "status": "error",
        }


async def test_use_chat_on_chats_that_the_server_keeps(valkey_url: str) -> None:
    def question(name: str, how: str = "tokens=20") -> dict[str, str]:
        return {"role": "user", "content": f"script {how}\n{name}"}

    async with rig(valkey_url, 2) as r:
        report = await run("tidewire_kept_chat.mjs", r, "json")
        assert report["two"] == {
            "sent": [{"conversation": "kept-1", "input": [question(name)]} for name in ("kept-one", "kept-two")],
            "roles": ["user", "assistant"] * 2,
        }
        edited, again = report["branches"]["sent"]
        assert edited == {"conversation": "kept-1", "parent": "kept-1", "input": [question("kept-edited")]}
        assert again.keys() == {"conversation", "parent"}
        assert report["branches"]["roles"] == ["user", "assistant"]
        assert report["seen"] == {"roles": ["user", "assistant"], "siblings": [2, 2]}
        assert report["edited"]
        assert report["editedLater"] == {"parent": True, "roles": ["user", "assistant"] * 2}
        assert report["reload"]["loaded"] == [*["user", "assistant"] * 2, "user"]
        assert report["reload"]["roles"] == ["user", "assistant"] * 3
        context: list[dict[str, str]] = []
        for asked in (question("kept-edited"), question("kept-later-edited")):
            context.append(asked)
            context.append({"role": "assistant", "content": expected_text(context, MODEL)})
        context.append(question("kept-long", "tokens=200 rate=60"))
        assert report["reload"]["text"] == expected_text(context, MODEL)
        assert report["nothing"] == "nothing runs"
        assert report["refused"]["input"] == ["script tokens=5\nkept-refused", "script tokens=5\nkept-after"]
        assert report["list"] == [["kept-1", "Kept"]]
        assert report["pages"]
        assert report["tool"] == {
            "input": [["tool", '{"sky":"grey"}']],
            "call": True,
            "loaded": ["output-available", {"sky": "grey"}],
        }
        assert report["deleted"] == "conversation_unknown"
