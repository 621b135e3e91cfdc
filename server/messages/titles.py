"""A title for a conversation, made by a small message of its own, once: its id follows from the conversation's."""

from __future__ import annotations

import asyncio
from typing import Final

from protocol.errors import ProtocolError
from protocol.frames import ChatMessage, Send
from server.access.identity import Principal
from server.messages.conversation import Map
from server.messages.finalize import gather
from server.messages.origin import FEATURE, Origin
from server.messages.parts import whole
from server.messages.place import Place, title_id
from server.messages.service import Messages

TITLE_SECONDS: Final = 60.0
"""How long a title may take."""
TITLE_TOKENS: Final = 24
TITLE_CHARACTERS: Final = 120
QUESTION_CHARACTERS: Final = 2_000
POLL_SECONDS: Final = 0.25
INSTRUCTION: Final = "Name this conversation in at most six words. Answer with the name only."


async def make_title(messages: Messages, who: Principal, place: Place, model: str, origin: Origin) -> str:
    """The conversation's title, made now if it has none. Raises `ProtocolError`, `StoreError`, `TimeoutError`."""
    conversations = messages.means.conversations
    overview = await conversations.overview(place)
    if overview.title:
        return overview.title
    page = await conversations.page(place, after=True, limit=20)
    first = [entry.message for entry in page.entries if entry.role == "user"][:1]
    question = "".join(text_of(message) for message in await whole(conversations.store, place.keys, first))
    if not question:
        raise ProtocolError("invalid_frame", "conversation: there is nothing yet to make a title of")
    send = Send(
        type="send",
        id=title_id(place),
        model=model,
        messages=[
            ChatMessage(role="system", content=INSTRUCTION),
            ChatMessage(role="user", content=question[:QUESTION_CHARACTERS]),
        ],
        max_output_tokens=TITLE_TOKENS,
        metadata={FEATURE: "title"},
    )
    found = await messages.ask(who, send, origin, of_route=False)
    if found.replay and found.state == "failed":  # by an error that may have passed: a permanent one stands
        again = send.model_copy(update={"retry_of": found.head})
        found = await messages.ask(who, again, origin, of_route=False)
    async with asyncio.timeout(TITLE_SECONDS):
        while (record := await messages.reader.record(found.keys)) is not None and not record.ended:  # noqa: ASYNC110 - anywhere
            await asyncio.sleep(POLL_SECONDS)
    if record is None or record.state != "done":
        raise ProtocolError("upstream_unavailable", "no title could be made")
    text = b"".join((await gather(messages.reader, found.keys, record.base)).text).decode()
    lines = text.strip().strip('"').splitlines()
    title = lines[0][:TITLE_CHARACTERS] if lines else "…"
    try:
        await conversations.change(who, place, "title", title)
    except ProtocolError:  # deleted meanwhile: nothing of what was asked may stay
        await conversations.erase(found.keys)
        raise
    return (await conversations.overview(place)).title or title


def text_of(message: Map) -> str:
    """The words of a chat message, without its images and files."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text").strip()
