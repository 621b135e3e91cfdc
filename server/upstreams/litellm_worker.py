"""The child process in which litellm runs: the one place that imports it. Run by `LitellmPool`.

It serves calls on a Unix socket (frames: `litellm_wire`), as many at a time as come, with the keys of its targets and
no others. Whatever litellm raises becomes a fault frame; nothing is retried, logged or sent elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

import httpx
import uvloop

from server.telemetry.tasks import TaskOwner
from server.upstreams import litellm_wire as wire
from server.upstreams.base import Fault, Piece, UpstreamFailure
from server.upstreams.chat import extend
from server.upstreams.child import die_with_parent, read_settings, say_ready
from server.upstreams.litellm_faults import failure_of
from server.upstreams.litellm_wire import WINDOW, Kind
from server.upstreams.sse import MAX_EVENT_BYTES

CLOSE_SECONDS: Final = 2.0
"""How long the provider's stream may take to close."""
CONNECT_SECONDS: Final[ContextVar[float | None]] = ContextVar("connect_seconds", default=None)
"""How long the connection of the call that is made may take."""


def load_litellm() -> Any:
    """Import litellm, quiet and local: no price map from the network, no telemetry, no logging of streams."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    import litellm

    httpx.Response.aiter_lines = event_stream_lines  # type: ignore[method-assign,assignment]
    httpx.AsyncClient.send = sender(httpx.AsyncClient.send)  # type: ignore[method-assign,assignment]
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.disable_streaming_logging = True
    litellm.drop_params = True
    litellm.num_retries = 0
    litellm.modify_params = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


async def event_stream_lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a response, cut at LF, CRLF and nothing else.

    httpx cuts wherever `str.splitlines` does, also at U+2028 or U+0085 in the midst of a model's text. litellm parses
    event streams by httpx's lines and loses the rest of such an answer. Raises `UpstreamFailure` for a line that is
    larger than an event may be.
    """
    begun: list[str] = []
    size = 0
    async for text in response.aiter_text():
        first, *others = text.split("\n")
        begun.append(first)
        size += len(first)
        if size > MAX_EVENT_BYTES:
            raise UpstreamFailure(Fault.GARBLED, f"an event of the stream is larger than {MAX_EVENT_BYTES} bytes")
        if others:
            yield "".join(begun).removesuffix("\r")
            for line in others[:-1]:
                yield line.removesuffix("\r")
            begun, size = [others[-1]], len(others[-1])
    if size:
        yield "".join(begun)


def sender(send: Callable[..., Awaitable[httpx.Response]]) -> Callable[..., Awaitable[httpx.Response]]:
    """`httpx.AsyncClient.send` that keeps the target's `connect_seconds`, and takes no web page for an answer.

    litellm makes one number of all time limits for most providers, so that a dead host would be waited for as long as
    a slow model.
    """

    async def limited(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        seconds = CONNECT_SECONDS.get()
        if seconds is not None:
            limits = request.extensions.get("timeout") or {}
            request.extensions["timeout"] = {**dict.fromkeys(("read", "write", "pool")), **limits, "connect": seconds}
        response = await send(client, request, **more)
        if response.is_success and response.headers.get("content-type", "").startswith("text/html"):
            await response.aclose()
            raise UpstreamFailure(Fault.GARBLED, "litellm: a web page in place of an answer")
        return response

    return limited


OPENAI_FORMAT: Final = frozenset({"openai", "custom_openai", "hosted_vllm"})
"""litellm's names for whatever speaks OpenAI's format at an address of one's own; it does not send `metadata` there."""
TAKE_USER: Final = OPENAI_FORMAT | {"groq", "together_ai", "openrouter"}
"""Providers that take `user`, but get it from litellm only for models that it knows, or never."""


class Worker:
    """Every target this process serves, and the connections of the server processes."""

    def __init__(self, litellm: Any, targets: Mapping[str, Mapping[str, Any]]) -> None:
        self.litellm = litellm
        self.targets = targets
        self.connections = TaskOwner("litellm connections")

    async def serve(self, path: str) -> None:
        """Listen until the process ends."""
        server = await asyncio.start_unix_server(self._connected, path)
        say_ready(path)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, writer)
        try:
            while (frame := await wire.read(reader)) is not None:
                connection.receive(frame)
        finally:
            await connection.close()


