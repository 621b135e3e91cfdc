"""Conversations as resources: the same that the socket's frames `conversation` and `history` work on."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.http import bodies
from server.http.api_models import ConversationChange, ConversationRequest, TitleRequest
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api
from server.http.idempotency import checked_id, message_id
from server.http.parameters import integer, text
from server.messages.conversations import Conversations
from server.messages.origin import Origin
from server.messages.place import Overview, Place
from server.messages.service import unavailable
from server.messages.titles import make_title
from server.store.link import StoreError

MOST: Final = 200
"""Most conversations or entries on one page."""
USUAL: Final = 50
TIME_PATTERN: Final = r"[0-9]{1,12}(\.[0-9]{1,9})?"
"""A time as the list of conversations tells it: Unix seconds."""
SECONDS: Final = 2.0
"""How long reading a page may take."""


async def list_all(api: Api, request: Request) -> Response:
    """The user's conversations, the one that changed last first."""
    who = await authenticate(api, request)
    limit = integer(request, "limit", USUAL, 1, MOST)
    before = _time(request)
    try:
        found, following = await api.messages.means.conversations.listing(who, before, limit)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    data = [as_conversation(shown["conversation"], shown) for shown in found]
    answer: dict[str, Any] = {"object": "list", "data": data, "has_more": following is not None}
    if following is not None:
        answer["next"] = repr(following)
    return JSONResponse(answer)


async def create(api: Api, request: Request) -> Response:
    """Make a conversation. 200 with it as it is, if it exists already."""
    who = await authenticate(api, request)
    body = await bodies.read(request, ConversationRequest, api.settings.server.max_frame_bytes)
    name = body.id or message_id(request.headers.get("idempotency-key"))
    conversations = api.messages.means.conversations
    place = conversations.place(who, name)
    try:
        new = await conversations.create(who, place, body.title or "")
        overview = await conversations.overview(place)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    headers = {"Location": f"/v1/conversations/{name}"}
    return JSONResponse(as_conversation(name, overview.shown()), 201 if new else 200, headers)


async def get(api: Api, request: Request) -> Response:
    """The conversation as it stands, without its entries."""
    _, conversations, place = await _named(api, request)
    return JSONResponse(as_conversation(place.id, (await _overview(conversations, place)).shown()))


async def change(api: Api, request: Request) -> Response:
    """Rename it, or choose another of its branches; every device of the user is told."""
    who, conversations, place = await _named(api, request)
    body = await bodies.read(request, ConversationChange, api.settings.server.max_frame_bytes)
    try:
        if body.tip is not None:  # the only one that may be refused goes first
            await conversations.change(who, place, "choose", body.tip)
        if body.title is not None:
            await conversations.change(who, place, "rename", body.title)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    return JSONResponse(as_conversation(place.id, (await _overview(conversations, place)).shown()))


async def delete(api: Api, request: Request) -> Response:
    """Delete it and what its messages hold; what runs is stopped. Answers when it is gone."""
    who, conversations, place = await _named(api, request)
    try:
        await conversations.delete(who, place)
    except (StoreError, TimeoutError):
        raise unavailable() from None
    return JSONResponse({"id": place.id, "object": "conversation.deleted", "deleted": True})


async def title(api: Api, request: Request) -> Response:
    """Have a title made by a small message of its own, if it has none yet."""
    who, conversations, place = await _named(api, request)
    body = await bodies.read(request, TitleRequest, api.settings.server.max_frame_bytes)
    try:
        await make_title(api.messages, who, place, body.model, Origin("http"))
    except TimeoutError:
        raise ProtocolError("upstream_timeout", "the title took too long; ask again") from None
    except StoreError:
        raise unavailable() from None
    return JSONResponse(as_conversation(place.id, (await _overview(conversations, place)).shown()))


async def entries(api: Api, request: Request) -> Response:
    """A page of a branch, oldest entry first: its end, what lies `before` an entry, or what follows `after` one."""
    _, conversations, place = await _named(api, request)
    limit = integer(request, "limit", USUAL, 1, MOST)
    before, after, branch = text(request, "before"), text(request, "after"), text(request, "branch")
    if before is not None and after is not None:
        raise BadRequest("Give `before` or `after`, not both.", "after")
    await _overview(conversations, place)
    try:
        page = await conversations.page(
            place, anchor=after or before or "", after=after is not None, limit=limit, branch=branch or "",
            seconds=SECONDS,
        )  # fmt: skip
    except (StoreError, TimeoutError):
        raise unavailable() from None
    data = [{"object": "conversation.entry", **entry.shown()} for entry in page.entries]
    answer: dict[str, Any] = {
        "object": "list", "data": data, "has_more": page.more, "seq": page.head, "tip": page.tip or None,
        "title": page.title, "current": page.current or None, "queue": list(page.queue),
    }  # fmt: skip
    if data and after is None and page.more:
        answer["next"] = data[0]["id"]
    if data and (page.more if after is not None else before is not None):
        answer["newer"] = data[-1]["id"]
    return JSONResponse(answer)


def as_conversation(name: str, shown: dict[str, Any]) -> dict[str, Any]:
    """The wire form (`api_models.Conversation`)."""
    fields = {key: value for key, value in shown.items() if key != "conversation"}
    return {"id": name, "object": "conversation", **fields}


async def _named(api: Api, request: Request) -> tuple[Principal, Conversations, Place]:
    who = await authenticate(api, request)
    conversations = api.messages.means.conversations
    return who, conversations, conversations.place(who, checked_id(request.path_params["id"]))


async def _overview(conversations: Conversations, place: Place) -> Overview:
    try:
        return await conversations.overview(place)
    except (StoreError, TimeoutError):
        raise unavailable() from None


def _time(request: Request) -> float | None:
    given = text(request, "before")
    if given is None:
        return None
    if not re.fullmatch(TIME_PATTERN, given):
        raise BadRequest("`before` has to be the `next` of the page before.", "before")
    return float(given)
