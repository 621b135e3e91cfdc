"""`python -m tests.docs`: write the parts of the documentation that code makes; a test checks that they are new."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from server.routing import breaker
from server.upstreams import faults

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"


def _mermaid(diagram: Callable[[], str]) -> Callable[[], str]:
    return lambda: f"```mermaid\n{diagram()}\n```"


PARTS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "resilience.md": {"faults": faults.markdown, "breaker": _mermaid(breaker.diagram)},
}
"""File → name of a part, between `<!-- made: NAME -->` and `<!-- end: NAME -->` → what makes it."""


def renewed(file: str) -> str:
    """The text of a file with its made parts as they should be. Raises `ValueError` if the marks of one are missing."""
    text = (DOCS / file).read_text(encoding="utf-8")
    for name, make in PARTS[file].items():
        begin, end = f"<!-- made: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{file} has not one part {name}")
        part = f"{begin}\n\n{make()}\n\n{end}"
        text = pattern.sub(lambda _: part, text)  # noqa: B023 - called at once
    return text


def main() -> None:
    """Run from the command line."""
    for file in PARTS:
        (DOCS / file).write_text(renewed(file), encoding="utf-8")


if __name__ == "__main__":
    main()
