"""`python -m tests.docs`: write the parts of the documentation that code makes; a test checks that they are new."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from server.routing import breaker
from server.telemetry.metrics import Metrics
from server.upstreams import faults

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"


def _mermaid(diagram: Callable[[], str]) -> Callable[[], str]:
    return lambda: f"```mermaid\n{diagram()}\n```"


def _metrics() -> str:
    """Every metric, in the order in which they are declared."""
    rows = ["| metric | type | labels | what it tells |", "|---|---|---|---|"]
    registry = Metrics().registry
    labels = {
        name: getattr(collector, "_labelnames", ())  # the library tells them nowhere else
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    for metric in registry.collect():
        ending = "_total" if metric.type == "counter" else ""
        named = ", ".join(f"`{label}`" for label in labels[metric.name])
        rows.append(f"| `{metric.name}{ending}` | {metric.type} | {named} | {metric.documentation} |")
    return "\n".join(rows)


PARTS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "operations.md": {"metrics": _metrics},
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
