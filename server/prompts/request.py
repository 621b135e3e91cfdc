"""A request together with the prompt it was resolved to: what is stored, and what its target is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import ProtocolError
from server.prompts.prompt import Filled, Map, Prompt

USED: Final = "prompt_used"
"""Field of a stored request: {name, version} of the prompt that it was resolved to."""
AROUND: Final = "prompt_around"
"""Field of a stored request that is part of a conversation: the prompt's messages [before, after] its branch."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A prompt, chosen and filled in."""

    prompt: Prompt
    filled: Filled

    @property
    def used(self) -> Map:
        """As `done`, the ledger and the record of the message tell it."""
        return {"name": self.prompt.name, "version": str(self.prompt.version)}

    def apply(self, request: Mapping[str, Any]) -> Map:
        """The request with the prompt in it: what is stored, and run again as it is.

        What the client gives beats a model hint; tools add up. Raises `ProtocolError("invalid_frame")` where client and
        prompt contradict each other.
        """
        hints = self.prompt.options()
        whole: Map = {**{k: v for k, v in hints.items() if request.get(k) is None}, **request, USED: self.used}
        if hints.get("response_format") is not None and request.get("response_format") is not None:
            raise self._refused("fixes the form of the answer; leave `response_format` out")
        if hints.get("tools") and request.get("tools"):
            whole["tools"] = [*hints["tools"], *request["tools"]]
            self._check_tools(whole["tools"])
        if request.get("conversation") is not None:
            whole[AROUND] = [list(self.filled.before), list(self.filled.after)]
        else:
            whole["messages"] = [*self.filled.before, *request.get("messages", ()), *self.filled.after]
            if not whole["messages"]:
                raise self._refused("has no text with these variables; give `messages` with it")
        return whole

    def _check_tools(self, tools: Sequence[Any]) -> None:
        names = [(tool.get("function") or {}).get("name") for tool in tools]
        for name in sorted({str(name) for name in names if names.count(name) > 1}):
            raise self._refused(f"has a tool {name!r} of its own; name yours differently")

    def _refused(self, why: str) -> ProtocolError:
        return ProtocolError("invalid_frame", f"the prompt {self.prompt.id} {why}", details={"prompt": self.used})


def used(request: Mapping[str, Any]) -> Map | None:
    """{name, version} of the prompt that a stored request was resolved to."""
    found: Map | None = request.get(USED)
    return found


def around(request: Mapping[str, Any]) -> tuple[list[Map], list[Map]]:
    """The prompt's messages that go before and after the branch of a conversation."""
    before, after = request.get(AROUND) or ([], [])
    return before, after
