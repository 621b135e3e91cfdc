"""The modelled Redis of the simulation against a real Valkey: command sequences, reply by reply."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.messages import scripts
from tests.servers import RedisServer
from tests.simulation.redis import Keyspace, ReplyError

Command = tuple[Any, ...]

keys = st.sampled_from([b"{t}a", b"{t}b", b"{t}c"])
fields = st.sampled_from([b"f", b"g", b"h", b"head"])
values = st.sampled_from([b"", b"v", b"12", b"-3", b"007", b"9223372036854775807", b"x" * 40, b"\x00\xff\r\n", b"1.5"])
members = st.lists(st.sampled_from([b"m", b"n", b"o"]), min_size=1, max_size=3)
ids = st.one_of(
    st.integers(0, 6).map(lambda n: b"%d-0" % n),
    st.integers(0, 6).map(lambda n: b"%d" % n),
    st.sampled_from([b"3-1", b"3-2", b"0-0", b"x", b"1-", b"18446744073709551615-18446744073709551615", b"-1-0"]),
)
ends = st.one_of(ids, ids.map(lambda i: b"(" + i), st.sampled_from([b"-", b"+", b"(-"]))
far = st.sampled_from([b"1000000", b"2000000", b"0", b"-5", b"x", b"9223372036854775807"])
numbers = st.one_of(st.integers(-12, 12).map(lambda n: b"%d" % n), st.sampled_from([b"x", b"1.0", b"+1", b" 1"]))
pairs = st.lists(st.tuples(fields, values), min_size=1, max_size=3).map(lambda p: [x for pair in p for x in pair])
scores = st.one_of(
    st.integers(-3, 3).map(lambda n: b"%d" % n),
    st.sampled_from([b"1.5", b"-inf", b"+inf", b"inf", b"nan", b"x", b"", b" 1", b"1e3", b"1_0", b"1700000000000000"]),
)
scored = st.lists(st.tuples(scores, st.sampled_from([b"m", b"n", b"o"])), min_size=1, max_size=3).map(
    lambda p: [x for pair in p for x in pair]
)
bounds = st.one_of(scores, scores.map(lambda score: b"(" + score))
in_any_case = st.sampled_from([b"HSET", b"hset", b"HsEt"])


def _with(name: bytes, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Command]:
    """A command whose arguments are drawn; lists are spread."""
    return st.tuples(*parts).map(
        lambda drawn: (name, *(x for part in drawn for x in (part if isinstance(part, list) else [part])))
    )


commands = st.one_of(
    st.tuples(in_any_case, keys, pairs).map(lambda c: (c[0], c[1], *c[2])),
    _with(b"HSET", keys, st.lists(values, min_size=1, max_size=3)),
    _with(b"HSETNX", keys, fields, values),
    _with(b"HGET", keys, fields),
    _with(b"HMGET", keys, st.lists(fields, min_size=1, max_size=4)),
    _with(b"HGETALL", keys),
    _with(b"HKEYS", keys),
    _with(b"HLEN", keys),
    _with(b"HEXISTS", keys, fields),
    _with(b"HDEL", keys, st.lists(fields, min_size=1, max_size=3)),
    _with(b"HINCRBY", keys, fields, numbers),
    _with(b"GET", keys),
    _with(b"MGET", st.lists(keys, min_size=1, max_size=3)),
    _with(b"SET", keys, values),
    _with(
        b"SET",
        keys,
        values,
        st.lists(st.sampled_from([b"NX", b"XX", b"GET", b"KEEPTTL", b"nx", b"WHAT"]), min_size=1, max_size=2),
    ),
    _with(b"SET", keys, values, st.sampled_from([[b"PX"], [b"EX"]]), st.one_of(far, st.just([]))),
    _with(b"APPEND", keys, values),
    _with(b"STRLEN", keys),
    _with(b"GETRANGE", keys, numbers, numbers),
    _with(b"INCR", keys),
    _with(b"DECR", keys),
    _with(b"INCRBY", keys, numbers),
    _with(b"SADD", keys, members),
    _with(b"SREM", keys, members),
    _with(b"SMEMBERS", keys),
    _with(b"SISMEMBER", keys, st.sampled_from([b"m", b"q"])),
    _with(b"SMISMEMBER", keys, members),
    _with(b"SCARD", keys),
    _with(b"ZADD", keys, scored),
    _with(b"ZADD", keys, scores),
    _with(b"ZREM", keys, members),
    _with(b"ZCARD", keys),
    _with(b"ZSCORE", keys, st.sampled_from([b"m", b"q"])),
    _with(b"ZRANGEBYSCORE", keys, bounds, bounds),
    _with(b"ZCOUNT", keys, bounds, bounds),
    _with(b"ZREMRANGEBYSCORE", keys, bounds, bounds),
    _with(b"XADD", keys, ids, pairs),
    _with(b"XADD", keys, st.just(b"NOMKSTREAM"), ids, pairs),
    _with(b"XADD", keys, ids, st.lists(values, max_size=3)),
    _with(b"XLEN", keys),
    _with(b"XRANGE", keys, ends, ends),
    _with(b"XRANGE", keys, ends, ends, st.just(b"COUNT"), numbers),
    _with(b"XREVRANGE", keys, ends, ends, st.just(b"COUNT"), numbers),
    _with(b"XRANGE", keys, ends, ends, values),
    _with(b"DEL", st.lists(keys, min_size=1, max_size=3)),
    _with(b"EXISTS", st.lists(keys, min_size=1, max_size=4)),
    _with(b"TYPE", keys),
    _with(b"RENAME", keys, keys),
    _with(b"PEXPIRE", keys, far),
    _with(b"EXPIRE", keys, st.sampled_from([b"1000", b"0", b"-1", b"x", b"9223372036854775807"])),
    _with(b"PEXPIRE", keys, far, st.lists(st.sampled_from([b"NX", b"XX", b"GT", b"LT", b"?"]), max_size=2)),
    _with(b"PERSIST", keys),
    _with(b"PTTL", keys),
    _with(b"TTL", keys),
    _with(b"SPUBLISH", keys, values),
    _with(b"PING"),
    _with(b"GET"),
    _with(b"GET", keys, keys),
    _with(b"NOSUCH", keys),
    _with(b"SCRIPT", st.just(b"EXISTS"), st.sampled_from([s.sha for s in scripts.ALL]), st.just(b"0" * 40)),
    _with(b"EVALSHA", st.just(b"f" * 40), st.just(b"0")),
)

LUA = [
    b"return redis.call(unpack(ARGV))",
    b"local r = redis.call(unpack(ARGV)) return type(r)",
    b"local r = redis.call(unpack(ARGV)) if type(r) == 'table' then return {#r, r[1] or 'none', r.ok or 'no'} end "
    b"return tostring(r)",
    b"local r = redis.pcall(unpack(ARGV)) if type(r) == 'table' and r.err then return 'failed' end return r",
    b"return {redis.call(unpack(ARGV)), {1, 'x', {2.9, true, false, 3}}, 'end'}",
]
LUA_RESULTS = [
    b"return 1", b"return 3.99", b"return -3.99", b"return true", b"return false", b"return nil", b"return ''",
    b"return {}", b"return {1, nil, 3}", b"return {ok = 'FINE'}", b"return {err = 'MY own words'}",
    b"return redis.status_reply('YES')", b"return redis.error_reply('MY own words')", b"return tonumber('12') + 1",
    b"return string.format('%d:%s', 3, 'x')", b"return tostring(tonumber('5') + 1)", b"return #ARGV", b"return 2^53",
    b"return redis.call('HSET', '{t}n', 'i', 5, 'f', 2.5, 'big', 2^52, 'n', -1)",
    b"return {redis.call('HSET', '{t}n', 'i', 1e15 + 1, 'k', 0.1), redis.call('HMGET', '{t}n', 'i', 'k')}",
    b"return undeclared", b"undeclared = 1", b"return redis.call('NOSUCH')", b"return redis.call()", b"error('boom')",
    b"return redis.call('SET', '{t}n', {})", b"return redis.call('SET', '{t}n', true)", b"return string.rep('a', 3)",
    b"local t = {} t[#t + 1] = 'x' t[#t + 1] = 'y' return t", b"return {1, {2, {3}}, '4'}", b"syntax error here",
    b"return string.match('17:abc', '^(%d+):')", b"return redis.sha1hex and 1 or 0", b"return math.floor(7 / 2)",
    b"return {tostring(nil), tostring(1), tostring(1.5), 1 .. ''}", b"return os.clock() < 0", b"return type(os.time)",
    b"return {false, 1}", b"return {1, false, 2}", b"return redis.call('SET', '{t}n', 'v')", b"return KEYS[1]",
]  # fmt: skip

scripted = st.one_of(
    st.tuples(st.sampled_from(LUA), commands).map(lambda c: (b"EVAL", c[0], b"0", *c[1])),
    st.sampled_from(LUA_RESULTS).map(lambda source: (b"EVAL", source, b"1", b"{t}a", b"x", b"7")),
)


class Real:
    """A connection to the real server that shows replies as they come."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.reader = hiredis.Reader(notEnoughData=Ellipsis)

    def execute(self, *command: Any) -> Any:
        self.socket.sendall(hiredis.pack_command(tuple(command)))
        while (reply := self.reader.gets()) is Ellipsis:
            self.reader.feed(self.socket.recv(65536))
        return reply

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def real(valkey_server: RedisServer) -> Iterator[Real]:
    connection = Real(valkey_server.port)
    yield connection
    connection.close()


