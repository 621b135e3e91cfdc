"""A model of Redis: the commands that the server uses, scripts in Lua 5.1, expiry by virtual time, lost writes.

`Keyspace.execute` takes a command as a client would send it and answers as hiredis would decode the reply: bytes,
int, None, list. Errors are raised as `ReplyError` with Redis' own text. `tests/integration/test_model_redis.py` holds
it to a real Valkey, command by command. What belongs to connections (delays, freezes, crashes) is in `world`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from lupa.lua51 import LuaError, LuaRuntime

MAX_ID: Final = (2**64 - 1, 2**64 - 1)
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


class ReplyError(Exception):
    """Redis answers with this error."""


class Status(bytes):
    """A status reply (`+OK`): plain bytes to clients, a table with `ok` to scripts."""


OK: Final = Status(b"OK")
WRONGTYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_INT: Final = "ERR value is not an integer or out of range"
SYNTAX: Final = "ERR syntax error"
BAD_ID: Final = "ERR Invalid stream ID specified as stream command argument"


class Stream:
    """A stream: entries in order of their ids."""

    __slots__ = ("entries", "last")

    def __init__(self) -> None:
        self.entries: list[tuple[tuple[int, int], list[bytes]]] = []
        self.last = (0, 0)

    def copy(self) -> Stream:
        """Another stream with the same entries."""
        twin = Stream()
        twin.entries, twin.last = self.entries.copy(), self.last
        return twin


Value = bytes | dict[bytes, Any] | Stream
_Table = Callable[["Keyspace", Sequence[bytes]], Any]
COMMANDS: Final[dict[Any, tuple[_Table, int, int, bool]]] = {}
"""Name (bytes and text) → function, least and most arguments (with the name), whether it may write."""
NO_MOST: Final = 10**9


def command(name: str, least: int, most: int | None = None, writes: bool = False) -> Callable[[_Table], _Table]:
    """Register a command."""

    def register(function: _Table) -> _Table:
        row = (function, least, least if most is None else most, writes)
        COMMANDS[name] = COMMANDS[name.encode()] = row
        return function

    return register


def encode(value: Any) -> bytes:
    """An argument as it travels."""
    kind = type(value)
    if kind is bytes:
        return value  # type: ignore[no-any-return]
    if kind is str:
        return value.encode()  # type: ignore[no-any-return]
    if kind is int:
        return b"%d" % value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return str(value).encode()
    if isinstance(value, float):
        return repr(value).encode()
    return b"%d" % int(value)


class Keyspace:
    """One primary's data."""

    def __init__(self, now: Callable[[], float], keep_undo: bool = False) -> None:
        self.now = now
        """Seconds; Unix time as Redis sees it."""
        self.data: dict[bytes, Value] = {}
        self.kinds: dict[bytes, str] = {}
        self.expires: dict[bytes, int] = {}
        """Key → when it ends, in milliseconds."""
        self.scripts: dict[bytes, Any] = {}
        self.published: list[tuple[bytes, bytes]] = []
        """What the last command published on shard channels: whoever runs the connections takes it."""
        self.on_publish: Callable[[bytes, bytes], int] = self._publish
        self.undo: list[tuple[float, list[tuple[bytes, Value | None, str, int | None]]]] | None = (
            [] if keep_undo else None
        )
        self._undoing: dict[bytes, tuple[bytes, Value | None, str, int | None]] | None = None

    def _publish(self, channel: bytes, data: bytes) -> int:
        self.published.append((channel, data))
        return 0

    # --- running ---

    def execute(self, *given: Any) -> Any:
        """Run one command. Raises `ReplyError`."""
        function = self.function(given)
        sent = [arg if type(arg) is bytes else arg.encode() if type(arg) is str else encode(arg) for arg in given]
        if self.undo is None:
            return function(self, sent)
        self._undoing = {}
        try:
            return function(self, sent)
        finally:
            if self._undoing:
                self.undo.append((self.now(), list(self._undoing.values())))
            self._undoing = None

    def function(self, given: Sequence[Any]) -> _Table:
        """What runs a command, if it has as many arguments as it may."""
        name = given[0]
        row = COMMANDS.get(name)
        if row is None:
            row = COMMANDS.get(encode(name).upper())
            if row is None:
                shown = encode(name).decode(errors="replace")[:128]
                rest = "".join(f"'{encode(a).decode(errors='replace')[:128]}' " for a in given[1:])
                raise ReplyError(f"ERR unknown command '{shown}', with args beginning with: {rest}")
        function, least, most, _ = row
        if not least <= len(given) <= most:
            raise wrong_number(name)
        return function

    def lose(self, writes: int) -> int:
        """Forget the last acknowledged writes, as a failover or a crash between two fsyncs does; how many."""
        assert self.undo is not None, "this keyspace keeps no undo log"
        lost = 0
        while self.undo and lost < writes:
            for key, value, kind, expires in reversed(self.undo.pop()[1]):
                self._drop(key)
                if value is not None:
                    self.data[key], self.kinds[key] = value, kind
                    if expires is not None:
                        self.expires[key] = expires
            lost += 1
        return lost

    # --- keys ---

    def millis(self) -> int:
        """Unix time in milliseconds."""
        return int(self.now() * 1000)

    def _live(self, key: bytes) -> bool:
        if key not in self.data:
            return False
        end = self.expires.get(key)
        if end is not None and end <= self.now() * 1000:
            self._drop(key)
            return False
        return True

    def _drop(self, key: bytes) -> None:
        self.data.pop(key, None)
        self.kinds.pop(key, None)
        self.expires.pop(key, None)

    def get(self, key: bytes, kind: str) -> Any:
        """The value, None if there is none. Raises `ReplyError` if it is of another kind."""
        if not self._live(key):
            return None
        if self.kinds[key] != kind:
            raise ReplyError(WRONGTYPE)
        return self.data[key]

    def touch(self, key: bytes) -> None:
        """The key is about to change: keep what it was."""
        undoing = self._undoing
        if undoing is not None and key not in undoing:
            value = self.data.get(key)
            if value is not None and type(value) is not bytes:
                value = value.copy()  # type: ignore[union-attr]
            undoing[key] = (key, value, self.kinds.get(key, ""), self.expires.get(key))

    def put(self, key: bytes, value: Value, kind: str) -> None:
        """Set a key; its clock stays."""
        self.data[key] = value
        self.kinds[key] = kind

    def container(self, key: bytes, kind: str) -> Any:
        """The hash, set, sorted set or stream under `key`, to be changed; a new one if there is none."""
        value = self.get(key, kind)
        self.touch(key)
        if value is None:
            value = Stream() if kind == "stream" else {}
            self.put(key, value, kind)
        return value

    def delete(self, key: bytes) -> bool:
        """Delete a key; whether it was there."""
        if not self._live(key):
            return False
        self.touch(key)
        self._drop(key)
        return True


