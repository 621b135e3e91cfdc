"""The vectors over a real socket: both our clients pass them all, and clients with a defect do not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from protocol.codec import JSON, MSGPACK, Codec
from server.cli import run
from server.conformance.clients import NoClient, check_client
from server.conformance.faults import FAULTS, check_faults
from server.conformance.script import vectors

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
PYTHON = f"{sys.executable} -m tests.clients.tidewire_adapter"
NODE = f"node {CLIENTS / 'tidewire_adapter.mjs'}"
needs_node = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is missing"),
    pytest.mark.skipif(not (CLIENTS / "node_modules").exists(), reason="npm install in tests/clients is missing"),
    pytest.mark.skipif(not (CLIENTS.parents[1] / "web-demo" / "dist").exists(), reason="npm run library is missing"),
]


@pytest.mark.parametrize(
    ("command", "codec"),
    [
        pytest.param(NODE, JSON, id="typescript-json", marks=needs_node),
        pytest.param(NODE, MSGPACK, id="typescript-msgpack", marks=[*needs_node, pytest.mark.slow]),
        pytest.param(PYTHON, JSON, id="python-json", marks=pytest.mark.slow),
        pytest.param(PYTHON, MSGPACK, id="python-msgpack"),
    ],
)
async def test_our_clients_pass(command: str, codec: Codec) -> None:
    report = await check_client(command, [codec])
    assert report.exit_code == 0, report.as_table()
    assert report.count("passed") == len(vectors())


@pytest.mark.parametrize(
    ("defect", "vector", "complaint"),
    [
        ("deaf", "gap_resumes", 'wanted: {"type": "resume"'),
        ("doubling", "doubled_frames", 'came: {"type": "resume"'),
        ("trusting", "wrong_hash_resumes_from_0", 'wanted: {"type": "resume"'),
        ("forgetful", "reconnect_resumes", "came: "),
    ],
)
async def test_a_defect_is_found(defect: str, vector: str, complaint: str) -> None:
    command = f"{sys.executable} -m tests.clients.broken_adapter {defect}"
    report = await check_client(command, [JSON], ["plain", vector])
    assert {result.name: result.outcome for result in report.results} == {"plain": "passed", vector: "failed"}
    (failed,) = [result for result in report.results if result.outcome == "failed"]
    assert complaint in failed.detail
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("command", "codec"),
    [
        pytest.param(NODE, JSON, id="typescript-json", marks=[*needs_node, pytest.mark.slow]),
        pytest.param(NODE, MSGPACK, id="typescript-msgpack", marks=needs_node),
        pytest.param(PYTHON, JSON, id="python-json"),
        pytest.param(PYTHON, MSGPACK, id="python-msgpack", marks=pytest.mark.slow),
    ],
)
async def test_our_clients_stand_a_server_that_misbehaves(command: str, codec: Codec) -> None:
    report = await check_faults(command, [codec])
    assert report.exit_code == 0, report.as_table()
    assert report.count("passed") == len(FAULTS)


@pytest.mark.parametrize(
    ("defect", "fault", "complaint"),
    [
        ("deaf", "gaps", "no end within"),
        ("doubling", "doubled", "though nothing was missing"),
        ("trusting", "wrong_text", "it holds"),
        ("renaming", "request_lost", "under another id"),
        ("stubborn", "close_4401", "it connected again"),
    ],
)
async def test_a_defect_shows_before_a_server_that_misbehaves(
    defect: str, fault: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.conformance.faults.ANSWER_SECONDS", 2.0)
    command = f"{sys.executable} -m tests.clients.broken_adapter {defect}"
    report = await check_faults(command, [JSON], ["none", fault])
    assert {result.name: result.outcome for result in report.results} == {"none": "passed", fault: "failed"}
    (failed,) = [result for result in report.results if result.outcome == "failed"]
    assert complaint in failed.detail


async def test_a_program_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoClient, match="cannot start"):
        await check_client("/no/such/program", [JSON])
    with pytest.raises(NoClient, match="ended at"):
        await check_client(f"{sys.executable} -c pass", [JSON])
    with pytest.raises(NoClient, match="no JSON"):
        await check_client(f"{sys.executable} -c 'input(); print(\"hello\")'", [JSON])
    with pytest.raises(ValueError, match="no such vector: nothing"):
        await check_client(PYTHON, [JSON], ["nothing"])
    with pytest.raises(ValueError, match="no such fault: nothing; there are none, delays"):
        await check_faults(PYTHON, [JSON], ["nothing"])


def test_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["conformance", "--client", PYTHON, "--codec", "json", "--only", "plain", "restart", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["passed"], report["failed"], report["skipped"]) == (2, 0, 0)
    assert [result["name"] for result in report["results"]] == ["plain", "restart"]
    assert run(["conformance", "--client", PYTHON, "--faults", "--codec", "json", "--only", "cut"]) == 0
    assert "ok    cut  json     the connection is gone in mid-answer" in capfd.readouterr().out
    assert run(["conformance", "http://127.0.0.1:9", "--faults"]) == 2
    assert "--faults are for clients" in capfd.readouterr().err
    assert run(["conformance"]) == 2
    assert "give either the URL" in capfd.readouterr().err
    assert run(["conformance", "http://127.0.0.1:9", "--only", "ping"]) == 2
    assert "ws://127.0.0.1:9/v1/ws" in capfd.readouterr().err
