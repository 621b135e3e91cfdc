"""Spans, and how one is named elsewhere (W3C Trace Context, https://www.w3.org/TR/trace-context/). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

TRACEPARENT: Final = "traceparent"
"""The HTTP header, and the pair of a message's `metadata` that says the same where there are no headers."""
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span, as its children know it."""

    trace_id: int
    span_id: int
    sampled: bool = True
    """Whether whoever made it records it."""

    @property
    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def of(cls, header: str | None) -> TraceContext | None:
        """What a header says; None for one that is not well-formed, which the specification wants ignored."""
        if header is None or (found := _FORM.fullmatch(header.strip())) is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == "00" and more is not None:
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))


Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Span:
    """One that is over. Times are Unix seconds."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    """The first of a list may have one elsewhere."""
    started: float
    ended: float
    attributes: Attributes
    error: str | None = None
    """What went wrong; None: nothing."""


def are_wanted(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables name a collector: then `server.telemetry.traces` is worth its import."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("ENDPOINT", "TRACES_ENDPOINT"))
