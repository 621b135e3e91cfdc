"""What the vectors do not show of the session, and the promise they stand for: never a wrong text silently."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.client.events import (
    AttemptStarted,
    ConversationMessage,
    ErrorReceived,
    GoingAway,
    HistoryReceived,
    MessageAccepted,
    MessageEnded,
    Output,
    PongReceived,
    QuotaChanged,
    Stalled,
    Welcomed,
)
from protocol.client.message import MessageState
from protocol.client.session import ClientSession, MalformedFrame
from protocol.frames import MAX_RESUMES_PER_HELLO, parse_client_frame
from tests.unit.protocol.model_server import Journal, Map, ModelServer, Standing, refusal, welcome

REQUEST: Map = {"messages": [{"role": "user", "content": "Hello"}]}


def greeted(**fields: Any) -> ClientSession:
    session = ClientSession(token="secret")
    session.hello()
    session.receive(welcome(**fields))
    return session


def accept(session: ClientSession, *ids: str) -> None:
    for message_id in ids:
        session.send(message_id, REQUEST)
        session.receive({"type": "accepted", "id": message_id, "replay": False, "state": "streaming", "seq": 0})
    session.outgoing()


def test_events() -> None:
    session = ClientSession()
    session.hello()
    (event,) = session.receive(welcome(expires_in_seconds=60))
    assert isinstance(event, Welcomed)
    assert (event.heartbeat_seconds, event.expires_in_seconds) == (20, 60)
    message = session.send("m", REQUEST)
    session.subscribe("c")
    frames: list[Map] = [
        {"type": "accepted", "id": "m", "replay": False, "state": "queued", "seq": 0, "queue_position": 3},
        {"type": "attempt", "id": "m", "seq": 1, "attempt": 1, "target": "t", "model": "x", "mode": "fresh"},
        {"type": "delta", "id": "m", "after": 1, "seq": 2, "text": "Hi"},
        {"type": "error", "id": "m", "error": refusal("", "store_unavailable", retry_after_ms=250)["error"]},
        {"type": "failed", "id": "m", "seq": 3, "error": {"code": "internal"}, "usage": {"output_tokens": 1}},
        {"type": "quota", "limits": []},
        {"type": "message", "conversation": "c", "id": "z", "role": "user", "seq": 1},
        {"type": "history", "conversation": "c", "messages": []},
        {"type": "pong", "nonce": 7},
        {"type": "goaway", "reason": "deploy", "reconnect_after_ms": 1500},
        {"type": "error", "re": "auth", "error": {"code": "forbidden"}},
    ]
    events = [event for frame in frames for event in session.receive(frame)]
    assert [type(event) for event in events] == [
        MessageAccepted,
        AttemptStarted,
        Output,
        Stalled,
        MessageEnded,
        QuotaChanged,
        ConversationMessage,
        HistoryReceived,
        PongReceived,
        GoingAway,
        ErrorReceived,
    ]
    assert message.queue_position == 3
    assert (events[3].retry_after_seconds, events[9].reconnect_after_seconds) == (0.25, 1.5)  # type: ignore[union-attr]
    assert message.usage == {"output_tokens": 1}


def test_hello_is_a_valid_frame_with_token_and_client() -> None:
    frame = ClientSession(token="secret").hello()
    parse_client_frame(frame)
    assert (frame["token"], frame["client"]["name"]) == ("secret", "tidewire-python")


def test_more_open_messages_than_a_hello_may_carry() -> None:
    session = greeted()
    count = MAX_RESUMES_PER_HELLO + 3
    accept(session, *(f"m{n}" for n in range(count)))
    session.disconnected()
    frame = session.hello()
    parse_client_frame(frame)
    assert len(frame["resume"]) == MAX_RESUMES_PER_HELLO
    session.receive(welcome(resumed=[{"id": p["id"], "state": "streaming", "seq": 0} for p in frame["resume"]]))
    assert [(f["type"], f["id"]) for f in session.outgoing()] == [("resume", f"m{n}") for n in range(count - 3, count)]


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"type": "delta"},
        {"type": "delta", "id": "m"},
        {"type": "accepted", "id": ["m"]},
        {"type": "pong", "open": 3},
    ],
)
def test_malformed_frames_are_told_apart(frame: Map) -> None:
    session = greeted()
    accept(session, "m")
    with pytest.raises(MalformedFrame):
        session.receive(frame)
    assert session.messages["m"].state is MessageState.FOLLOWING


def test_an_id_is_asked_for_once() -> None:
    session = greeted()
    session.send("m", REQUEST)
    with pytest.raises(ValueError, match="asked for before"):
        session.send("m", REQUEST)


def test_nothing_goes_out_before_the_greeting() -> None:
    session = ClientSession()
    session.send("m", REQUEST)
    session.ping(1)
    session.hello()
    assert session.outgoing() == []
    session.receive(welcome())
    assert session.has_outgoing
    assert [frame["type"] for frame in session.outgoing()] == ["send"]
    assert session.outgoing() == []


def test_what_a_new_connection_is_told() -> None:
    session = greeted()
    session.subscribe("c1")
    session.subscribe("c2")
    session.unsubscribe("c2")
    session.history("c1", before="x", limit=5)
    session.auth("newer")
    session.outgoing()
    session.disconnected()
    assert session.hello()["token"] == "newer"
    session.receive(welcome())
    frames = session.outgoing()
    assert frames == [
        {"type": "subscribe", "conversation": "c1"},
        {"type": "history", "conversation": "c1", "limit": 5, "before": "x"},
    ]
    session.receive({"type": "history", "conversation": "c1", "messages": []})
    session.disconnected()
    session.hello()
    session.receive(welcome())
    assert [frame["type"] for frame in session.outgoing()] == ["subscribe"]


def test_messages_of_a_subscribed_conversation_are_followed_until_forgotten() -> None:
    session = greeted()
    session.subscribe("c")
    session.receive({"type": "delta", "id": "z", "after": 0, "seq": 2, "text": "Hi"})
    assert session.messages["z"].text == "Hi"
    session.forget("z")
    assert session.receive({"type": "delta", "id": "z", "after": 2, "seq": 3, "text": "!"}) == []
    assert not session.messages


def test_retry_needs_a_request_and_a_failure() -> None:
    session = greeted()
    accept(session, "m")
    assert not session.retry("m")
    session.resume("other")
    session.receive(refusal("resume", "message_unknown", "other"))
    assert session.messages["other"].state is MessageState.LOST
    assert not session.retry("other")


def test_a_retry_that_may_not_have_arrived_is_repeated() -> None:
    session = greeted()
    accept(session, "m")
    session.receive({"type": "failed", "id": "m", "seq": 1, "error": refusal("", "internal")["error"]})
    assert session.retry("m")
    session.outgoing()
    session.disconnected()
    assert "resume" not in session.hello()
    session.receive(welcome())
    (frame,) = session.outgoing()
    parse_client_frame(frame)
    assert (frame["type"], frame["retry_of"], frame["after"]) == ("send", 1, 1)


def test_detach_and_cancel_of_what_is_over() -> None:
    session = greeted()
    accept(session, "m")
    assert session.detach("m")
    assert not session.detach("m")
    session.messages["m"].state = MessageState.DONE
    session.outgoing()
    assert session.cancel("m") == []
    assert not session.has_outgoing


# --- never a wrong text silently ------------------------------------------------------------------------------------

pieces = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
steps = st.one_of(
    st.tuples(st.just("text"), pieces),
    st.tuples(st.just("text"), pieces),
    st.tuples(st.just("reasoning"), pieces),
    st.tuples(st.just("call"), pieces),
    st.tuples(st.just("restart"), st.just("")),
    st.tuples(st.just("continue"), st.just("")),
    st.tuples(st.just("takeover"), st.sampled_from(["restart", "continue"])),
)


def fill(journal: Journal, story: list[tuple[str, str]], end: str, tells_after: bool = True) -> None:
    journal.tells_after = tells_after
    journal.attempt()
    for kind, text in story:
        match kind:
            case "call":
                journal.delta(tool_calls=[{"index": len(text) % 2, "function": {"name": "f", "arguments": text}}])
            case "restart" | "continue":
                journal.attempt(kind)
            case "takeover" if journal.tells_after:
                journal.attempt(text, jump=2**20 + len(journal.frames))
            case "takeover":
                journal.attempt("restart")
            case _:
                journal.delta(**{kind: text})
    journal.end(end)


def merged(frames: list[Map], size: int) -> list[Map]:
    """Neighbouring text deltas as one, at most `size` of them."""
    found: list[Map] = []
    for frame in frames:
        last = found[-1] if found else {}
        if "text" in frame and "text" in last and frame["type"] == last["type"] == "delta" and last["n"] < size:
            found[-1] = {**last, "seq": frame["seq"], "text": last["text"] + frame["text"], "n": last["n"] + 1}
        else:
            found.append({**frame, "n": 1})
    return [{key: value for key, value in frame.items() if key != "n"} for frame in found]


def exchange(session: ClientSession, server: ModelServer, frames: list[Map], size: int = 1) -> list[Map]:
    """The server's answers to client frames."""
    return [answer for frame in frames for answer in merged(server.answer(frame), size)]


