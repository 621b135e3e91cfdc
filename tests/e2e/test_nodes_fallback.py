"""G7 with a real model: the local one answers when the target before it dies in mid-stream."""

from __future__ import annotations

from tests.chaos.audit import stored_messages
from tests.chaos.rig import read_until
from tests.processes import ServeProcess, serve_config, serving_processes
from tests.upstreams.scripted import serving
from tests.wire import eventually_true, wire

QUESTION = "Name one colour.\nscript tokens=400 rate=60"


async def test_g7_the_local_model_takes_over_from_a_dying_target(valkey_url: str) -> None:
    async with serving() as upstream:
        config = serve_config(valkey_url, upstream.url, breaker={"minimum_calls": 2, "open_seconds": 60.0})
        config["targets"]["local"] = {"driver": "embedded"}
        config["routes"] = {"default": {"targets": ["scripted", "local"]}}
        async with serving_processes(config, 1) as (node,), wire(node.url) as client:
            await client.ask("dies", QUESTION, max_output_tokens=24, temperature=0.0)
            await read_until(client, "dies", 20)
            withdrawn = client.view("dies").text
            await upstream.close()
            view = await client.ended("dies")
            assert [(a["target"], a["mode"]) for a in view.attempts] == [("scripted", "fresh"), ("local", "restart")]
            assert view.attempts[1]["reason"]["code"] == "upstream_unavailable"
            assert view.end is not None
            assert (view.end["type"], view.end["target"], view.end["attempts"]) == ("done", "local", 2)
            assert view.text.strip()
            assert withdrawn not in view.text
            view.check_hash()
            for number in range(3):
                await client.ask(f"dead-{number}", "Say hi.", max_output_tokens=8)
                silent = await client.ended(f"dead-{number}")
                assert [a["target"] for a in silent.attempts] == ["local"]
                assert silent.end is not None
                assert silent.end["attempts"] == (2 if number == 0 else 1), "two failures open the breaker"
            await records_tell_who_pays(valkey_url)
            assert "target_state" in log_of(node)


async def records_tell_who_pays(redis_url: str) -> None:
    async def ended() -> bool:
        return (await stored_messages([redis_url]))["dies"].state == "done"

    await eventually_true(ended)
    records = (await stored_messages([redis_url]))["dies"].records
    assert [(r["target"], r["payer"]) for r in records] == [("scripted", "operator"), ("local", "user")]
    assert records[0]["output_tokens"] > 0


def log_of(node: ServeProcess) -> str:
    return node.log.read_text()
