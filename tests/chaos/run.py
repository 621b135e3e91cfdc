"""One chaos run: everything started, faults as scheduled, everything mended, everything checked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.exceptions import RedisError

from tests.chaos.audit import Stored, audit_ledger, audit_totals, match_usage, unbooked
from tests.chaos.clients import STUCK_SECONDS, Crowd, added_delays
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.faults import Fault, Store, schedule
from tests.chaos.figures import Figures
from tests.chaos.proxy import Link, Proxy, proxying, shuffled
from tests.chaos.rig import MODEL, Rig, incarnation, rig
from tests.processes import AS_SHIPPED, DidNotStart, ServeProcess
from tests.servers import RedisServer

SLOW_BYTES_PER_SECOND: Final = 6_000.0
PROGRESS_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 4.0
STARTS: Final = 10
"""Times that a node is started again which ended because Redis was away."""
RECOVERY_SECONDS: Final = 20.0
"""New text later than this after a kill belongs to another trouble."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    seconds: float
    seed: int = 1
    nodes: int = 4
    clients: int = 24
    store: Store = "single"
    quiet: bool = False


class Trouble:
    """Carries out the faults."""

    def __init__(self, r: Rig, proxies: Sequence[Proxy], store: RedisServer | Cluster, figures: Figures) -> None:
        self.rig = r
        self.proxies = proxies
        self.store = store
        self.figures = figures
        self.well = set(range(len(r.nodes)))
        """Nodes that serve."""
        self.killed: dict[str, tuple[float, float]] = {}
        """Message → when its owner was killed, by the monotonic clock and by that of the upstream's log."""
        self._store_busy = asyncio.Lock()

    def ports(self) -> list[int]:
        """Where a load balancer would send: what is up; what is stopped only it can't tell."""
        return [node.port for node in self.rig.nodes if node.process is not None and node.process.returncode is None]

    async def carry_out(self, fault: Fault) -> None:
        """Do it, wait, undo it."""
        if fault.kind in ("kill", "stop", "drain"):
            await self._on_node(fault)
        elif fault.kind in ("freeze", "restart", "failover"):
            async with self._store_busy:
                self.figures.counts[fault.kind] += 1
                await getattr(self, f"_{fault.kind}")(fault)
        else:
            await self._on_links(fault)

    # --- nodes ----------------------------------------------------------------------------------------------------

    async def _on_node(self, fault: Fault) -> None:
        if len(self.well) < 2:
            return
        number = sorted(self.well)[fault.which % len(self.well)]
        node = self.rig.nodes[number]
        self.well.discard(number)
        self.figures.counts[fault.kind] += 1
        try:
            await getattr(self, f"_{fault.kind}")(node, fault.seconds)
        finally:
            self.well.add(number)

    async def _kill(self, node: ServeProcess, seconds: float) -> None:
        owner, at = incarnation(node), (time.monotonic(), time.time())
        await node.kill()
        for message_id in await self._owned_by(owner):
            self.killed[message_id] = at
        await asyncio.sleep(seconds)
        await self._start(node)

    async def _owned_by(self, owner: str) -> list[str]:
        """The running messages of a node that is dead, as long as nobody has taken them over."""
        try:
            stored = await asyncio.wait_for(self.rig.stored(), 2.0)
        except (RedisError, OSError, TimeoutError):
            return []
        return [m.id for m in stored.values() if m.owner == owner and m.state not in ("done", "failed", "cancelled")]

    async def _stop(self, node: ServeProcess, seconds: float) -> None:
        node.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            node.signal(signal.SIGCONT)

    async def _drain(self, node: ServeProcess, seconds: float) -> None:
        code = await node.stop()
        if code != 0:
            self.figures.problem("stuck", f"a drained node ended with exit code {code}")
        await self._start(node)

    async def _start(self, node: ServeProcess) -> None:
        """Start it as a supervisor does: again and again, for it ends if it finds no Redis to begin with."""
        for _ in range(STARTS):
            try:
                await node.start()
                return
            except DidNotStart:
                self.figures.counts["starts_again"] += 1
                await asyncio.sleep(1.0)
        await node.start()

    # --- connections ----------------------------------------------------------------------------------------------

    async def _on_links(self, fault: Fault) -> None:
        links = [link for proxy in self.proxies for link in proxy.links]
        chance = random.Random(fault.which)
        chosen = chance.sample(links, min(len(links), 1 + int(len(links) * fault.share)))
        self.figures.counts[fault.kind] += len(chosen)
        for link in chosen:
            self._break(link, fault, chance)
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
            for link in chosen:
                if fault.kind == "black_hole":
                    link.cut()
                else:
                    link.delay_seconds = 0.0

    def _break(self, link: Link, fault: Fault, chance: random.Random) -> None:
        if fault.kind == "cut":
            link.cut()
        elif fault.kind == "half_close":
            link.half_close(chance.choice(["client", "node"]))
        elif fault.kind == "delay":
            link.delay_seconds = chance.uniform(0.02, 0.4)
        else:
            link.black_hole()

    # --- Redis ----------------------------------------------------------------------------------------------------

    async def _freeze(self, fault: Fault) -> None:
        assert isinstance(self.store, RedisServer)
        self.store.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.store.thaw()

    async def _restart(self, fault: Fault) -> None:
        assert isinstance(self.store, RedisServer)
        self.store.kill()
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.store.start)

    async def _failover(self, fault: Fault) -> None:
        assert isinstance(self.store, Cluster)
        group = self.store
        dead = await asyncio.to_thread(group.fail_over, fault.which % 3)
        self.rig.primaries[:] = await asyncio.to_thread(group.urls)
        await asyncio.to_thread(dead.start)
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(group.replicated):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@contextmanager
def _store(kind: Store) -> Iterator[tuple[str, list[str], RedisServer | Cluster]]:
    """URL for the nodes, URLs of the primaries, and what to break."""
    if kind == "single":
        with RedisServer() as server:
            yield server.url, [server.url], server
    else:
        with cluster(replicas=True) as group:
            yield group.url, group.urls(), group


