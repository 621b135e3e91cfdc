"""The parts of the documentation that are made from code are what the code makes now."""

from __future__ import annotations

import re

import pytest

from server.telemetry.metrics import Metrics
from server.upstreams.base import Fault
from server.upstreams.faults import CONSEQUENCES
from tests.docs import DOCS, PARTS, renewed


@pytest.mark.parametrize("file", PARTS)
def test_the_made_parts_are_current(file: str) -> None:
    assert (DOCS / file).read_text(encoding="utf-8") == renewed(file), "run: python -m tests.docs"


def test_the_fault_table_has_every_fault() -> None:
    text = (DOCS / "resilience.md").read_text(encoding="utf-8")
    assert all(f"\n| `{fault}` |" in text for fault in Fault)


def test_the_page_has_words_for_every_fault_that_opens_a_breaker() -> None:
    texts = (DOCS.parent / "web-demo" / "src" / "page" / "strings.ts").read_text(encoding="utf-8")
    whys = set(re.findall(r"^ +(\w+): \"", texts[texts.index(" whys: {") :].partition("}")[0], re.MULTILINE))
    assert whys == {"slow"} | {fault for fault, row in CONSEQUENCES.items() if row.breaker != "ignored"}


def test_alarms_ask_for_metrics_that_there_are() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    rules = "".join(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    asked = set(re.findall(r"\b(?:tidewire|gen_ai)_[a-z_]+", rules))
    there = {
        metric.name + ending for metric in Metrics().registry.collect() for ending in ("", "_total", "_bucket", "_sum")
    }
    assert len(asked) > 5
    assert asked <= there