def _comparable(command: Command, reply: Any) -> Any:
    """What must be alike: errors within scripts by their first word, times to live about, sets without order."""
    name = bytes(command[0]).upper()
    if isinstance(reply, hiredis.ReplyError | ReplyError):
        text = str(reply)
        return ("error", text.split(" ", 1)[0] if name in (b"EVAL", b"EVALSHA") else text)
    within = {bytes(a).upper() for a in command if isinstance(a, bytes)} if name == b"EVAL" else {name}
    if within & {b"PTTL", b"TTL"} and isinstance(reply, int) and reply > 0:
        return ("about", round(reply, -4 if b"PTTL" in within else -1))
    if within & {b"SMEMBERS", b"HGETALL", b"HKEYS"}:
        return _sorted(reply)
    return reply


def _sorted(reply: Any) -> Any:
    """Valkey keeps small sets and hashes in an order of its own; the model in that of insertion."""
    if isinstance(reply, list):
        return sorted((_sorted(item) for item in reply), key=repr)
    return reply


def _first_of_a_set(command: Command) -> bool:
    """Asks for the first member of a set or hash, which has no order."""
    return command[:2] == (b"EVAL", LUA[2]) and command[3].upper() in (b"SMEMBERS", b"HGETALL", b"HKEYS")


SHORT_LIFE_SECONDS = 0.004


