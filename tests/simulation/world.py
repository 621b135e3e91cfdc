"""One simulated world: nodes that run the shipped code, clients, an upstream, a Redis, and what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

from protocol.client.message import ClientMessage
from protocol.codec import JSON
from protocol.errors import ProtocolError
from server.access import scopes
from server.access.identity import Principal
from server.access.limits import ConnectionLimits
from server.config.sections import ServerSettings
from server.ledger.cost import Price
from server.messages import scripts
from server.messages.conversations import Conversations
from server.messages.hub import Hub
from server.messages.journal import Journal
from server.messages.keeper import Keeper, Times
from server.messages.means import Means, Target
from server.messages.ownership import Ownership
from server.messages.reader import Reader
from server.messages.service import Messages
from server.prompts.service import Prompts
from server.quotas import scripts as quota_scripts
from server.quotas.base import Payer
from server.quotas.limits import Limits, Policy
from server.quotas.service import Quotas
from server.routing import shared_breaker
from server.routing.attempts import Route
from server.routing.gate import Gate
from server.sessions import handlers as _handlers  # noqa: F401 - fills the table of handlers
from server.sessions.actor import Session, SessionLimits, SessionMeans
from server.sessions.audience import Audience
from server.sessions.outbound import Outbound
from server.store.keys import control_channel
from server.store.link import Address, StoreError
from server.store.replicas import Replicas
from server.store.store import Script, Store
from server.store.topology import SingleTopology
from server.upstreams.base import Fault
from tests.permissive import NoQuota, OpenGate
from tests.simulation.check import BOGUS, Check, Violation
from tests.simulation.clients import SimClient
from tests.simulation.loop import WORLD, Handle, Host, SimLoop
from tests.simulation.network import EPOCH, Delays, SimLink, SimServer, SimSocket
from tests.simulation.outages import MARGIN_SECONDS, SILENCE_SECONDS
from tests.simulation.schedule import OUTPUT_TOKENS, TARGETS, Schedule
from tests.simulation.upstream import SimDriver, Upstream, request

QUIET_SECONDS: Final = 60.0
"""How long after the last fault everything must have come to an end."""
LOOK_SECONDS: Final = 0.2
MAX_FRAME_BYTES: Final = 2_048
"""A small limit, so that snapshots come in parts."""
PRICE: Final = Price(Decimal(1), Decimal(2))
BEYOND: Final = 7
_SETTINGS: Final = ServerSettings(
    frames_per_second=1_000_000, frames_per_second_per_user=1_000_000, handshakes_per_minute_per_user=1_000_000
)
"""Paces are kept by the real clock, which a simulated world outruns: none may bind."""
OWNERS: Final = ("hub:", "messages:", "journal:", "ownership:", "quotas:", "breakers:", "store:", "n")
"""Names of those whose tasks may not die of an exception."""


def _nothing(*args: Any) -> None:
    pass


class NoMetrics:
    """Hears of everything and counts nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        setattr(self, name, _nothing)  # found by itself from now on
        return _nothing


