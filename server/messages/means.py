"""What messages work with: one set for the whole process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.ledger.cost import Price
from server.messages.conversations import Conversations
from server.messages.hub import Hub
from server.messages.journal import Journal
from server.messages.tally import ChunkSize
from server.quotas.base import Quota
from server.routing.attempts import Route
from server.routing.gate import Gate
from server.store.replicas import Replicas
from server.store.store import Store
from server.telemetry.spans import Span
from server.upstreams.base import Driver


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream endpoint + model + credential, ready to be called."""

    name: str
    model: str
    driver: Driver
    price: Price | None = None
    prefill: bool = False
    provider: str = ""
    """Who serves it, as OpenTelemetry names providers (`gen_ai.provider.name`)."""
    context_tokens: int | None = None
    """Size of the model's context, if it is known."""
    chunk_size: ChunkSize = field(default_factory=ChunkSize)
    """What is known of its chunks, in this process."""


class Tracer(Protocol):
    """What sends spans, if anybody wants them."""

    def tell(self, root: Span, children: Callable[[], Sequence[Span]]) -> None: ...  # noqa: D102


class Watch(Protocol):
    """What is told of a message's life, for metrics."""

    def attempt_started(self, target: str) -> None: ...  # noqa: D102
    def first_content(self, target: str, seconds: float) -> None: ...  # noqa: D102
    def attempt_ended(self, target: str, outcome: str, seconds: float) -> None: ...  # noqa: D102
    def output(self, chunks: int) -> None: ...  # noqa: D102
    def message_ended(self, state: str) -> None: ...  # noqa: D102
    def message_adopted(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Means:
    """What a message works with; one for the whole process."""

    store: Store
    journal: Journal
    hub: Hub
    targets: Mapping[str, Target]
    routes: Mapping[str, Route]
    watch: Watch
    event_bytes: int
    conversations: Conversations
    max_bytes: int
    """Most bytes of visible text of one message; then it ends with `finish_reason: length`."""
    gate: Gate
    """Which targets may be called now."""
    quotas: Quota
    """Whether there is room for a message, and what it has used."""
    replicas: Replicas
    """Whether a failover would still know it."""
    tracer: Tracer | None = None
    """Who is told of every run as spans; None: nobody, and upstreams get no `traceparent`."""
    pseudonym: Callable[[str, str, str], str | None] = lambda _tenant, _kind, _user: None
    """What providers are told of a user (tenant, kind, user); None: nothing."""