async def run(plan: Plan) -> Figures:
    """Run it; nothing of it is left when it returns."""
    figures = Figures()
    faults = schedule(plan.seed, plan.seconds, plan.store)
    if not plan.quiet:
        print(f"seed {plan.seed}: {len(faults)} faults", *faults, sep="\n")
    async with AsyncExitStack() as stack:
        url, primaries, store = stack.enter_context(_store(plan.store))
        sections: dict[str, Any] = {"server": {"drain_seconds": DRAIN_SECONDS}, "redis": AS_SHIPPED}
        r = await stack.enter_async_context(rig(url, plan.nodes, primaries, **sections))
        chance = random.Random(plan.seed)
        trouble: Trouble

        def backends() -> list[int]:
            return shuffled(trouble.ports(), chance)

        fast = await stack.enter_async_context(proxying(backends))
        slow = await stack.enter_async_context(proxying(backends, _slowed))
        trouble = Trouble(r, [fast, slow], store, figures)
        crowd = Crowd(fast.url, slow.url, plan.seed, figures)
        await _run_faults(plan, faults, trouble, crowd)
        await _check(r, crowd, trouble)
        if not figures.passed:
            _keep_logs(r, plan, store)
    return figures


def _keep_logs(r: Rig, plan: Plan, store: RedisServer | Cluster) -> None:
    """After a failure: what everybody said."""
    folder = Path(tempfile.mkdtemp(prefix=f"tidewire-chaos-seed-{plan.seed}-"))
    for number, node in enumerate(r.nodes):
        shutil.copy(node.log, folder / f"node-{number}.log")
    shutil.copy(r.log.path, folder / "upstream.jsonl")
    for server in [store] if isinstance(store, RedisServer) else store.servers:
        shutil.copy(server.folder / "server.log", folder / f"redis-{server.port}.log")
    print(f"logs are kept in {folder}")


def _slowed(link: Link) -> None:
    link.bytes_per_second = SLOW_BYTES_PER_SECOND


