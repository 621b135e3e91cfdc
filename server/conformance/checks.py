"""What is checked of a server: one function a check, in the order of the table.

A check gets a `Probe`, opens as many connections as it likes, and raises `CheckFailed` or `CheckSkipped`. What every
frame must be is checked by `Wire` as it arrives, whatever the check is about.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, NegotiationError
from websockets.typing import Subprotocol

from protocol.codec import Codec
from protocol.errors import CloseCode
from server.conformance.report import CheckFailed, CheckSkipped
from server.conformance.wire import Story, Wire, opened, require

Map = dict[str, Any]
BEYOND: Final = 1_000_000
"""So far ahead of the journal's head no cursor can be."""
MALFORMED_TRIES: Final = 100
"""After so many messages that are no frames a server has closed."""
DETACH_PONGS: Final = 50
"""So many heartbeats after `detach` it must have taken effect."""
SHORT_ANSWER_TOKENS: Final = 64
"""Most of what a model may say where nothing is to be stopped: a small model on a busy machine goes on for minutes."""
SHORT_PROMPT: Final = "Count from one to thirty in words."
LONG_PROMPT: Final = "Write a long story about the sea, of at least two thousand words."


@dataclass(slots=True)
class Probe:
    """How the server under test is reached and asked."""

    url: str
    codec: Codec
    token: str | None = None
    model: str | None = None
    prompt: str = SHORT_PROMPT
    """Asks for an answer of a dozen deltas or more."""
    long_prompt: str = LONG_PROMPT
    """Asks for an answer that still runs when it is stopped."""
    seconds: float = 30.0

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Wire]:
        """A connection that has not said `hello`."""
        async with opened(self.url, self.codec, self.seconds) as wire:
            yield wire

    @asynccontextmanager
    async def greeted(self, *resume: Map) -> AsyncIterator[Wire]:
        """A connection that is welcome."""
        async with self.fresh() as wire:
            hello: Map = {"type": "hello", "client": {"name": "tidewire-conformance", "version": "1"}}
            if self.token is not None:
                hello["token"] = self.token
            if resume:
                hello["resume"] = list(resume)
                for point in resume:
                    wire.follow(point["id"], point["after"], point.pop("text", ""))
            await wire.send(hello)
            first = await wire.receive()
            require(first["type"] == "welcome", f"hello was answered by {first}")
            wire.welcome = first
            yield wire

    def question(self, message_id: str | None = None, prompt: str | None = None, **fields: Any) -> Map:
        """A `send` of a new message."""
        frame: Map = {
            "type": "send",
            "id": message_id or new_id(),
            "messages": [{"role": "user", "content": prompt or self.prompt}],
            "metadata": {"feature": "conformance"},
        }
        if prompt != self.long_prompt:
            frame["max_output_tokens"] = SHORT_ANSWER_TOKENS
        if self.model is not None:
            frame["model"] = self.model
        return frame | fields


def new_id() -> str:
    """An id nobody used."""
    return f"conformance-{uuid.uuid4().hex[:20]}"


Check = Callable[[Probe], Awaitable[None]]
CHECKS: Final[dict[str, Check]] = {}


def check(function: Check) -> Check:
    """Add to the list; the docstring's first line says what is checked."""
    CHECKS[function.__name__] = function
    return function


async def ask(wire: Wire, frame: Map) -> Story:
    """Send, and wait for the acceptance."""
    story = wire.follow(frame["id"])
    await wire.send(frame)
    answer = await wire.until(lambda found: found.get("id") == story.id and found["type"] in ("accepted", "error"))
    if answer["type"] == "error":
        raise CheckFailed(f"a message was refused: {answer['error']['code']}: {answer['error']['message']}")
    require(not answer["replay"], "a new message was accepted as a replay")
    return story


async def whole(probe: Probe) -> tuple[Map, Story]:
    """A message from its request to its end, and the request."""
    frame = probe.question()
    async with probe.greeted() as wire:
        story = await wire.ended(await ask(wire, frame))
    require(story.end is not None and story.end["type"] == "done", f"the message ended by {story.end}")
    if sum(found["type"] == "delta" for found in story.frames) < 2:
        raise CheckSkipped("the answer came in fewer than two deltas: give another --prompt")
    return frame, story