def wrong_number(name: Any) -> ReplyError:
    return ReplyError(f"ERR wrong number of arguments for '{encode(name).decode(errors='replace').lower()}' command")


def integer(data: bytes) -> int:
    """A 64-bit integer as strictly as Redis reads one. Raises `ReplyError`."""
    try:
        value = int(data)
    except ValueError:
        raise ReplyError(NOT_INT) from None
    if b"%d" % value != data or not _INT_MIN <= value <= _INT_MAX:
        raise ReplyError(NOT_INT)
    return value


# --- connection ---


@command("PING", 1, 2)
def _ping(space: Keyspace, args: Sequence[bytes]) -> Any:
    return args[1] if len(args) > 1 else Status(b"PONG")


@command("TIME", 1)
def _time(space: Keyspace, args: Sequence[bytes]) -> Any:
    micros = int(space.now() * 1_000_000)
    return [b"%d" % (micros // 1_000_000), b"%d" % (micros % 1_000_000)]


@command("SPUBLISH", 3)
def _spublish(space: Keyspace, args: Sequence[bytes]) -> Any:
    return space.on_publish(args[1], args[2])


@command("PUBLISH", 3)
def _publish(space: Keyspace, args: Sequence[bytes]) -> Any:
    return space.on_publish(args[1], args[2])


# --- keys ---


@command("DEL", 2, NO_MOST, writes=True)
@command("UNLINK", 2, NO_MOST, writes=True)
def _del(space: Keyspace, args: Sequence[bytes]) -> Any:
    return sum(space.delete(key) for key in args[1:])


@command("EXISTS", 2, NO_MOST)
def _exists(space: Keyspace, args: Sequence[bytes]) -> Any:
    return sum(space._live(key) for key in args[1:])


@command("TYPE", 2)
def _type(space: Keyspace, args: Sequence[bytes]) -> Any:
    return Status(space.kinds[args[1]].encode() if space._live(args[1]) else b"none")


@command("RENAME", 3, writes=True)
def _rename(space: Keyspace, args: Sequence[bytes]) -> Any:
    old, new = args[1], args[2]
    if not space._live(old):
        raise ReplyError("ERR no such key")
    if old == new:
        return OK
    space.touch(old)
    space.touch(new)
    value, kind, end = space.data[old], space.kinds[old], space.expires.get(old)
    space._drop(old)
    space._drop(new)
    space.put(new, value, kind)
    if end is not None:
        space.expires[new] = end
    return OK


def _expire_at(space: Keyspace, args: Sequence[bytes], unit: int) -> int:
    flags = _expire_flags(args[3:])
    amount, now = integer(args[2]), space.millis()
    if not _INT_MIN // unit <= amount <= (_INT_MAX // unit) - now:
        raise ReplyError(f"ERR invalid expire time in '{args[0].decode().lower()}' command")
    key, when = args[1], amount * unit + now
    if not space._live(key):
        return 0
    end = space.expires.get(key)
    if (
        (b"NX" in flags and end is not None)
        or (b"XX" in flags and end is None)
        or (b"GT" in flags and (end is None or when <= end))
        or (b"LT" in flags and end is not None and when >= end)
    ):
        return 0
    space.touch(key)
    if when <= now:
        space._drop(key)
    else:
        space.expires[key] = when
    return 1


def _expire_flags(options: Sequence[bytes]) -> set[bytes]:
    flags = {option.upper() for option in options}
    for option in options:
        if option.upper() not in (b"NX", b"XX", b"GT", b"LT"):
            raise ReplyError(f"ERR Unsupported option {option.decode(errors='replace')}")
    if b"NX" in flags and len(flags) > 1:
        raise ReplyError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if b"GT" in flags and b"LT" in flags:
        raise ReplyError("ERR GT and LT options at the same time are not compatible")
    return flags


@command("PEXPIRE", 3, NO_MOST, writes=True)
def _pexpire(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _expire_at(space, args, 1)


@command("EXPIRE", 3, NO_MOST, writes=True)
def _expire(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _expire_at(space, args, 1000)


@command("PERSIST", 2, writes=True)
def _persist(space: Keyspace, args: Sequence[bytes]) -> Any:
    if not space._live(args[1]) or args[1] not in space.expires:
        return 0
    space.touch(args[1])
    del space.expires[args[1]]
    return 1


@command("PTTL", 2)
def _pttl(space: Keyspace, args: Sequence[bytes]) -> Any:
    if not space._live(args[1]):
        return -2
    end = space.expires.get(args[1])
    return -1 if end is None else max(0, end - space.millis())


@command("TTL", 2)
def _ttl(space: Keyspace, args: Sequence[bytes]) -> Any:
    left = _pttl(space, args)
    return left if left < 0 else (left + 500) // 1000


# --- strings ---


@command("GET", 2)
def _get(space: Keyspace, args: Sequence[bytes]) -> Any:
    return space.get(args[1], "string")


@command("MGET", 2, NO_MOST)
def _mget(space: Keyspace, args: Sequence[bytes]) -> Any:
    return [space.data[key] if space._live(key) and space.kinds[key] == "string" else None for key in args[1:]]


@command("SET", 3, NO_MOST, writes=True)
def _set(space: Keyspace, args: Sequence[bytes]) -> Any:
    key, value = args[1], args[2]
    flags: set[bytes] = set()
    end: int | None = None
    index = 3
    while index < len(args):
        flag = args[index].upper()
        if flag in (b"EX", b"PX") and index + 1 < len(args) and end is None and b"KEEPTTL" not in flags:
            index += 1
            amount = integer(args[index])
            if amount <= 0 or amount > _INT_MAX // 1000:
                raise ReplyError("ERR invalid expire time in 'set' command")
            end = space.millis() + amount * (1000 if flag == b"EX" else 1)
        elif (
            (flag == b"NX" and b"XX" not in flags)
            or (flag == b"XX" and b"NX" not in flags)
            or (flag == b"KEEPTTL" and end is None)
            or flag == b"GET"
        ):
            flags.add(flag)
        else:
            raise ReplyError(SYNTAX)
        index += 1
    old = space.get(key, "string") if b"GET" in flags else None
    there = space._live(key)
    if (b"NX" in flags and there) or (b"XX" in flags and not there):
        return old
    space.touch(key)
    if b"KEEPTTL" not in flags:
        space.expires.pop(key, None)
    space.put(key, value, "string")
    if end is not None:
        space.expires[key] = end
    return old if b"GET" in flags else OK


@command("APPEND", 3, writes=True)
def _append(space: Keyspace, args: Sequence[bytes]) -> Any:
    old = space.get(args[1], "string")
    space.touch(args[1])
    value = (old or b"") + args[2]
    space.put(args[1], value, "string")
    return len(value)


@command("STRLEN", 2)
def _strlen(space: Keyspace, args: Sequence[bytes]) -> Any:
    return len(space.get(args[1], "string") or b"")


@command("GETRANGE", 4)
def _getrange(space: Keyspace, args: Sequence[bytes]) -> Any:
    start, end = integer(args[2]), integer(args[3])
    value = space.get(args[1], "string")
    if value is None:
        return b""
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return b""
    start, end = max(0, start + size if start < 0 else start), end + size if end < 0 else end
    return value[start : max(0, end) + 1]


def _add(space: Keyspace, key: bytes, amount: int) -> int:
    old = space.get(key, "string")
    value = (0 if old is None else integer(old)) + amount
    if not _INT_MIN <= value <= _INT_MAX:
        raise ReplyError("ERR increment or decrement would overflow")
    space.touch(key)
    space.put(key, b"%d" % value, "string")
    return value


@command("INCR", 2, writes=True)
def _incr(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _add(space, args[1], 1)


@command("DECR", 2, writes=True)
def _decr(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _add(space, args[1], -1)


@command("INCRBY", 3, writes=True)
def _incrby(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _add(space, args[1], integer(args[2]))


# --- hashes ---


@command("HSET", 4, NO_MOST, writes=True)
def _hset(space: Keyspace, args: Sequence[bytes]) -> Any:
    if len(args) % 2:
        raise wrong_number(args[0])
    found = space.container(args[1], "hash")
    before = len(found)
    for index in range(2, len(args), 2):
        found[args[index]] = args[index + 1]
    return len(found) - before


@command("HSETNX", 4, writes=True)
def _hsetnx(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.get(args[1], "hash")
    if found is not None and args[2] in found:
        return 0
    space.container(args[1], "hash")[args[2]] = args[3]
    return 1


@command("HGET", 3)
def _hget(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.get(args[1], "hash")
    return None if found is None else found.get(args[2])


@command("HMGET", 3, NO_MOST)
def _hmget(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.get(args[1], "hash") or {}
    return [found.get(field) for field in args[2:]]


@command("HGETALL", 2)
def _hgetall(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.get(args[1], "hash") or {}
    return [part for pair in found.items() for part in pair]


@command("HKEYS", 2)
def _hkeys(space: Keyspace, args: Sequence[bytes]) -> Any:
    return list(space.get(args[1], "hash") or {})


@command("HLEN", 2)
def _hlen(space: Keyspace, args: Sequence[bytes]) -> Any:
    return len(space.get(args[1], "hash") or {})


@command("HEXISTS", 3)
def _hexists(space: Keyspace, args: Sequence[bytes]) -> Any:
    return int(args[2] in (space.get(args[1], "hash") or {}))


@command("HDEL", 3, NO_MOST, writes=True)
def _hdel(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _remove(space, args, "hash")


def _remove(space: Keyspace, args: Sequence[bytes], kind: str) -> int:
    found = space.get(args[1], kind)
    if found is None:
        return 0
    space.touch(args[1])
    gone = sum(found.pop(member, None) is not None for member in args[2:])
    if not found:
        space._drop(args[1])
    return gone


@command("HINCRBY", 4, writes=True)
def _hincrby(space: Keyspace, args: Sequence[bytes]) -> Any:
    amount = integer(args[3])
    old = (space.get(args[1], "hash") or {}).get(args[2])
    try:
        value = (0 if old is None else integer(old)) + amount
    except ReplyError:
        raise ReplyError("ERR hash value is not an integer") from None
    if not _INT_MIN <= value <= _INT_MAX:
        raise ReplyError("ERR increment or decrement would overflow")
    space.container(args[1], "hash")[args[2]] = b"%d" % value
    return value


# --- sets ---


@command("SADD", 3, NO_MOST, writes=True)
def _sadd(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.container(args[1], "set")
    before = len(found)
    for member in args[2:]:
        found[member] = True
    return len(found) - before


@command("SREM", 3, NO_MOST, writes=True)
def _srem(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _remove(space, args, "set")


@command("SMEMBERS", 2)
def _smembers(space: Keyspace, args: Sequence[bytes]) -> Any:
    return list(space.get(args[1], "set") or {})


@command("SISMEMBER", 3)
def _sismember(space: Keyspace, args: Sequence[bytes]) -> Any:
    return int(args[2] in (space.get(args[1], "set") or {}))


@command("SMISMEMBER", 3, NO_MOST)
def _smismember(space: Keyspace, args: Sequence[bytes]) -> Any:
    found = space.get(args[1], "set") or {}
    return [int(member in found) for member in args[2:]]


@command("SCARD", 2)
def _scard(space: Keyspace, args: Sequence[bytes]) -> Any:
    return len(space.get(args[1], "set") or {})


# --- sorted sets ---


def _score(data: bytes, error: str) -> float:
    """A finite or infinite number. Raises `ReplyError`."""
    try:
        value = float(data)
    except ValueError:
        raise ReplyError(error) from None
    if value != value or data != data.strip() or b"_" in data:
        raise ReplyError(error)
    return value


@command("ZADD", 4, NO_MOST, writes=True)
def _zadd(space: Keyspace, args: Sequence[bytes]) -> Any:
    if len(args) % 2:
        raise ReplyError(SYNTAX)
    pairs = [
        (args[index + 1], _score(args[index], "ERR value is not a valid float")) for index in range(2, len(args), 2)
    ]
    found = space.container(args[1], "zset")
    before = len(found)
    found.update(pairs)
    return len(found) - before


@command("ZREM", 3, NO_MOST, writes=True)
def _zrem(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _remove(space, args, "zset")


@command("ZCARD", 2)
def _zcard(space: Keyspace, args: Sequence[bytes]) -> Any:
    return len(space.get(args[1], "zset") or {})


@command("ZSCORE", 3)
def _zscore(space: Keyspace, args: Sequence[bytes]) -> Any:
    score = (space.get(args[1], "zset") or {}).get(args[2])
    if score is None:
        return None
    if score in (float("inf"), float("-inf")):
        return b"inf" if score > 0 else b"-inf"
    return b"%d" % score if score.is_integer() else repr(score).encode()


@command("ZREMRANGEBYSCORE", 4, writes=True)
def _zremrangebyscore(space: Keyspace, args: Sequence[bytes]) -> Any:
    return _remove(space, [args[0], args[1], *_zrangebyscore(space, args)], "zset")


@command("ZRANGEBYSCORE", 4)
def _zrangebyscore(space: Keyspace, args: Sequence[bytes]) -> Any:
    (low, over_low), (high, under_high) = (_end_of_scores(end) for end in args[2:])
    found = space.get(args[1], "zset") or {}
    within = [
        (score, member)
        for member, score in found.items()
        if (low < score if over_low else low <= score) and (score < high if under_high else score <= high)
    ]
    return [member for _, member in sorted(within)]


@command("ZCOUNT", 4)
def _zcount(space: Keyspace, args: Sequence[bytes]) -> Any:
    return len(_zrangebyscore(space, args))


def _end_of_scores(data: bytes) -> tuple[float, bool]:
    """One end of a range of scores, and whether it is exclusive."""
    exclusive = data.startswith(b"(")
    number = data[1:] if exclusive else data
    return _score(number or b"0", "ERR min or max is not a float"), exclusive  # as C's strtod takes it


# --- streams ---


def _stream_id(data: bytes, missing: int) -> tuple[int, int]:
    """`7-3`, or `7` with `missing` as its second part."""
    first, dash, second = data.partition(b"-")
    parts = [first, second] if dash else [first]
    for part in parts:
        if not part.isdigit() or int(part) > MAX_ID[0]:
            raise ReplyError(BAD_ID)
    return int(first), int(second) if dash else missing


def _bound(data: bytes, end: bool) -> tuple[int, int]:
    """One end of a range, inclusive."""
    if data == b"-":
        return 0, 0
    if data == b"+":
        return MAX_ID
    exclusive = data.startswith(b"(")
    if exclusive and data[1:] in (b"-", b"+"):
        raise ReplyError(BAD_ID)
    found = _stream_id(data[1:] if exclusive else data, MAX_ID[1] if end else 0)
    if not exclusive:
        return found
    if end:
        if found == (0, 0):
            raise ReplyError("ERR invalid end ID for the interval")
        return (found[0], found[1] - 1) if found[1] else (found[0] - 1, MAX_ID[1])
    if found == MAX_ID:
        raise ReplyError("ERR invalid start ID for the interval")
    return (found[0], found[1] + 1) if found[1] < MAX_ID[1] else (found[0] + 1, 0)


def _shown_id(found: tuple[int, int]) -> bytes:
    return b"%d-%d" % found


@command("XADD", 5, NO_MOST, writes=True)
def _xadd(space: Keyspace, args: Sequence[bytes]) -> Any:
    key, index, make = args[1], 2, True
    if args[2].upper() == b"NOMKSTREAM":
        make, index = False, 3
    if args[index].upper() == b"MAXLEN" and args[index + 1 : index + 2] == [b"~"]:
        index += 3  # trimming about so much may well be trimming nothing
    given, pairs = args[index], args[index + 1 :]
    found = None
    if given != b"*":
        found = _stream_id(given, 0)
        if found == (0, 0):
            # Redis looks at the arguments' number first
            if not pairs or len(pairs) % 2:
                raise wrong_number(args[0])
            raise ReplyError("ERR The ID specified in XADD must be greater than 0-0")
    if not pairs or len(pairs) % 2:
        raise wrong_number(args[0])
    stream = space.get(key, "stream")
    if stream is None and not make:
        return None
    if found is None:
        last = stream.last if stream is not None else (0, 0)
        found = max((space.millis(), 0), (last[0], last[1] + 1))
    elif stream is not None and stream.last == MAX_ID:
        raise ReplyError("ERR The stream has exhausted the last possible ID, unable to add more items")
    elif stream is not None and found <= stream.last:
        raise ReplyError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    stream = space.container(key, "stream")
    stream.entries.append((found, list(pairs)))
    stream.last = found
    return _shown_id(found)


@command("XLEN", 2)
def _xlen(space: Keyspace, args: Sequence[bytes]) -> Any:
    stream = space.get(args[1], "stream")
    return 0 if stream is None else len(stream.entries)


@command("XRANGE", 4, NO_MOST)
def _xrange(space: Keyspace, args: Sequence[bytes]) -> Any:
    start, end = _bound(args[2], False), _bound(args[3], True)
    count = _count(args)
    stream = space.get(args[1], "stream")
    if stream is None or count == 0:
        return None if stream is not None else []
    entries = stream.entries
    low = len(entries)
    while low and entries[low - 1][0] >= start:
        low -= 1
    found = []
    for at in range(low, len(entries)):
        entry = entries[at]
        if entry[0] > end or (count is not None and len(found) >= count):
            break
        found.append([_shown_id(entry[0]), list(entry[1])])
    return found


@command("XREVRANGE", 4, NO_MOST)
def _xrevrange(space: Keyspace, args: Sequence[bytes]) -> Any:
    start, end = _bound(args[3], False), _bound(args[2], True)
    count = _count(args)
    stream = space.get(args[1], "stream")
    if stream is None or count == 0:
        return None if stream is not None else []
    found = [[_shown_id(at), list(pairs)] for at, pairs in reversed(stream.entries) if start <= at <= end]
    return found if count is None else found[:count]


def _count(args: Sequence[bytes]) -> int | None:
    if len(args) == 4:
        return None
    if len(args) != 6 or args[4].upper() != b"COUNT":
        raise ReplyError(SYNTAX)
    return max(0, integer(args[5]))


# --- scripts ---


@lru_cache(256)
def _sha(source: bytes) -> bytes:
    return hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


class _Lua:
    """The one Lua runtime of the process: scripts are pure functions of their keys and arguments."""

    def __init__(self) -> None:
        self.lua = LuaRuntime(encoding=None, unpack_returned_tuples=False, register_eval=False)
        self.space: Keyspace | None = None
        self.functions: dict[bytes, Any] = {}
        self.table = self.lua.table_from
        bind = self.lua.execute(_PRELUDE)
        bind(self._call, _sha)

    def function(self, sha: bytes, source: bytes) -> Any:
        """The compiled script. Raises `ReplyError`."""
        found = self.functions.get(sha)
        if found is None:
            try:
                found = self.lua.execute(b"return function(KEYS, ARGV)\n" + source + b"\nend")
            except LuaError as error:
                raise ReplyError(f"ERR Error compiling script (new function): {error}") from None
            self.functions[sha] = found
        return found

    def run(self, space: Keyspace, function: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script; its reply as clients see it."""
        before, self.space = self.space, space
        try:
            reply = function(self.table(keys), self.table(args))
        except LuaError as error:
            text = str(error)
            raise ReplyError(f"ERR user_script: {text}") from None
        finally:
            self.space = before
        return self.reply(reply)

    def _call(self, *given: Any) -> Any:
        """`redis.call`: what a script asks of Redis, as a Lua value."""
        space = self.space
        assert space is not None
        if not given:
            raise ReplyError("ERR Please specify at least one argument for this redis.call() call")
        name = given[0]
        if name in _NOT_IN_SCRIPTS:
            raise ReplyError("ERR This Redis command is not allowed from script")
        sent = [arg if type(arg) is bytes else _number(arg) for arg in given]
        reply = space.function(sent)(space, sent)
        return reply if type(reply) in _AS_IT_IS else self.value(reply)

    def value(self, reply: Any) -> Any:
        """A reply as a Lua value."""
        kind = type(reply)
        if kind in _AS_IT_IS:
            return reply
        if reply is None:
            return False
        if kind is list:
            return self.table([item if type(item) in _AS_IT_IS else self.value(item) for item in reply])
        return self.table({b"ok": bytes(reply)})

    def reply(self, value: Any) -> Any:
        """A Lua value as a reply."""
        kind = type(value)
        if kind in _AS_IT_IS:
            return value
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if kind is float:
            return int(value)
        error = value[b"err"]
        if error is not None:
            text = error.decode(errors="replace")
            raise ReplyError(text.removeprefix("-") if " " in text or text.startswith("-") else f"ERR {text}")
        status = value[b"ok"]
        if status is not None:
            return Status(status)
        found = []
        index = 1
        while (item := value[index]) is not None:
            found.append(self.reply(item))
            index += 1
        return found


def _number(value: Any) -> bytes:
    """A number that a script hands to `redis.call`."""
    if type(value) is int:
        return b"%d" % value
    if type(value) is float:
        return repr(value).encode()
    raise ReplyError("ERR Command arguments must be strings or integers")


_AS_IT_IS: Final = frozenset({bytes, int})
_NOT_IN_SCRIPTS: Final = frozenset({b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"EVAL", b"EVALSHA", b"SCRIPT"})
_PRELUDE: Final = b"""
return function(call, sha1hex)
  redis = {
    call = call,
    pcall = function(...)
      local ok, got = pcall(call, ...)
      if ok then return got end
      return {err = tostring(got)}
    end,
    error_reply = function(text) return {err = text} end,
    status_reply = function(text) return {ok = text} end,
    sha1hex = sha1hex,
    log = function() end,
    LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  }
  os = {clock = function() return 0 end}
  io, require, dofile, loadfile, python, package, module = nil, nil, nil, nil, nil, nil, nil
  setmetatable(_G, {
    __newindex = function(_, name) error('Attempt to modify a readonly table: ' .. tostring(name), 2) end,
    __index = function(_, name)
      error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
    end,
  })
end
"""
_LUA: Final = _Lua()


@command("SCRIPT", 2, NO_MOST)
def _script(space: Keyspace, args: Sequence[bytes]) -> Any:
    what = args[1].upper()
    if what == b"LOAD" and len(args) == 3:
        sha = _sha(args[2])
        space.scripts[sha] = _LUA.function(sha, args[2])
        return sha
    if what == b"EXISTS" and len(args) >= 3:
        return [int(sha.lower() in space.scripts) for sha in args[2:]]
    if what == b"FLUSH":
        space.scripts.clear()
        return OK
    raise ReplyError(f"ERR unknown subcommand '{args[1].decode(errors='replace')}'. Try SCRIPT HELP.")


def _run_script(space: Keyspace, function: Any, args: Sequence[bytes]) -> Any:
    count = integer(args[2])
    if count > len(args) - 3:
        raise ReplyError("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise ReplyError("ERR Number of keys can't be negative")
    return _LUA.run(space, function, args[3 : 3 + count], args[3 + count :])


@command("EVALSHA", 3, NO_MOST, writes=True)
def _evalsha(space: Keyspace, args: Sequence[bytes]) -> Any:
    function = space.scripts.get(args[1])
    if function is None:
        function = space.scripts.get(args[1].lower())
        if function is None:
            raise ReplyError("NOSCRIPT No matching script.")
    return _run_script(space, function, args)


@command("EVAL", 3, NO_MOST, writes=True)
def _eval(space: Keyspace, args: Sequence[bytes]) -> Any:
    sha = _sha(args[1])
    space.scripts[sha] = _LUA.function(sha, args[1])
    return _run_script(space, space.scripts[sha], args)
