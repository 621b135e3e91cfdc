"""The commands of docs/jobs.md, docs/ledger.md and docs/prompts.md, run: they print what is shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.ledger.book import Book
from tests.docs import DOCS
from tests.integration.http.client import Place, place
from tests.integration.test_conversations_docs import blocks
from tests.usage_records import attempt, rows

ROOT = Path(__file__).resolve().parents[2]
KEY = "tw_key-of-the-documentation"
SECONDS = 60.0
CURL = """
set -e
curl() {
  answered=$(command curl --fail-with-body --max-time 20 "$@") || { echo "$answered"; exit 1; }
  echo "$answered"
  case "$answered" in *'"object":"job"'*) JOB=$(grep -o 'job_[0-9a-f]*' <<< "$answered" | head -1);; esac
}
"""
"""`curl` that ends the script where an answer is an error, and keeps the id of the job that was told last."""
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def output_of(folder: Path, script: str, **environment: str) -> tuple[int | None, str]:
    """Exit code of a shell script, and all that it prints. `tidewire` is the one of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    async with asyncio.timeout(SECONDS):
        told, _ = await shell.communicate()
    return shell.returncode, told.decode()


async def curled(file: str, here: Place, folder: Path) -> str:
    """What all commands with `curl` of a page print; fails if one is refused."""
    commands = [block for block in blocks(file, "sh") if "curl" in block]
    assert commands
    code, told = await output_of(folder, CURL + "\n".join(commands), BASE=here.node.http, KEY=KEY)
    assert code == 0, told
    return told


def sessions(file: str, language: str) -> Iterator[list[tuple[str, str]]]:
    """The fences with commands behind `$ `: each command with what it is shown to print."""
    for block in blocks(file, language):
        if block.startswith("$ "):
            yield [
                (command, shown) for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
            ]


async def as_shown(folder: Path, session: list[tuple[str, str]], **environment: str) -> None:
    """Every command prints what is shown, times of the day aside."""
    for command, shown in session:
        _, told = await output_of(folder, command, **environment)
        assert timeless(told) == timeless(shown), command


def timeless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "TIME", text)


@pytest.fixture
async def here(valkey_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    """A node with the ledger that docs/ledger.md shows, made before the node opens it."""
    book_what_is_shown(tmp_path)
    keys = [{"name": "docs", "tenant": "acme", "scopes": ["chat", "jobs", "usage"], "sha256": sha(KEY)}]
    more: dict[str, Any] = {
        "auth": {"anonymous": False, "api_keys": keys},
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
        "prompts": {"dir": str(ROOT / "server" / "prompts" / "example")},
    }
    async with place(valkey_url, more) as found:
        yield found


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def book_what_is_shown(folder: Path) -> None:
    """Four attempts, of which docs/ledger.md shows the sums."""
    ended = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()

    def row(message_id: str, feature: str, model: str, cached: int, output: int, nano: int) -> Any:
        tokens = {"cached_tokens": cached, "output_tokens": output, "reasoning_tokens": 0}
        money = {"cost_nano_usd": nano, "charged_nano_usd": nano}
        given = {"input_tokens": 9 if "mini" in model else 10, "started_at": ended - 1, "ended_at": ended}
        return rows(attempt(model=model, **tokens, **money, **given), message_id=message_id, tags={"feature": feature})

    book = Book.open(f"sqlite:///{folder}/ledger.db")
    try:
        book.insert(
            [
                *row("m1", "chat", "gpt-4o", 5, 200, 2_018_750),
                *row("m2", "search", "gpt-4o-mini", 4, 60, 37_050),
                *row("m3", "search", "gpt-4o-mini", 4, 40, 25_050),
                *row("m4", "chat", "gpt-4o-mini", 4, 90, 55_050),
            ]
        )
    finally:
        book.close()


@needs_curl
async def test_jobs(here: Place, tmp_path: Path) -> None:
    told = await curled("jobs.md", here, tmp_path)
    assert "HTTP/1.1 202" in told
    assert '"custom_id":"b"' in told


@needs_curl
async def test_ledger_over_http(here: Place, tmp_path: Path) -> None:
    (shown,) = [json.loads(block) for block in blocks("ledger.md", "json")]
    assert json.loads(await curled("ledger.md", here, tmp_path)) == shown


async def test_ledger_for_operators(tmp_path: Path) -> None:
    book_what_is_shown(tmp_path)
    (tmp_path / "tidewire.toml").write_text('[ledger]\nurl = "sqlite:///ledger.db"\n')
    (session,) = sessions("ledger.md", "console")
    await as_shown(tmp_path, session)
    assert "<svg" in (tmp_path / "usage.svg").read_text(encoding="utf-8")
    (query,) = blocks("ledger.md", "sql")
    assert sqlite3.connect(tmp_path / "ledger.db").execute(query).fetchall() == [("acme", 0.0)]


@needs_curl
async def test_prompts_over_http(here: Place, tmp_path: Path) -> None:
    assert '"version":"1.0.0"' in await curled("prompts.md", here, tmp_path)


async def test_prompts_from_the_first_file_to_the_rollback(valkey_url: str, tmp_path: Path) -> None:
    first, understated, rolled_out = sessions("prompts.md", "console")
    config, file = blocks("prompts.md", "toml")
    folder = tmp_path / "prompts" / "support"
    folder.mkdir(parents=True)
    target = '[targets.gpt]\ndriver = "embedded"\n'
    (tmp_path / "tidewire.toml").write_text(f'[redis]\nurl = "{valkey_url}"\n{target}{config}')
    (folder / "1.0.0.toml").write_text(file)
    await as_shown(tmp_path, first)
    changed = file.replace('"warm"]', '"warm", "dry"]').replace("You help", "You now help")
    assert changed != file
    (folder / "1.0.1.toml").write_text(changed)
    await as_shown(tmp_path, understated)
    (folder / "1.0.1.toml").unlink()
    (folder / "1.1.0.toml").write_text(changed.replace("rollout_percent = 100", "rollout_percent = 5"))
    code, told = await output_of(tmp_path, "tidewire prompts release support@1.1.0 --dir prompts")
    assert code == 0, told
    await as_shown(tmp_path, rolled_out, TIDEWIRE_CONFIG="tidewire.toml")


def test_every_page_says_what_is_run() -> None:
    """A page that gains a fence of commands of another kind would not be noticed otherwise."""
    for file, kinds in (
        ("jobs.md", {"sh": 1}),
        ("ledger.md", {"sh": 1, "console": 1, "sql": 1}),
        ("prompts.md", {"sh": 1, "console": 3}),
    ):
        text = (DOCS / file).read_text(encoding="utf-8")
        found = re.findall(r"^```(sh|console|sql|bash)$", text, re.MULTILINE)
        assert {kind: found.count(kind) for kind in found} == kinds, file
