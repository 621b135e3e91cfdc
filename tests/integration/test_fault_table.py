"""The fault table on the wire, one case a row: each fault happens for real at the first target of a route of its own;
seen are what the client is told, which target answers, and what the breaker makes of it.

A case that ends well is no fault: the direct driver must not take it for one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.errors import ERRORS
from server.access.credentials import target_specs
from server.upstreams.base import Fault
from server.upstreams.faults import CONSEQUENCES
from server.upstreams.litellm import LitellmPool
from server.upstreams.registry import Addresses
from tests.nodes import RunningNode, running_node, settings_for
from tests.servers import RedisServer, free_port
from tests.upstreams.anthropic import AnthropicUpstream
from tests.upstreams.scripted import serving
from tests.wire import wire

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("drivers")]

QUICK: dict[str, Any] = {"connect_seconds": 0.4, "first_token_seconds": 0.8, "idle_seconds": 0.5, "total_seconds": 20.0}
BOTH, DIRECT = ("openai", "litellm"), ("openai",)


@dataclass(frozen=True)
class Case:
    """One row."""

    name: str
    script: str = ""
    """Directives of the scripted upstream, `&` between them."""
    fault: Fault | None = None
    """None: it is answered."""
    shown: bool = False
    """Content comes first: what follows is visible."""
    where: str = "upstream"
    """`closed`: nobody listens. `hole`: connections hang. `tls`: the other end speaks no TLS. `stranger`: its
    certificate is signed by nobody we know. `void`: its answer is an empty 200."""
    by_litellm: Fault | None = None
    """What litellm makes of it, if another fault: it goes on after what it cannot read, and misses the end."""
    retry_after_ms: int | None = None
    drivers: tuple[str, ...] = BOTH
    target: tuple[tuple[str, Any], ...] = ()
    """Settings of the target."""

    def as_seen_by(self, driver: str) -> Case:
        """The case with the fault that this driver makes of it."""
        return replace(self, fault=self.by_litellm) if driver == "litellm" and self.by_litellm else self


def status(code: int, fault: Fault, more: str = "", **fields: Any) -> Case:
    return Case(f"{code}{more.replace('&', ' ')}", f"status={code}{more}", fault, **fields)


AFTER = "&retry_after=7"
CASES = [
    Case("refused", fault=Fault.REFUSED, where="closed"),
    Case("black-holed", fault=Fault.CONNECT_TIMEOUT, where="hole"),
    Case("TLS failure", fault=Fault.REFUSED, where="tls"),
    Case("untrusted certificate", fault=Fault.REFUSED, where="stranger"),
    Case("reset", "reset", Fault.BROKEN_STREAM, shown=True),
    status(400, Fault.REJECTED),
    status(401, Fault.UNAUTHORIZED),
    status(402, Fault.UNAUTHORIZED),
    status(403, Fault.UNAUTHORIZED),
    status(404, Fault.NOT_FOUND),
    status(405, Fault.NOT_FOUND),
    status(406, Fault.SERVER_ERROR),
    status(407, Fault.UNAUTHORIZED),
    *(status(code, Fault.SERVER_ERROR) for code in (408, 409)),
    *(status(code, Fault.SERVER_ERROR, AFTER, retry_after_ms=7000) for code in (408, 409, 425)),
    status(410, Fault.NOT_FOUND),
    status(412, Fault.SERVER_ERROR),
    status(413, Fault.CONTEXT_LENGTH),
    status(415, Fault.REJECTED),
    status(418, Fault.SERVER_ERROR),
    status(422, Fault.REJECTED),
    status(425, Fault.SERVER_ERROR),
    status(426, Fault.SERVER_ERROR),
    status(429, Fault.RATE_LIMITED),
    status(429, Fault.RATE_LIMITED, AFTER, retry_after_ms=7000),
    status(429, Fault.RATE_LIMITED, "&retry_after=date:30", retry_after_ms=30_000),
    status(429, Fault.UNAUTHORIZED, "&code=insufficient_quota"),
    *(status(code, Fault.SERVER_ERROR) for code in (500, 502, 503, 504, 529)),
    *(status(code, Fault.SERVER_ERROR, AFTER, retry_after_ms=7000) for code in (500, 502, 503, 504, 529)),
    status(451, Fault.REJECTED),
    status(400, Fault.CONTEXT_LENGTH, "&code=context_length_exceeded"),
    status(400, Fault.CONTENT_FILTER, "&code=content_filter"),
    Case("hang before the headers", "hang=headers", Fault.FIRST_TOKEN_TIMEOUT),
    Case("hang before the first chunk", "hang=first", Fault.FIRST_TOKEN_TIMEOUT),
    Case("hang with comments", "hang=first&keepalive=0.05", Fault.FIRST_TOKEN_TIMEOUT),
    Case("hang in mid-stream", "hang=mid&at=5", Fault.IDLE_TIMEOUT, shown=True),
    Case("slow drip, in time", "drip"),
    Case(
        "slow drip, beyond the total",
        "rate=20&tokens=200",
        Fault.TOTAL_TIMEOUT,
        shown=True,
        target=(("total_seconds", 0.6),),
    ),
    Case("cut before the headers", "cut=headers", Fault.BROKEN_STREAM),
    Case("cut in a chunk", "cut=mid-chunk", Fault.BROKEN_STREAM, shown=True),
    Case("cut in a UTF-8 character", "cut=utf8", Fault.BROKEN_STREAM, shown=True),
    Case("cut between events", "cut=event", Fault.BROKEN_STREAM, shown=True),
    Case("ended without the end", "cut=clean", Fault.BROKEN_STREAM, shown=True),
    Case("malformed JSON", "malformed", Fault.GARBLED, shown=True, by_litellm=Fault.BROKEN_STREAM),
    Case("error in a 200", "error_in_200", Fault.SERVER_ERROR, shown=True),
    Case("error in a 200, at once", "error_in_200&at=0", Fault.SERVER_ERROR),
    Case("empty", "empty", Fault.EMPTY),
    Case("no finish, no [DONE]", "no_finish&no_done", Fault.BROKEN_STREAM, shown=True),
    Case("no finish, but [DONE]", "no_finish", drivers=DIRECT),
    Case("no usage", "no_usage"),
    Case("HTML error page with 200", "content_type=html", Fault.GARBLED),
    Case("whole JSON answer", "json", by_litellm=Fault.BROKEN_STREAM),
    Case("nothing at all with 200", fault=Fault.BROKEN_STREAM, where="void"),
    Case("gzip", "gzip"),
    Case("1 MB chunk", "big=1000000"),
    Case("9 MB chunk", "big=9000000", Fault.GARBLED, shown=True),
    Case("doubled end", "doubled_done"),
    Case("split writes", "split=3"),
]
EMPTY_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 0\r\n\r\n"
WARMED = {"split writes": "warm-answer", "refused": "warm-refused", "400": "warm-400", "500": "warm-500"}
"""Cases → targets of the same kind, asked once before all others."""
ROWS = [(number, driver) for number, case in enumerate(CASES) for driver in case.drivers]


@contextmanager
def black_hole() -> Iterator[str]:
    """A port whose queue of connections is full: new ones get no answer at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        plugs = [socket.socket() for _ in range(8)]
        for plug in plugs:
            plug.setblocking(False)
            plug.connect_ex(address)
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for plug in plugs:
                plug.close()


