"""One node: everything that one process needs to serve, put together and taken apart again."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from protocol.errors import CloseCode, ProtocolError
from server.access.credentials import target_specs, webhook_keys
from server.access.identity import Authenticator
from server.access.origins import OriginPolicy
from server.access.pseudonyms import shared_pseudonyms
from server.config import Settings
from server.demo.parts import DemoNode, DemoParts
from server.jobs import scripts as job_scripts
from server.jobs.service import Jobs
from server.jobs.webhooks import Webhooks
from server.ledger import scripts as ledger_scripts
from server.ledger.drain import Drain
from server.ledger.prices import price_of, provider_of, uncounted_money
from server.ledger.shelf import Shelf
from server.messages import scripts
from server.messages.conversations import Conversations
from server.messages.events import EVENT_BYTES
from server.messages.hub import Hub
from server.messages.journal import Journal
from server.messages.keeper import Keeper, Times
from server.messages.means import Means, Target
from server.messages.ownership import Ownership
from server.messages.place import Limits
from server.messages.reader import Reader
from server.messages.service import Messages
from server.overview.samples import Recorder
from server.prompts import rollout
from server.prompts.rollout import Rollouts
from server.prompts.service import Prompts
from server.prompts.watch import Watch as PromptWatch
from server.quotas import scripts as quota_scripts
from server.quotas.limits import Policies
from server.quotas.service import Quotas
from server.routing import shared_breaker
from server.routing.attempts import Route
from server.routing.gate import TargetState
from server.routing.shared_breaker import SharedBreakers, Watched
from server.sessions.actor import Closing, Peer, Session, SessionMeans
from server.sessions.audience import Audience
from server.sessions.outbound import error_frame, text_limit
from server.store.eviction import evicting
from server.store.keys import PROMPT_CHANNEL, control_channel
from server.store.link import Link, StoreError
from server.store.replicas import Replicas
from server.store.store import Store
from server.telemetry.metrics import SHARED, Metrics
from server.telemetry.spans import are_wanted
from server.telemetry.tasks import TaskOwner
from server.upstreams.base import Driver, TargetSpec
from server.upstreams.registry import Addresses, Parts, build

if TYPE_CHECKING:
    from server.telemetry.traces import Traces

log = structlog.get_logger("node")

GC_THRESHOLD: Final = 50_000
"""Allocations between collections of the youngest generation: the cyclic collector cost 9 % of a busy node's time at
the default of 700, and this code makes next to no cycles."""
WATCH_SECONDS: Final = 0.1
OUTAGE_SECONDS: Final = 1.0
"""A primary that is silent for this long is an outage worth telling clients of."""
OUTAGE_RETRY_MS: Final = 2_000
RECONNECT_SPREAD_MS: Final = 2_000
"""Over how long the clients of a draining node are told to spread their reconnects."""


HOLDS_REMEMBERED: Final = 2
"""How many times a claim's life a hold is remembered: whoever may still settle it finds whether it was settled."""


