"""The direct way to any OpenAI-compatible endpoint: one HTTP request over aiohttp, its event stream read in place.

This is the hot path of the whole server. A read from the network becomes one `Batch`; between two reads there is no
task, timer or lock. The connection's own buffer (64 KiB, then the socket is not read any more) is the only buffer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from server.telemetry.spans import TRACEPARENT
from server.upstreams.base import Batch, Call, Capabilities, Fault, TargetSpec, UpstreamFailure
from server.upstreams.chat import ChatReader
from server.upstreams.provider_errors import failure
from server.upstreams.sse import EventParser, EventTooLarge
from server.upstreams.watchdog import Watchdog

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Of a whole JSON answer."""
MAX_ERROR_BYTES: Final = 64 * 1024
"""Of an error's body; the rest is not read."""
ERROR_BODY_SECONDS: Final = 5.0
"""How long to wait for an error's body, once its status is known."""
TAIL_SECONDS: Final = 2.0
"""How long to wait for usage and `[DONE]` once the finish reason is known, and for the end of the body after that."""
KEEPALIVE_SECONDS: Final = 4.0
"""Idle connections go before servers drop them (uvicorn after 5 s): a POST on a dying one cannot be repeated."""
_HANG_UP: Final = frozenset(("llama.cpp",))
"""Servers (by their `Server` header) that promise to keep a connection after a stream and then close it."""
DNS_SECONDS: Final = 60
CHECK_SECONDS: Final = 10.0

_COMPLETION_TOKENS_HOSTS: Final = ("api.openai.com", "openai.azure.com")
"""Hosts that want `max_completion_tokens`; everybody else knows `max_tokens`."""