def refused(frame: Map, code: str, status: int) -> None:
    """Raises `CheckFailed` unless it is this error."""
    error = frame["error"]
    found = (error["code"], error["status"])
    require(found == (code, status), f"the error is {found}, not {(code, status)}")


# --- connecting ---------------------------------------------------------------------------------------------------


@check
async def subprotocol(probe: Probe) -> None:
    """The offered subprotocol is chosen."""
    async with probe.fresh() as wire:
        require(wire.socket.subprotocol == probe.codec.subprotocol, f"{wire.socket.subprotocol} was chosen")


@check
async def unknown_subprotocol(probe: Probe) -> None:
    """A handshake that offers only unknown subprotocols is refused."""
    try:
        async with connect(probe.url, subprotocols=[Subprotocol("tidewire.v0.none")], proxy=None) as socket:
            await socket.wait_closed()
            code = socket.close_code
    except (InvalidStatus, NegotiationError):
        return
    raise CheckFailed(f"it was accepted (and closed with {code})")


@check
async def welcome(probe: Probe) -> None:
    """`hello` is answered by `welcome`, first of all."""
    async with probe.greeted() as wire:
        require(wire.welcome["heartbeat_seconds"] > 0, "heartbeat_seconds must be positive")
        require(wire.welcome["resumed"] == [], "nothing was to be resumed")


@check
async def hello_comes_first(probe: Probe) -> None:
    """What is asked before `hello` is not served."""
    async with probe.fresh() as wire:
        await wire.send(probe.question())
        frame = await wire.receive()
        require(frame["type"] == "error", f"it was answered by {frame['type']}")


@check
async def hello_twice(probe: Probe) -> None:
    """A second `hello` is an error, and the connection goes on."""
    async with probe.greeted() as wire:
        await wire.send({"type": "hello"})
        refused(await wire.error(), "invalid_frame", 400)
        await wire.alive()


@check
async def ping(probe: Probe) -> None:
    """`ping` is answered with its nonce, text or number, and the heads of what is followed."""
    async with probe.greeted() as wire:
        for nonce in ("n-1", 7):
            await wire.send({"type": "ping", "nonce": nonce})
            found = await wire.type("pong")
            require(found.get("nonce") == nonce, f"nonce {nonce!r} came back as {found.get('nonce')!r}")
            require(found.get("open") == [], "nothing is followed")


# --- frames -------------------------------------------------------------------------------------------------------


@check
async def frames_in_an_array(probe: Probe) -> None:
    """Several frames may come in one message."""
    async with probe.greeted() as wire:
        await wire.send({"type": "ping", "nonce": 1}, {"type": "ping", "nonce": 2})
        nonces = [(await wire.type("pong"))["nonce"] for _ in range(2)]
        require(nonces == [1, 2], f"the answers were {nonces}")


@check
async def unknown_fields(probe: Probe) -> None:
    """Unknown fields are ignored."""
    async with probe.greeted() as wire:
        await wire.send({"type": "ping", "nonce": "x", "colour": "blue"})
        await wire.type("pong")


@check
async def unknown_types(probe: Probe) -> None:
    """An unknown type of frame is an error, and the connection goes on."""
    async with probe.greeted() as wire:
        await wire.send({"type": "teleport"})
        refused(await wire.error(), "invalid_frame", 400)
        await wire.alive()


@check
async def wrong_fields(probe: Probe) -> None:
    """Fields of wrong type, range or alphabet are errors that name the frame; the connection goes on."""
    wrong: list[Map] = [
        {"type": "resume", "id": 5},
        {"type": "resume", "id": "a b"},
        {"type": "resume", "id": "x" * 65},
        {"type": "resume", "id": "m", "after": -1},
        {"type": "cancel"},
        {"type": "send", "id": "m", "messages": "hello"},
        {"type": "send", "id": "m", "messages": [{"role": "nobody", "content": "x"}]},
        {"type": "send", "id": "m"},
    ]
    async with probe.greeted() as wire:
        for frame in wrong:
            await wire.send(frame)
            found = await wire.error()
            refused(found, "invalid_frame", 400)
            require(found.get("re") == frame["type"], f"`re` is {found.get('re')!r} for {frame}")
        await wire.alive()


