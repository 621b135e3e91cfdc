"""Stock clients of Python, unchanged: OpenAI's SDK and LangChain's ChatOpenAI."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.integration.http.client import MODEL, Place, place, turns
from tests.upstreams.script import expected_text, expected_tool_calls

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, at import
    from langchain_openai import ChatOpenAI

ASKED = "script tokens=60 unicode=1 tool=weather tools=2"
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": PARAMETERS}}
ROUTES = {
    "routes": {"failing": {"targets": ["scripted"], "on_midstream_failure": "fail"}, "default": {"targets": [MODEL]}}
}


@pytest.fixture
async def serving(valkey_url: str) -> AsyncIterator[Place]:
    """A place with a route that fails rather than to start over."""
    async with place(valkey_url, ROUTES) as found:
        yield found


@pytest.fixture
async def client(serving: Place) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK as anybody would set it up."""
    async with openai.AsyncOpenAI(base_url=f"{serving.node.http}/v1", api_key="placeholder", max_retries=0) as found:
        yield found


def keyed(key: str) -> dict[str, Any]:
    """The stock SDK sends no key by itself."""
    return {"extra_headers": {"Idempotency-Key": key}}


async def test_whole_and_streamed(serving: Place, client: openai.AsyncOpenAI) -> None:
    request: dict[str, Any] = {"model": "default", "messages": turns(ASKED), "tools": [TOOL], **keyed("k1")}
    whole = await client.chat.completions.create(**request)
    message = whole.choices[0].message
    assert message.content == expected_text(turns(ASKED), MODEL)
    assert message.tool_calls is not None
    assert [call.model_dump() for call in message.tool_calls] == expected_tool_calls(turns(ASKED), MODEL)
    assert whole.id == "k1"
    text, usage, finish = "", None, None
    stream = await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        assert (chunk.id, chunk.created) == (whole.id, whole.created)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert (text, finish, usage) == (message.content, "tool_calls", whole.usage)
    assert serving.upstream.count("start") == 1


async def test_the_stream_helper_and_parsed_tool_calls(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="default", messages=turns(ASKED), tools=[TOOL]) as stream:  # type: ignore[arg-type,list-item]
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["weather", "weather"]


async def test_the_raw_response_tells_the_message_id(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="default", messages=turns("script tokens=2"))  # type: ignore[arg-type]
    assert raw.headers["tidewire-message-id"] == raw.parse().id
    assert raw.headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model_not_found"),
        ({"n": 2}, openai.BadRequestError, "invalid_request"),
        ({"messages": turns("script tokens=2 status=500")}, openai.InternalServerError, "upstream_unavailable"),
        (keyed("k1"), openai.UnprocessableEntityError, "idempotency_mismatch"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_its_exceptions(
    client: openai.AsyncOpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    await client.chat.completions.create(model="default", messages=turns("script tokens=3"), **keyed("k1"))  # type: ignore[arg-type]
    request = {"model": "default", "messages": turns("script tokens=2"), "stream": stream, **fields}
    with pytest.raises(kind) as failure:
        await client.chat.completions.create(**request)
    assert failure.value.code == code
    assert failure.value.request_id


async def test_its_own_retries_with_a_key_begin_a_failure_again(serving: Place, client: openai.AsyncOpenAI) -> None:
    asked = "script tokens=5 status=500 times=1"
    whole = await client.with_options(max_retries=2).chat.completions.create(
        model="default",
        messages=turns(asked),
        **keyed("k1"),  # type: ignore[arg-type]
    )
    assert whole.choices[0].message.content == expected_text(turns(asked), MODEL)
    assert serving.upstream.count("start") == 2


async def test_a_stream_that_breaks_off_raises(client: openai.AsyncOpenAI) -> None:
    text: list[str] = []
    stream = await client.chat.completions.create(
        model="failing",
        messages=turns("script tokens=20 cut=event"),
        stream=True,  # type: ignore[arg-type]
    )

    async def read() -> None:
        async for chunk in stream:
            text.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError) as failure:
        await read()
    assert failure.value.code == "upstream_unavailable"
    assert "".join(text)


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["default", "failing"]
    assert (await client.models.retrieve("failing")).id == "failing"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nothing")


async def test_langchain(serving: Place) -> None:
    model = ChatOpenAI(
        model="default",
        base_url=f"{serving.node.http}/v1",
        api_key="placeholder",  # type: ignore[arg-type]
        stream_usage=True,
        max_retries=0,
        temperature=0.5,
    )
    bound = model.bind_tools([TOOL])
    whole = await bound.ainvoke(ASKED, **keyed("l1"))
    assert whole.content == expected_text(turns(ASKED), MODEL)
    assert [call["name"] for call in whole.tool_calls] == ["weather", "weather"]
    total = None
    async for chunk in bound.astream(ASKED, **keyed("l1")):
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.content == whole.content
    assert total.tool_calls == whole.tool_calls
    assert total.usage_metadata == whole.usage_metadata
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] > 0
    assert serving.upstream.count("start") == 1
    with pytest.raises(openai.UnprocessableEntityError):
        await model.ainvoke("script tokens=9", **keyed("l1"))
