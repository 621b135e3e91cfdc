"""A title for a conversation, made by a small message of its own, once: its id follows from the conversation's."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from protocol.errors import ProtocolError
from protocol.frames import ChatMessage, Send
from server.access.identity import Principal
from server.messages.finalize import gather
from server.messages.origin import FEATURE, Origin
from server.messages.place import Place
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
    question = next((str(entry.message.get("content", "")) for entry in page.entries if entry.role == "user"), "")
    if not question:
        raise ProtocolError("invalid_frame", "conversation: there is nothing yet to make a title of")
    send = Send(
        type="send",
        id="title_" + hashlib.sha256(place.tag.encode()).hexdigest()[:32],
        model=model,
        messages=[
            ChatMessage(role="system", content=INSTRUCTION),
            ChatMessage(role="user", content=question[:QUESTION_CHARACTERS]),
        ],
        max_output_tokens=TITLE_TOKENS,
        metadata={FEATURE: "title"},
    )
    found = await messages.ask(who, send, origin, of_route=False)
    async with asyncio.timeout(TITLE_SECONDS):
        while (record := await messages.reader.record(found.keys)) is not None and not record.ended:  # noqa: ASYNC110 - anywhere
            await asyncio.sleep(POLL_SECONDS)
    if record is None or record.state != "done":
        raise ProtocolError("upstream_unavailable", "no title could be made")
    text = b"".join((await gather(messages.reader, found.keys, record.base)).text).decode()
    lines = text.strip().strip('"').splitlines()
    title = lines[0][:TITLE_CHARACTERS] if lines else "…"
    await conversations.change(place, "title", title)
    return (await conversations.overview(place)).title or title