def stands(session: ClientSession, journal: Journal) -> None:
    """The client's text is that of its cursor; once done, it is the whole."""
    message = session.messages["m"]
    if message.state is MessageState.BROKEN:
        return
    if message.state in (MessageState.DONE, MessageState.FAILED, MessageState.CANCELLED):
        assert message.text == journal.at(journal.head).text
        return
    expected: Standing = journal.at(message.cursor)
    assert (message.text, message.reasoning, message.tool_calls) == (
        expected.text,
        expected.reasoning,
        expected.calls.calls,
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=12), st.sampled_from(["done", "failed", "cancelled"]), st.booleans(), st.data())
def test_never_a_wrong_text_silently(
    story: list[tuple[str, str]], end: str, tells_after: bool, data: st.DataObject
) -> None:
    """Frames are lost, doubled and swapped, connections drop: the client ends with the right text, or asks again."""
    server = ModelServer(lambda journal: fill(journal, story, end, tells_after))
    session = ClientSession()
    session.send("m", REQUEST)
    wire = exchange(session, server, [session.hello()])
    for turn in range(60):
        trouble = data.draw(st.sampled_from(["none", "lose", "double", "swap", "drop"])) if turn < 25 else "none"
        if trouble == "drop":
            session.disconnected()
            wire = exchange(session, server, [session.hello()])
            continue
        if trouble == "swap" and len(wire) > 1 and session.open:
            wire[0], wire[1] = wire[1], wire[0]
        if wire:
            frame = wire.pop(0)
            if trouble == "double":
                wire.insert(0, frame)
            if trouble != "lose" or frame["type"] == "welcome":
                session.receive(frame)
        if "m" in server.journals:
            stands(session, server.journals["m"])
        wire += exchange(session, server, session.outgoing(), data.draw(st.integers(1, 3)))
    for _ in range(1000):
        if session.messages["m"].ended:
            break
        if not wire:
            session.ping(1)
            wire = exchange(session, server, session.outgoing())
        if wire:
            session.receive(wire.pop(0))
        wire += exchange(session, server, session.outgoing())
        stands(session, server.journals["m"])
    assert session.messages["m"].ended
    assert server.generations == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=12), st.sampled_from(["done", "failed", "cancelled"]), st.integers(1, 5))
