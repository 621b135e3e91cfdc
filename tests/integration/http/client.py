"""A plain HTTP client for tests: it shows status, headers and events as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from server.demo.parts import DemoParts
from server.http.api_models import ErrorAnswer
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.scripted import ScriptedUpstream, serving

CHAT = "/v1/chat/completions"
MODEL = "scripted"


@dataclass(slots=True)
class Event:
    """One server-sent event; `data` is None for a comment."""

    data: Any
    id: str | None = None
    kind: str = "message"
    comment: str = ""
    retry: int | None = None


@dataclass(slots=True)
class Place:
    """A node with what it needs around it, and a client of it."""

    node: RunningNode
    upstream: ScriptedUpstream
    redis_url: str
    http: aiohttp.ClientSession

    def request(self, method: str, path: str, **fields: Any) -> Any:
        """A request to the node."""
        return self.http.request(method, self.node.http + path, **fields)

    def ask(self, content: Any, key: str | None = None, node: RunningNode | None = None, **fields: Any) -> Any:
        """Ask for a completion; an open response."""
        headers = {"Idempotency-Key": key} if key is not None else {}
        body = {"model": "default", "messages": turns(content), **fields}
        return self.http.post((node or self.node).http + CHAT, json=body, headers=headers)

    async def message(self, message_id: str) -> dict[str, Any]:
        """`GET /v1/messages/{id}`."""
        async with self.request("GET", f"/v1/messages/{message_id}") as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found


def turns(content: Any) -> list[dict[str, Any]]:
    """One user turn, or the turns given."""
    return content if isinstance(content, list) else [{"role": "user", "content": content}]


@asynccontextmanager
async def place(
    redis_url: str, overrides: dict[str, Any] | None = None, demo: DemoParts | None = None
) -> AsyncIterator[Place]:
    """A node on `redis_url` with one scripted upstream, and a client."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        settings = settings_for(redis_url, upstream.url, overrides)
        node = await stack.enter_async_context(running_node(settings, demo=demo))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield Place(node, upstream, redis_url, http)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """The events of a response as they come, comments included."""
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    event = Event(None)
    lines: list[str] = []
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            match name:
                case "data":
                    lines.append(value)
                case "id":
                    event.id = value
                case "event":
                    event.kind = value
                case "retry":
                    event.retry = int(value)
                case "":
                    event.comment = value
            continue
        if lines:
            text = "\n".join(lines)
            event.data = text if text == "[DONE]" else json.loads(text)
        yield event
        event, lines = Event(None), []


@dataclass(slots=True)
class Streamed:
    """What a streamed completion came to."""

    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    done: bool
    ids: set[tuple[str, int, str]]
    chunks: list[dict[str, Any]]


async def streamed(response: aiohttp.ClientResponse) -> Streamed:
    """Read a streamed completion to its end; asserts the rules of the format."""
    got = Streamed("", "", [], None, None, None, False, set(), [])
    async for event in events(response):
        assert not got.done, "an event after [DONE]"
        if event.data is None:
            continue
        if event.data == "[DONE]":
            got.done = True
            continue
        if "error" in event.data:
            got.error = event.data["error"]
            continue
        assert got.error is None, "a chunk after an error"
        _chunk(got, event.data)
    return got


def _chunk(got: Streamed, chunk: dict[str, Any]) -> None:
    got.chunks.append(chunk)
    assert chunk["object"] == "chat.completion.chunk"
    got.ids.add((chunk["id"], chunk["created"], chunk["model"]))
    got.usage = chunk.get("usage") or got.usage
    for choice in chunk["choices"]:
        assert got.finish_reason is None, "content after the finish"
        delta = choice["delta"]
        got.text += delta.get("content") or ""
        got.reasoning += delta.get("reasoning_content") or ""
        for part in delta.get("tool_calls") or ():
            if part["index"] == len(got.tool_calls):
                got.tool_calls.append({**part, "function": dict(part["function"])})
            else:
                got.tool_calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        got.finish_reason = choice["finish_reason"]


async def refused(response: aiohttp.ClientResponse, status: int, code: str) -> dict[str, Any]:
    """The error of a response, after checking that it has the shape that every error has."""
    assert response.status == status, await response.text()
    assert response.content_type == "application/json"
    body = await response.json()
    error: dict[str, Any] = body["error"]
    ErrorAnswer.model_validate(body)
    assert (error["code"], error["status"]) == (code, status)
    assert {"class", "message", "retryable", "type", "param"} <= error.keys()
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == str(error["retryable"]).lower()
    if "retry_after_ms" in error:
        assert int(response.headers["retry-after-ms"]) == error["retry_after_ms"]
        assert int(response.headers["retry-after"]) * 1000 >= error["retry_after_ms"]
    return error