@check
async def not_frames(probe: Probe) -> None:
    """What cannot be decoded is answered by an error or 4400, and in the end by 4400."""
    async with probe.greeted() as wire:
        for _ in range(MALFORMED_TRIES):
            await wire.raw(b"\xc1" if probe.codec.binary else b'{"type":')
        code = await wire.closed()
        require(code == CloseCode.MALFORMED, f"it was closed with {code}")


@check
async def forbidden_values(probe: Probe) -> None:
    """Values that JSON and msgpack do not share, doubled keys and deep nesting are refused."""
    deep = b'{"type":"ping","nonce":1,"x":' + b"[" * 40 + b"]" * 40 + b"}"
    if probe.codec.binary:
        name = b"\xa4type\xa4ping\xa5nonce"
        bad = [
            b"\x82" + name + b"\xcb\x7f\xf8" + b"\0" * 6,
            b"\x82" + name + b"\xc4\x01x",
            b"\x82" + name + b"\xd4\x01x",
        ]
    else:
        bad = [b'{"type":"ping","nonce":NaN}', b'{"type":"ping","nonce":1,"nonce":2}', deep]
    for data in bad:
        async with probe.greeted() as wire:
            await wire.raw(data)
            found = await wire.receive()
            require(found["type"] == "error", f"{data[:40]!r} was answered by {found['type']}")


@check
async def invalid_utf8(probe: Probe) -> None:
    """Text that is not UTF-8 closes with 1007."""
    if probe.codec.binary:
        raise CheckSkipped("binary messages are not text")
    async with probe.greeted() as wire:
        await wire.raw(b'{"type":"ping","nonce":"\xff\xfe"}')
        code = await wire.closed()
        require(code == CloseCode.INVALID_UTF8, f"it was closed with {code}")


@check
async def too_large(probe: Probe) -> None:
    """A message beyond `max_frame_bytes` closes with 1009."""
    async with probe.greeted() as wire:
        await wire.send({"type": "ping", "nonce": 1, "padding": "x" * wire.welcome["max_frame_bytes"]})
        code = await wire.closed()
        require(code == CloseCode.TOO_BIG, f"it was closed with {code}")


# --- messages -----------------------------------------------------------------------------------------------------