class HttpClient:
    """The process's connections to upstreams, opened on first use. Many drivers share one."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session; made here because it belongs to the running event loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=DNS_SECONDS, keepalive_timeout=KEEPALIVE_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": "identity", "user-agent": "tidewire"},
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


class OpenAIDriver:
    """One target behind the chat-completions API."""

    def __init__(
        self, spec: TargetSpec, http: HttpClient | None = None, capabilities: Capabilities | None = None
    ) -> None:
        self.spec = spec
        self.capabilities = capabilities or Capabilities(
            tools=True, reasoning=True, usage_in_stream=True, prefill=spec.prefill, images=True
        )
        self._http = http or HttpClient()
        self._owns_http = http is None
        self._base = URL((spec.base_url or DEFAULT_BASE_URL).rstrip("/"))
        self._url = self._base / "chat/completions"
        host = self._base.host or ""
        self._limit_name = "max_completion_tokens" if host.endswith(_COMPLETION_TOKENS_HOSTS) else "max_tokens"
        self._timeout = aiohttp.ClientTimeout(total=None, connect=spec.connect_seconds)
        self._headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if spec.api_key:
            self._headers["authorization"] = f"Bearer {spec.api_key}"

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """Start the attempt and yield what it brings; see `Driver.stream`."""
        spec = self.spec
        dog = Watchdog(
            asyncio.get_running_loop(),
            first_token=spec.first_token_seconds,
            idle=spec.idle_seconds,
            total=spec.total_seconds,
        )
        answer = _Answer(await self._open(call, dog), dog, spec.model)
        try:
            while (batch := await answer.next()) is not None:
                yield batch
        finally:
            answer.close()

    async def check(self) -> str | None:
        """Ask for the list of models: is the endpoint there, does the key work, is the model known?"""
        url = self._base / "models"
        try:
            async with (
                asyncio.timeout(CHECK_SECONDS),
                self._http.session.get(url, headers=self._headers, timeout=self._timeout) as response,
            ):
                if response.status in (401, 403):
                    return f"{self._base} refuses the key of target {self.spec.name}: check its api_key_env"
                if response.status != 200:
                    return None if response.status < 500 else f"{self._base} answers with status {response.status}"
                return self._misses_model(await response.content.read(MAX_BODY_BYTES))
        except (aiohttp.ClientError, OSError) as error:
            return f"{self._base} cannot be reached: {_as_failure(error).message}; check base_url and the network"

    async def close(self) -> None:
        """Close the connections, unless other drivers share them. Idempotent."""
        if self._owns_http:
            await self._http.close()

    def body(self, call: Call) -> bytes:
        """The request's body. What the server asks for itself wins over the call's options."""
        body: dict[str, Any] = {
            **call.options,
            "model": self.spec.model,
            "messages": list(call.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if call.max_output_tokens is not None:
            body[self._limit_name] = call.max_output_tokens
        for name in self.spec.identity:
            if value := dict(call.tags) if name == "metadata" else call.user:
                body[name] = value
        return orjson.dumps(body)

    def _misses_model(self, body: bytes) -> str | None:
        try:
            names = {entry["id"] for entry in orjson.loads(body)["data"]}
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return None
        if not names or self.spec.model in names:
            return None
        return f"{self._base} does not list the model {self.spec.model} of target {self.spec.name}"

    async def _open(self, call: Call, dog: Watchdog) -> aiohttp.ClientResponse:
        """Send the request and wait for the headers of a good answer. Raises `UpstreamFailure`."""
        body = self.body(call)
        headers = self._headers if call.traceparent is None else self._headers | {TRACEPARENT: call.traceparent}
        dog.ask()
        try:
            async with asyncio.timeout(dog.budget):
                response = await self._http.session.post(
                    self._url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
                )
        except aiohttp.ConnectionTimeoutError:
            dog.stop()
            raise UpstreamFailure(Fault.CONNECT_TIMEOUT, "no connection in time") from None
        except TimeoutError:
            dog.stop()
            raise dog.failure() from None
        except (aiohttp.ClientError, OSError) as error:
            dog.stop()
            raise _as_failure(error) from None
        except asyncio.CancelledError:
            dog.stop()
            raise
        dog.answered(content=False)
        if response.headers.get("server") in _HANG_UP:
            _do_not_reuse(response)
        if response.status != 200:
            dog.stop()
            raise await _refusal(response)
        return response


class _Answer:
    """One answer being read. Whoever makes it must `close` it."""

    __slots__ = ("_content", "_dog", "_over", "_parser", "_reader", "_response")

    def __init__(self, response: aiohttp.ClientResponse, dog: Watchdog, model: str) -> None:
        self._response = response
        self._content = response.content
        self._dog = dog
        dog.watch(self._content.set_exception)
        self._parser = EventParser()
        self._reader = ChatReader(model)
        self._over = False

    async def next(self) -> Batch | None:
        """The next batch with anything in it, at last the ending, then None. Raises `UpstreamFailure`."""
        if self._over:
            await self._skip_rest()
            return None
        if self._response.content_type != "text/event-stream" and (whole := await self._whole()) is not None:
            return whole
        reader, dog = self._reader, self._dog
        if reader.failure is not None:
            raise reader.failure
        while True:
            dog.ask()
            payloads = await self._payloads()
            batch = reader.read(payloads) if payloads else Batch()
            if payloads is None or (reader.done and reader.failure is None):
                self._over = True
                dog.answered(content=False)
                return reader.ending(batch)
            dog.answered(content=bool(batch.pieces), progress=bool(payloads))
            if reader.finish_reason is not None:
                dog.shorten(TAIL_SECONDS)
            if batch.pieces:
                return batch

    def close(self) -> None:
        """Free the connection: for the next request if the answer was read to its end, else by closing it at once."""
        self._dog.stop()
        self._response.close()

    async def _payloads(self) -> list[bytes] | None:
        """What one read brought; None at the end, also at a cut after the finish reason."""
        try:
            data = await self._content.readany()
            return self._parser.feed(data) if data else None
        except (UpstreamFailure, aiohttp.ClientError, HttpProcessingError, OSError, EventTooLarge) as error:
            if self._reader.finish_reason is None:
                raise _as_failure(error) from None
            return None

    async def _whole(self) -> Batch | None:
        """The answer if it is not a stream at all; None if it may be one under a wrong name."""
        kind = self._response.content_type
        if kind in ("text/html", "application/xhtml+xml"):
            raise UpstreamFailure(Fault.GARBLED, "the answer is an HTML page", status=200)
        if kind != "application/json":
            return None
        self._dog.ask()
        body = bytearray()
        while (data := await self._read()) and len(body) <= MAX_BODY_BYTES:
            body += data
        self._dog.answered(content=True)
        self._over = True
        return self._reader.ending(self._reader.read_whole(bytes(body)))

    async def _read(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise _as_failure(error) from None

    async def _skip_rest(self) -> None:
        """Wait shortly for the end of the HTTP body, so that the connection can be used again."""
        self._dog.shorten(TAIL_SECONDS)
        self._dog.ask()
        while await self._payloads() is not None:
            pass


def _do_not_reuse(response: aiohttp.ClientResponse) -> None:
    """Close the connection when this answer is over."""
    if response.connection is not None and response.connection.protocol is not None:
        response.connection.protocol.force_close()


async def _refusal(response: aiohttp.ClientResponse) -> UpstreamFailure:
    """The failure that an answer with an error status is; its body is read if it comes soon."""
    body = b""
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            while len(body) < MAX_ERROR_BYTES and (data := await response.content.readany()):
                body += data
    except (aiohttp.ClientError, HttpProcessingError, OSError):
        pass
    finally:
        response.close()
    return failure(response.status, body, response.headers, time.time())


def _as_failure(error: Exception) -> UpstreamFailure:
    """Our failure for an error of the HTTP client. Its own text may hold the address with a key, so only its kind."""
    kind = type(error).__name__
    if isinstance(error, UpstreamFailure):
        return error
    if isinstance(error, EventTooLarge):
        return UpstreamFailure(Fault.GARBLED, str(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return UpstreamFailure(Fault.REFUSED, "the host name is unknown")
    if isinstance(error, aiohttp.ClientSSLError):
        return UpstreamFailure(Fault.REFUSED, "no TLS connection, or the certificate is not trusted")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
        return UpstreamFailure(Fault.REFUSED, "no connection")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return UpstreamFailure(Fault.BROKEN_STREAM, f"the connection broke ({kind})")
    return UpstreamFailure(Fault.GARBLED, f"the answer is not HTTP as it should be ({kind})")
