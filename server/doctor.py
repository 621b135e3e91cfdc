"""`tidewire doctor`: looks at the configuration and at everything it points to, and says what to mend."""

from __future__ import annotations

import asyncio
import resource
import shutil
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import orjson
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from server.access.credentials import target_specs
from server.access.jwks import usable_keys
from server.config import ConfigError, Settings, demo_settings, load
from server.ledger.errors import LedgerUnavailable
from server.ledger.migrations import HEAD
from server.ledger.prices import uncounted_money
from server.ledger.shelf import MEMORY_URLS
from server.prompts.check import check as check_versions
from server.prompts.registry import BadRegistry
from server.prompts.service import Prompts
from server.routing.breaker import State
from server.routing.gate import TargetState
from server.routing.shared_breaker import Watched, read_states
from server.store.embedded import EmbeddedRedis, EmbeddedRedisError, FolderInUse
from server.store.eviction import REMEDY, SAFE_POLICY, UNKNOWN, policy_of
from server.store.link import Address, Link, StoreError
from server.store.store import Store
from server.store.topology import topology_of
from server.telemetry.tasks import TaskOwner
from server.upstreams.base import Fault, TargetSpec
from server.upstreams.child import ChildError
from server.upstreams.embedded import EmbeddedModelMissing
from server.upstreams.registry import LocalProcesses, Parts, build

Status = Literal["ok", "warn", "fail"]