def test_without_trouble_nothing_is_asked_again(story: list[tuple[str, str]], end: str, size: int) -> None:
    server = ModelServer(lambda journal: fill(journal, story, end))
    session = ClientSession()
    message = session.send("m", REQUEST)
    for frame in exchange(session, server, [session.hello()]):
        session.receive(frame)
    for frame in exchange(session, server, session.outgoing(), size):
        session.receive(frame)
    journal = server.journals["m"]
    assert (message.state.value, message.resyncs, message.cursor) == (end, 0, journal.head)
    stood = journal.at(journal.head)
    assert (message.text, message.reasoning, message.tool_calls) == (stood.text, stood.reasoning, stood.calls.calls)


@given(st.lists(steps, max_size=6), st.lists(st.sampled_from(["a", "b", ""]), max_size=6), st.data())
def test_a_changed_character_is_noticed(story: list[tuple[str, str]], noise: list[str], data: st.DataObject) -> None:
    """A server that tells another text than it hashed gets asked again, then is not believed."""
    server = ModelServer(lambda journal: fill(journal, [*story, ("text", "x")], "done"))
    session = ClientSession()
    message = session.send("m", REQUEST)
    wire = exchange(session, server, [session.hello()])
    while wire and not message.ended:
        frame = wire.pop(0)
        if frame["type"] == "delta" and frame.get("text") == "x":
            frame = {**frame, "text": "y"}
        session.receive(frame)
        wire += exchange(session, server, session.outgoing())
    assert message.state is MessageState.BROKEN
    assert message.error is not None
    assert message.error["code"] == "text_unverified"
