"""The asyncio client against a real WebSocket server on this machine that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Literal

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from protocol.client.aio import Client, ClientEvent, Disconnected, Message, connect, new_id
from protocol.client.events import ConversationMessage, PongReceived, Resyncing, Stalled, Welcomed
from protocol.client.failures import (
    ClientClosed,
    ConnectionFailed,
    MessageBroken,
    MessageFailed,
    MessageLost,
    MessageRefused,
)
from protocol.client.message import MessageState
from protocol.client.timing import Backoff
from protocol.errors import CloseCode
from tests.unit.protocol.model_server import Journal, Map, SocketServer, refusal, welcome

WORDS = [f"{number} " for number in range(50)]
TEXT = "".join(WORDS)
ASK = [{"role": "user", "content": "Count."}]


def counting(journal: Journal) -> None:
    journal.attempt()
    journal.delta(reasoning="hm")
    for word in WORDS:
        journal.delta(text=word)
    journal.end("done")


def endless(journal: Journal) -> None:
    journal.attempt()
    journal.delta(text="and ")


def client_of(server: SocketServer, **options: Any) -> Client:
    return connect(server.url, proxy=None, **({"backoff": Backoff(lambda: 0.0)} | options))


@pytest.fixture(autouse=True)
async def _no_task_leaks() -> AsyncIterator[None]:
    yield
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("tidewire")]


async def collect(message: Message) -> str:
    """What a reader that heeds `replaces` has at the end."""
    shown = ""
    async for piece in message:
        shown = piece.text if piece.replaces else shown + piece.text
    return shown


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_ask_and_read(codec: Literal["json", "msgpack"]) -> None:
    async with SocketServer(counting).running() as server:
        async with client_of(server, codec=codec) as client:
            message = await client.send(messages=ASK, model="default")
            assert await collect(message) == TEXT
            whole = await message.done()
        assert server.closes == [CloseCode.NORMAL]
    assert (whole.text, whole.reasoning, whole.state, whole.resyncs) == (TEXT, "hm", MessageState.DONE, 0)
    assert await collect(message) == TEXT
    assert server.arrived[0][1] == {"type": "send", "id": message.id, "messages": ASK, "model": "default"}


async def test_many_messages_over_dropped_sockets() -> None:
    """Nothing is lost, doubled or generated twice, wherever the socket drops."""
    events: list[ClientEvent] = []
    server = SocketServer(counting, breaks=[0, 1, 3, 20, 100, 60])
    async with server.running(), client_of(server, on_event=events.append) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(collect(client.ask(messages=ASK))) for _ in range(8)]
    assert [task.result() for task in tasks] == [TEXT] * 8
    assert server.model.generations == 8
    assert len([event for event in events if isinstance(event, Disconnected)]) == 6
    assert client.reconnects == 5  # the first connection was never greeted


async def test_the_reader_sees_a_restart() -> None:
    def restarting(journal: Journal) -> None:
        journal.attempt()
        journal.delta(text="first try")
        journal.attempt("restart")
        journal.delta(text="second")
        journal.end("done")

    async with SocketServer(restarting).running() as server, client_of(server) as client:
        message = client.ask(messages=ASK)
        pieces = [piece async for piece in message]
        assert [(piece.text, piece.replaces) for piece in pieces][-1] in (("second", True), ("second", False))
        assert await collect(message) == "second"


async def test_refused() -> None:
    def refuse_once(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "send" and len(server.arrived[0]) == 2:
            del server.model.journals[frame["id"]]
            return [refusal("send", "quota_exceeded", frame["id"], retry_after_ms=50)]
        return answer

    server = SocketServer(counting, edit=refuse_once)
    async with server.running(), client_of(server) as client:
        message = client.ask(messages=ASK)
        with pytest.raises(MessageRefused) as refused:
            await message.done()
        assert (refused.value.code, refused.value.retryable) == ("quota_exceeded", True)
        assert refused.value.retry_after_seconds == 0.05
        assert await message.retry()
        assert await collect(message) == TEXT
        assert not await message.retry()


async def test_failed_with_a_part() -> None:
    def half(journal: Journal) -> None:
        journal.attempt()
        journal.delta(text="half")
        journal.end("failed")

    async with SocketServer(half).running() as server, client_of(server) as client:
        message = await client.send(messages=ASK)
        with pytest.raises(MessageFailed) as failed:
            await collect(message)
        assert message.text == "half"
        assert failed.value.message.partial


async def test_lost_and_broken() -> None:
    def lie(journal: Journal) -> None:
        counting(journal)
        journal.frames[-1]["text_bytes"] += 1

    async with SocketServer(lie).running() as server, client_of(server) as client:
        with pytest.raises(MessageLost):
            await client.resume("nobody-knows").done()
        with pytest.raises(MessageBroken):
            await (await client.send(messages=ASK)).done()


async def test_cancel() -> None:
    def stop(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "cancel":
            journal = server.model.journals[frame["id"]]
            journal.end("cancelled")
            return [journal.frames[-1]]
        return answer

    server = SocketServer(endless, edit=stop)
    async with server.running(), client_of(server) as client:
        message = await client.send(messages=ASK)
        view = await message.cancel()
        assert (view.state, view.text) == (MessageState.CANCELLED, "and ")
        assert await message.done() is view
        message.forget()
        assert client.session.messages == {}


async def test_detach_and_resume_by_another_client() -> None:
    async with SocketServer(counting).running() as server, client_of(server) as first:
        message = await first.send(messages=ASK)
        message.detach()
        with pytest.raises(ClientClosed):
            await message.done()
        async with client_of(server) as second:
            assert await collect(second.resume(message.id)) == TEXT
            kept = second.resume(message.id)
            assert kept.text == TEXT
        async with client_of(server) as third:
            point = 1 + 1 + 10
            rest = third.resume(message.id, after=point, text="".join(WORDS[:10]))
            assert (await rest.done()).text == TEXT


async def test_stalled_messages_are_resumed_after_the_delay() -> None:
    events: list[ClientEvent] = []

    def stall(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "send":
            return [*answer[:5], refusal("", "store_unavailable", frame["id"], retry_after_ms=1)]
        return answer

    server = SocketServer(counting, edit=stall)
    async with server.running(), client_of(server, on_event=events.append) as client:
        assert await collect(client.ask(messages=ASK)) == TEXT
    assert [type(event) for event in events if isinstance(event, Stalled | Resyncing)] == [Stalled]


async def test_goaway_moves_to_another_connection() -> None:
    def go(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "send" and len(server.arrived) == 1:
            return [*answer[:5], {"type": "goaway", "reason": "deploy", "reconnect_after_ms": 1}]
        return answer

    server = SocketServer(counting, edit=go)
    async with server.running(), client_of(server) as client:
        assert await collect(client.ask(messages=ASK)) == TEXT
        assert client.reconnects == 1
        assert server.model.generations == 1


async def test_heartbeats_find_a_half_open_connection() -> None:
    """The first connection answers nothing after its greeting; two beats later the client is on another."""
    pongs = asyncio.Event()

    def mute(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "hello":
            return [{**frame, "heartbeat_seconds": 0.01} for frame in answer[:1]] + answer[1:]
        return [] if len(server.arrived) == 1 else answer

    def on_event(event: ClientEvent) -> None:
        if isinstance(event, PongReceived):
            pongs.set()

    server = SocketServer(counting, edit=mute)
    async with server.running(), client_of(server, on_event=on_event) as client:
        assert await collect(client.ask(messages=ASK)) == TEXT
        await pongs.wait()
        assert client.reconnects == 1


async def test_a_malformed_frame_means_another_connection() -> None:
    def garble(frame: Map, answer: list[Map]) -> list[Map]:
        return [*answer[:9], {"type": "delta"}] if frame["type"] == "send" else answer

    async with SocketServer(counting, edit=garble).running() as server, client_of(server) as client:
        assert await collect(client.ask(messages=ASK)) == TEXT
        assert client.reconnects == 1


async def test_an_oversized_request_is_refused_here() -> None:
    def small(frame: Map, answer: list[Map]) -> list[Map]:
        return [welcome(max_frame_bytes=1000)] if frame["type"] == "hello" else answer

    async with SocketServer(counting, edit=small).running() as server, client_of(server) as client:
        big = client.ask(messages=[{"role": "user", "content": "x" * 2000}])
        several = [client.ask(messages=[{"role": "user", "content": "x" * 600}]) for _ in range(3)]
        with pytest.raises(MessageRefused, match="1000"):
            await big.done()
        assert [await collect(message) for message in several] == [TEXT] * 3
        assert len(server.arrived) == 1


async def test_a_token_source_is_asked_before_every_connection_and_before_expiry() -> None:
    tokens = iter(f"token-{number}" for number in range(100))
    renewed = asyncio.Event()

    async def source() -> str:
        return next(tokens)

    def short(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "auth" and frame["token"] == "token-2":
            renewed.set()
        return [welcome(expires_in_seconds=0.01)] if frame["type"] == "hello" else answer

    server = SocketServer(counting, edit=short)
    async with server.running(), client_of(server, token=source):
        await renewed.wait()
    assert server.arrived[0][0]["token"] == "token-0"
    assert server.arrived[0][1:3] == [{"type": "auth", "token": "token-1"}, {"type": "auth", "token": "token-2"}]


async def test_a_token_source_that_fails_for_now_is_asked_again() -> None:
    asked = 0
    renewed = asyncio.Event()

    async def source() -> str:
        nonlocal asked
        asked += 1
        if asked in (1, 3):
            raise OSError("no network")
        return f"token-{asked}"

    def short(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "auth":
            renewed.set()
        return [welcome(expires_in_seconds=0.01)] if frame["type"] == "hello" else answer

    server = SocketServer(counting, edit=short)
    async with server.running(), client_of(server, token=source):
        await renewed.wait()
    assert len(server.arrived) == 1
    assert [frame["token"] for frame in server.arrived[0] if "token" in frame] == ["token-2", "token-4"]


async def test_a_check_finds_a_connection_that_stands_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.client.aio.CHECK_SECONDS", 0.05)
    reasons: list[str] = []
    back, answered = asyncio.Event(), asyncio.Event()

    def on_event(event: ClientEvent) -> None:
        if isinstance(event, PongReceived):
            answered.set()
        if isinstance(event, Disconnected):
            reasons.append(event.reason)
        if isinstance(event, Welcomed) and reasons:
            back.set()

    def deaf(frame: Map, answer: list[Map]) -> list[Map]:
        return [] if frame["type"] == "ping" and len(server.arrived) == 1 else answer

    server = SocketServer(endless, edit=deaf)
    async with server.running(), client_of(server, on_event=on_event) as client:
        client.check()
        client.check()
        await back.wait()
        client.check()
        await answered.wait()
    assert reasons == ["the server did not answer in time"]


async def test_a_check_does_not_wait_for_the_backoff() -> None:
    down, back = asyncio.Event(), asyncio.Event()

    def on_event(event: ClientEvent) -> None:
        (down if isinstance(event, Disconnected) else back if down.is_set() else asyncio.Event()).set()

    server = SocketServer(endless)
    slow = Backoff(lambda: 1.0, base_seconds=600.0, cap_seconds=600.0)
    async with server.running(), client_of(server, on_event=on_event, backoff=slow) as client:
        server.sockets[0].transport.abort()
        await down.wait()
        client.check()
        await back.wait()
    assert len(server.arrived) == 2


async def test_closed_while_waiting() -> None:
    async with SocketServer(endless).running() as server:
        async with client_of(server) as client:
            message = await client.send(messages=ASK)
            waiting = asyncio.get_running_loop().create_task(message.done())
            await asyncio.sleep(0)
        with pytest.raises(ClientClosed):
            await waiting
        with pytest.raises(ClientClosed):
            client.ask(messages=ASK)


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async with SocketServer(endless).running() as server:
        with pytest.raises(ZeroDivisionError):
            async with client_of(server):
                raise ZeroDivisionError
        assert server.closes == [CloseCode.NORMAL]


async def handshake_status(status: HTTPStatus) -> ConnectionFailed:
    """What entering raises if the server refuses the handshake so."""

    def refuse(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(status, "no\n")

    async def never(socket: ServerConnection) -> None:
        raise AssertionError

    async with serve(never, "127.0.0.1", 0, process_request=refuse) as server:
        url = "ws://{}:{}/".format(*server.sockets[0].getsockname())
        with pytest.raises(ConnectionFailed) as failed:
            async with connect(url, proxy=None, connect_seconds=0.2, backoff=Backoff(lambda: 0.1)):
                raise AssertionError
    return failed.value


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_refused_handshakes() -> None:
    forbidden = await handshake_status(HTTPStatus.FORBIDDEN)
    assert (forbidden.code, forbidden.close_code) == ("connection_refused", 403)
    assert (await handshake_status(HTTPStatus.SERVICE_UNAVAILABLE)).code == "timeout"


async def test_a_close_code_that_means_stay_away() -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send('{"type":"error","error":{"code":"unauthenticated","message":"no such key"}}')
        await socket.close(CloseCode.UNAUTHENTICATED)

    async with serve(refuse, "127.0.0.1", 0) as server:
        url = "ws://{}:{}/".format(*server.sockets[0].getsockname())
        with pytest.raises(ConnectionFailed, match="no such key") as failed:
            async with connect(url, proxy=None):
                raise AssertionError
    assert (failed.value.code, failed.value.close_code) == ("unauthenticated", CloseCode.UNAUTHENTICATED)


async def test_a_connection_that_is_refused_later_ends_the_waiting() -> None:
    async with SocketServer(endless).running() as server, client_of(server) as client:
        message = await client.send(messages=ASK)
        await server.sockets[0].close(CloseCode.UNAUTHENTICATED)
        with pytest.raises(ConnectionFailed):
            await message.done()
        with pytest.raises(ConnectionFailed):
            client.ask(messages=ASK)


async def test_conversations() -> None:
    events: asyncio.Queue[ClientEvent] = asyncio.Queue()

    def talk(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "subscribe":
            return [{"type": "message", "conversation": frame["conversation"], "id": "z", "role": "user", "seq": 1}]
        if frame["type"] == "history":
            return [{"type": "history", "conversation": frame["conversation"], "messages": []}]
        return answer

    server = SocketServer(counting, edit=talk)
    async with server.running(), client_of(server, on_event=events.put_nowait) as client:
        client.subscribe("c")
        client.history("c", limit=3)
        kinds = [type(await events.get()).__name__ for _ in range(3)]
        client.auth("new")
        client.unsubscribe("c")
        async with asyncio.timeout(5):
            while len(server.arrived[0]) < 5:  # noqa: ASYNC110 - the server of this test has no event for it
                await asyncio.sleep(0.01)
    assert kinds == [Welcomed.__name__, "ConversationMessage", "HistoryReceived"]
    assert [frame["type"] for frame in server.arrived[0][1:]] == ["subscribe", "history", "auth", "unsubscribe"]


async def test_a_subscription_refused_for_now_is_asked_for_again() -> None:
    events: asyncio.Queue[ClientEvent] = asyncio.Queue()
    refused = {"code": "store_unavailable", "class": "temporary", "status": 503, "message": "", "retryable": True}
    answers: list[list[Map]] = [
        [{"type": "error", "re": "subscribe", "conversation": "c", "error": {**refused, "retry_after_ms": 10}}],
        [{"type": "message", "conversation": "c", "id": "z", "role": "user", "seq": 1}],
    ]

    def talk(frame: Map, answer: list[Map]) -> list[Map]:
        return answers.pop(0) if frame["type"] == "subscribe" else answer

    server = SocketServer(counting, edit=talk)
    async with server.running(), client_of(server, on_event=events.put_nowait) as client:
        client.subscribe("c")
        kinds = [type(await events.get()).__name__ for _ in range(3)]
    assert kinds == [Welcomed.__name__, "ErrorReceived", "ConversationMessage"]


def test_new_ids_differ_and_sort() -> None:
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [value[:8] for value in ids] == sorted(value[:8] for value in ids)


async def test_another_process_goes_on_with_what_the_storage_kept() -> None:
    def stop(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] == "cancel":
            journal = server.model.journals[frame["id"]]
            journal.end("cancelled")
            return [journal.frames[-1]]
        return answer

    storage: dict[str, str] = {}
    server = SocketServer(endless, edit=stop)
    async with server.running():
        async with client_of(server, storage=storage) as first:
            message = await first.send(messages=ASK)
            async for _ in message:
                break
        kept = json.loads(storage["tidewire.open"])
        assert [(entry["id"], entry["text"], entry["acknowledged"]) for entry in kept] == [(message.id, "and ", True)]
        second = client_of(server, storage=storage)
        (resumed,) = second.messages()
        assert (resumed.id, resumed.text) == (message.id, "and ")
        async with second:
            assert (await resumed.cancel()).state is MessageState.CANCELLED
        assert (resumed.text, storage) == ("and ", {})
    assert server.model.generations == 1
    assert server.arrived[1][0]["resume"] == [{"id": message.id, "after": kept[0]["cursor"]}]


async def test_what_was_asked_for_and_never_sent_is_sent_by_the_next_process() -> None:
    storage: dict[str, str] = {}
    async with SocketServer(counting).running() as server:
        asked = client_of(server, storage=storage).ask(messages=ASK)  # and the process dies before it connects
        async with client_of(server, storage=storage) as second:
            (message,) = second.messages()
            assert message.id == asked.id
            assert (await message.done()).text == TEXT
        assert storage == {}
        assert server.model.generations == 1


async def test_another_process_follows_a_conversation_from_where_the_first_one_was() -> None:
    notice = {"type": "message", "conversation": "c", "id": "e1", "role": "user", "content": "?"}

    def log_of(frame: Map, answer: list[Map]) -> list[Map]:
        if frame["type"] != "subscribe":
            return answer
        after = frame.get("after", 0)
        subscribed = {"type": "conversation", "op": "subscribed", "conversation": "c", "seq": after}
        return [subscribed, *({**notice, "seq": seq} for seq in range(after + 1, after + 3))]

    storage: dict[str, str] = {}
    server = SocketServer(counting, edit=log_of)
    told: list[int] = []

    def on_event(event: object) -> None:
        if isinstance(event, ConversationMessage):
            told.append(event.frame["seq"])
            if len(told) % 2 == 0:
                here.set()

    async with server.running():
        for after in (0, 2):
            here = asyncio.Event()
            async with client_of(server, storage=storage, on_event=on_event) as client:
                if after == 0:
                    client.subscribe("c")
                await here.wait()
                assert client.session.subscribed("c") == after + 2
        assert told == [1, 2, 3, 4]
        assert storage == {"tidewire.open.conversations": '{"c": 4}'}
        async with client_of(server, storage=storage) as last:
            last.unsubscribe("c")
        assert storage == {}


@pytest.mark.parametrize("damaged", ["", "{", "7", '[{"id": "m"}]', '[["id"]]', "null"])
async def test_damaged_storage_costs_only_the_resume(damaged: str) -> None:
    server = SocketServer(counting)
    async with (
        server.running(),
        client_of(server, storage={"tidewire.open": damaged, "tidewire.open.conversations": damaged}) as client,
    ):
        assert client.messages() == []
        assert (await client.ask(messages=ASK).done()).text == TEXT