class SimPolicies:
    """The same for everybody (`server.quotas.limits.Policies`)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.route_output: dict[str, int | None] = {}

    def of(self, payer: Payer) -> Policy:
        """See `Policies`."""
        return self.policy


class Silence:
    """Tells nobody of limits (`server.sessions.audience`)."""

    say: Any = None

    def channel(self, payer: Payer) -> bytes:
        return b""

    def heard(self, payer: Payer, data: bytes) -> None:
        pass

    async def standing(self, payer: Payer) -> tuple[list[dict[str, Any]], int]:
        return [], 0

    def listen(self, name: bytes, heard: Callable[[bytes], None]) -> asyncio.Future[None]:
        confirmed = asyncio.get_running_loop().create_future()
        confirmed.set_result(None)
        return confirmed

    def unlisten(self, name: bytes) -> None:
        pass


class Door:
    """Knows everybody by their token, which is their name."""

    async def authenticate(self, token: str | None) -> Principal:
        """See `Authenticates`."""
        if token is None:
            raise ProtocolError("unauthenticated", "no token")
        return Principal("t", "sub", token, "free", scopes.ALL, None)


class SimOutbound(Outbound):
    """Hashes by its number, so that followers are woken in the same order in every run."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SimNode:
    """One node, put together as `server.node.Node` does it."""

    def __init__(self, world: World, number: int, incarnation: int) -> None:
        self.world = world
        self.number = number
        self.id = f"n{number}.{incarnation}"
        self.name = self.id
        self.host = Host(self.id)
        self.inside = world.loop.context_of(self.host)
        self.links: list[SimLink] = []
        self.sessions: dict[SimSocket, Session] = {}
        self.limits = SessionLimits(_SETTINGS, ConnectionLimits(_SETTINGS))
        self.quotas: Quotas | None = None
        """Where the world has limits."""
        self.audience: Audience | None = None
        self.ready = False
        self.left = False
        """It said goodbye: its messages may be taken at once."""

    def start(self) -> None:
        """Boot."""
        self.world.loop.create_task(self._boot(), name=f"{self.id} boot", context=self.inside)

    def _link(self, address: Address, *args: Any) -> SimLink:
        link = SimLink(self.world.server, self.host, address, *args)
        self.links.append(link)
        return link

    @property
    def _scripts(self) -> Sequence[Script]:
        schedule = self.world.schedule
        quotas = () if schedule.limits is None else quota_scripts.ALL
        breakers = () if schedule.breakers is None else shared_breaker.ALL
        return (*scripts.ALL, *quotas, *breakers)

    @property
    def _price(self) -> Price | None:
        return None if self.world.schedule.limits is None else PRICE

    def _quotas(self, store: Store) -> Quotas | None:
        limits = self.world.schedule.limits
        if limits is None:
            return None
        policies = SimPolicies(Policy(tuple(Limits(*four) for four in limits.owners), OUTPUT_TOKENS, limits.outage))  # type: ignore[arg-type]
        quotas = Quotas(
            store, policies, NoMetrics(), 7200.0, self.id, lambda: self.ownership.others + 1, limits.lease_seconds
        )  # type: ignore[arg-type]
        quotas.start()
        return quotas

    async def _gate(self, store: Store, routes: dict[str, Route], chance: random.Random) -> Gate:
        """The breakers, where the world has them."""
        breakers = self.world.schedule.breakers
        if breakers is None:
            return OpenGate()
        watched = [shared_breaker.Watched(name, f"model-{name}", (name,), SILENCE_SECONDS) for name in TARGETS]
        gate = shared_breaker.SharedBreakers(
            watched, routes, breakers.settings, store, NoMetrics(), chance, MARGIN_SECONDS, self._wall_clock
        )
        await gate.start()
        return gate

    def _wall_clock(self) -> float:
        return EPOCH + self.world.loop.now

    async def _boot(self) -> None:
        world = self.world
        schedule = world.schedule
        while True:
            try:
                store = Store(SingleTopology(Address()), self._scripts, make_link=self._link)  # type: ignore[arg-type]
                await store.start()
                break
            except StoreError:
                await store.close()
        hub = Hub(store, schedule.tail_bytes)
        await hub.start(control_channel(self.id))
        reader = Reader(store)
        self.quotas = self._quotas(store)
        chance = random.Random(f"{schedule.seed} {self.id}")
        routes = {"default": Route("default", TARGETS, schedule.on_midstream, frozenset(TARGETS))}  # type: ignore[arg-type]
        means = Means(
            store=store,
            journal=Journal(store),
            hub=hub,
            targets={
                name: Target(name, f"model-{name}", SimDriver(world.upstream, name, self.id), self._price, True)
                for name in TARGETS
            },
            routes=routes,
            watch=NoMetrics(),  # type: ignore[arg-type]
            event_bytes=schedule.event_bytes,
            max_bytes=1_000_000,
            replicas=Replicas(store),
            gate=await self._gate(store, routes, random.Random(f"breakers {schedule.seed} {self.id}")),
            quotas=self.quotas or NoQuota(),
            conversations=Conversations(store, hub, reader, {}, 3600.0, 3600.0),
        )
        self.keeper = Keeper(means, reader, self.id, Times(schedule.retention_seconds, 3600.0), chance)
        self.messages = Messages(means, reader, self.keeper, self.id, chance, Prompts())
        self.messages.start()
        self.ownership = Ownership(store, self.id, schedule.takeover_seconds, self.keeper.adopt)
        self.ownership.reconcile = self.keeper.reconcile
        while True:
            try:
                await self.ownership.start()
                break
            except (StoreError, TimeoutError):
                await asyncio.sleep(0.1)
        self.audience = audience = Audience(Silence(), Silence()) if self.quotas is None else Audience(hub, self.quotas)
        self.means = SessionMeans(self.messages, Door(), NoMetrics(), MAX_FRAME_BYTES, audience)  # type: ignore[arg-type]
        self.ready = True
        world.note(self.id, "ready")

    def accept(self, client: SimClient) -> SimSocket:
        """A client connects."""
        world = self.world
        socket = SimSocket(world.loop, world.delays, self.host, client)
        socket.on_sent = lambda frames, size: world.sent(self, socket, client, frames, size)
        world.loop.create_task(self._serve(socket), name=f"{self.id} {client.name}", context=self.inside)
        return socket

    async def _serve(self, socket: SimSocket) -> None:
        try:
            await self._converse(socket)
        except Exception as error:  # noqa: BLE001 - whatever ends a session is a defect
            self.world.loop.errors.append(error)
        finally:
            self.sessions.pop(socket, None)

    async def _converse(self, socket: SimSocket) -> None:
        session = Session(socket, JSON, self.means, self.limits)  # type: ignore[arg-type]
        out = session.out
        session.out = SimOutbound(out.codec, out.reader, MAX_FRAME_BYTES)
        self.world.sockets += 1
        session.out.number = self.world.sockets
        self.sessions[socket] = session
        await session.run()

    async def leave(self, patience: float) -> None:
        """Drain as `Node.drain` does."""
        self.messages.draining = True
        self.ownership.adopting = False
        for session in self.sessions.values():
            session.say({"type": "goaway", "reason": "draining", "reconnect_after_ms": 50})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.keeper.idle()
        self.left = True
        await self.keeper.abandon()
        with contextlib.suppress(StoreError, TimeoutError):
            await self.ownership.leave()
        self.world.loop.call_soon(self.world.kill, self.number, 0.5, False, context=self.world.outside)


