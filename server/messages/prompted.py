"""Requests with a prompt: resolved once, before the claim; a conversation keeps the version it has."""

from __future__ import annotations

import structlog

from protocol.errors import ProtocolError
from protocol.frames import DEFAULT_ROUTE, Send
from server.access.identity import Principal
from server.messages import request as asked
from server.messages.place import Place
from server.messages.scripts import CONVERSATION_PROMPT
from server.prompts import request as prompted
from server.prompts.service import Prompts
from server.store.keys import user_tag
from server.store.link import StoreError
from server.store.store import Store

log = structlog.get_logger("prompts")


class Prompted:
    """See the module."""

    def __init__(self, store: Store, prompts: Prompts) -> None:
        self.store = store
        self.prompts = prompts

    async def request(self, who: Principal, send: Send, of_route: bool) -> asked.Request | ProtocolError:
        """What is stored of a request: as it was given, with the prompt it was resolved to.

        Or why there is no such request: that is told only to who asks for something new. A message that exists has its
        own, whatever became of the prompt since. `of_route`: whether the prompt of the route counts. Raises
        `StoreError` or `TimeoutError`.
        """
        try:
            wanted = self.prompts.wanted(send.model if of_route else "", send.prompt)
            if wanted is None:
                return asked.stored(send)
            user = user_tag(who.tenant, who.kind, who.user)
            stands = await self._stands(user, send.conversation, wanted.name)
            resolved = self.prompts.resolve(wanted, user, stands)
            request = resolved.apply(asked.stored(send))
            if send.model == DEFAULT_ROUTE and (route := self.prompts.route_of(resolved.prompt)) is not None:
                request["model"] = route
            return asked.cleaned(request)
        except ProtocolError as refusal:
            return refusal

    async def _stands(self, user: str, conversation: str | None, prompt: str) -> str | None:
        """The version that a conversation has had so far."""
        if conversation is None:
            return None
        meta = Place.of(user, conversation).keys.meta
        found = await self.store.call(meta, "HGET", meta, _field(prompt))
        return None if found is None else found.decode()

    async def keep(self, who: Principal, request: asked.Request) -> None:
        """Note the version that a message of a conversation was admitted with. What fails is left out: the next message
        is resolved by the same rule."""
        used = prompted.used(request)
        if used is None or request.get("conversation") is None:
            return
        user, name, version = user_tag(who.tenant, who.kind, who.user), used["name"], used["version"]
        meta = Place.of(user, request["conversation"]).keys.meta
        try:
            stands = await self._stands(user, request["conversation"], name)
            if stands is None or (stands != version and self.prompts.has(name, stands)):
                await self.store.run(CONVERSATION_PROMPT, [meta], [_field(name), version])
        except (StoreError, TimeoutError) as error:
            log.info("version_not_kept", prompt=name, version=version, error=str(error))


def _field(prompt: str) -> str:
    return f"prompt:{prompt}"
