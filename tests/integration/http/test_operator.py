"""The operator's samples, and who may see them."""

from __future__ import annotations

from server.access.minting import api_key_with_config
from server.http.api_models import SampleList
from tests.integration.http.client import Place, place, refused
from tests.integration.http.test_messages import bearer, sha
from tests.wire import eventually_true

KEY, OPERATOR = "tw_key-of-a-user", "tw_key-of-the-operator"


async def test_samples_add_up_to_what_was_done(valkey_url: str) -> None:
    keys = [
        {"name": "user", "tenant": "acme", "sha256": sha(KEY)},
        {"name": "ops", "tenant": "ops", "sha256": sha(OPERATOR), "scopes": ["operator"]},
    ]
    async with place(valkey_url, {"auth": {"anonymous": False, "api_keys": keys}}) as here:
        body = {"messages": [{"role": "user", "content": "script tokens=5"}]}
        async with here.request("POST", "/v1/chat/completions", json=body, **bearer(KEY)) as answer:
            assert answer.status == 200

        async def told() -> bool:
            found = await samples(here)
            return sum(sample.ended.get("done", 0) for sample in found.data) == 1

        await eventually_true(told, 15)
        found = await samples(here)
        assert sum(sample.chunks for sample in found.data) == 5
        assert sum(sample.spent.get("acme", [0])[0] for sample in found.data) == 1
        assert {sample.node for sample in found.data} == {here.node.node.id}
        assert found.data[-1].targets[0]["name"] == "scripted"
        later = await samples(here, f"?after={found.data[-1].id}")
        assert all(sample.id > found.data[-1].id for sample in later.data)


async def samples(here: Place, query: str = "") -> SampleList:
    async with here.request("GET", f"/v1/operator{query}", **bearer(OPERATOR)) as answer:
        assert answer.status == 200, await answer.text()
        return SampleList.model_validate(await answer.json())


async def test_a_key_without_the_scope_is_refused_although_it_names_no_scopes(valkey_url: str) -> None:
    auth = {"anonymous": False, "api_keys": [{"name": "user", "tenant": "acme", "sha256": sha(KEY)}]}
    async with place(valkey_url, {"auth": auth}) as here:
        async with here.request("GET", "/v1/operator", **bearer(KEY)) as answer:
            await refused(answer, 403, "forbidden")
        async with here.request("GET", "/v1/operator") as answer:
            await refused(answer, 401, "unauthenticated")


async def test_an_anonymous_user_is_no_operator_outside_a_demo(here: Place) -> None:
    async with here.request("GET", "/v1/operator") as answer:
        await refused(answer, 403, "forbidden")
    async with here.request("POST", "/v1/demo/primary", json={"broken": True}) as answer:
        await refused(answer, 404, "not_found")


def test_a_new_key_may_be_the_operator_s() -> None:
    assert '"operator"' in api_key_with_config("ops", "ops", None, ["operator"])