@check
async def message(probe: Probe) -> None:
    """A message streams without gaps, begins with an attempt, and its end proves the text."""
    _, story = await whole(probe)
    require(story.frames[0]["type"] == "attempt", f"it began with {story.frames[0]['type']}")
    require(story.attempts[0]["mode"] == "fresh", f"the first attempt is {story.attempts[0]['mode']}")
    usage = (story.end or {})["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    require(usage["total_tokens"] == total, f"total_tokens is {usage['total_tokens']}, the sum is {total}")


@check
async def repeat(probe: Probe) -> None:
    """The same id with the same request is a replay of the same answer: nothing is generated twice."""
    frame, first = await whole(probe)
    async with probe.greeted() as wire:
        story = wire.follow(frame["id"])
        await wire.send(frame)
        accepted = await wire.type("accepted", frame["id"])
        require(accepted["replay"], "the repeat was accepted as a new message")
        await wire.ended(story)
    require(story.text == first.text, "the replay tells another text")
    ends = [{key: value for key, value in (told.end or {}).items() if key != "after"} for told in (first, story)]
    require(ends[0] == ends[1], f"the replay ended by {ends[1]}, first it was {ends[0]}")


@check
async def repeats_at_once(probe: Probe) -> None:
    """The same message sent by two connections at the same time is one answer for both."""
    frame = probe.question()
    async with probe.greeted() as one, probe.greeted() as two:
        stories = [wire.follow(frame["id"]) for wire in (one, two)]
        await asyncio.gather(one.send(frame), two.send(frame))
        await asyncio.gather(one.ended(stories[0]), two.ended(stories[1]))
    require(stories[0].text == stories[1].text, "the two were told different texts")
    require((stories[0].end or {})["seq"] == (stories[1].end or {})["seq"], "the two have different ends")


@check
async def mismatch(probe: Probe) -> None:
    """The same id with another request is refused."""
    frame, _ = await whole(probe)
    async with probe.greeted() as wire:
        await wire.send(probe.question(frame["id"], "Something else entirely."))
        refused(await wire.error(frame["id"]), "idempotency_mismatch", 422)


@check
async def unknown_model(probe: Probe) -> None:
    """A model that does not exist is refused, and the id is free again."""
    frame = probe.question(model="conformance-no-such-model")
    async with probe.greeted() as wire:
        await wire.send(frame)
        refused(await wire.error(frame["id"]), "model_not_found", 404)
        await wire.send(probe.question(frame["id"]))
        accepted = await wire.type("accepted", frame["id"])
        require(not accepted["replay"], "the refused message was kept")


@check
async def side_by_side(probe: Probe) -> None:
    """Several messages stream at once on one connection, each whole."""
    async with probe.greeted() as wire:
        frames = [probe.question() for _ in range(3)]
        stories = [wire.follow(frame["id"]) for frame in frames]
        await wire.send(*frames)
        for story in stories:
            await wire.ended(story)


# --- resuming -----------------------------------------------------------------------------------------------------


@check
async def resume_anywhere(probe: Probe) -> None:
    """From any point a resume tells exactly what came later."""
    _, first = await whole(probe)
    points = {0: ""}
    text = ""
    for frame in first.frames[:-1]:
        text = "" if frame["type"] == "attempt" and frame["mode"] != "continue" else text + (frame.get("text") or "")
        points[frame["seq"]] = text
    chosen = sorted(points)[:: max(1, len(points) // 8)]
    async with probe.greeted() as wire:
        for after in chosen:
            story = wire.follow(first.id, after, points[after])
            await wire.send({"type": "resume", "id": first.id, "after": after})
            await wire.ended(story)
            require(story.text == first.text, f"after {after} it tells another text")


@check
async def resume_in_hello(probe: Probe) -> None:
    """`hello` resumes, and `welcome` names what it resumed."""
    _, first = await whole(probe)
    async with probe.greeted({"id": first.id, "after": 0}) as wire:
        heads = {head["id"]: head for head in wire.welcome["resumed"]}
        require(first.id in heads, "`welcome.resumed` does not name the message")
        require(heads[first.id]["state"] == "done", f"its state is {heads[first.id]['state']}")
        story = await wire.ended(wire.stories[first.id])
    require(story.text == first.text, "it tells another text")


@check
async def resume_beyond_the_head(probe: Probe) -> None:
    """A cursor that was never told is answered by a snapshot."""
    _, first = await whole(probe)
    async with probe.greeted() as wire:
        story = wire.follow(first.id, 0, "not what was told")
        await wire.send({"type": "resume", "id": first.id, "after": first.cursor + BEYOND})
        await wire.ended(story)
        require(story.snapshots == 1, "it was not answered by a snapshot")


@check
async def resume_unknown(probe: Probe) -> None:
    """A message that does not exist is an error, in `hello` too, and nothing is generated."""
    missing = new_id()
    async with probe.greeted({"id": missing, "after": 0}) as wire:
        found = await wire.error(missing)
        refused(found, "message_unknown", 404)
        require(found.get("re") == "hello", f"`re` is {found.get('re')!r}")
        await wire.send({"type": "resume", "id": missing, "after": 3})
        found = await wire.error(missing)
        refused(found, "message_unknown", 404)
        require(found.get("re") == "resume", f"`re` is {found.get('re')!r}")
        await wire.alive()


@check
async def detach(probe: Probe) -> None:
    """After `detach` nothing more comes of the message, and a resume tells the rest."""
    frame = probe.question()
    async with probe.greeted() as wire:
        story = await ask(wire, frame)
        await wire.type("delta", story.id)
        await wire.send({"type": "detach", "id": story.id})
        for _ in range(DETACH_PONGS):  # a heartbeat may overtake it
            pong = await wire.alive()
            if all(head["id"] != story.id for head in pong["open"]):
                break
        else:
            raise CheckFailed(f"`pong` still counts it as followed, {DETACH_PONGS} heartbeats later")
        if story.end is not None:
            raise CheckSkipped("the answer was over before it could be detached: give another --prompt")
        del wire.stories[story.id]
        await wire.send({"type": "ping", "nonce": "later"})
        late = await wire.until(lambda found: found["type"] == "pong" or found.get("id") == story.id)
        require(late["type"] == "pong", f"a {late['type']} came after the detach")
        wire.stories[story.id] = story
        await wire.send({"type": "resume", "id": story.id, "after": story.cursor})
        await wire.ended(story)


# --- stopping -----------------------------------------------------------------------------------------------------


@check
async def cancel(probe: Probe) -> None:
    """A stop is answered by `cancelled`, which proves what stands; other devices see the message, and its stop."""
    frame = probe.question(prompt=probe.long_prompt)
    async with probe.greeted() as wire:
        story = await ask(wire, frame)
        await wire.type("delta", story.id)
        async with probe.greeted() as other:
            require(story.id in {head["id"] for head in other.welcome["active"]}, "`welcome.active` lacks it")
            elsewhere = other.follow(story.id)
            await other.send({"type": "resume", "id": story.id, "after": 0})
            await other.type("delta", story.id)
            await wire.send({"type": "cancel", "id": story.id})
            await asyncio.gather(wire.ended(story), other.ended(elsewhere))
        if story.end is not None and story.end["type"] == "done":
            raise CheckSkipped("the answer was done before it could be stopped: give another --long-prompt")
        require((story.end or {})["type"] == "cancelled", f"it ended by {story.end}")
        require(elsewhere.text == story.text, "the other device was told another text")
        await wire.send({"type": "cancel", "id": story.id})
        await wire.alive()


@check
async def cancel_unknown(probe: Probe) -> None:
    """Stopping what does not exist is an error, and the connection goes on."""
    async with probe.greeted() as wire:
        missing = new_id()
        await wire.send({"type": "cancel", "id": missing})
        refused(await wire.error(missing), "message_unknown", 404)
        await wire.alive()


# --- conversations ------------------------------------------------------------------------------------------------


@check
async def conversation(probe: Probe) -> None:
    """A conversation keeps question and answer, and tells its events, numbered, to whoever subscribed."""
    name = new_id()
    frame = probe.question(conversation=name, input=probe.prompt)
    del frame["messages"]
    async with probe.greeted() as reader, probe.greeted() as writer:
        await reader.send({"type": "subscribe", "conversation": name})
        answer = await reader.until(lambda found: found["type"] in ("conversation", "error"))
        if answer["type"] == "error":
            require(answer["error"]["code"] == "conversation_unknown", f"subscribe was answered by {answer}")
        story = await ask(writer, frame)
        if answer["type"] == "error":
            await reader.send({"type": "subscribe", "conversation": name})
        await writer.ended(story)
        seqs: list[int] = []
        entries: dict[str, Map] = {}
        while (entries.get(story.id) or {}).get("state") != "done":
            found = await reader.receive()
            if found["type"] == "message":
                entries[found["id"]] = found
            if found["type"] == "message" or (found["type"] == "conversation" and found["op"] != "subscribed"):
                seqs.append(found["seq"])
        require(seqs == list(range(1, len(seqs) + 1)), f"its events are numbered {seqs}")
        await reader.send({"type": "history", "conversation": name, "limit": 10})
        page = await reader.type("history")
    told = [(entry["role"], entry.get("content")) for entry in page["messages"]]
    require(told == [("user", probe.prompt), ("assistant", story.text)], f"the history is {told}")