CHECK_SECONDS: Final = 30.0
"""Time-out for one target, start of its process included."""
ASK_SECONDS: Final = 3.0
"""Time-out for one question to Redis or to a web server."""
LEDGER_SECONDS: Final = 10.0
"""Time-out for the ledger's database."""
PINGS: Final = 20
SLOW_PING_MS: Final = 5.0
"""A round trip to Redis is part of every first token."""
CLOCK_SECONDS: Final = 2.0
"""Difference of clocks that is worth a warning; tokens tolerate `auth.leeway_seconds`."""
FEW_DESCRIPTORS: Final = 10_000
"""Each socket takes one."""
LITTLE_DISK_BYTES: Final = 1 << 30
PIPED_COLUMNS: Final = 160


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the report."""

    what: str
    """What was looked at, as `redis` or `target gpt`."""
    status: Status
    message: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""


def run(config: Path | None, environ: Mapping[str, str], *, as_json: bool = False) -> int:
    """Examine, print, and give the exit code: 1 if something fails."""
    findings = asyncio.run(examine(config, environ))
    if as_json:
        sys.stdout.write(orjson.dumps([asdict(f) for f in findings], option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print_table(findings)
    return 1 if any(finding.status == "fail" for finding in findings) else 0


async def examine(config: Path | None, environ: Mapping[str, str]) -> list[Finding]:
    """Every finding. What cannot be looked at because of another failure is left out."""
    try:
        settings = demo_settings(environ) if config is None else load(config, environ)
    except ConfigError as error:
        return [Finding(problem.path, "fail", problem.message) for problem in error.problems]
    owner = TaskOwner("doctor")
    parts = [
        owner.start(part, name)
        for name, part in (
            ("port", check_port(settings)),
            ("redis", check_redis(settings, environ)),
            ("keys", check_jwks(settings)),
            ("targets", check_targets(settings, environ)),
            ("ledger", check_ledger(settings)),
        )
    ]
    source = str(config) if config is not None else "of the demo"
    secrets = sum(spec.api_key is not None for spec in target_specs(settings, environ).values())
    findings = [Finding("configuration", "ok", f"{source}; routes: {len(settings.routes)}, provider keys: {secrets}")]
    try:
        results = await asyncio.gather(*parts)
    finally:
        await owner.close()
    return [
        *findings,
        *check_auth(settings),
        *check_limits(),
        *check_folders(settings),
        *check_prices(settings),
        *check_prompts(settings),
        *check_jobs(settings),
        *(finding for result in results for finding in result),
    ]


# -- this machine --------------------------------------------------------------------------------------------------


def check_auth(settings: Settings) -> list[Finding]:
    """Whether somebody can come in, and whether it should be everybody."""
    auth, findings = settings.auth, []
    ways = [
        *(["anonymous"] if auth.anonymous else []),
        *([f"API keys: {len(auth.api_keys)}"] if auth.api_keys else []),
        *(["tokens by secret"] if auth.uses_secret else []),
        *(["tokens by identity provider"] if auth.jwks_url else []),
    ]
    if ways:
        findings.append(Finding("auth", "ok", ", ".join(ways)))
    else:
        remedy = "set auth.jwt_secret_env or auth.jwks_url, or add a key: tidewire token --api-key --name NAME"
        findings.append(Finding("auth", "warn", "nobody can come in", remedy))
    if "*" in settings.server.allowed_origins:
        remedy = "list your own origins in server.allowed_origins"
        findings.append(Finding("origins", "warn", "pages of every origin may connect", remedy))
    return findings


def check_limits() -> list[Finding]:
    """How many sockets this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEW_DESCRIPTORS:
        remedy = f"ulimit -n {hard if hard > soft else 65_536}, or LimitNOFILE= in the systemd unit"
        return [Finding("open files", "warn", f"limit {soft}: enough for about {max(soft - 100, 0)} sockets", remedy)]
    return [Finding("open files", "ok", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")]


def check_folders(settings: Settings) -> list[Finding]:
    """Whether there is room for the data."""
    findings = []
    folders = [("data", settings.redis.data_dir)] if settings.redis.url == "embedded" else []
    if settings.ledger.url.startswith("sqlite:///"):
        folders.append(("ledger", Path(settings.ledger.url.removeprefix("sqlite:///")).parent))
    for name, folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        size = f"{folder}: {free / (1 << 30):.1f} GiB free"
        if free < LITTLE_DISK_BYTES:
            findings.append(Finding(f"{name} folder", "warn", size, "make room, or choose another folder"))
        else:
            findings.append(Finding(f"{name} folder", "ok", size))
    return findings


def check_prices(settings: Settings) -> list[Finding]:
    """Whether every limit in money covers only targets whose price is known."""
    remedy = "set price_per_million_input and price_per_million_output of these targets"
    return [
        Finding("prices", "warn", f"{limit} does not count what is spent at {', '.join(targets)}", remedy)
        for limit, targets in uncounted_money(settings).items()
    ]


def check_prompts(settings: Settings) -> list[Finding]:
    """Whether the released prompts are as they were, what the routes want is there, and drafts are right."""
    try:
        prompts = Prompts.of(settings)
    except BadRegistry as error:
        return [Finding("prompts", "fail", problem) for problem in error.problems]
    registry = prompts.registry
    if registry.folder is None:
        return []
    remedy = "`tidewire prompts check` tells more"
    if problems := check_versions(registry):
        return [Finding("prompts", "warn", str(problem), remedy) for problem in problems]
    if astray := _hints_astray(prompts, settings):
        return astray
    count = sum(map(len, registry.released.values()))
    drafts = sum(map(len, registry.drafts.values()))
    return [Finding("prompts", "ok", f"{registry.folder}: {count} released versions, {drafts} drafts")]


def _hints_astray(prompts: Prompts, settings: Settings) -> list[Finding]:
    """Prompts on offer whose `options.model` is no route of this server."""
    offered = [prompt for name in prompts.registry.released for prompt in prompts.offered(name)]
    wanted = {prompt.id: prompt.declared.options.model for prompt in offered}
    return [
        Finding(
            "prompts", "warn", f"{name}: there is no route {route!r}, so `default` answers", f"add [routes.{route}]"
        )
        for name, route in wanted.items()
        if route is not None and route not in settings.routes
    ]


def check_jobs(settings: Settings) -> list[Finding]:
    """Whether anybody runs the items of jobs, and where webhooks may go."""
    jobs, findings = settings.jobs, []
    if not jobs.concurrency:
        remedy = "give another process a jobs.concurrency above 0, or jobs stay queued"
        findings.append(Finding("jobs", "warn", "processes with this configuration run no items", remedy))
    else:
        findings.append(Finding("jobs", "ok", f"at most {jobs.concurrency} items at once in each process"))
    tenants = [tenant.webhook_secret_env or tenant.webhook_secret_file for tenant in settings.tenants.values()]
    if not any((jobs.webhook_secret_env, jobs.webhook_secret_file, *tenants)):
        findings.append(Finding("webhooks", "ok", "none: jobs.webhook_secret_env is not set"))
    elif jobs.webhook_private:
        remedy = "leave out jobs.webhook_private, unless only people you trust may make jobs"
        findings.append(Finding("webhooks", "warn", "clients may have this server call private addresses", remedy))
    else:
        findings.append(Finding("webhooks", "ok", "signed; https and public addresses only"))
    return findings


async def check_ledger(settings: Settings) -> list[Finding]:
    """Whether the ledger's database answers, and which schema it has. Nothing is made or changed."""
    try:
        async with asyncio.timeout(LEDGER_SECONDS):
            return [await asyncio.to_thread(_look_at_ledger, settings.ledger.url)]
    except (LedgerUnavailable, TimeoutError) as error:
        remedy = "check ledger.url, and that the database runs; meanwhile usage records wait in Redis"
        return [Finding("ledger", "fail", str(error) or "no answer", remedy)]


def _look_at_ledger(url: str) -> Finding:
    """Raises `LedgerUnavailable`."""
    if url in MEMORY_URLS:
        remedy = "give ledger.url a path or a postgresql:// URL"
        return Finding("ledger", "warn", "in memory: usage records are lost when the process ends", remedy)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding("ledger", "ok", "SQLite: a new file, made at the first start")
    from server.ledger.database import engine_of, version_of, writing  # they load SQLAlchemy

    engine = engine_of(url)
    try:
        with writing(engine) as connection:
            kind, version = engine.dialect.name, version_of(connection)
    finally:
        engine.dispose()
    if version is None:
        return Finding("ledger", "ok", f"{kind}: empty; the table is made at the first start")
    if version > HEAD:
        remedy = "run the version of Tidewire that wrote it, or a newer one"
        return Finding("ledger", "fail", f"{kind}: schema {version} is newer than this version's {HEAD}", remedy)
    behind = "" if version == HEAD else f"; the next start brings it to {HEAD}"
    return Finding("ledger", "ok", f"{kind}: schema {version}{behind}")


async def check_port(settings: Settings) -> list[Finding]:
    """Whether the port is free, or has Tidewire on it already."""
    host, port = settings.server.host, settings.server.port
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            return [Finding("port", "ok", f"{where} is free")]
    if await _is_tidewire(f"http://{f'[{host}]' if ':' in host else host}:{port}/healthz"):
        return [Finding("port", "ok", f"{where}: a server answers there")]
    return [Finding("port", "fail", f"{where}: {problem}", "choose another server.port (or --port)")]


async def _is_tidewire(url: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


# -- Redis ---------------------------------------------------------------------------------------------------------


async def check_redis(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Every primary behind `redis.url`, and what it knows of the targets; an embedded server is started for it."""
    url = settings.redis.url
    if url != "embedded":
        return [*await _check_primaries(url), *await check_breakers(url, settings, environ)]
    server = EmbeddedRedis(settings.redis.data_dir)
    try:
        async with server:
            return [*await _check_primaries(server.url), *await check_breakers(server.url, settings, environ)]
    except FolderInUse:
        found = Finding("redis", "ok", f"embedded; {settings.redis.data_dir} is in use by a running server")
        return [found, *await check_breakers(server.url, settings, environ)]
    except EmbeddedRedisError as error:
        return [Finding("redis", "fail", "the embedded server does not start", str(error))]


async def check_breakers(url: str, settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """How the nodes that serve see each target; nothing if Redis cannot be asked, which is told elsewhere."""
    watched = [Watched.of(spec) for spec in target_specs(settings, environ).values()]
    try:
        async with asyncio.timeout(ASK_SECONDS):
            store = await Store.connect(url, ())
            try:
                states = await read_states(store, watched, settings.breaker)
            finally:
                await store.close()
    except (StoreError, TimeoutError, ValueError):
        return []
    return [_target_state(state) for state in states]


def _target_state(state: TargetState) -> Finding:
    what = f"target {state.name}: breaker"
    if state.state == State.CLOSED:
        return Finding(what, "ok", "closed: in use")
    why = f"{state.state} ({state.why}), opened {state.openings} times in a row" if state.openings else state.state
    again = f"; tried again in {state.retry_after_ms / 1000:.0f} s" if state.retry_after_ms else ""
    remedies: dict[str, str] = {
        Fault.UNAUTHORIZED: "the provider refuses the key: check api_key_env and the account's credit",
        Fault.NOT_FOUND: "the provider does not know the model or the path: check model and base_url",
        Fault.RATE_LIMITED: "the provider limits this key: ask for more, or add a target with another key",
    }
    remedy = remedies.get(state.why, "the provider fails or is slow; the route's other targets serve meanwhile")
    return Finding(what, "warn", why + again, "" if state.state == State.RAMPING else remedy)


async def _check_primaries(url: str) -> list[Finding]:
    try:
        ranges = await topology_of(url).ask()
    except (StoreError, ValueError) as error:
        return [Finding("redis", "fail", str(error), "check redis.url, and that the server runs")]
    addresses: list[Address] = list(dict.fromkeys(address for _, _, address in ranges))
    covered = sum(last - first + 1 for first, last, _ in ranges)
    findings = []
    if covered < 16_384:
        remedy = "repair the cluster: redis-cli --cluster fix"
        findings.append(Finding("redis", "fail", f"only {covered} of 16384 slots are served", remedy))
    for address in addresses:
        name = "redis" if len(addresses) == 1 else f"redis {address}"
        try:
            async with asyncio.timeout(ASK_SECONDS * 3):
                findings += await check_server(name, address)
        except (RedisError, StoreError, OSError, TimeoutError) as error:
            problem = f"{address}: {error or 'no answer'}"
            findings.append(Finding(name, "fail", problem, "check redis.url, its password, and that the server runs"))
    return findings


@asynccontextmanager
async def _client(address: Address) -> AsyncIterator[Redis]:
    kind: type[Any]
    options: dict[str, Any]
    if address.path is not None:
        kind, options = UnixDomainSocketConnection, {"path": address.path}
    else:
        kind = Connection if address.tls is None else SSLConnection
        options = {"host": address.host, "port": address.port, "socket_connect_timeout": ASK_SECONDS}
    client = Redis(
        connection_pool=ConnectionPool(
            connection_class=kind,
            username=address.username,
            password=address.password,
            db=address.db,
            socket_timeout=ASK_SECONDS,
            **options,
        )
    )
    try:
        yield client
    finally:
        await client.aclose()
        await client.connection_pool.aclose()


async def check_server(name: str, address: Address) -> list[Finding]:
    """Version, eviction, durability, latency and clock of one primary. Raises redis-py's errors and `StoreError`."""
    async with _client(address) as client:
        info = await client.info()
        return [
            _version(name, info),
            await _eviction(name, address),
            _durability(name, info),
            await _latency(name, client),
            await _clock(name, client),
        ]


def _version(name: str, info: Mapping[str, Any]) -> Finding:
    product, least = ("Valkey", 8) if "valkey_version" in info else ("Redis", 7)
    version = str(info.get("valkey_version") or info["redis_version"])
    if int(version.split(".")[0]) < least:
        return Finding(name, "fail", f"{product} {version} is too old", "Redis 7 or Valkey 8 is the least")
    return Finding(name, "ok", f"{product} {version}")


async def _eviction(name: str, address: Address) -> Finding:
    link = Link(address)
    try:
        await link.ready(ASK_SECONDS)
        policy = await policy_of(link)
    finally:
        await link.close()
    if policy == UNKNOWN:
        return Finding(f"{name}: eviction", "warn", "not told", f"make sure that maxmemory-policy is {SAFE_POLICY}")
    if policy != SAFE_POLICY:
        return Finding(f"{name}: eviction", "fail", f"maxmemory-policy is {policy}", REMEDY)
    return Finding(f"{name}: eviction", "ok", f"maxmemory-policy {policy}")


def _durability(name: str, info: Mapping[str, Any]) -> Finding:
    if not int(info.get("aof_enabled", 0)):
        remedy = "set appendonly yes; without it, a restart of Redis loses running messages and quotas"
        return Finding(f"{name}: durability", "warn", "AOF is off", remedy)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(f"{name}: durability", "fail", "AOF cannot be written", "look at the disk of the Redis server")
    return Finding(f"{name}: durability", "ok", "AOF is on")


async def _latency(name: str, client: Redis) -> Finding:
    times = []
    for _ in range(PINGS):
        started = time.perf_counter()
        await client.ping()
        times.append((time.perf_counter() - started) * 1000)
    median = statistics.median(times)
    message = f"median {median:.2f} ms, longest {max(times):.2f} ms of {PINGS}"
    if median > SLOW_PING_MS:
        return Finding(f"{name}: latency", "warn", message, "put Redis nearer: every reply waits for it")
    return Finding(f"{name}: latency", "ok", message)


async def _clock(name: str, client: Redis) -> Finding:
    before = time.time()
    seconds, microseconds = await client.time()
    difference = seconds + microseconds / 1e6 - (before + time.time()) / 2
    message = f"differs by {abs(difference):.3f} s"
    if abs(difference) > CLOCK_SECONDS:
        return Finding(f"{name}: clock", "warn", message, "let NTP set both clocks")
    return Finding(f"{name}: clock", "ok", message)


# -- the world -----------------------------------------------------------------------------------------------------


async def check_jwks(settings: Settings) -> list[Finding]:
    """Whether the identity provider's keys can be had."""
    url = settings.auth.jwks_url
    if url is None:
        return []
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    remedy = "check auth.jwks_url and the network"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                return [Finding("identity provider", "fail", f"{url}: status {response.status}", remedy)]
            keys = usable_keys(orjson.loads(await response.read()))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return [Finding("identity provider", "fail", f"{url}: {error or 'no answer'}", remedy)]
    if not keys:
        return [Finding("identity provider", "fail", f"{url}: no public signing key", remedy)]
    return [Finding("identity provider", "ok", f"{url}: keys: {len(keys)}")]


async def check_targets(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Ask every target's driver. Targets of one kind share the processes they need, as they do in service."""
    groups: dict[str, dict[str, TargetSpec]] = defaultdict(dict)
    for name, spec in target_specs(settings, environ).items():
        groups[spec.driver][name] = spec
    results = await asyncio.gather(*(_check_group(group) for group in groups.values()))
    unused = sorted(set(settings.targets) - {name for route in settings.routes.values() for name in route.targets})
    warnings = [Finding(f"target {name}", "warn", "no route uses it", "add it to a route") for name in unused]
    return [*(finding for result in results for finding in result), *warnings]


async def _check_group(specs: Mapping[str, TargetSpec]) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_SECONDS), _parts(specs) as parts:
            return await asyncio.gather(*(_check_target(spec, parts) for spec in specs.values()))
    except* (ChildError, EmbeddedModelMissing, OSError) as group:
        problem = "; ".join(str(error) or "did not start in time" for error in group.exceptions)
    return [Finding(f"target {name}", "fail", problem) for name in specs]


@asynccontextmanager
async def _parts(specs: Mapping[str, TargetSpec]) -> AsyncIterator[Parts]:
    """The processes that these targets need, running."""
    processes = LocalProcesses(list(specs.values()))
    try:
        parts = Parts.of(await processes.start())
        try:
            await processes.ready()
            yield parts
        finally:
            await parts.close()
    finally:
        await processes.stop()


async def _check_target(spec: TargetSpec, parts: Parts) -> Finding:
    driver = build(spec, parts)
    started = time.perf_counter()
    try:
        problem = await driver.check()
    finally:
        await driver.close()
    if problem is not None:
        return Finding(f"target {spec.name}", "fail", problem)
    spent = (time.perf_counter() - started) * 1000
    return Finding(f"target {spec.name}", "ok", f"{spec.driver} {spec.model} answers ({spent:.0f} ms)")


# -- the report ----------------------------------------------------------------------------------------------------


def _print_table(findings: Iterable[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.message)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="dim" if finding.status == "ok" else "cyan")
        table.add_row(Text(finding.status, style=styles[finding.status]), finding.what, text)
    Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS).print(table)
