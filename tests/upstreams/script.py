"""What the scripted upstream says: a pure function of the request, so that any client can check every character.

The last user message steers it. A line of it that begins with `script` and a directive is a script:

    script tokens=300 rate=50 seed=7 unicode=1

Every directive is a field of `Script`, with its meaning there; a bare name means `1`. Unknown directives raise
`ScriptError` (the server answers 400), so that a typing mistake in a test cannot pass for a good case. The same
directives can follow the model's name (`primary?status=500&times=1`) and are set from outside by the admin endpoint.
A message without directives gets the default script.

The text is `#` and eight hex digits of a digest, then words. The digest covers role and text of every message and the
model, or only `seed` if one is given: then every model says the same, whatever the history, which is what a test of
fallbacks or of conversations wants. A trailing assistant message that begins the text is continued (prefill).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Final

RING = 8192
"""Words (or blocks) after which the text repeats itself."""
BLOCKS = 512
BLOCK_WORDS = 500
"""Words per event of a `bytes=` text: about 3 kB."""

_WORDS: Final = (  # noqa: SIM905
    "the tide of a river runs out and comes in again while small boats wait at their moorings for water enough"
    " to float them over bar where waves break white in any wind from west so pilots watch clouds flags smoke and"
    " each other before they let go rope or chain because patience costs less than timber nails and men"
).split()
_SIGNS: Final = ("\n", ' "quoted"', " back\\slash", "\t", ",", ".", "\n\n", " <b>")
_PLAIN: Final = (*(f" {word}" for word in _WORDS), *_SIGNS)
_UNICODE: Final = (
    " naïve", " Größe", " 日本語", "の", "文", " żółć", " привет", " 🌊",
    "👩‍🚀", " e\u0301", " שלום", " ไทย", "…", "\u2028",
    " 𝔘𝔫𝔦", " — “so”", " 🇨🇭", "\u00a0x", " naïf\n", " ½", " \U0010fffd",
)  # fmt: skip


class ScriptError(ValueError):
    """A directive nobody knows or a value that cannot be."""


@dataclass(frozen=True, slots=True)
class Script:
    """All directives, with their defaults."""

    # What is said
    tokens: int = 48
    """Pieces of text, the digest included."""
    bytes: int = 0
    """If given, the text has exactly this many UTF-8 bytes, in pieces of about 3 kB; `tokens` is then ignored."""
    chunk: int = 1
    """Pieces per event."""
    seed: str = ""
    say: str = ""
    """This text instead, which has no spaces; four characters a piece."""
    unicode: bool = False
    """Words of many scripts, and network writes that end within a character."""
    escape: bool = False
    """Everything outside ASCII as `\\uXXXX`."""
    reasoning: int = 0
    """Pieces of reasoning before the text."""
    reasoning_field: str = "reasoning_content"
    tool: str = ""
    """Name of a tool that is called after the text."""
    tools: int = 1
    """How often it is called."""
    finish: str = ""
    """Another finish reason than the natural one."""

    # When
    rate: float = 0.0
    """Pieces per second on an absolute schedule; 0: as fast as the reader takes them."""
    first: float = 0.0
    """Seconds before the first event."""
    gap: float = 0.0
    """Seconds of silence at piece `at`."""

    # In what form
    gzip: bool = False
    crlf: bool = False
    cr: bool = False
    bom: bool = False
    comments: bool = False
    """`: keep-alive` before every event."""
    keepalive: float = 0.0
    """Seconds between comments while it hangs."""
    events: bool = False
    """`event:` and `id:` lines."""
    nospace: bool = False
    """No space after `data:`."""
    multiline: bool = False
    """Each payload over two `data:` lines."""
    doubled_done: bool = False
    drip: bool = False
    """One byte per network write."""
    split: int = 0
    """At most so many bytes per network write."""
    one_chunk: bool = False
    """One HTTP chunk per network write, not per event."""
    json: bool = False
    """A plain JSON answer, though a stream was asked for."""

    # What goes wrong
    status: int = 0
    """This HTTP status and an error object."""
    retry_after: str = ""
    """The Retry-After header of an error; `date:SECONDS` for the date form."""
    code: str = ""
    """`code` in the error object."""
    hang: str = ""
    """Silence for ever: `headers`, `first` (after the headers), `mid` (at piece `at`), `end` (before the finish)."""
    cut: str = ""
    """The connection closes: `mid-chunk` within an event, `utf8` within a character, `clean` between events with a
    proper end of the HTTP body, `event` between events without one, `headers` before them."""
    reset: bool = False
    """Like `cut=event`, by a TCP reset."""
    malformed: bool = False
    """Piece `at` is broken JSON."""
    error_in_200: bool = False
    """At piece `at` comes an error object, then the end."""
    empty: bool = False
    """No content, though all else is there."""
    no_finish: bool = False
    no_usage: bool = False
    no_done: bool = False
    content_type: str = ""
    """`html`: an HTML page with status 200."""
    big: int = 0
    """A line of so many bytes in place of piece `at`."""
    at: int = -1
    """The piece at which `gap`, `hang=mid`, `cut` and their like happen; by default the middle one."""
    times: int = 0
    """The faults happen to so many requests with this text and model, then no more; 0: to all."""


_FIELDS: Final[dict[str, type[Any]]] = {entry.name: type(entry.default) for entry in fields(Script)}
FAULTS: Final = frozenset(
    [
        "first",
        "gap",
        "status",
        "retry_after",
        "code",
        "hang",
        "cut",
        "reset",
        "malformed",
        "error_in_200",
        "empty",
        "no_finish",
        "no_usage",
        "no_done",
        "content_type",
        "big",
        "at",
        "keepalive",
        "json",
    ]
)
"""The directives that `times` limits and that may be set from outside; they never change `expected_text`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer to one request, before any fault."""

    script: Script
    tokens: list[str] = field(repr=False)
    encoded: list[bytes] = field(repr=False)
    """Each of `tokens` as the inside of a JSON string."""
    reasoning: list[str] = field(repr=False)
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    input_tokens: int
    output_tokens: int


def parse(text: str) -> dict[str, Any] | None:
    """The directives in a user message, by name; None if it holds no script."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "script" and words[1].partition("=")[0] in _FIELDS:
            return directives(words[1:])
    return None


