"""Runs the checks of a server, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from websockets.exceptions import InvalidHandshake, WebSocketException

from protocol.codec import JSON, MSGPACK, Codec
from server.conformance.checks import CHECKS, Check, Probe
from server.conformance.report import CheckFailed, Report, chosen, judged

CODECS: Final[dict[str, tuple[Codec, ...]]] = {"json": (JSON,), "msgpack": (MSGPACK,), "both": (JSON, MSGPACK)}


class Unreachable(Exception):
    """There is no server to check; the text says why."""


async def check_server(probe: Probe, codecs: Sequence[Codec], only: Sequence[str] = ()) -> Report:
    """Every check, or those named. Raises `Unreachable`, and `ValueError` for a name that is no check's."""
    checks = chosen(CHECKS, only, "check")
    await _reach(replace(probe, codec=codecs[0]))
    results = [
        await judged(name, codec.subprotocol, _about(check), _made(check, replace(probe, codec=codec)))
        for codec in codecs
        for name, check in checks.items()
    ]
    return Report(probe.url, results)


async def _reach(probe: Probe) -> None:
    """Raises `Unreachable` unless a `hello` is welcome: without that every check would fail for the same reason."""
    try:
        async with probe.greeted():
            pass
    except (OSError, TimeoutError, WebSocketException, CheckFailed) as error:
        hint = " Give the address of the WebSocket endpoint." if isinstance(error, InvalidHandshake) else ""
        raise Unreachable(f"{probe.url}: {error}.{hint}") from None


def _about(check: Check) -> str:
    return (check.__doc__ or "").strip().splitlines()[0]


async def _made(check: Check, probe: Probe) -> None:
    """Raises `CheckFailed` also where the server is silent or the connection breaks, and `CheckSkipped`."""
    try:
        async with asyncio.timeout(4 * probe.seconds):
            await check(probe)
    except TimeoutError:
        raise CheckFailed(f"it took longer than {4 * probe.seconds:g} s") from None
    except (OSError, WebSocketException) as error:
        raise CheckFailed(f"{type(error).__name__}: {error}") from None