def certificate(folder: Path) -> ssl.SSLContext:
    """For a server that nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=2100)
    )
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem += key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


@asynccontextmanager
async def strange_server(context: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Without a certificate it answers a handshake in plain HTTP; with one, it waits for what never comes."""
    async with listener(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", context) as port:
        yield f"https://127.0.0.1:{port}"


@asynccontextmanager
async def listener(answer: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that answers whatever comes with these bytes."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def config(chat: str, messages: str, strange: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """A target, a key and two routes per row: one goes on to a target that answers, one does not."""
    targets: dict[str, Any] = {"sound": {"driver": "openai", "base_url": f"{chat}/v1", "model": "sound"}}
    routes: dict[str, Any] = {"default": {"targets": ["sound"]}}
    for number, driver in ROWS:
        case, name = CASES[number], f"{driver}-{number}"
        tail = f"?{case.script}" if case.script else ""
        root = {"upstream": chat if driver == "openai" else messages, **strange}[case.where]
        target = {**QUICK, "driver": driver, "base_url": f"{root}/v1", "model": f"scripted{tail}"}
        if driver == "litellm":
            target |= {"base_url": root, "model": f"anthropic/claude-sonnet-4-5{tail}"}
            key = folder / name
            key.write_text(f"sk-{name}")  # of its own: a rate limit is the credential's
            target["api_key_file"] = str(key)
        targets[name] = {**target, **dict(case.target)}
        routes[name] = {"targets": [name, "sound"]}
        routes[f"{name}-alone"] = {"targets": [name]}
        if driver == "litellm" and case.name in WARMED:
            targets[WARMED[case.name]] = {**targets[name], "first_token_seconds": 30.0, "connect_seconds": 30.0}
            routes[WARMED[case.name]] = {"targets": [WARMED[case.name]]}
    return {"targets": targets, "routes": routes}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(_valkey_process: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningNode]:
    _valkey_process.flush()
    folder = tmp_path_factory.mktemp("keys")
    async with AsyncExitStack() as stack:
        chat = await stack.enter_async_context(serving())
        messages = await stack.enter_async_context(serving(kind=AnthropicUpstream))
        strange = {
            "void": f"http://127.0.0.1:{await stack.enter_async_context(listener(EMPTY_STREAM))}",
            "closed": f"http://127.0.0.1:{free_port()}",
            "hole": stack.enter_context(black_hole()),
            "tls": await stack.enter_async_context(strange_server(None)),
            "stranger": await stack.enter_async_context(strange_server(certificate(folder))),
        }
        settings = settings_for(_valkey_process.url, chat.url, config(chat.url, messages.url, strange, folder))
        pool = LitellmPool([spec for spec in target_specs(settings, {}).values() if spec.driver == "litellm"])
        stack.push_async_callback(pool.stop)
        await pool.ready()
        addresses = Addresses(litellm=tuple(map(str, pool.paths)))
        node = await stack.enter_async_context(running_node(settings, addresses))
        await warm_up(node)
        yield node


async def warm_up(node: RunningNode) -> None:
    """litellm imports a provider's module at its first call, and more at the first of each kind of failure, which
    takes longer than the short limits here."""
    async with wire(node.url) as client:
        for name in WARMED.values():
            await client.ask(name, "script tokens=2", model=name)
            while client.view(name).end is None:
                await client.recv()


@pytest.mark.parametrize(("number", "driver"), ROWS, ids=[f"{driver}: {CASES[n].name}" for n, driver in ROWS])
async def test_each_fault_has_the_right_consequences(node: RunningNode, number: int, driver: str) -> None:
    case, name = CASES[number].as_seen_by(driver), f"{driver}-{number}"
    async with wire(node.url) as client:
        await client.ask(f"{name}-m", f"script tokens=40 seed={name}", model=name)
        view = await client.ended(f"{name}-m")
        assert view.end is not None
        if case.fault is None:
            assert (view.end["type"], view.end["target"]) == ("done", name), view.end
            assert len(view.attempts) == 1
            return
        row = CONSEQUENCES[case.fault]
        error: dict[str, Any] | None = None
        if row.next_step == "end":
            assert view.end["type"] == "failed"
            error = view.end["error"]
        else:
            assert (view.end["type"], view.end["target"]) == ("done", "sound"), view.end
            modes = [(attempt["target"], attempt["mode"]) for attempt in view.attempts]
            assert modes == ([(name, "fresh"), ("sound", "restart")] if case.shown else [("sound", "fresh")])
            assert view.attempts[-1]["reason"] == {"code": row.code, "message": row.meaning}
            await client.ask(f"{name}-a", f"script tokens=40 seed={name}", model=f"{name}-alone")
            error = await how_it_ends(client, f"{name}-a")
        said_honestly(error, case, held=row.next_step != "end" and row.breaker in ("throttles", "opens"))
        the_breaker_took_it(node, name, case, calls=1 if row.next_step == "end" else 2)


async def how_it_ends(client: Any, message_id: str) -> dict[str, Any]:
    """The error of a message, whether it was admitted or refused."""
    async with asyncio.timeout(10):
        while True:
            frame = await client.recv()
            if frame.get("id") == message_id and frame["type"] in ("failed", "error"):
                return dict(frame["error"])


def said_honestly(error: dict[str, Any], case: Case, held: bool) -> None:
    """Code, class, status, whether and when to retry; a target that is held by now is not asked again."""
    assert case.fault is not None
    row = ERRORS["all_targets_failed"] if held else ERRORS[CONSEQUENCES[case.fault].code]
    assert (error["code"], error["class"], error["status"]) == (row.code, row.error_class, row.status)
    assert error["retryable"] == (row.error_class == "temporary")
    if case.retry_after_ms is not None:
        assert error["retry_after_ms"] == pytest.approx(case.retry_after_ms, abs=2500)
    elif row.error_class == "temporary" and CONSEQUENCES[case.fault].next_step != "end":
        assert error["retry_after_ms"] > 0
    assert "scripted" not in error["message"], "a provider's own words never reach a client"


def the_breaker_took_it(node: RunningNode, name: str, case: Case, calls: int) -> None:
    assert case.fault is not None
    row = CONSEQUENCES[case.fault]
    state = next(state for state in node.node.target_states() if state.name == name)
    counted = calls if row.breaker == "counts" else 0
    expected = {"counts": "closed", "throttles": "throttled", "opens": "open", "ignored": "closed"}[row.breaker]
    assert (state.state, state.calls, state.failed) == (expected, counted, counted)
    alarms = node.node.metrics.registry.get_sample_value(
        "tidewire_target_alarms_total", {"target": name, "why": case.fault.value}
    )
    assert alarms == (1.0 if row.breaker == "opens" else None)


async def test_every_fault_of_the_table_has_a_case() -> None:
    # a worker is killed in tests/integration/test_driver_conformance.py, answers are checked in test_structured.py
    elsewhere = {Fault.WORKER_LOST, Fault.OFF_FORMAT}
    assert {case.fault for case in CASES} - {None} == set(Fault) - elsewhere
