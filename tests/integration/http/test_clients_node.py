"""Stock clients of other languages, unchanged: OpenAI's SDK for Node, and the AI SDK's OpenAI-compatible provider.

The packages are installed from the lock file in `tests/clients` (`make test` does it).
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.http.client import MODEL, Place, place, turns
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
ROUTES = {
    "routes": {"failing": {"targets": ["scripted"], "on_midstream_failure": "fail"}, "default": {"targets": [MODEL]}}
}
pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is missing"),
    pytest.mark.skipif(not (CLIENTS / "node_modules").exists(), reason="npm install in tests/clients is missing"),
]


@pytest.fixture
async def serving(valkey_url: str) -> AsyncIterator[Place]:
    """A place with a route that fails rather than to start over."""
    async with place(valkey_url, ROUTES) as found:
        yield found


async def run(script: str, here: Place) -> dict[str, Any]:
    """What a client reports."""
    process = await asyncio.create_subprocess_exec(
        "node",
        script,
        f"{here.node.http}/v1",
        cwd=CLIENTS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    report: dict[str, Any] = json.loads(out)
    return report


async def test_the_openai_sdk_for_node(serving: Place) -> None:
    report = await run("openai_sdk.mjs", serving)
    asked = turns("script tokens=60 unicode=1 tool=weather")
    text = expected_text(asked, MODEL)
    (call,) = expected_tool_calls(asked, MODEL)
    assert report["whole"]["content"] == report["text"] == report["helper"] == text
    assert report["whole"]["tool_calls"] == [call]
    assert report["calls"] == [call["function"]]
    assert set(report["ids"]) == {"node-1"} == {report["id"]}
    assert report["finish"] == "tool_calls"
    assert report["usage"] == report["streamUsage"]
    assert report["usage"]["total_tokens"] > 0
    assert report["mismatch"] == {
        "name": "UnprocessableEntityError",
        "status": 422,
        "code": "idempotency_mismatch",
        "type": "invalid_request_error",
    }
    assert (report["unknown"]["name"], report["unknown"]["code"]) == ("NotFoundError", "model_not_found")
    assert (report["invalid"]["name"], report["invalid"]["code"]) == ("BadRequestError", "invalid_request")
    assert (report["upstream"]["name"], report["upstream"]["status"]) == ("InternalServerError", 503)
    assert report["models"] == ["default", "failing"]
    assert report["retried"] == expected_text(turns("script tokens=4 status=500 times=1"), MODEL)
    assert report["broken"]["text"]
    assert (report["broken"]["name"], report["broken"]["code"]) == ("APIError", "upstream_unavailable")
    # node-1 once, the failing one, the retried one twice, the one that breaks off
    assert serving.upstream.count("start") == 5


async def test_the_ai_sdk(serving: Place) -> None:
    report = await run("ai_sdk.mjs", serving)
    asked = turns("script tokens=60 unicode=1 reasoning=4 tool=weather")
    text, reasoning = expected_text(asked, MODEL), expected_reasoning(asked, MODEL)
    calls = [
        {"name": call["function"]["name"], "input": json.loads(call["function"]["arguments"])}
        for call in expected_tool_calls(asked, MODEL)
    ]
    assert report["whole"] == {"text": text, "reasoning": reasoning, "finish": "tool-calls"}
    assert (report["text"], report["reasoning"], report["finish"]) == (text, reasoning, "tool-calls")
    assert report["calls"] == report["streamCalls"] == calls
    assert report["usage"]["totalTokens"] == report["streamUsage"]["totalTokens"] > 0
    assert (report["mismatch"]["name"], report["mismatch"]["status"]) == ("AI_APICallError", 422)
    assert (report["unknown"]["status"], report["unknown"]["retryable"]) == (404, False)
    assert (report["upstream"]["status"], report["upstream"]["retryable"]) == (503, True)
    assert report["retried"] == expected_text(turns("script tokens=4 status=500 times=1"), MODEL)
    assert report["brokenText"]
    assert report["broken"]
    # ai-1 once each with its tools, the failing one, the retried one twice, the one that breaks off
    assert serving.upstream.count("start") == 5