class World:
    """See the module. `run` plays the schedule to its end and raises `Violation`."""

    judge: type[Check] = Check
    quiet_seconds = QUIET_SECONDS

    def __init__(
        self, schedule: Schedule, edit_script: Callable[[bytes], bytes] | None = None, verbose: bool = False
    ) -> None:
        self.schedule = schedule
        self.loop = SimLoop(schedule.seed)
        self.chance = random.Random(f"world {schedule.seed}")
        self.delays = Delays(self.chance, schedule.usual_delay, schedule.spike, schedule.spikes)
        self.outside = self.loop.context_of(WORLD)
        self.tracing = verbose
        self.trace: list[str] = []
        self.digest = 0
        self.check = self.judge(self)
        keep_undo = any(step.kind == "crash" and step.args[1] for step in schedule.steps)
        self.server = SimServer(self.loop, self.delays, self.chance, keep_undo, edit_script)
        self.server.watch = self.check.ran
        self.server.on_lost = self.check.lost
        self.upstream = Upstream(self.chance)
        self.upstream.on_call = self.check.called
        self.upstream.on_end = self.check.call_ended
        self.upstream.speeches = {f"m{i}": speech for i, speech in enumerate(schedule.speeches)}
        self.nodes: list[SimNode] = []
        self.by_id: dict[str, SimNode] = {}
        self.clients = [SimClient(self, i, f"u{user}") for i, user in enumerate(schedule.users)]
        self.sockets = 0
        self.probed: set[tuple[int, str]] = set()
        self.faulty = any(step.kind in FAULTS for step in schedule.steps)
        self.disturbed: list[tuple[float, float, str]] = []
        """(from, to, whom) of everything that excuses a late takeover."""
        self._faults_end = max((step.at for step in schedule.steps), default=0.0)

    # --- helpers ---

    def request(self, message_id: str, **more: Any) -> dict[str, Any]:
        """What a client asks for under this id."""
        return request(message_id, **more)

    def note(self, *words: Any) -> None:
        """Add a line to the trace."""
        if self.tracing:
            line = f"{self.loop.now:9.4f} " + " ".join(map(str, words))
            self.digest = zlib.crc32(line.encode(), self.digest)
            self.trace.append(line)

    def later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Run something outside all nodes."""
        return self.loop.call_later(seconds, callback, *args, context=self.outside)

    def pick_node(self) -> SimNode | None:
        """Where a load balancer sends a new connection: mostly to one that answers."""
        alive = [node for node in self.nodes if node.ready and not node.host.dead and not node.left]
        well = [node for node in alive if not node.host.paused]
        if well and (len(well) == len(alive) or self.chance.random() < 0.8):
            return self.chance.choice(well)
        return self.chance.choice(alive) if alive else None

    def sent(
        self, node: SimNode, socket: SimSocket, client: SimClient, frames: list[dict[str, Any]], size: int
    ) -> None:
        """A node sends frames to a client."""
        if self.tracing:
            for frame in frames:
                shown = {k: v for k, v in frame.items() if k not in ("server_time", "session", "usage", "text_sha256")}
                self.note(node.name, "->", client.name, str(shown)[:200])
        self.check.sent(node, socket, client, frames, size)

    def loses_frame(self, frame: dict[str, Any]) -> bool:
        """Whether this one vanishes."""
        share = self.schedule.lost_frames
        return bool(share) and "seq" in frame and self.loop.now < self._faults_end + 2 and self.chance.random() < share

    def continues(self, message_id: str) -> bool:
        """Whether some attempt went on with the text of another."""
        return any(called.prefilled for called in self.upstream.by_message.get(message_id, ()))

    def never_refused(self, message: ClientMessage) -> bool:
        """Whether this refusal is none that faults explain."""
        return not (message.error or {}).get("retryable")

    def calm(self, start: float, end: float, but: str) -> bool:
        """Whether nothing but the death of `but` happened in that time, and somebody lived to see it."""
        if any(a < end and b > start and who != but for a, b, who in self.disturbed):
            return False
        return any(node.ready and not node.host.dead for node in self.nodes)

    def troubled(self, start: float, end: float) -> bool:
        """Whether anything but deaths and departures of nodes befell them in that time."""
        return any(a < end and b > start and who in TROUBLES for a, b, who in self.disturbed)

    # --- what befalls it ---

    def boot(self, number: int) -> None:
        """Start a node, or a new incarnation of it."""
        node = SimNode(self, number, sum(n.number == number for n in self.by_id.values()) + 1)
        if number < len(self.nodes):
            self.nodes[number] = node
        else:
            self.nodes.append(node)
        self.by_id[node.id] = node
        node.start()

    def kill(self, number: int, restart_after: float, noisy: bool = True) -> None:
        """Kill -9: its connections break, what it sent may still arrive; it starts again as another."""
        node = self.nodes[number]
        if node.host.dead:
            return
        self.note("world", "kills", node.id)
        if noisy:
            self.check.died(node)
        self.loop.kill(node.host)
        for link in node.links:
            link.drop(may_arrive=self.chance.random() < 0.5)
            if link._connection is None:
                link._closed = True
        for client in self.clients:
            if client.socket is not None and client.socket.host is node.host:
                client.socket.cut_off = True
                half_open = self.chance.random() < 0.15
                self.later(3.0 if half_open else self.delays.draw(), self._reset, client, client.socket)
        now = self.loop.now
        self.disturbed.append((now, now + restart_after + 1.0, node.id))
        self.later(restart_after, self.boot, number)

    def _reset(self, client: SimClient, socket: SimSocket) -> None:
        if client.socket is socket:
            client.drop("reset")

    def step_ask(self, client: int, message: int) -> None:
        if (client, f"m{message}") not in self.probed:  # an error for the probe would be taken for one of this
            self.clients[client].ask(f"m{message}")

    def step_follow(self, client: int, message: int) -> None:
        if f"m{message}" in self.check.by_id and (client, f"m{message}") not in self.probed:
            self.clients[client].follow(f"m{message}")

    def step_cancel(self, client: int, message: int) -> None:
        self.clients[client].cancel(f"m{message}")

    def step_detach(self, client: int, message: int) -> None:
        self.clients[client].detach(f"m{message}")

    def step_probe(self, client: int, message: int) -> None:
        truth = self.check.by_id.get(f"m{message}")
        prober = self.clients[client]
        self.probed.add((client, f"m{message}"))
        taken = truth is not None and self.schedule.limits is None  # where none refuses it, it is taken for good
        if taken and not self.faulty and f"m{message}" not in prober.session.messages:
            prober.probe(f"m{message}")

    def step_cut_client(self, client: int, noticed_after: float) -> None:
        self.clients[client].drop("cut", noticed_after)

    def step_stall_client(self, client: int, seconds: float) -> None:
        self.clients[client].stall(seconds)

    def step_cut_link(self, node: int, may_arrive: bool, which: int) -> None:
        links = self.nodes[node].links
        self.disturbed.append((self.loop.now, self.loop.now + 2.0, "link"))
        for index, link in enumerate(links):
            if which == 2 or which == index:
                link.drop(may_arrive)

    def step_kill(self, node: int, restart_after: float) -> None:
        self.kill(node, restart_after)

    def step_pause(self, node: int, seconds: float, after: int) -> None:
        host = self.nodes[node].host
        if host.dead or host.paused:
            return
        self.disturbed.append((self.loop.now, self.loop.now + seconds + 1.5, "pause"))
        self.loop.pause(host, after)
        self.later(seconds, self._wake, host)

    def _wake(self, host: Host) -> None:
        self.note("world", "wakes", host.name)
        self.loop.wake(host)

    def step_freeze(self, seconds: float) -> None:
        if self.server.down or self.server.frozen:
            return
        self.disturbed.append((self.loop.now, self.loop.now + seconds + 1.5, "freeze"))
        self.server.freeze()
        self.later(seconds, self.server.thaw)

    def step_crash(self, down_seconds: float, lost: int) -> None:
        if self.server.down:
            return
        self.disturbed.append((self.loop.now, self.loop.now + down_seconds + 3.0, "crash"))
        self.server.crash(lost)
        self.later(down_seconds, self.server.restart)

    def step_clock(self, seconds: float) -> None:
        self.server.skew += seconds

    def step_outage(self, target: str, seconds: float, fault: Fault, after: float) -> None:
        self.upstream.outages[target] = fault, after
        self.later(seconds, self.upstream.outages.pop, target)

    def step_leave(self, number: int, patience: float) -> None:
        node = self.nodes[number]
        if node.ready and not node.host.dead and not node.left and len(self.nodes) > 1:
            self.disturbed.append((self.loop.now, self.loop.now + patience + 2.0, "leave"))
            self.loop.create_task(node.leave(patience), name="leave", context=node.inside)

    # --- running ---

    def run(self) -> None:
        """Play it. Raises `Violation`."""
        try:
            self._play()
        finally:
            self.loop.drop()

    def _play(self) -> None:
        for number in range(self.schedule.nodes):
            self.boot(number)
        for client in self.clients:
            self.later(0.03, client.connect)
        for step in self.schedule.steps:
            self.later(step.at, self._step, step)
        self._until("come to an end", self._is_over)
        self._late_readers()
        self._until("be told to late readers", lambda: not self._untold())
        self.check.finally_()
        self._raise()

    def _untold(self) -> bool:
        books = self.check.books
        return any(client.unsettled() for client in self.clients) or (books is not None and bool(books.untold()))

    def _step(self, step: Any) -> None:
        self.note("world", step)
        getattr(self, f"step_{step.kind}")(*step.args)

    def _until(self, what: str, over: Callable[[], bool]) -> None:
        bad = self.check.found
        errors = self.loop.errors
        deadline = max(self._faults_end, self.loop.now) + self.quiet_seconds
        look_at = self.loop.now
        done = False

        def until() -> bool:
            nonlocal look_at, done
            if bad or errors:
                return True
            if self.loop.now < look_at:
                return False
            look_at = self.loop.now + LOOK_SECONDS
            done = over()
            return done

        self.loop.run(until, deadline)
        self._raise()
        if not done and not over():
            self.check.fail("liveness", f"it did not {what}: {self._left_over()}")
            self._raise()

    def _raise(self) -> None:
        self.loop.errors += self.loop.defects(OWNERS)
        if self.loop.errors:
            error = self.loop.errors[0]
            if isinstance(error, str):
                raise Violation(f"defect: {error}")
            raise Violation(f"defect: a callback raised {type(error).__name__}: {error}") from error
        if self.check.found:
            raise Violation(self.check.found[0])

    def _is_over(self) -> bool:
        if self.loop.now < self._faults_end + 0.1 or self.server.down or self.server.frozen:
            return False
        if any(client.unsettled() for client in self.clients):
            return False
        if not all(node.ready and not node.host.paused for node in self.nodes):
            return False
        for truth in self.check.truths.values():
            record = self.check._record(truth.record)
            if b"standing" not in record if record else self.check.owed(truth):
                return False
        return not any(node.keeper.running or node.keeper.finishing for node in self.nodes)

    def _left_over(self) -> str:
        left = [f"{c.name}: {m.id} is {m.state} at {m.cursor}" for c in self.clients for m in c.unsettled()]
        for truth in self.check.truths.values():
            record = self.check._record(truth.record)
            if record and b"standing" not in record:
                left.append(f"{truth.id}: {record[b'state'].decode()} at {record[b'head'].decode()}")
        left += [
            f"{node} has not told what is left" for node in (self.check.books.untold() if self.check.books else ())
        ]
        for node in self.nodes:
            if not node.ready or node.host.paused:
                left.append(f"{node.id} is not up")
            elif node.keeper.running or node.keeper.finishing:
                left.append(f"{node.id} runs {len(node.keeper.running)}")
        return "; ".join(left)

    def _late_readers(self) -> None:
        """After the end: devices that come late, from a point within, from the start, or from beyond the head."""
        for truth in list(self.check.truths.values()):
            record = self.check._record(truth.record)
            if not record:
                continue
            if self.chance.random() < 0.3:
                self.server.space.delete(truth.record[:-1] + b"j")
            reader = SimClient(self, len(self.clients), record[b"user"].decode())
            line = truth.now
            at = self.chance.randrange(max(1, len(line.seqs) - 1))
            beyond = self.chance.random() < 0.25
            cursor, text = (line.head + BEYOND, BOGUS) if beyond else (line.seqs[at], line.texts[at])
            reader.session.resume(truth.id, after=cursor, text=text)
            self.clients.append(reader)
            reader.connect()


TROUBLES: Final = frozenset({"link", "pause", "freeze", "crash"})
FAULTS: Final = frozenset(
    {"outage", "cut_client", "stall_client", "cut_link", "kill", "pause", "freeze", "crash", "leave"}
)
