"""The scripts of this room, loaded once; each file describes its KEYS and ARGV at its head."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.store.store import Script

_LUA: Final = Path(__file__).parent / "lua"


def _of_conversation(name: str) -> Script:
    """A script of one conversation: it begins with what they share."""
    return Script.load(_LUA / f"conversation_{name}_v1.lua", _LUA / "conversation_common_v1.lua")


CLAIM: Final = Script.load(_LUA / "claim_v1.lua")
START_ATTEMPT: Final = Script.load(_LUA / "start_attempt_v1.lua")
APPEND: Final = Script.load(_LUA / "append_v1.lua")
RELEASE: Final = Script.load(_LUA / "release_v1.lua")
CANCEL: Final = Script.load(_LUA / "cancel_v1.lua")
PAGE: Final = Script.load(_LUA / "page_v1.lua")
GATHER: Final = Script.load(_LUA / "gather_v1.lua")
FINALIZE: Final = Script.load(_LUA / "finalize_v1.lua")
KEPT: Final = Script.load(_LUA / "kept_v1.lua")
TAKEOVER: Final = Script.load(_LUA / "takeover_v1.lua")
HAND_OVER: Final = Script.load(_LUA / "hand_over_v1.lua")
QUEUE: Final = Script.load(_LUA / "queue_v1.lua")
RESOLVE: Final = Script.load(_LUA / "resolve_v1.lua")
ERASE: Final = Script.load(_LUA / "erase_v1.lua")
CONVERSATION_ENTER: Final = _of_conversation("enter")
CONVERSATION_ADVANCE: Final = _of_conversation("advance")
CONVERSATION_APPEND: Final = _of_conversation("append")
CONVERSATION_PAGE: Final = _of_conversation("page")
CONVERSATION_CHANGE: Final = _of_conversation("change")
CONVERSATION_DELETE: Final = Script.load(_LUA / "conversation_delete_v1.lua")
CONVERSATION_PROMPT: Final = Script.load(_LUA / "conversation_prompt_v1.lua")
CONVERSATION_REGISTER: Final = Script.load(_LUA / "conversation_register_v1.lua")
CONVERSATION_UNREGISTER: Final = Script.load(_LUA / "conversation_unregister_v1.lua")
_CONVERSATIONS: Final = (
    QUEUE,
    RESOLVE,
    ERASE,
    CONVERSATION_ENTER,
    CONVERSATION_ADVANCE,
    CONVERSATION_APPEND,
    CONVERSATION_PAGE,
    CONVERSATION_CHANGE,
    CONVERSATION_DELETE,
    CONVERSATION_PROMPT,
    CONVERSATION_REGISTER,
    CONVERSATION_UNREGISTER,
)
ALL: Final = (
    TAKEOVER, HAND_OVER, CLAIM, START_ATTEMPT, APPEND, RELEASE, CANCEL, PAGE, GATHER, FINALIZE, KEPT, *_CONVERSATIONS
)  # fmt: skip

MAX_RUNS: Final = 5
"""How often one message may run: the first time and four times reopened by `retry_of`."""