async def _run_faults(plan: Plan, faults: Sequence[Fault], trouble: Trouble, crowd: Crowd) -> None:
    """Clients ask while things break; then everything is mended, and what was asked for is awaited."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        progress = group.create_task(_tell(plan, began, crowd))
        workers = [group.create_task(crowd.worker(number)) for number in range(plan.clients)]
        async with asyncio.TaskGroup() as troubles:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                troubles.create_task(trouble.carry_out(fault))
            await asyncio.sleep(max(0.0, began + plan.seconds - time.monotonic()))
        crowd.stop.set()
        for proxy in trouble.proxies:
            for link in proxy.links:
                link.heal()
        crowd.healed_at = time.monotonic()
        _, late = await asyncio.wait(workers, timeout=STUCK_SECONDS + 20.0)
        for worker in late:
            crowd.figures.problem("stuck", f"{worker.get_name()} did not come to an end")
            worker.cancel()
        progress.cancel()


async def _tell(plan: Plan, began: float, crowd: Crowd) -> None:
    while not plan.quiet:
        await asyncio.sleep(PROGRESS_SECONDS)
        count = crowd.figures.counts
        told = f"{count['messages']} asked, {crowd.open} open, {count['done']} done, {count['cancelled']} cancelled"
        broken = f"{count['kill']} kills, {count['stop']} stops, {count['drain']} drains, {count['cut']} cuts"
        print(
            f"{time.monotonic() - began:6.0f} s  {told}; {broken}; {len(crowd.figures.problems)} problems", flush=True
        )


# --- checks at the end ------------------------------------------------------------------------------------------------


async def _check(r: Rig, crowd: Crowd, trouble: Trouble) -> None:
    figures = crowd.figures
    stored = await _all_settled(r)
    rows = await _all_booked(r, stored, figures)
    await _check_totals(r, crowd, rows)
    for asked in crowd.asked.values():
        message = stored.get(asked.id)
        if asked.accepted and message is None and asked.end is None:
            figures.problem("lost", f"{asked.id}: accepted, and Redis does not know it")
            continue
        if asked.accepted and asked.end is None and message is not None and message.state != "done":
            figures.counts["ended_unseen"] += 1
        verdict = r.verdict(asked.messages, message, asked.forgotten > 0)
        if asked.forgotten:
            records = 0 if message is None else len(message.records)
            figures.counts["forgotten"] += 1
            figures.counts["generated_again"] += max(0, len(r.log.calls(asked.messages)) - records)
        for kind, found in (("doubled", verdict.doubled), ("double_billed", verdict.double_billed)):
            for text in found:
                figures.problem(kind, text)
        for text in verdict.unpaid:
            figures.problem("double_billed", text)
        for text in audit_ledger(asked.messages, message, rows.get(asked.id, ()), r.log, MODEL, asked.forgotten > 0):
            figures.problem("misbooked", text)
        if message is not None:
            figures.counts["takeovers"] += sum(record["outcome"] == "owner_lost" for record in message.records)
            if message.state not in ("done", "failed", "cancelled"):
                figures.problem("stuck", f"{asked.id}: still {message.state} in Redis")
        delays = added_delays(asked, r.log.calls(asked.messages))
        figures.added += delays
        if not asked.troubled and message is not None and len(message.records) == 1:
            figures.added_calm += delays
        if asked.id in trouble.killed:
            _note_recovery(asked.restarted_at, r.log.calls(asked.messages), trouble.killed[asked.id], figures)
    figures.counts["upstream_calls"] = r.log.count()


async def _check_totals(r: Rig, crowd: Crowd, rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """The whole ledger against the whole log: what was told is what is booked, or was never heard by who asked."""
    figures = crowd.figures
    usages = [
        match_usage(asked.messages, rows.get(asked.id, ()), r.log, asked.forgotten > 0)
        for asked in crowd.asked.values()
    ]
    for text in audit_totals(usages, await r.reported(), r.log):
        figures.problem("misbooked", text)
    for message_id in rows.keys() - crowd.asked.keys():
        figures.problem("misbooked", f"{message_id}: in the ledger, and nobody asked for it")
    figures.counts["tokens_told"] = r.log.usage().output
    figures.counts["tokens_booked"] = sum(usage.booked.output for usage in usages)
    figures.counts["tokens_unheard"] = sum(usage.unheard.output for usage in usages)


def _note_recovery(
    restarts: list[tuple[float, int]], calls: list[dict[str, Any]], killed: tuple[float, float], figures: Figures
) -> None:
    """How long it took after a kill: to the survivor's call upstream, and to the first new text at a client."""
    called = [call["t"] - killed[1] for call in calls if call["t"] > killed[1]]
    shown = [at - killed[0] for at, _ in restarts if at > killed[0]]
    if called and min(called) < RECOVERY_SECONDS:
        figures.takeover.append(min(called))
    if shown and min(shown) < RECOVERY_SECONDS:
        figures.recovery.append(min(shown))


async def _all_booked(r: Rig, stored: dict[str, Stored], figures: Figures) -> dict[str, list[dict[str, Any]]]:
    """The ledger, once it has every attempt; the drain may have to wait for another node's lease."""
    rows: dict[str, list[dict[str, Any]]] = {}
    missing: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STUCK_SECONDS):
            while True:
                rows = await r.booked()
                if not (missing := unbooked(stored.values(), rows)):
                    break
                await asyncio.sleep(0.5)
    for text in missing:
        figures.problem("misbooked", text)
    figures.counts["rows"] = sum(map(len, rows.values()))
    return rows


async def _all_settled(r: Rig) -> dict[str, Any]:
    """Everything in Redis, once nothing runs any more (a message that nobody follows still ends)."""
    stored: dict[str, Any] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STUCK_SECONDS):
            while True:
                stored = await r.stored()
                if all(message.state in ("done", "failed", "cancelled") for message in stored.values()):
                    break
                await asyncio.sleep(0.5)
    return stored
