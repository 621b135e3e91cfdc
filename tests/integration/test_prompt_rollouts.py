"""Rollouts: shares that hold on every node at once, sticky users, rollback, the audit log."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from server.access.identity import ANONYMOUS_TENANT, ANONYMOUS_USER
from server.cli import run
from server.prompts.prompt import Prompt
from server.prompts.rollout import ALL, Rollouts, Shares, read_audit, read_shares, set_share
from server.prompts.selection import place
from server.prompts.service import Wanted
from server.store.keys import user_tag
from server.store.store import Store
from tests.nodes import RunningNode, running_node, settings_for
from tests.prompt_files import plain, put
from tests.upstreams.scripted import serving
from tests.wire import Wire, eventually, wire

USER = user_tag(ANONYMOUS_TENANT, "anonymous", ANONYMOUS_USER)


def version_for(node: RunningNode, user: str = USER) -> str:
    return str(node.node.prompts.choose(Wanted("p"), user).version)


async def used(client: Wire, message_id: str, conversation: str | None = None) -> str:
    given = {"messages": [{"role": "user", "content": "script tokens=1"}]}
    if conversation is not None:
        given = {"conversation": conversation, "input": "script tokens=1"}
    await client.send({"type": "send", "id": message_id, "prompt": {"name": "p", "version": "^1"}, **given})
    view = await client.ended(message_id)
    assert view.end is not None
    found: str = view.end["prompt"]["version"]
    return found


async def test_a_rollout_and_a_rollback_hold_on_all_nodes_at_once(valkey_url: str, tmp_path: Path) -> None:
    put(tmp_path, "p", "1.0.0", plain("old"))
    put(tmp_path, "p", "1.1.0", plain("new", "rollout_percent = 0"))
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        settings = settings_for(valkey_url, upstream.url, {"prompts": {"dir": str(tmp_path)}})
        nodes = [await stack.enter_async_context(running_node(settings)) for _ in range(2)]
        clients = [await stack.enter_async_context(wire(node.url)) for node in nodes]
        store = await Store.connect(valkey_url, ALL)
        stack.push_async_callback(store.close)
        new = nodes[0].node.prompts.registry.released["p"][-1]
        assert await used(clients[0], "m1", "c1") == "1.0.0"

        await set_share(store, new, 100, "ann", "rollout")
        await eventually(lambda: {version_for(node) for node in nodes} == {"1.1.0"}, 1.5)  # before anybody polls
        assert [await used(client, f"n{i}") for i, client in enumerate(clients)] == ["1.1.0"] * 2
        assert await used(clients[1], "m2", "c1") == "1.0.0", "the conversation keeps its version"
        assert await used(clients[0], "m3", "c2") == "1.1.0"

        await set_share(store, new, 0, "bob", "rollback")
        await eventually(lambda: {version_for(node) for node in nodes} == {"1.0.0"}, 1.5)
        assert await used(clients[1], "m4", "c2") == "1.0.0", "a withdrawn version leaves conversations, too"
        assert await used(clients[0], "n0") == "1.1.0", "what was answered stays answered"

        steps = [(s.prompt, s.before, s.after, s.who, s.what) for s in await read_audit(store, "p", 10)]
        assert steps == [("p@1.1.0", 0, 100, "ann", "rollout"), ("p@1.1.0", 100, 0, "bob", "rollback")]
        assert await read_audit(store, "q", 10) == []


async def test_a_share_is_for_the_same_users_on_every_node(valkey_url: str, tmp_path: Path) -> None:
    put(tmp_path, "p", "1.0.0", plain("old"))
    put(tmp_path, "p", "1.1.0", plain("new", "rollout_percent = 30"))
    async with AsyncExitStack() as stack:
        settings = settings_for(valkey_url, "http://127.0.0.1:1", {"prompts": {"dir": str(tmp_path)}})
        nodes = [await stack.enter_async_context(running_node(settings)) for _ in range(2)]
        users = [f"user-{number}" for number in range(300)]
        told = [[version_for(node, user) for user in users] for node in nodes]
        assert told[0] == told[1]
        assert told[0] == ["1.1.0" if place("p@1.1.0", user) < 30 else "1.0.0" for user in users]


async def test_a_lost_notification_costs_one_look(valkey_url: str, tmp_path: Path) -> None:
    prompt = _prompt(tmp_path)
    store = await Store.connect(valkey_url, ALL)
    shares = Shares()
    rollouts = Rollouts(store, shares)
    try:
        await rollouts.start()
        await set_share(store, prompt, 12.5, "ann", "rollout")  # nobody calls `wake`
        await eventually(lambda: shares.of(prompt) == 12.5)
        assert await read_shares(store) == {"p@1.0.0": 12.5}
    finally:
        await rollouts.close()
        await store.close()


def _prompt(folder: Path) -> Prompt:
    from server.prompts.registry import Registry

    put(folder, "p", "1.0.0", plain("x"))
    return Registry.load(folder).released["p"][0]


def test_the_commands(valkey_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "prompts"
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        put(folder, "p", version, plain(version))
    config = tmp_path / "tidewire.toml"
    config.write_text(
        f'[redis]\nurl = "{valkey_url}"\n[prompts]\ndir = "prompts"\n[targets.t]\ndriver = "embedded"\n'
        '[routes.default]\ntargets = ["t"]\n'
    )

    def prompts(*arguments: str) -> int:
        return run(["prompts", *arguments, "--config", str(config)])

    assert prompts("rollout", "p@1.1.0", "--percent", "25", "--by", "ann") == 0
    assert capsys.readouterr().out == "p@1.1.0: 100 % -> 25 % of users, by ann\n"
    assert prompts("rollback", "p@1.1.0", "--by", "bob") == 0
    assert prompts("rollback", "p@1.0.0") == 2
    assert "p@1.0.0 is the last one in ^1" in capsys.readouterr().err
    assert prompts("rollback", "p") == 2, "nothing else is in ^2"
    assert prompts("rollback", "p", "--force", "--by", "cid") == 0
    for wrong in (["rollout", "p@1.1.0", "-p", "101"], ["rollout", "p", "-p", "5"], ["rollout", "p@3.0.0", "-p", "5"]):
        assert prompts(*wrong) == 2
    capsys.readouterr()
    assert prompts("list") == 0
    assert [line.split()[1:4] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["released", "100", "%"], ["withdrawn", "0", "%"], ["withdrawn", "0", "%"],
    ]  # fmt: skip
    assert prompts("audit", "p") == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["rollout", "p@1.1.0", "100", "%", "->", "25", "%", "ann"],
        ["rollback", "p@1.1.0", "25", "%", "->", "0", "%", "bob"],
        ["rollback", "p@2.0.0", "100", "%", "->", "0", "%", "cid"],
    ]