class Connection:
    """One server process: its calls, by number."""

    def __init__(self, worker: Worker, writer: asyncio.StreamWriter) -> None:
        self.worker = worker
        self._writer = writer
        self._owner = TaskOwner("litellm calls")
        self._calls: dict[int, tuple[asyncio.Task[Any], asyncio.Semaphore]] = {}

    def receive(self, frame: list[Any]) -> None:
        """One frame of the server."""
        match frame:
            case [Kind.CALL, int(number), str(target), dict(request)]:
                credit = asyncio.Semaphore(WINDOW)
                task = self._owner.start(self._run(number, target, request, credit), f"call {number}")
                self._calls[number] = task, credit
                task.add_done_callback(lambda _: self._calls.pop(number, None))
            case [Kind.CANCEL, int(number)] if number in self._calls:
                self._calls[number][0].cancel()
            case [Kind.CREDIT, int(number), int(count)] if number in self._calls:
                for _ in range(count):
                    self._calls[number][1].release()

    async def send(self, *frame: Any) -> None:
        """Write a frame; waits if the server does not read."""
        self._writer.write(wire.pack(*frame))
        await self._writer.drain()

    async def close(self) -> None:
        """The server process is gone: end its calls."""
        await self._owner.close()
        self._writer.close()

    async def _run(self, number: int, target: str, request: dict[str, Any], credit: asyncio.Semaphore) -> None:
        try:
            await self._answer(number, target, request, credit)
        except ConnectionError:
            return
        except UpstreamFailure as found:
            await self._fail(number, found)
        except Exception as error:  # noqa: BLE001 - the whole purpose: litellm raises classes of every provider's client
            await self._fail(number, failure_of(error))

    async def _fail(self, number: int, found: UpstreamFailure) -> None:
        await self.send(Kind.FAULT, number, found.fault, found.message, found.status, found.retry_after_seconds)

    async def _answer(self, number: int, target: str, request: dict[str, Any], credit: asyncio.Semaphore) -> None:
        settings = self.worker.targets.get(target)
        if settings is None:
            raise UpstreamFailure(Fault.WORKER_LOST, f"the worker does not know the target {target}")
        CONNECT_SECONDS.set(settings["connect_seconds"])
        stream = await self.worker.litellm.acompletion(**arguments(settings, request))
        try:
            usage, finish, model = None, None, settings["model"].rpartition("/")[2]
            async for chunk in stream:
                usage = usage_in(chunk) or usage
                finish = finish_in(chunk) or finish
                pieces = pieces_in(chunk)
                if pieces:
                    await credit.acquire()
                    named = getattr(chunk, "model", None)
                    await self.send(Kind.BATCH, number, pieces, 1, named if named != model else None)
            if not told_its_end(stream):
                raise UpstreamFailure(Fault.BROKEN_STREAM, "litellm: the stream ended before its end was told")
            await self.send(Kind.END, number, finish, usage)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await stream.aclose()


def arguments(settings: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `litellm.acompletion` for one call."""
    silence = max(settings["first_token_seconds"], settings["idle_seconds"]) + 1.0
    found: dict[str, Any] = {
        **request["options"],
        "model": settings["model"],
        "messages": request["messages"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "timeout": httpx.Timeout(silence, connect=settings["connect_seconds"]),
        "num_retries": 0,
        "max_retries": 0,
    }
    if settings.get("base_url"):
        found["api_base"] = settings["base_url"]
    if settings.get("api_key"):
        found["api_key"] = settings["api_key"]
    if request.get("max_output_tokens") is not None:
        found["max_tokens"] = request["max_output_tokens"]
    found.update(identity(settings, request))
    if found.get("tools"):
        found["_skip_mcp_handler"] = (
            True  # else litellm 1.106 imports its proxy's MCP gateway, which needs more packages
        )
    return found


def identity(settings: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that tell the provider whom a call is for: pseudonym and tags, as far as it takes them."""
    provider, user, tags = settings["model"].partition("/")[0], request.get("user"), request.get("tags")
    found: dict[str, Any] = {}
    if request.get("safety_identifier") is not None:
        found["safety_identifier"] = request["safety_identifier"]
    if user is not None:
        found["user"] = user
        if provider in TAKE_USER:
            found["allowed_openai_params"] = ["user"]
    if tags:
        listed = [f"{name}:{value}" for name, value in tags.items()]
        # litellm gives Anthropic a `user_id` that it finds here, in place of the pseudonym
        found["metadata"] = {**{name: value for name, value in tags.items() if name != "user_id"}, "tags": listed}
        if provider == "litellm_proxy":
            found["extra_body"] = {"metadata": {**tags, "tags": listed}}
        elif provider in OPENAI_FORMAT and settings.get("base_url"):
            found["extra_body"] = {"metadata": dict(tags)}
    return found


def pieces_in(chunk: Any) -> list[Piece]:
    """Reasoning, text and tool calls of one chunk of litellm's."""
    choices = getattr(chunk, "choices", None)
    if not choices:
        return []
    delta = choices[0].delta
    pieces: list[Piece] = []
    if reasoning := getattr(delta, "reasoning_content", None):
        pieces.append(("reasoning", reasoning))
    if text := getattr(delta, "content", None):
        pieces.append(("text", text))
    if calls := getattr(delta, "tool_calls", None):
        extend(pieces, [("tool_calls", [call.model_dump(exclude_none=True) for call in calls])])
    return pieces


def finish_in(chunk: Any) -> str | None:
    """The finish reason of one chunk, in the chat-completions vocabulary."""
    choices = getattr(chunk, "choices", None)
    reason = choices[0].finish_reason if choices else None
    return reason if isinstance(reason, str) else None


def usage_in(chunk: Any) -> list[int] | None:
    """Input, output, cached and reasoning tokens of one chunk, if it tells them."""
    usage = getattr(chunk, "usage", None)
    if usage is None:
        return None
    prompt = getattr(usage, "prompt_tokens_details", None)
    completion = getattr(usage, "completion_tokens_details", None)
    cached = getattr(prompt, "cached_tokens", None) or 0
    reasoning = getattr(completion, "reasoning_tokens", None) or 0
    return [usage.prompt_tokens or 0, usage.completion_tokens or 0, cached, reasoning]


def told_its_end(stream: Any) -> bool:
    """Whether the provider told a finish reason; litellm makes up a `stop` for a stream that was cut off."""
    return bool(stream.received_finish_reason or stream.intermittent_finish_reason)


def main() -> None:
    """Load litellm, serve, end with the parent."""
    settings = read_settings()
    die_with_parent()
    worker = Worker(load_litellm(), settings["targets"])
    uvloop.run(worker.serve(settings["socket"]))


if __name__ == "__main__":
    main()