def _run_both(real: Real, sequence: list[Command]) -> None:
    real.execute(b"FLUSHALL")
    model = Keyspace(time.time)
    for script in scripts.ALL:
        assert model.execute("SCRIPT", "LOAD", script.source) == real.execute("SCRIPT", "LOAD", script.source)
    for number, command in enumerate(sequence):
        if _first_of_a_set(command):
            continue
        if number and {b"1", b"2"} & set(sequence[number - 1]):
            time.sleep(SHORT_LIFE_SECONDS)  # it may be a time to live in milliseconds: over in both, or in neither
        theirs = real.execute(*command)
        try:
            ours = model.execute(*command)
        except ReplyError as error:
            ours = error
        told = f"{sequence[: number + 1]}\nreal {theirs!r}\nmodel {ours!r}"
        assert _comparable(command, ours) == _comparable(command, theirs), told


RELAXED = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@RELAXED
@given(st.lists(commands, min_size=1, max_size=25))
@example([(b"XADD", b"{t}a", b"5-0", b"f", b"v"), (b"XRANGE", b"{t}a", b"(5-0", b"+", b"COUNT", b"0")])
def test_commands(real: Real, sequence: list[Command]) -> None:
    _run_both(real, sequence)


@RELAXED
@given(st.lists(st.one_of(commands, scripted), min_size=1, max_size=12))
def test_commands_from_scripts(real: Real, sequence: list[Command]) -> None:
    _run_both(real, sequence)


@pytest.mark.parametrize("source", LUA_RESULTS)
def test_script_results(real: Real, source: bytes) -> None:
    _run_both(real, [(b"EVAL", source, b"1", b"{t}a", b"x", b"7")])


