"""Folders of prompts for tests."""

from __future__ import annotations

from pathlib import Path

from server.prompts import lock
from server.prompts.registry import scan

SUPPORT = """
description = "Answers questions about one product."

[variables.product]
max_length = 40

[variables.tone]
enum = ["plain", "warm"]
default = "plain"

[[messages]]
role = "system"
content = '''
{wording} {{{{ product }}}}. Tone: {{{{ tone }}}}.
'''

[[messages]]
insert = "messages"

[[messages]]
role = "system"
content = "Be brief."
"""


def support(wording: str = "You help with", more: str = "") -> str:
    """The text of a prompt with a required variable, an optional one, and text after the client's messages."""
    return more + SUPPORT.format(wording=wording)


def plain(text: str, more: str = "") -> str:
    """The text of a prompt that is one system message."""
    return f"{more}\n[[messages]]\nrole = 'system'\ncontent = '''{text}'''\n"


def put(folder: Path, name: str, version: str, text: str, released: bool = True) -> Path:
    """Write a version, and put it into the lock."""
    path = folder / name / f"{version}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if released:
        release(folder, f"{name}/{version}.toml")
    return path


def release(folder: Path, path: str) -> None:
    """Put a file into the lock as it is."""
    file = folder / lock.LOCK_NAME
    entries = lock.read(file.read_text()) if file.exists() else {}
    file.write_text(lock.write({**entries, path: lock.digest((folder / path).read_bytes())}))


def problems(folder: Path) -> list[str]:
    """Everything that is wrong with a folder."""
    _, released, drafts = scan(folder)
    return [str(problem) for problem in (*released, *drafts)]
