"""What litellm's exceptions mean. Pure, and it does not import litellm: classes are told apart by their names.

litellm wraps what happened, often several times (`MidStreamFallbackError` around `APIConnectionError` around the HTTP
client's error), so the whole chain is looked at: the transport's own error says most, then litellm's class, then the
HTTP status.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Final

from server.upstreams.base import Fault, UpstreamFailure
from server.upstreams.provider_errors import fault_of, retry_after_seconds

_TRANSPORT: Final = {
    "ConnectTimeout": Fault.CONNECT_TIMEOUT,
    "ConnectionTimeoutError": Fault.CONNECT_TIMEOUT,
    "ConnectError": Fault.REFUSED,
    "ClientConnectorError": Fault.REFUSED,
    "ClientConnectorDNSError": Fault.REFUSED,
    "ClientConnectorCertificateError": Fault.REFUSED,
    "ClientConnectorSSLError": Fault.REFUSED,
    "ReadTimeout": Fault.IDLE_TIMEOUT,
    "SocketTimeoutError": Fault.IDLE_TIMEOUT,
    "ReadError": Fault.BROKEN_STREAM,
    "RemoteProtocolError": Fault.BROKEN_STREAM,
    "ClientPayloadError": Fault.BROKEN_STREAM,
    "ServerDisconnectedError": Fault.BROKEN_STREAM,
    "ClientOSError": Fault.BROKEN_STREAM,
    "ConnectionResetError": Fault.BROKEN_STREAM,
    "JSONDecodeError": Fault.GARBLED,
    "UnicodeDecodeError": Fault.GARBLED,
}
"""Errors of the HTTP clients below litellm (httpx, httpcore, aiohttp) and of parsers."""

_CLASSES: Final = {
    "ContextWindowExceededError": Fault.CONTEXT_LENGTH,
    "ContentPolicyViolationError": Fault.CONTENT_FILTER,
    "AuthenticationError": Fault.UNAUTHORIZED,
    "PermissionDeniedError": Fault.UNAUTHORIZED,
    "BudgetExceededError": Fault.UNAUTHORIZED,
    "Timeout": Fault.FIRST_TOKEN_TIMEOUT,
}
_CHAIN_LENGTH: Final = 12
_WRAPPERS: Final = re.compile(r"MidStreamFallbackError|APIConnectionError")


def failure_of(error: BaseException, now: float | None = None) -> UpstreamFailure:
    """The failure that an exception of litellm is. Its text holds class names and the status only."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, UpstreamFailure):
            return link
    names = [type(link).__name__ for link in chain]
    status = next((code for link in chain if (code := _status(link)) is not None), None)
    text = f"litellm: {names[0]}" + (f", HTTP {status}" if status is not None else "")
    wait = next((found for link in chain if (found := _wait(link, now or time.time())) is not None), None)
    return UpstreamFailure(_fault(chain, names, status), text, status=status, retry_after_seconds=wait)


def _fault(chain: list[BaseException], names: list[str], status: int | None) -> Fault:
    for table in (_TRANSPORT, _CLASSES):
        for name in names:
            if name in table and not (name == "Timeout" and status is not None):  # so litellm calls a 504, too
                return table[name]
    codes = (str(getattr(link, name, None) or "") for link in chain for name in ("code", "type"))
    return fault_of(status, " ".join((*codes, str(chain[0]))))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what is behind it, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting and len(seen) < _CHAIN_LENGTH:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [getattr(link, "original_exception", None), link.__cause__, link.__context__]


def _status(error: BaseException) -> int | None:
    """The provider's status. litellm makes up 500 for lost connections and 408 for time-outs of its own."""
    if _WRAPPERS.fullmatch(type(error).__name__) or type(error).__name__ == "Timeout":
        return None
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 300 <= status <= 599 else None


def _wait(error: BaseException, now: float) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return retry_after_seconds(headers, now) if headers else None
