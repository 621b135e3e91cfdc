"""CPU per chunk of the direct driver and of the scripted upstream, each in its own process.

python -m tests.upstreams.measure --streams 20 --tokens 3000 --rate 0
"""

from __future__ import annotations

import argparse
import asyncio
import time

import psutil
import uvloop

from server.upstreams.base import Call, TargetSpec
from server.upstreams.openai import OpenAIDriver
from tests.upstreams import scripted
from tests.upstreams.script import expected_text


async def read(driver: OpenAIDriver, script: str) -> int:
    """One whole answer, checked; how many batches it came in."""
    messages = [{"role": "user", "content": script}]
    batches = [batch async for batch in driver.stream(Call(messages))]
    text = "".join(str(value) for batch in batches for _, value in batch.pieces)
    assert text == expected_text(messages, driver.spec.model)
    return len(batches)


async def measure(streams: int, tokens: int, rate: float, form: str) -> str:
    async with scripted.process() as url:
        upstream = psutil.Process().children()[0]
        driver = OpenAIDriver(TargetSpec("t", "openai", "m", base_url=f"{url}/v1", total_seconds=3600))
        await read(driver, "script tokens=10")
        own, other, begun = time.process_time(), sum(upstream.cpu_times()[:2]), time.monotonic()
        async with asyncio.TaskGroup() as group:
            work = [read(driver, f"script tokens={tokens} rate={rate} seed={n} {form}") for n in range(streams)]
            tasks = [group.create_task(one) for one in work]
        own, other = time.process_time() - own, sum(upstream.cpu_times()[:2]) - other
        seconds, chunks = time.monotonic() - begun, streams * tokens
        await driver.close()
    batches = sum(task.result() for task in tasks)
    return (
        f"{chunks} chunks in {batches} batches, {seconds:.2f} s: driver {own / chunks * 1e6:.2f} µs CPU per chunk,"
        f" upstream {other / chunks * 1e6:.2f} µs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--form", default="")
    wish = parser.parse_args()
    print(uvloop.run(measure(wish.streams, wish.tokens, wish.rate, wish.form)))


if __name__ == "__main__":
    main()
