"""`prompts.lock`: which versions are released, and what their files held then. Pure.

One line per file in the format of `sha256sum`, so that `sha256sum --check prompts.lock` says the same as Tidewire, and
two branches that release different versions merge without conflict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

LOCK_NAME: Final = "prompts.lock"
_LINE: Final = re.compile(r"([0-9a-f]{64})  ([^\s].*)")


def digest(data: bytes) -> str:
    """The content hash of a file: hex SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


def read(text: str) -> dict[str, str]:
    """Path below the folder → content hash. Raises `ValueError` that names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"line {number} is not `<sha256>  <name>/<version>.toml`; take it back from version control"
            )
        if found.get(match[2], match[1]) != match[1]:
            raise ValueError(f"{match[2]} stands twice with different hashes; keep the line that was released first")
        found[match[2]] = match[1]
    return found


def write(entries: Mapping[str, str]) -> str:
    """The text of the file, sorted by path."""
    return "".join(f"{entries[path]}  {path}\n" for path in sorted(entries))
