"""Spans to an OpenTelemetry collector, if the environment names one by OpenTelemetry's own variables.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) turns it on; `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`,
`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and the rest of
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ mean what they mean everywhere: the
SDK reads them itself. Spans are told when they are over, so what is under way costs nothing. A thread of the SDK sends
them, and drops what a collector that is down does not take.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from server.telemetry.spans import Span, TraceContext

log = structlog.get_logger("traces")

FLUSH_SECONDS: Final = 2.0
"""How long a node that stops waits for its last spans to be taken."""


class Traces:
    """The way to the collector."""

    def __init__(self, node: str) -> None:
        ours = {"service.name": "tidewire", "service.version": version("tidewire"), "service.instance.id": node}
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._out = BatchSpanProcessor(self._exporter)
        self._scope = InstrumentationScope("tidewire", ours["service.version"])

    def tell(self, root: Span, children: Callable[[], Sequence[Span]]) -> None:
        """Hand a span and its children to the thread that sends, if `OTEL_TRACES_SAMPLER` wants this trace."""
        above = None if root.parent is None else set_span_in_context(NonRecordingSpan(_context(root.parent, True)))
        decision = self._provider.sampler.should_sample(above, root.context.trace_id, root.name).decision
        if decision is not Decision.RECORD_AND_SAMPLE:
            return
        remote = root.parent is not None
        self._out.on_end(self._readable(root, SpanKind.SERVER, remote))
        for child in children():
            self._out.on_end(self._readable(child, SpanKind.CLIENT, False))

    def _readable(self, span: Span, kind: SpanKind, remote: bool) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            _context(span.context, False),
            parent=None if span.parent is None else _context(span.parent, remote),
            resource=self._provider.resource,
            attributes=dict(span.attributes),
            kind=kind,
            status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=round(span.started * 1e9),
            end_time=round(span.ended * 1e9),
            instrumentation_scope=self._scope,
        )

    async def close(self) -> None:
        """Send what is left, for a while. The SDK's own time-outs do not hold, so it waits in a thread of its own."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def finish() -> None:
            self._out.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=finish, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await over.wait()
        except TimeoutError:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            log.warning("spans_lost", why="the collector does not take them")


def _context(of: TraceContext, remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if of.sampled or not remote else TraceFlags.DEFAULT)
    return SpanContext(of.trace_id, of.span_id, remote, flags)
