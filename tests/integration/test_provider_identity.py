"""Whom a call is for, as an upstream receives it: over OpenAI's format and through litellm."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from server.upstreams.base import Call, TargetSpec
from server.upstreams.litellm import LitellmPool
from server.upstreams.registry import Addresses, Parts, build
from tests.upstreams.anthropic import AnthropicUpstream
from tests.upstreams.scripted import ScriptedUpstream, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PSEUDONYM = "0123456789abcdef0123456789abcdef"
TAGS = {"feature": "search", "user_id": "ann"}
"""One of them has the name of the field in which Anthropic is told the user."""
CLAUDE = "anthropic/claude-sonnet-4-5"
MODELS = (
    "openai/any", "openai/gpt-4o", "custom_openai/any", "hosted_vllm/any", "groq/any", "together_ai/any",
    "fireworks_ai/any", "cerebras/any", "openrouter/any", "mistral/any", "deepseek/any", "litellm_proxy/any", CLAUDE,
)  # fmt: skip
FIELDS = ("user", "safety_identifier", "metadata")
USUAL = ("user", "metadata")
USER, SAFE = {"user": PSEUDONYM}, {"safety_identifier": PSEUDONYM}
BOTH = {**USER, "metadata": TAGS}
TO_CLAUDE = {"metadata": {"user_id": PSEUDONYM}}

Sent = dict[str, Any]


@dataclass
class Stage:
    """Two upstreams, and drivers for every model."""

    chat: ScriptedUpstream
    messages: ScriptedUpstream
    specs: dict[str, TargetSpec]
    parts: Parts

    async def received(self, driver: str, model: str, identity: tuple[str, ...]) -> Sent:
        """What of `FIELDS` arrives with a call."""
        spec = replace(self.specs[model], identity=identity)
        if driver == "openai":
            spec = replace(spec, driver="openai", model="any")
        upstream = self.messages if model == CLAUDE else self.chat
        call = Call([{"role": "user", "content": "script tokens=2"}], user=PSEUDONYM, tags=TAGS)
        async with contextlib.aclosing(build(spec, self.parts).stream(call)) as stream:
            async for _ in stream:
                pass
        sent = upstream.bodies[-1]
        return {name: sent[name] for name in FIELDS if name in sent}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with serving() as chat, serving(kind=AnthropicUpstream) as messages:
        address: Callable[[str], str] = lambda model: messages.url if model == CLAUDE else f"{chat.url}/v1"  # noqa: E731
        specs = {name: TargetSpec(name, "litellm", name, api_key="sk-x", base_url=address(name)) for name in MODELS}
        pool = LitellmPool(list(specs.values()))
        parts = Parts.of(Addresses(litellm=tuple(map(str, pool.paths))))
        await pool.ready()
        try:
            yield Stage(chat, messages, specs, parts)
        finally:
            await parts.close()
            await pool.stop()


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (FIELDS, {**BOTH, **SAFE}),
        (USUAL, BOTH),
        (("safety_identifier",), SAFE),
        (("metadata",), {"metadata": TAGS}),
        ((), {}),
    ],
)
@pytest.mark.parametrize("driver", ["openai", "litellm"])
async def test_an_endpoint_of_openai_s_format_gets_the_fields_of_its_target(
    stage: Stage, driver: str, identity: tuple[str, ...], expected: Sent
) -> None:
    assert await stage.received(driver, "openai/any", identity) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("openai/gpt-4o", BOTH),
        ("custom_openai/any", BOTH),
        ("hosted_vllm/any", BOTH),
        ("groq/any", USER),
        ("together_ai/any", USER),
        ("fireworks_ai/any", USER),
        ("cerebras/any", USER),
        ("openrouter/any", USER),
        ("mistral/any", {}),  # refuses what it does not know
        ("deepseek/any", {}),
        ("litellm_proxy/any", {**USER, "metadata": {**TAGS, "tags": ["feature:search", "user_id:ann"]}}),
    ],
)
async def test_litellm_s_providers_get_what_they_take(stage: Stage, model: str, expected: Sent) -> None:
    assert await stage.received("litellm", model, USUAL) == expected


@pytest.mark.parametrize(
    ("identity", "expected"),
    [(USUAL, TO_CLAUDE), (("user",), TO_CLAUDE), (("metadata",), {}), ((), {})],
)
async def test_anthropic_gets_the_pseudonym_and_no_tag_in_its_place(
    stage: Stage, identity: tuple[str, ...], expected: Sent
) -> None:
    assert await stage.received("litellm", CLAUDE, identity) == expected
