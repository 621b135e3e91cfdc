"""What the targets of one message are asked: the request's messages, or what fits of its branch of a conversation."""

from __future__ import annotations

from typing import Any

from protocol.errors import ProtocolError
from protocol.frames import DEFAULT_ROUTE
from server.messages import request as asked
from server.messages.branch import Branch, TooLong, count_tokens, room_of
from server.messages.journal import JournalLost, Verdict
from server.messages.life import Life, until_redis_answers
from server.messages.means import Means, Target
from server.prompts.request import around
from server.quotas.base import Order
from server.routing.attempts import Route


class Question:
    """See the module."""

    def __init__(self, life: Life, means: Means) -> None:
        self.life = life
        self.means = means
        self.sent: list[dict[str, Any]] = []
        """What the target of the present attempt is sent."""
        self._history: Branch | None = None
        """The branch that this answers, if it is part of a conversation."""
        self._before, self._after = around(life.claim.request)
        """The prompt's messages around that branch."""

    async def read_history(self) -> None:
        """Read what is to be answered, now that it is this message's turn. Raises `JournalLost`."""
        claim = self.life.claim
        assert claim.place is not None
        route = self.means.routes[claim.request.get("model", DEFAULT_ROUTE)]
        self._history = await self.means.conversations.history(
            claim.place, claim.id, claim.fence, claim.keys, max(1, self._largest_room(route))
        )
        if self._history is None:
            raise JournalLost(Verdict.FENCED)

    def order(self, route: Route) -> Order:
        """What to reserve for it."""
        claim = self.life.claim
        messages = self._likely_sent(route)
        return Order(
            claim.hold,
            claim.payer,
            asked.most_input({**claim.request, "messages": messages}),
            asked.count_input(messages),
            claim.request.get("max_output_tokens"),
            lambda tokens_in, tokens_out: self._dearest(route, tokens_in, tokens_out),
            forced=claim.reason is not None and claim.reason.code == "owner_lost",
        )

    async def choose(self, target: Target) -> dict[str, Any]:
        """Settle what `target` is sent (`sent`); a description of it for the record. Raises `TooLong`."""
        place = self.life.claim.place
        if self._history is None or place is None:
            self.sent = self.life.claim.request.get("messages", [])
            return {}
        context = self._history.trim(self._room(target))
        branch = context.messages
        try:
            branch = await until_redis_answers(lambda: self.means.conversations.whole(place.keys, context.messages))
        except ProtocolError:  # the conversation was deleted meanwhile: the stop is on its way
            self.life.stop_requested = True
        self.sent = [*self._before, *branch, *self._after]
        first = next((entry for entry in context.entries if entry), "")
        return {"first": first, "entries": len(context.entries), "dropped": context.dropped, "tokens": context.tokens}

    @property
    def input_estimate(self) -> int:
        """About how many tokens `sent` has."""
        return asked.count_input(self.sent) if self._history is None else sum(map(count_tokens, self.sent))

    def _room(self, target: Target) -> int:
        """Tokens that the branch may have at this target: what its context holds beside the prompt."""
        room = room_of(target.context_tokens, self.life.claim.request.get("max_output_tokens"))
        return max(0, room - sum(map(count_tokens, (*self._before, *self._after))))

    def _largest_room(self, route: Route) -> int:
        return max(self._room(self.means.targets[name]) for name in route.targets)

    def _likely_sent(self, route: Route) -> list[dict[str, Any]]:
        """What is likely to be sent: the request's messages, or what fits of the history into the largest context."""
        if self._history is None:
            messages: list[dict[str, Any]] = self.life.claim.request.get("messages", [])
            return messages
        try:
            return [*self._before, *self._history.trim(self._largest_room(route)).messages, *self._after]
        except TooLong:
            return []  # refused before anything is sent

    def _dearest(self, route: Route, tokens_in: int, tokens_out: int) -> int | None:
        prices = [self.means.targets[name].price for name in route.targets]
        return max((p.nano_dollars(tokens_in, tokens_out) for p in prices if p is not None), default=None)
