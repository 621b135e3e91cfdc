"""How the targets stand, over HTTP."""

from __future__ import annotations

from server.http.api_models import TargetList
from tests.integration.http.client import Place, place
from tests.wire import eventually_true


async def lights(here: Place) -> TargetList:
    async with here.request("GET", "/v1/targets") as answer:
        assert answer.status == 200, await answer.text()
        return TargetList.model_validate(await answer.json())


async def test_a_target_in_use_is_closed_and_the_route_tells_its_order(here: Place) -> None:
    found = await lights(here)
    (light,) = found.data
    assert (light.name, light.model, light.state, light.why, light.retry_after_ms) == (
        "scripted", "scripted", "closed", "", 0,
    )  # fmt: skip
    assert light.share == 1
    assert [(route.id, route.targets) for route in found.routes] == [("default", ["scripted"])]
    assert "calls" not in light.model_dump(), "what others do is the operator's to see"


async def test_a_target_that_fails_shows_as_open_with_its_reason(valkey_url: str) -> None:
    async with place(valkey_url, {"breaker": {"minimum_calls": 1, "open_seconds": 30.0}}) as here:
        async with here.ask("script status=503") as answer:
            assert answer.status == 503

        async def opened() -> bool:
            return (await lights(here)).data[0].state == "open"

        await eventually_true(opened)
        (light,) = (await lights(here)).data
        assert light.why
        assert 0 < light.retry_after_ms <= 45_000, "the pause is spread"
        assert light.share == 0
