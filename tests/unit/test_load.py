"""The load script, against a small server that answers as the scripted upstream would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import uvloop

from tests.bench.load import Histogram, Load, Options, Report, is_loopback, main, parse, wrong_characters
from tests.unit.protocol.model_server import Journal, Map, SocketServer
from tests.upstreams.script import reply_to


def scripted(journal: Journal) -> None:
    assert journal.request is not None
    reply = reply_to(journal.request["messages"], journal.request["model"])
    journal.attempt()
    for token in reply.tokens:
        journal.delta(text=token)
    journal.end("done")


def options(url: str, codec: str = "json", rate: float | None = 50.0) -> Options:
    return Options(
        url, clients=3, rate=rate, seconds=0.3, tokens=20, pace=0, codec=codec, ramp_seconds=0.01, grace_seconds=5
    )


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_right_answers(codec: str) -> None:
    async with SocketServer(scripted).running() as server:
        report = await Load(options(server.url, codec)).run()
    assert report.ok
    assert report.asked == report.right == 15
    assert report.deltas == 15 * 20
    assert report.first_token.count == 15
    assert report.gap.count == 15 * 19
    assert not report.errors


def test_on_uvloop_as_from_the_command_line() -> None:
    async def run() -> Report:
        async with SocketServer(scripted).running() as server:
            return await Load(options(server.url)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run())
    assert report.ok
    assert report.right == 15


async def test_closed_loop_asks_again() -> None:
    async with SocketServer(scripted).running() as server:
        report = await Load(options(server.url, rate=None)).run()
    assert report.ok
    assert report.asked == report.right > 3


async def test_dropped_sockets_lose_nothing() -> None:
    async with SocketServer(scripted, breaks=[10, 10, 10, 30, 30]).running() as server:
        report = await Load(options(server.url)).run()
    assert report.ok
    assert report.right == report.asked == 15
    assert report.reconnects == 5
    assert report.errors == {"close 1006": 5}


async def test_a_wrong_character_is_found() -> None:
    def lie(journal: Journal) -> None:
        scripted(journal)
        journal.frames[3]["text"] = "lie"
        journal.frames.pop()
        journal.end("done")

    async with SocketServer(lie).running() as server:
        report = await Load(options(server.url)).run()
    assert not report.ok
    assert report.wrong == report.asked
    assert report.wrong_characters > 0


async def test_a_lost_answer_is_found() -> None:
    def swallow(frame: Map, answer: list[Map]) -> list[Map]:
        return [] if frame["type"] == "send" else answer

    async with SocketServer(scripted, edit=swallow).running() as server:
        hasty = Options(
            server.url, clients=1, rate=10, seconds=0.2, tokens=5, pace=0, ramp_seconds=0, grace_seconds=0.1
        )
        report = await Load(hasty).run()
    assert report.lost == report.asked == 2
    assert not report.ok


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--url", "ws://example.com/v1/ws"])
    assert "--allow-remote" in capsys.readouterr().err
    found, path = parse(["--url", "ws://[::1]:1/v1/ws", "--rate", "5", "--json", str(tmp_path / "r.json")])
    assert (found.rate, path) == (5, tmp_path / "r.json")


def test_nobody_answers(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    url = "ws://127.0.0.1:1/v1/ws"
    once = ["--clients", "1", "--seconds", "0", "--tokens", "1"]
    hasty = ["--ramp", "0", "--grace", "0", "--max-wait", "0.2"]
    code = main(["--url", url, "--json", str(path), *once, *hasty])
    assert code == 1
    assert json.loads(path.read_text())["connects"] == 0


@pytest.mark.parametrize(
    ("url", "local"),
    [("ws://127.0.0.1:8/x", True), ("ws://localhost/x", True), ("ws://[::1]/x", True), ("ws://10.0.0.1/x", False)],
)
def test_loopback(url: str, local: bool) -> None:
    assert is_loopback(url) is local


def test_wrong_characters() -> None:
    assert wrong_characters("abc", "abc") == 0
    assert wrong_characters("axcd", "abc") == 2


def test_histogram() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 1001):
        histogram.add(milliseconds / 1000)
    assert histogram.summary()["p50"] == pytest.approx(500, rel=0.05)
    assert histogram.summary()["p99"] == pytest.approx(990, rel=0.05)
