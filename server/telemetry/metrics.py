"""Prometheus metrics of one process; names follow Prometheus conventions, GenAI attributes where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from server.telemetry.counts import Counts

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LATE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that tells the library of a folder in which processes that share a port count together."""


@contextmanager
def counting_together(environ: MutableMapping[str, str]) -> Iterator[None]:
    """The processes started meanwhile count together: whichever of them is asked, it tells the sums."""
    before = environ.get(SHARED)
    with TemporaryDirectory(prefix="tidewire-metrics-") as folder:
        environ[SHARED] = folder
        try:
            yield
        finally:
            del environ[SHARED]
            if before is not None:
                environ[SHARED] = before


def forget_process(pid: int | None, environ: Mapping[str, str]) -> None:
    """What a process that is gone has counted stays; what it had open does not."""
    mark_process_dead(pid, environ[SHARED])  # type: ignore[no-untyped-call]


class Metrics:
    """Everything that is counted; hand it to what counts."""

    def __init__(self, shared: str | None = None) -> None:
        self._shared = shared
        """The folder of `SHARED`, which the library found in the environment when it was imported."""
        self.counts = Counts()
        """The same in small, for the operator's page."""
        registry = self.registry = CollectorRegistry()
        self._sessions = Gauge(
            "tidewire_sessions", "Open WebSocket sessions", multiprocess_mode="livesum", registry=registry
        )
        self._session_seconds = Histogram(
            "tidewire_session_seconds", "How long sessions last", buckets=(1, 10, 60, 600, 3600), registry=registry
        )
        self._received = Counter("tidewire_frames_received", "Frames from clients", ["type"], registry=registry)
        self._sent = Counter("tidewire_websocket_messages_sent", "WebSocket messages sent", registry=registry)
        self._sent_bytes = Counter("tidewire_websocket_bytes_sent", "Bytes of them", registry=registry)
        self._attempts = Counter(
            "tidewire_attempts", "Attempts ended, by outcome", ["target", "outcome"], registry=registry
        )
        self._attempt_seconds = Histogram(
            "gen_ai_client_operation_duration_seconds",
            "How long attempts take",
            ["target"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Until an attempt's first content",
            ["target"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._messages = Counter("tidewire_messages", "Messages ended, by state", ["state"], registry=registry)
        self._quota = Counter(
            "tidewire_quota", "Reservations and settlements, by outcome", ["outcome"], registry=registry
        )
        self._running = Gauge(
            "tidewire_messages_running", "Attempts now streaming", multiprocess_mode="livesum", registry=registry
        )
        self._takeovers = Counter(
            "tidewire_takeovers", "Messages taken over from nodes that died or left them", registry=registry
        )
        self._store_up = Gauge(
            "tidewire_store_up",
            "1 while every Redis primary answers this node, else 0",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._store_evicts = Gauge(
            "tidewire_store_evicts",
            "1 if a Redis primary had another maxmemory-policy than noeviction as this node started, else 0",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._late = Histogram(
            "tidewire_event_loop_late_seconds",
            "How much later than asked the event loop came back, ten times a second",
            buckets=_LATE_SECONDS,
            registry=registry,
        )
        self._target_state = Gauge(
            "tidewire_target_state",
            "1 for the state a target is in",
            ["target", "state"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._breaker_moves = Counter(
            "tidewire_breaker_transitions", "Changes of a target's state", ["target", "state", "why"], registry=registry
        )
        self._alarms = Counter(
            "tidewire_target_alarms",
            "Targets that refuse our key or model (401, 403, 404)",
            ["target", "why"],
            registry=registry,
        )
        self._held = Counter(
            "tidewire_target_held",
            "Calls that were not sent to a target, by its state",
            ["target", "state"],
            registry=registry,
        )
        self._probes = Counter("tidewire_probes", "Probes ended, by outcome", ["target", "outcome"], registry=registry)
        self._hedges = Counter(
            "tidewire_hedges",
            "Messages for which two targets were asked, by which was faster",
            ["route", "winner"],
            registry=registry,
        )
        self._open_jobs = Gauge(
            "tidewire_jobs_open",
            "Jobs that have not ended, of all nodes",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._waiting_items = Gauge(
            "tidewire_job_items_queued",
            "Items of jobs that nobody has begun, of all nodes",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._running_items = Gauge(
            "tidewire_job_items_running", "Items of jobs that run here", multiprocess_mode="livesum", registry=registry
        )
        self._items = Counter("tidewire_job_items", "Items of jobs ended, by outcome", ["outcome"], registry=registry)
        self._put_off = Counter(
            "tidewire_job_items_put_off",
            "Items given back to be taken later: by themselves, or their whole job",
            ["what"],
            registry=registry,
        )
        self._jobs = Counter("tidewire_jobs", "Jobs ended, by status", ["status"], registry=registry)
        self._webhooks = Counter(
            "tidewire_webhooks", "Deliveries of webhooks: delivered, failed, given_up", ["outcome"], registry=registry
        )
        self._ledger_records = Counter(
            "tidewire_ledger_records", "Usage records brought into the ledger's database", registry=registry
        )
        self._ledger_lag = Gauge(
            "tidewire_ledger_lag_seconds",
            "Age of the oldest usage record not yet in the database, on the node that drains; elsewhere 0",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._ledger_trouble = Counter(
            "tidewire_ledger_trouble",
            "Records that came again with other content (conflict), could not be read (malformed), were refused by the "
            "database (refused); times it did not answer (unavailable)",
            ["kind"],
            registry=registry,
        )
        for kind in ("conflict", "malformed", "refused", "unavailable"):
            self._ledger_trouble.labels(kind)  # an alarm needs the 0
        self._state_of: dict[str, str] = {}

    def exposition(self) -> bytes:
        """Prometheus text format: of this process, or of all that share the port."""
        if self._shared is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self._shared)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def session_opened(self) -> None:
        """A socket was accepted."""
        self._sessions.inc()

    def session_closed(self, seconds: float) -> None:
        """It ended after `seconds`."""
        self._sessions.dec()
        self._session_seconds.observe(seconds)

    def frame_received(self, kind: str) -> None:
        """A valid frame of this type came in."""
        self._received.labels(kind).inc()

    def frames_sent(self, size: int) -> None:
        """One WebSocket message of `size` bytes went out."""
        self._sent.inc()
        self._sent_bytes.inc(size)

    def quota(self, outcome: str) -> None:
        """A reservation or a settlement ended so."""
        self._quota.labels(outcome).inc()
        self.counts.quota(outcome)

    def settled(self, tenant: str, tokens: int, nano_dollars: int) -> None:
        """A tenant's message was settled with so much."""
        self.counts.settled(tenant, tokens, nano_dollars)

    # --- messages ---------------------------------------------------------------------------------------------------

    def attempt_started(self, target: str) -> None:
        """An attempt was allocated."""
        self._running.inc()

    def first_content(self, target: str, seconds: float) -> None:
        """Its first content came after `seconds`."""
        self._first.labels(target).observe(seconds)

    def attempt_ended(self, target: str, outcome: str, seconds: float) -> None:
        """It ended."""
        self._running.dec()
        self._attempts.labels(target, outcome).inc()
        self._attempt_seconds.labels(target).observe(seconds)
        self.counts.attempt_ended(target, outcome)

    def output(self, chunks: int) -> None:
        """So many pieces of output came."""
        self.counts.chunks += chunks

    def message_ended(self, state: str) -> None:
        """A message reached its end."""
        self._messages.labels(state).inc()
        self.counts.message_ended(state)

    def message_adopted(self) -> None:
        """A message that another node had left was taken over."""
        self._takeovers.inc()

    # --- the node itself ----------------------------------------------------------------------------------------------

    def store_up(self, up: bool) -> None:
        """Whether every Redis primary answers."""
        self._store_up.set(up)

    def store_evicts(self, evicts: bool) -> None:
        """Whether a Redis primary may throw keys away."""
        self._store_evicts.set(evicts)

    def loop_late(self, seconds: float) -> None:
        """The event loop came back so much later than it was asked to."""
        self._late.observe(max(0.0, seconds))

    # --- jobs -------------------------------------------------------------------------------------------------------

    def jobs_waiting(self, jobs: int, items: int) -> None:
        """So many jobs are open, and so many of their items have not begun."""
        self._open_jobs.set(jobs)
        self._waiting_items.set(items)

    def items_running(self, count: int) -> None:
        """So many items run here now."""
        self._running_items.set(count)

    def item_ended(self, outcome: str) -> None:
        """An item has a result, or (`not_begun`) will get none."""
        self._items.labels(outcome).inc()

    def item_put_off(self, what: str) -> None:
        """An item has to wait: for itself (`item`), or with its whole job (`job`)."""
        self._put_off.labels(what).inc()

    def job_ended(self, status: str) -> None:
        """A job reached its end here."""
        self._jobs.labels(status).inc()

    def webhook_tried(self, outcome: str) -> None:
        """A delivery was made, failed, or is given up."""
        self._webhooks.labels(outcome).inc()

    # --- ledger -----------------------------------------------------------------------------------------------------

    def ledger_drained(self, records: int, lag_seconds: float) -> None:
        """So many records are in the database; what is not is at most so old."""
        self._ledger_records.inc(records)
        self._ledger_lag.set(lag_seconds)

    def ledger_trouble(self, kind: str, count: int = 1) -> None:
        """`conflict`, `malformed`, `refused` or `unavailable`."""
        self._ledger_trouble.labels(kind).inc(count)

    # --- targets ----------------------------------------------------------------------------------------------------

    def target_state(self, target: str, state: str) -> None:
        """A target is in this state from now on."""
        if (before := self._state_of.get(target)) is not None:
            self._target_state.labels(target, before).set(0)
        self._state_of[target] = state
        self._target_state.labels(target, state).set(1)

    def breaker_moved(self, target: str, state: str, why: str) -> None:
        """A target's breaker made a transition, here or on another node."""
        self._breaker_moves.labels(target, state, why).inc()

    def target_alarm(self, target: str, why: str) -> None:
        """A target refuses our credential, or does not know the model: a person has to look."""
        self._alarms.labels(target, why).inc()

    def target_held(self, target: str, state: str) -> None:
        """A call was not sent to this target."""
        self._held.labels(target, state).inc()

    def probe_ended(self, target: str, outcome: str) -> None:
        """A probe of this node ended: `well`, `ill`, `throttled`, or `none` without a verdict."""
        self._probes.labels(target, outcome).inc()

    def hedge_ended(self, route: str, winner: str) -> None:
        """Two targets were asked; `first` or `second` was faster."""
        self._hedges.labels(route, winner).inc()