RECORD, JOURNAL, STANDING, CHANNEL, GATHERED = (b"{t}" + tail for tail in (b"m", b"j", b"s", b"ch", b"g"))
KEYS_OF = {
    path.stem: sum(f"KEYS[{number}]" in path.read_text() for number in range(1, 9))
    for path in (Path(scripts.__file__).parent / "lua").glob("*.lua")
}
OF_MESSAGES = [script for script in scripts.ALL if not script.name.startswith("conversation")]
"""Those of conversations have other keys; `test_conversation_scripts` runs them, and one uses sorted sets."""
ARGUMENTS = st.one_of(
    st.sampled_from([b"", b"1", b"0", b"2", b"3-0", b"(1-0", b"1:n1", b"2:n2", b"n1", b"n2", b"g1", b"g1:1", b"fp1"]),
    st.sampled_from([b"done", b"failed", b"cancelled", b"entry", b"100000", b"streaming", b"1"]),
)


@st.composite
def shipped_calls(draw: st.DrawFn) -> Command:
    """A call of one of our scripts with plausible and implausible arguments."""
    script = draw(st.sampled_from(OF_MESSAGES))
    count = KEYS_OF[script.name]
    given_keys = [JOURNAL] if script.name.startswith("page") else [RECORD, JOURNAL, STANDING, GATHERED][:count]
    if script.name.startswith("append"):
        given_keys = [RECORD, JOURNAL, CHANNEL]
    arguments = draw(st.lists(ARGUMENTS, min_size=9, max_size=13))
    return (b"EVALSHA", script.sha, b"%d" % len(given_keys), *given_keys, *arguments)


def _claim(fingerprint: bytes, node: bytes, retry: bytes = b"") -> Command:
    claim = next(s for s in scripts.ALL if s.name.startswith("claim"))
    head = (b"EVALSHA", claim.sha, b"3", RECORD, JOURNAL, STANDING, fingerprint, b"1000000", retry, b"5", node)
    return (*head, b"gen", b"g1", b"req", b"{}")


def _append(fence: bytes, head: int, last: int, state: bytes = b"") -> Command:
    append = next(s for s in scripts.ALL if s.name.startswith("append"))
    numbers = (b"%d" % head, b"%d" % last, b"entry%d" % last, b"")
    return (b"EVALSHA", append.sha, b"3", RECORD, JOURNAL, CHANNEL, fence, *numbers, state, b"end", b"rec", b"1")


sensible = st.one_of(
    st.builds(_claim, st.sampled_from([b"fp1", b"fp2"]), st.sampled_from([b"n1", b"n2"]), st.sampled_from([b"", b"2"])),
    st.builds(
        _append,
        st.sampled_from([b"1:n1", b"2:n2"]),
        st.integers(0, 3),
        st.integers(1, 4),
        st.sampled_from([b"", b"", b"failed", b"done"]),
    ),
)


@RELAXED
@given(st.lists(st.one_of(sensible, shipped_calls(), _with(b"HGETALL", st.just(RECORD))), min_size=1, max_size=15))
def test_shipped_scripts(real: Real, sequence: list[Command]) -> None:
    _run_both(real, sequence)


def test_lost_writes_undo_exactly_the_last_ones() -> None:
    model = Keyspace(lambda: 0.0, keep_undo=True)
    states = []
    steps: list[Command] = [
        ("SET", "a", "1"), ("HSET", "h", "f", "v"), ("XADD", "s", "1-0", "f", "v"), ("XADD", "s", "2-0", "f", "v"),
        ("PEXPIRE", "a", 500), ("INCR", "a"), ("RENAME", "a", "b"), ("SADD", "x", "m"), ("DEL", "h"),
    ]  # fmt: skip
    for step in steps:
        states.append(_dump(model))
        model.execute(*step)
    for state in reversed(states):
        assert model.lose(1) == 1
        assert _dump(model) == state
    assert model.lose(1) == 0


def _dump(model: Keyspace) -> Any:
    shown = {
        key: (value.entries[:], value.last) if model.kinds[key] == "stream" else value  # type: ignore[union-attr]
        for key, value in model.data.items()
    }
    return {key: dict(value) if isinstance(value, dict) else value for key, value in shown.items()}, dict(model.expires)
