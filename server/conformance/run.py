"""Runs the checks of a server, one after another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from websockets.exceptions import InvalidHandshake, WebSocketException

from protocol.codec import JSON, MSGPACK, Codec
from server.conformance.checks import CHECKS, Check, Probe
from server.conformance.report import CheckFailed, CheckSkipped, Outcome, Report, Result

CODECS: Final[dict[str, tuple[Codec, ...]]] = {"json": (JSON,), "msgpack": (MSGPACK,), "both": (JSON, MSGPACK)}


class Unreachable(Exception):
    """There is no server to check; the text says why."""


async def check_server(probe: Probe, codecs: Sequence[Codec], only: Sequence[str] = ()) -> Report:
    """Every check, or those named. Raises `Unreachable`, and `ValueError` for a name that is no check's."""
    if unknown := sorted(set(only) - CHECKS.keys()):
        raise ValueError(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    await _reach(replace(probe, codec=codecs[0]))
    results = [
        await _run(name, function, replace(probe, codec=codec))
        for codec in codecs
        for name, function in CHECKS.items()
        if not only or name in only
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


async def _run(name: str, function: Check, probe: Probe) -> Result:
    about = (function.__doc__ or "").strip().splitlines()[0]
    began = time.monotonic()
    outcome: Outcome = "passed"
    detail = ""
    try:
        async with asyncio.timeout(4 * probe.seconds):
            await function(probe)
    except CheckSkipped as reason:
        outcome, detail = "skipped", str(reason)
    except CheckFailed as reason:
        outcome, detail = "failed", str(reason)
    except TimeoutError:
        outcome, detail = "failed", f"it took longer than {4 * probe.seconds:g} s"
    except (OSError, WebSocketException) as error:
        outcome, detail = "failed", f"{type(error).__name__}: {error}"
    return Result(name, probe.codec.subprotocol, outcome, about, detail, round(time.monotonic() - began, 3))