def traces_of(environ: Mapping[str, str], node: str) -> Traces | None:
    """The way to the collector of traces, if there is one."""
    if not are_wanted(environ):
        return None
    from server.telemetry.traces import Traces  # 0.2 s

    return Traces(node)


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a node is given by whoever started the embedded parts."""

    redis_url: str
    upstreams: Addresses
    demo: DemoParts | None = None
    """Set in a `tidewire demo`."""


class Node:
    """See the module. `start`, serve, `drain`, `close`."""

    def __init__(self, settings: Settings, parts: NodeParts, environ: Mapping[str, str]) -> None:
        self.id = secrets.token_hex(8)
        """A fresh random incarnation: what wakes after having been taken for dead is another node."""
        self.settings = settings
        self.parts = parts
        self.environ = environ
        self.metrics = Metrics(environ.get(SHARED))
        self.authenticator = Authenticator.from_settings(settings, environ)
        self.origins = OriginPolicy.from_settings(settings)
        self.sessions: set[Session] = set()
        self.responses: set[Peer] = set()
        """HTTP responses that follow a message."""
        self.draining = False
        self.demo = None if parts.demo is None else DemoNode(parts.demo)
        if self.demo is not None:
            self.demo.serves = lambda session: any(mine.id == session for mine in self.sessions)
        self.prompts = Prompts.of(settings)
        self.prompt_watch = PromptWatch(self.prompts)
        self._specs = target_specs(settings, environ)
        self._upstreams = Parts.of(parts.upstreams)
        self._drivers: list[Driver] = []
        self.shelf = Shelf(settings.ledger.url)
        """The ledger's database."""
        self._traces = traces_of(environ, self.id)
        self._owner = TaskOwner("node")

    async def start(self) -> None:
        """Connect to Redis and make ready to serve. Raises `StoreUnavailable` if Redis does not answer."""
        settings = self.settings
        every_script = (
            *scripts.ALL, *quota_scripts.ALL, *shared_breaker.ALL, *job_scripts.ALL, *rollout.ALL,
            *ledger_scripts.ALL,
        )  # fmt: skip
        self.store = await Store.connect(self.parts.redis_url, every_script, settings.redis.stall_ms / 1000)
        self.metrics.store_evicts(await evicting(self.store))
        self.hub = Hub(self.store, settings.messages.tail_bytes)
        await self.hub.start(control_channel(self.id))
        self.rollouts = Rollouts(self.store, self.prompts.shares)
        self.hub.listen(PROMPT_CHANNEL, lambda _: self.rollouts.wake())
        await self.rollouts.start()
        self.prompt_watch.start()
        self.journal = Journal(self.store)
        self.replicas = Replicas(self.store)
        await self.replicas.start()
        self.reader = Reader(self.store)
        self.quotas = Quotas(
            self.store,
            Policies(settings),
            self.metrics,
            HOLDS_REMEMBERED * settings.messages.claim_seconds,
            self.id,
            self._nodes,
        )
        self.quotas.start()
        self.ledger = Drain(self.store, self.id, self.shelf, self.metrics)
        self.ledger.start()
        chance = random.SystemRandom()
        routes = {name: self._route(name) for name in settings.routes}
        watched = [Watched.of(spec) for spec in self._specs.values()]
        self.breakers = SharedBreakers(watched, routes, settings.breaker, self.store, self.metrics, chance)
        await self.breakers.start()
        kept = settings.messages
        self.conversations = Conversations(
            self.store, self.hub, self.reader, self._limits(), kept.conversation_seconds, kept.claim_seconds
        )
        self.conversations.start()
        means = Means(
            store=self.store,
            journal=self.journal,
            hub=self.hub,
            targets={name: self._target(spec) for name, spec in self._specs.items()},
            routes=routes,
            watch=self.metrics,
            event_bytes=min(EVENT_BYTES, text_limit(settings.server.max_frame_bytes)),
            conversations=self.conversations,
            max_bytes=settings.messages.max_bytes,
            quotas=self.quotas,
            gate=self.breakers,
            replicas=self.replicas,
            tracer=self._traces,
            pseudonym=(await shared_pseudonyms(settings.ledger, self.environ, self.store)).of,
        )
        times = Times(kept.retention_seconds, kept.claim_seconds)
        self.keeper = Keeper(means, self.reader, self.id, times, chance)
        self.messages = Messages(means, self.reader, self.keeper, self.id, chance, self.prompts)
        self.messages.start()
        self.ownership = Ownership(self.store, self.id, kept.takeover_seconds, self.keeper.adopt)
        self.ownership.reconcile = self.keeper.reconcile
        await self.ownership.start()
        self.jobs = self._make_jobs()
        self.jobs.start()
        self._owner.start(self._watch_store(), "store watch")
        self.session_means = SessionMeans(
            self.messages,
            self.authenticator,
            self.metrics,
            settings.server.max_frame_bytes,
            Audience(self.hub, self.quotas),
        )
        self.recorder = Recorder(self.store, self._sample)
        self.recorder.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        for limit, uncounted in uncounted_money(settings).items():
            log.warning("money_not_counted", limit=limit, targets=uncounted, hint="their prices are not known")
        log.info("node_started", node=self.id)

    def _make_jobs(self) -> Jobs:
        kept = self.settings.jobs
        keys = webhook_keys(self.settings, self.environ)
        webhooks = Webhooks(keys, kept.webhook_private, kept.webhook_retry_seconds)
        return Jobs(kept, self.messages, self.quotas, webhooks, self.metrics)

    def _nodes(self) -> int:
        """How many nodes there were when Redis last answered, this one among them."""
        return self.ownership.others + 1

    def _target(self, spec: TargetSpec) -> Target:
        section = self.settings.targets[spec.name]
        driver = build(spec, self._upstreams)
        self._drivers.append(driver)
        price, provider = price_of(section), provider_of(section)
        return Target(spec.name, spec.model, driver, price, spec.prefill, provider, section.context_tokens)

    def _limits(self) -> dict[str, Limits]:
        return {
            name: Limits(tier.conversations, tier.conversation_entries, tier.conversation_bytes)
            for name, tier in self.settings.tiers.items()
        }

    def _route(self, name: str) -> Route:
        section = self.settings.routes[name]
        targets = {name: self.settings.targets[name] for name in section.targets}
        return Route(
            name,
            section.targets,
            section.on_midstream_failure,
            frozenset(name for name, target in targets.items() if target.prefill),
            {name: target.context_tokens for name, target in targets.items() if target.context_tokens is not None},
            None if section.hedge_after_ms is None else section.hedge_after_ms / 1000,
            section.hedge_at_p95,
            section.hedge_budget,
        )

    def _sample(self) -> dict[str, Any]:
        """What this node did since the last sample, and how it stands."""
        return {
            "node": self.id,
            "sessions": len(self.sessions),
            "running": len(self.keeper.running),
            "targets": [state.as_dict() for state in self.target_states()],
            **self.metrics.counts.take(),
        }

    def target_states(self) -> list[TargetState]:
        """How every target stands, as this node sees it: for the HTTP surface, the page and `tidewire doctor`."""
        return self.breakers.target_states()

    async def _watch_store(self) -> None:
        """While a primary is down, tell the followers of its running messages once: resume later (G9)."""
        loop = asyncio.get_running_loop()
        down: dict[Link, float] = {}
        told: set[Link] = set()
        while True:
            asked = loop.time()
            await asyncio.sleep(WATCH_SECONDS)
            self.metrics.loop_late(loop.time() - asked - WATCH_SECONDS)
            self.metrics.store_up(self.store.available)
            for link in self.store.links():
                if link.available:
                    down.pop(link, None)
                    told.discard(link)
                elif loop.time() - down.setdefault(link, loop.time()) > OUTAGE_SECONDS and link not in told:
                    told.add(link)
                    self._tell_outage(link)

    def _tell_outage(self, link: Link) -> None:
        log.error("store_outage", address=str(link.address))
        error = ProtocolError(
            "store_unavailable", "the store does not answer; resume later", retry_after_ms=OUTAGE_RETRY_MS
        ).as_dict()
        for peer in (*self.sessions, *self.responses):
            for message_id in peer.out.follows_on(link, self.store):
                peer.say(error_frame(None, message_id, error))

    @property
    def ready(self) -> bool:
        """Whether new work should be sent here."""
        return not self.draining and self.store.reachable

    @property
    def degraded(self) -> bool:
        """Whether some of Redis' primaries do not answer."""
        return not self.store.available

    async def drain(self) -> None:
        """Take no new work, send clients elsewhere, let running messages finish; at most `drain_seconds`.

        What still runs then is left to the other nodes, at once and visibly.
        """
        self.draining = self.messages.draining = True
        self.ownership.adopting = False
        log.info("draining", sessions=len(self.sessions), messages=len(self.keeper.running))
        spread = min(RECONNECT_SPREAD_MS, round(self.settings.server.drain_seconds * 500))
        for peer in (*self.sessions, *self.responses):
            peer.say({"type": "goaway", "reason": "draining", "reconnect_after_ms": random.randrange(spread + 1)})
        giving = self._owner.start(self._hand_over_waiting(), "hand over")
        await self.jobs.drain()
        try:
            async with asyncio.timeout(self.settings.server.drain_seconds):
                await self.keeper.idle()
        except TimeoutError:
            log.warning("handing_over", messages=len(self.keeper.running))
        giving.cancel()
        await self.keeper.abandon()
        try:
            await self.ownership.leave()
        except (StoreError, TimeoutError):
            log.warning("left_without_word")  # the others find out by the heartbeat
        for peer in (*self.sessions, *self.responses):
            peer.close_soon(Closing(CloseCode.SERVICE_RESTART, "draining"))

    async def _hand_over_waiting(self) -> None:
        """What waits for its turn must not begin here, if there is another node that it can begin on."""
        heir = secrets.token_hex(8)
        while True:
            try:
                if self.ownership.others and self.keeper.waiting:
                    await self.ownership.bequeath(heir)
                    log.info("waiting_handed_over", messages=await self.keeper.hand_over_waiting(heir))
            except (StoreError, TimeoutError) as error:
                log.info("hand_over_put_off", error=str(error))
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        """Let go of everything, in the order in which nothing misses another."""
        await self._owner.close()
        await self.recorder.close()
        await self.jobs.close()
        await self.messages.close()
        await self.keeper.close()
        await self.conversations.close()
        await self.prompt_watch.close()
        await self.rollouts.close()
        await self.quotas.close()
        await self.ledger.close()
        self.shelf.close()
        await self.breakers.close()
        await self.ownership.close()
        await self.journal.close()
        await self.replicas.close()
        await self.hub.close()
        for driver in self._drivers:
            await driver.close()
        await self._upstreams.close()
        await self.authenticator.close()
        await self.store.close()
        if self._traces is not None:
            await self._traces.close()
        log.info("node_stopped", node=self.id)
