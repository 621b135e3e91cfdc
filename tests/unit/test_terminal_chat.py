"""The terminal client (`server.chat`): against a small server, with piped input; and its screen by itself."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from protocol.client.timing import Backoff
from server.chat import Screen, chat, full_url
from tests.unit.protocol.model_server import Journal, Map, SocketServer, refusal
from tests.upstreams.script import expected_text, reply_to


def scripted(journal: Journal) -> None:
    assert journal.request is not None
    journal.attempt()
    for token in reply_to(journal.request["messages"], journal.request["model"]).tokens:
        journal.delta(text=token)
    journal.end("done")


async def run(server: SocketServer, text: str, path: Path) -> tuple[int, str, str]:
    """Exit code, output and notices for piped input."""
    path.write_text(text, "utf-8")
    out, notices = io.StringIO(), io.StringIO()
    with path.open() as stdin:
        code = await chat(
            server.url,
            stdin=stdin,
            console=Console(file=out, soft_wrap=True, highlight=False),
            notices=Console(file=notices, width=200),
            backoff=Backoff(lambda: 0.0),
        )
    return code, out.getvalue(), notices.getvalue()


QUESTIONS = ["script tokens=20 seed=1", "script tokens=3 seed=2", "script tokens=50 seed=3"]


def shown(question: str) -> str:
    """The answer, and a line's end if it has none."""
    text = expected_text([{"role": "user", "content": question}], "default")
    return text if text.endswith("\n") else text + "\n"


async def test_piped_questions_are_answered_in_order(tmp_path: Path) -> None:
    async with SocketServer(scripted).running() as server:
        code, out, notices = await run(server, "\n".join(QUESTIONS), tmp_path / "in")
    assert code == 0
    assert out == "".join(shown(question) for question in QUESTIONS)
    assert notices == ""
    assert all(len(frame["messages"]) == 1 for frame in server.arrived[0] if frame["type"] == "send")


async def test_a_dropped_socket_is_told_and_resumed(tmp_path: Path) -> None:
    async with SocketServer(scripted, breaks=[15, 15]).running() as server:
        code, out, notices = await run(server, "\n".join(QUESTIONS), tmp_path / "in")
    assert code == 0
    assert out == "".join(shown(question) for question in QUESTIONS)
    assert notices.count("disconnected:") == 2
    assert notices.count("connected again") == 2


async def test_a_refusal_shows_in_the_exit_code(tmp_path: Path) -> None:
    def refuse(frame: Map, answer: list[Map]) -> list[Map]:
        return [refusal("send", "model_not_found", frame["id"])] if frame["type"] == "send" else answer

    async with SocketServer(scripted, edit=refuse).running() as server:
        code, out, notices = await run(server, "hello\n", tmp_path / "in")
    assert (code, out) == (1, "")
    assert "model_not_found" in notices


async def test_quit_and_commands(tmp_path: Path) -> None:
    async with SocketServer(scripted).running() as server:
        code, _, notices = await run(server, "/what\n/cancel 7\n/quit\nnever asked\n", tmp_path / "in")
        assert code == 0
        assert not [frame for frame in server.arrived[0] if frame["type"] == "send"]
    assert "/cancel N" in notices


async def test_no_connection(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("")
    notices = io.StringIO()
    with (tmp_path / "in").open() as stdin:
        code = await chat("http://", stdin=stdin, notices=Console(file=notices))
    assert code == 2
    assert notices.getvalue()


async def test_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, f"{QUESTIONS[0]}\n".encode())
    os.close(writer)
    out = io.StringIO()
    async with SocketServer(scripted).running() as server:
        with os.fdopen(reader) as stdin:
            code = await chat(server.url, stdin=stdin, console=Console(file=out, soft_wrap=True, highlight=False))
    assert (code, out.getvalue()) == (0, shown(QUESTIONS[0]))


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("localhost:8400", "ws://localhost:8400/v1/ws"),
        ("http://localhost:8400/", "ws://localhost:8400/v1/ws"),
        ("https://chat.example", "wss://chat.example/v1/ws"),
        ("ws://h/other", "ws://h/other"),
    ],
)
def test_full_url(given: str, full: str) -> None:
    assert full_url(given) == full


def screen(numbered: bool) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True, highlight=False)
    return Screen(console, console, numbered=numbered), out


def test_numbered_answers_change_at_line_ends() -> None:
    shown, out = screen(numbered=True)
    shown.begin(1)
    shown.begin(2)
    shown.piece(1, "one ")
    shown.piece(2, "eins")
    shown.piece(1, "two\n")
    shown.piece(1, "three")
    shown.piece(2, " zwei")
    shown.end(2)
    shown.end(1, "cancelled")
    assert out.getvalue() == "[1] one two\n[2] eins zwei\n[1] three\n[1] cancelled\n"


def test_plain_answers_wait_for_their_turn() -> None:
    shown, out = screen(numbered=False)
    for number in (1, 2, 3):
        shown.begin(number)
    shown.piece(3, "c")
    shown.end(3)
    shown.piece(1, "a")
    shown.piece(2, "b")
    shown.end(1)
    shown.piece(2, "b")
    shown.end(2)
    assert out.getvalue() == "a\nbb\nc\n"


def test_control_characters_do_not_reach_the_terminal() -> None:
    shown, out = screen(numbered=False)
    shown.begin(1)
    shown.piece(1, "a\x1b[31mb\x07\x9bc [bold]d[/bold]\n")
    assert out.getvalue() == "a[31mbc [bold]d[/bold]\n"


def test_a_restart_is_told() -> None:
    shown, out = screen(numbered=True)
    shown.begin(1)
    shown.piece(1, "half")
    shown.restart(1)
    shown.piece(1, "whole")
    shown.end(1)
    assert out.getvalue() == "[1] half\n[1] starts over\n[1] whole\n"
