"""Child processes of drivers and of tests: they die with their parent, and the scripted upstream's log is the truth."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import orjson
import psutil

from server.upstreams.base import Call, TargetSpec
from server.upstreams.openai import OpenAIDriver
from tests.upstreams import scripted

PARENT = """
import asyncio
from server.upstreams.embedded import EmbeddedModel

async def main():
    model = EmbeddedModel()
    await model.ready()
    print(model.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_child_dies_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await asyncio.to_thread(child.wait, timeout=5)
    assert not child.is_running()


async def test_the_log_of_a_scripted_upstream_in_its_own_process(tmp_path: Path) -> None:
    log = tmp_path / "upstream.jsonl"
    async with scripted.process(log) as url:
        driver = OpenAIDriver(TargetSpec("t", "openai", "m", base_url=f"{url}/v1"))
        call = Call([{"role": "user", "content": "script tokens=9"}], user="someone")
        batches = [batch async for batch in driver.stream(call)]
        await driver.close()
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{url}/admin/faults", json={"faults": "tokens=7"}) as answer:
                assert answer.status == 400
            async with session.get(f"{url}/admin/requests") as answer:
                told = await answer.json()
    start, end = map(orjson.loads, log.read_bytes().splitlines())
    assert [start, end] == told
    text = "".join(str(value) for batch in batches for _, value in batch.pieces)
    assert (start["user"], start["model"], start["stream"]) == ("someone", "m", True)
    assert (end["chunks"], end["text_bytes"], end["whole"]) == (9, len(text.encode()), True)
