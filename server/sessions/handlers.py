"""One handler per frame type. A `ProtocolError` raised here becomes the `error` frame that answers it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from protocol.errors import CloseCode, ProtocolError
from protocol.frames import (
    Auth,
    Cancel,
    Detach,
    Hello,
    Ping,
    Resume,
    ResumePoint,
    Send,
)
from server.messages.origin import Origin
from server.messages.service import Found, payer_of
from server.sessions.actor import Closing, Session, handles
from server.sessions.conversation_handlers import queue_position
from server.sessions.outbound import error_frame

_REFUSED: Final = {"forbidden": CloseCode.FORBIDDEN_ORIGIN, "rate_limited": CloseCode.TOO_MANY_CONNECTIONS}
"""How a refused `hello` closes the socket, where it is not for want of credentials."""


@handles(Hello)
async def hello(session: Session, frame: Hello) -> None:
    """Credentials and every resume in one round trip."""
    if session.who is not None:
        raise ProtocolError("invalid_frame", "`hello` was said already; use `auth` to renew credentials")
    try:
        who = await session.means.authenticator.authenticate(frame.token)
        expires = session.admit(who)
    except ProtocolError as error:
        session.refuse({"type": "hello"}, error)
        session.close_soon(Closing(_REFUSED.get(error.code, CloseCode.UNAUTHENTICATED), error.code))
        return
    active, found, limits = await asyncio.gather(
        session.messages.active(who),
        asyncio.gather(*(_find(session, point) for point in frame.resume)),
        session.means.audience.limits(payer_of(who), session),
    )
    known = [message for message in found if isinstance(message, Found)]
    welcome: dict[str, Any] = {
        "type": "welcome",
        "session": session.id,
        "user": who.user,
        "tier": who.tier,
        "heartbeat_seconds": max(1, round(session.settings.heartbeat_seconds)),
        "max_frame_bytes": session.means.max_frame_bytes,
        "resumed": [_head(message) for message in known],
        "active": [_head(message) for message in active],
        "server_time": time.time(),
        "limits": limits,
        "node": session.messages.node,
    }
    if expires is not None:
        welcome["expires_in_seconds"] = expires
    session.greet(welcome)
    for point, message in zip(frame.resume, found, strict=True):
        if isinstance(message, ProtocolError):
            session.say(error_frame("hello", point.id, message.as_dict()))
            continue
        try:
            await session.follow(message, point.after)
        except ProtocolError as error:
            session.say(error_frame("hello", point.id, error.as_dict()))


async def _find(session: Session, point: ResumePoint) -> Found | ProtocolError:
    try:
        return await session.messages.find(session.principal, point.id)
    except ProtocolError as error:
        return error


def _head(message: Found) -> dict[str, Any]:
    head: dict[str, Any] = {"id": message.id, "state": message.state, "seq": message.head}
    if message.conversation is not None:
        head["conversation"] = message.conversation
    if message.generation:
        head["generation"] = message.generation
    return head


@handles(Send)
async def send(session: Session, frame: Send) -> None:
    """Ask for a message; the same id again attaches and replays."""
    session.check_not_expired()
    session.check_room(frame.id)
    found = await session.messages.ask(session.principal, frame, Origin("ws", session.id))
    try:
        if frame.after or frame.id not in session.unasked:
            await session.follow(found, frame.after)
    except ProtocolError as error:  # it runs all the same: this is no refusal, but "resume later"
        session.say(await _accepted(session, found))
        session.say(error_frame(None, frame.id, error.as_dict()))
        return
    # before all it follows, as a control frame; after all of a follow it replaces
    session.say(await _accepted(session, found))


@handles(Resume)
async def resume(session: Session, frame: Resume) -> None:
    """Follow a message from a point; never starts a generation."""
    found = await session.messages.find(session.principal, frame.id)
    await session.follow(found, frame.after)
    session.say(await _accepted(session, found))


async def _accepted(session: Session, found: Found) -> dict[str, Any]:
    accepted: dict[str, Any] = {
        "type": "accepted",
        "id": found.id,
        "replay": found.replay,
        "state": found.state,
        "seq": found.head,
    }
    if found.generation:
        accepted["generation"] = found.generation
    if found.state == "queued" and found.conversation is not None:
        accepted["queue_position"] = await queue_position(session, found.conversation, found.id)
    return accepted


@handles(Detach)
async def detach(session: Session, frame: Detach) -> None:
    """Stop following; the message goes on."""
    tag = session.out.by_id.get(frame.id)
    if tag is None:
        await session.messages.find(session.principal, frame.id)  # `message_unknown`, unless it has just ended
        return
    session.unfollow(tag)


@handles(Cancel)
async def cancel(session: Session, frame: Cancel) -> None:
    """Stop generating; whoever asked gets the receipt, also without following."""
    found = await session.messages.cancel(session.principal, frame.id)
    if found.tag not in session.out.follows:
        await session.follow(found, max(0, found.head - 1), receipt_only=True)


@handles(Auth)
async def auth(session: Session, frame: Auth) -> None:
    """Renew credentials; the identity must stay the same."""
    who = await session.means.authenticator.authenticate(frame.token)
    if not who.same_user(session.principal):
        raise ProtocolError("forbidden", "`auth` may not change who you are; open a new connection")
    session.admit(who)


@handles(Ping)
async def ping(session: Session, frame: Ping) -> None:
    """Application heartbeat: tells the head of every followed message, so that a lost ending is noticed."""
    pong: dict[str, Any] = {
        "type": "pong",
        "open": [{"id": follow.id, "seq": follow.channel.head} for follow in session.out.follows.values()],
    }
    if frame.nonce is not None:
        pong["nonce"] = frame.nonce
    session.say(pong)