def directives(words: Sequence[str]) -> dict[str, Any]:
    """The values of `name=value` words. Raises `ScriptError`."""
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        kind = _FIELDS.get(name)
        if kind is None:
            raise ScriptError(f"unknown directive {name!r}")
        try:
            found[name] = value not in ("0", "false") if kind is bool else kind(value)
        except ValueError:
            raise ScriptError(f"{name} cannot be {value!r}") from None
    return found


def text_of(message: Mapping[str, Any]) -> str:
    """The text of one message, of all its parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


def message_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Sixteen hex digits over role and text of every message."""
    packed = json.dumps([[message.get("role"), text_of(message)] for message in messages], ensure_ascii=False)
    return hashlib.sha256(packed.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def script_of(messages: Sequence[Mapping[str, Any]], model: str) -> Script:
    """The script that this request asks for, faults set from outside aside. Raises `ScriptError`."""
    last = next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")
    _, _, tail = model.partition("?")
    return replace(Script(), **{**(parse(last) or {}), **directives(tail.split("&") if tail else ())})


def reply_to(messages: Sequence[Mapping[str, Any]], model: str, max_tokens: int | None = None) -> Reply:
    """The whole answer. Raises `ScriptError`."""
    script = script_of(messages, model)
    prefill = text_of(messages[-1]) if messages and messages[-1].get("role") == "assistant" else ""
    asked = messages[:-1] if prefill else messages
    digest = hashlib.sha256((script.seed or f"{message_hash(asked)}/{model}").encode()).hexdigest()
    tokens, encoded = _tokens(script, digest)
    if prefill and "".join(tokens).startswith(prefill):
        tokens = _after(tokens, prefill)
        encoded = [_inside(token, script.escape) for token in tokens]
    cut = max_tokens is not None and max_tokens < len(tokens)
    if cut:
        tokens, encoded = tokens[:max_tokens], encoded[:max_tokens]
    reasoning = _ring(script.unicode, script.escape)[0][: script.reasoning]
    calls = _tool_calls(script, digest)
    natural = "length" if cut else "tool_calls" if calls else "stop"
    return Reply(
        script=script,
        tokens=tokens,
        encoded=encoded,
        reasoning=reasoning,
        tool_calls=calls,
        finish_reason=script.finish or natural,
        input_tokens=sum(4 + len(text_of(message).encode("utf-8", "replace")) // 4 for message in messages),
        output_tokens=len(tokens) + len(reasoning) + 8 * len(calls),
    )


def expected_text(messages: Sequence[Mapping[str, Any]], model: str, max_tokens: int | None = None) -> str:
    """The text of the answer, every character of it."""
    return "".join(reply_to(messages, model, max_tokens).tokens)


def expected_reasoning(messages: Sequence[Mapping[str, Any]], model: str) -> str:
    """The reasoning before the text."""
    return "".join(reply_to(messages, model).reasoning)


def expected_tool_calls(messages: Sequence[Mapping[str, Any]], model: str) -> list[dict[str, Any]]:
    """The tool calls after the text, whole."""
    return reply_to(messages, model).tool_calls


def _tokens(script: Script, digest: str) -> tuple[list[str], list[bytes]]:
    head = f"#{digest[:8]}"
    if script.bytes:
        return _sized(script, head, int(digest[8:16], 16))
    if script.say:
        pieces = [script.say[at : at + 4] for at in range(0, len(script.say), 4)]
        return pieces, [_inside(piece, script.escape) for piece in pieces]
    ring, encoded = _ring(script.unicode, script.escape)
    start = int(digest[8:16], 16) % RING
    count = max(0, script.tokens - 1)
    if script.tokens < 1:
        return [], []
    if start + count > RING:
        laps = 1 + (start + count) // RING
        ring, encoded = ring * laps, encoded * laps
    return [head, *ring[start : start + count]], [head.encode(), *encoded[start : start + count]]


def _sized(script: Script, head: str, start: int) -> tuple[list[str], list[bytes]]:
    """Blocks up to exactly `script.bytes` bytes; a cut within a character is filled with dots."""
    blocks, encoded = _blocks(script.unicode, script.escape)
    head = head[: script.bytes]
    tokens, packed, size, index = [head], [head.encode()], len(head), start % BLOCKS
    while size < script.bytes:
        token = blocks[index]
        length = len(token.encode())
        if size + length > script.bytes:
            whole = token.encode()[: script.bytes - size].decode(errors="ignore")
            token = whole + "." * (script.bytes - size - len(whole.encode()))
            length = script.bytes - size
            packed.append(_inside(token, script.escape))
        else:
            packed.append(encoded[index])
        tokens.append(token)
        size += length
        index = (index + 1) % BLOCKS
    return tokens, packed


def _after(tokens: list[str], prefill: str) -> list[str]:
    """The tokens that follow `prefill`, the first perhaps in part."""
    skip = len(prefill)
    rest: list[str] = []
    for token in tokens:
        if skip < len(token):
            rest.append(token[skip:])
        skip = max(0, skip - len(token))
    return rest


def _tool_calls(script: Script, digest: str) -> list[dict[str, Any]]:
    calls = []
    for index in range(script.tools if script.tool else 0):
        arguments = json.dumps({"city": "Zürich", "index": index, "note": '"quoted" \\ 🌊'}, ensure_ascii=False)
        function = {"name": script.tool, "arguments": arguments}
        calls.append({"id": f"call_{digest[:8]}_{index}", "type": "function", "function": function})
    return calls


def _inside(text: str, escape: bool) -> bytes:
    return json.dumps(text, ensure_ascii=escape)[1:-1].encode()


@lru_cache(maxsize=4)
def _ring(unicode: bool, escape: bool) -> tuple[list[str], list[bytes]]:
    words = random.Random(20).choices(_PLAIN + _UNICODE * 3 if unicode else _PLAIN, k=RING)
    packed = {word: _inside(word, escape) for word in set(words)}
    return words, [packed[word] for word in words]


@lru_cache(maxsize=4)
def _blocks(unicode: bool, escape: bool) -> tuple[list[str], list[bytes]]:
    words = _ring(unicode, escape)[0]
    chance = random.Random(21)
    blocks = ["".join(chance.choices(words, k=BLOCK_WORDS)) for _ in range(BLOCKS)]
    return blocks, [_inside(block, escape) for block in blocks]
