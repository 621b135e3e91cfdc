"""Prompts when nodes are killed: a survivor goes on with the version, the text and the route that were recorded."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

from tests.chaos.rig import Rig, ask, read_until, rig
from tests.prompt_files import plain, put
from tests.upstreams.script import expected_text
from tests.wire import Frame, Wire, eventually_true, wire

OPTIONS = "[options]\nmodel = 'prompted'\n"
SYSTEM = {"role": "system", "content": "You help with tea."}


async def test_a_kill_in_mid_stream_changes_nothing_of_the_prompt(valkey_url: str, tmp_path: Path) -> None:
    declared = "[variables.product]"
    put(tmp_path, "p", "1.0.0", plain("You help with {{ product }}.", declared) + OPTIONS)
    routes = {"default": {"targets": ["scripted"]}, "prompted": {"targets": ["scripted"]}}
    asked = ask("tokens=300 rate=80", "m1")
    sent = [SYSTEM, *asked]
    prompt = {"name": "p", "version": "^1", "variables": {"product": "tea"}}
    async with rig(valkey_url, 2, prompts={"dir": str(tmp_path)}, routes=routes) as r:
        async with wire(r.nodes[0].url) as client:
            await client.send({"type": "send", "id": "m1", "messages": asked, "prompt": prompt})
            await read_until(client, "m1", 100)
            put(tmp_path, "p", "1.1.0", plain("Now you sell {{ product }}.", declared))
            r.nodes[0].signal(signal.SIGKILL)
        async with wire(r.nodes[1].url) as client:
            await client.send({"type": "resume", "id": "m1"})
            await r.called(sent, 2)
            await r.hurry()
            view = await client.ended("m1")
            assert view.end is not None
            assert (view.end["type"], view.end["prompt"]) == ("done", {"name": "p", "version": "1.0.0"})
            view.check_hash()
            assert view.text == expected_text(sent, "scripted")
            assert len(r.log.calls(sent)) == 2, "both attempts asked the same"
            await eventually_true(lambda: is_given(client, {**prompt, "version": "1.1.0"}))
        await eventually_true(lambda: is_booked(r), 30.0)


async def is_given(client: Wire, prompt: Frame) -> bool:
    """Whether the node has that version by now."""
    message_id = secrets.token_hex(4)
    messages = ask("tokens=1", message_id)
    await client.send({"type": "send", "id": message_id, "messages": messages, "prompt": prompt})
    while (frame := await client.recv())["type"] not in ("error", "done"):
        pass
    return frame["type"] == "done"


async def is_booked(r: Rig) -> bool:
    """Whether the ledger has both attempts, each with the version and the route that were recorded."""
    rows = (await r.booked()).get("m1", [])
    assert {(row["prompt"], row["route"]) for row in rows} <= {("p@1.0.0", "prompted")}
    return len(rows) == 2
