"""Releasing: a draft goes into the lock, if its number keeps what it promises."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from server.prompts import lock
from server.prompts.check import check
from server.prompts.prompt import Prompt
from server.prompts.registry import BadRegistry, Registry, read_lock


def release(registry: Registry, drafts: Sequence[Prompt]) -> None:
    """Put drafts into the lock, all or none. Raises `BadRegistry` with what speaks against one of them."""
    assert registry.folder is not None
    names = {draft.name for draft in drafts}
    after = {name: [*registry.released.get(name, ()), *(one for one in drafts if one.name == name)] for name in names}
    if problems := check(Registry(registry.folder, after)):
        raise BadRegistry([str(problem) for problem in problems])
    entries = read_lock(registry.folder)
    for draft in drafts:
        path = f"{draft.name}/{draft.version}.toml"
        entries[path] = lock.digest((registry.folder / path).read_bytes())
    _replace(registry.folder / lock.LOCK_NAME, lock.write(entries))


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it meanwhile sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
