"""Every conformance vector, through both codecs, against the client session; and every frame in them is a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import protocol
from protocol.client.events import ConversationChanged, ConversationMessage, HistoryReceived
from protocol.client.message import ClientMessage
from protocol.client.session import ClientSession
from protocol.codec import CODECS, Codec
from protocol.frames import SERVER_FRAMES, parse_client_frame, server_frame

Map = dict[str, Any]
FOLDER = Path(protocol.__file__).parent / "vectors"
VECTORS = {
    path.relative_to(FOLDER).with_suffix("").as_posix(): json.loads(path.read_text("utf-8"))
    for path in sorted(FOLDER.rglob("*.json"))
}
OF_CONVERSATIONS = (ConversationMessage, ConversationChanged, HistoryReceived)


def act(session: ClientSession, step: Map) -> list[Map]:
    """Do what the user, or the network, does in this step; the frames that go out of themselves."""
    match step["do"]:
        case "connect":
            return [session.hello()]
        case "disconnect":
            session.disconnected()
        case "send":
            session.send(step["id"], step["request"])
        case "resume":
            session.resume(step["id"], after=step.get("after", 0), text=step.get("text", ""))
        case "ping":
            session.ping(step["nonce"])
        case "subscribe":
            session.subscribe(step["conversation"], after=step.get("after", 0))
        case "unsubscribe" | "again":
            getattr(session, step["do"])(step["conversation"])
        case "history":
            fields = {name: step[name] for name in ("before", "after", "limit") if name in step}
            session.history(step["conversation"], **fields)
        case "conversation":
            session.conversation(step["op"], step.get("conversation"), **step.get("fields", {}))
        case action:
            getattr(session, action)(step["id"])
    return []


def deliver(session: ClientSession, codec: Codec, step: Map) -> list[Map]:
    """Hand the server's frames over as they would come from a socket; those of conversations that were told."""
    encoded = [codec.encode(frame) for frame in step["server"]]
    told: list[Map] = []
    for data in [codec.join(encoded)] if step.get("array") else encoded:
        for frame in codec.decode(data):
            events = session.receive(frame)
            told += [event.frame for event in events if isinstance(event, OF_CONVERSATIONS)]
    return told


def normal(codec: Codec, frame: Map) -> Map:
    """A frame as the server gets it, without what vectors leave open."""
    (arrived,) = codec.decode(codec.encode(frame))
    return {key: value for key, value in arrived.items() if not (frame["type"] == "hello" and key == "client")}


def standing(message: ClientMessage) -> Map:
    """All a vector may ask about a message."""
    return {
        "state": message.state.value,
        "text": message.text,
        "reasoning": message.reasoning,
        "tool_calls": message.tool_calls,
        "seq": message.cursor,
        "attempt": message.attempt,
        "finish_reason": message.finish_reason,
        "partial": message.partial,
        "error_code": message.error and message.error["code"],
    }


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.subprotocol)
@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str, codec: Codec) -> None:
    vector = VECTORS[name]
    assert vector["name"] == name.rpartition("/")[2]
    session = ClientSession()
    for number, step in enumerate(vector["steps"]):
        if "server" in step:
            told = deliver(session, codec, step)
            assert told == step.get("told", []), f"after step {number}: {step}"
            sent = []
        else:
            sent = act(session, step)
        sent += session.outgoing()
        assert [normal(codec, frame) for frame in sent] == step["out"], f"after step {number}: {step}"
        for frame in sent:
            parse_client_frame(frame)
    for conversation, cursor in vector.get("conversations", {}).items():
        assert session.subscribed(conversation) == cursor
    assert session.messages.keys() == vector["final"].keys()
    for message_id, expected in vector["final"].items():
        found = standing(session.messages[message_id])
        assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", VECTORS)
def test_server_frames_are_valid(name: str) -> None:
    for step in VECTORS[name]["steps"]:
        for frame in step.get("server", ()):
            if frame["type"] in SERVER_FRAMES:
                server_frame.validate_python(frame)


def test_enough_of_them() -> None:
    assert len(VECTORS) >= 30
