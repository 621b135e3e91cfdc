"""Versions and ranges: npm's rules, by example and against npm's own implementation."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.prompts.version import MAX_LENGTH, Range, Version

KNOWN = [
    "0.0.3",
    "0.2.3",
    "0.2.9",
    "0.3.0",
    "1.0.0",
    "1.2.3",
    "2.0.0-rc.1",
    "2.0.0-rc.2",
    "2.0.0",
    "2.1.0-rc.1",
    "2.3.0",
    "2.3.1",
    "3.0.0",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", "0.0.3 0.2.3 0.2.9 0.3.0 1.0.0 1.2.3 2.0.0 2.3.0 2.3.1 3.0.0"),
        ("", "0.0.3 0.2.3 0.2.9 0.3.0 1.0.0 1.2.3 2.0.0 2.3.0 2.3.1 3.0.0"),
        ("^2", "2.0.0 2.3.0 2.3.1"),
        ("^0.2.3", "0.2.3 0.2.9"),
        ("^0.0.3", "0.0.3"),
        ("2.3.x", "2.3.0 2.3.1"),
        ("2.3", "2.3.0 2.3.1"),
        ("~2.3", "2.3.0 2.3.1"),
        ("~1", "1.0.0 1.2.3"),
        ("2.3.1", "2.3.1"),
        ("=v2.3.1", "2.3.1"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("^2.0.0-rc.1", "2.0.0-rc.1 2.0.0-rc.2 2.0.0 2.3.0 2.3.1"),
        (">=1 <2.3.1", "1.0.0 1.2.3 2.0.0 2.3.0"),
        ("> 2", "3.0.0"),
        ("<=1", "0.0.3 0.2.3 0.2.9 0.3.0 1.0.0 1.2.3"),
        ("1.2 - 2.3.0", "1.2.3 2.0.0 2.3.0"),
        ("1 || 3.0.0", "1.0.0 1.2.3 3.0.0"),
        (">*", ""),
    ],
)
def test_ranges(text: str, expected: str) -> None:
    assert [v for v in KNOWN if Version.parse(v) in Range.parse(text)] == expected.split()


@pytest.mark.parametrize(
    "text", ["latest", "^^1", "1.2.3.4", "01.2.3", "1.2.3-", "1..2", "=>1", "1; 2", "9" * 20, "١.٢.٣"]
)
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no version range; write for example \^2"):
        Range.parse(text)


def test_a_long_range_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="at most 128 characters"):
        Range.parse("1 " * MAX_LENGTH)


@pytest.mark.parametrize(
    "text", ["1", "1.2", "v1.2.3", "1.2.3+b", "1.2.03", "-1.2.3", "1.2.3-01", "1.2.3-a..b", "", " 1.2.3"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        Version.parse(text)


def test_precedence_is_that_of_semver_org() -> None:
    order = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.1",
    ]
    versions = [Version.parse(text) for text in order]
    for (i, a), (j, b) in itertools.product(enumerate(versions), repeat=2):
        assert (a < b) == (i < j)
        assert (a <= b) == (i <= j)
    assert [str(version) for version in versions] == order


def test_only_one_exact_version_is_exact() -> None:
    assert Range.parse("=1.2.3").exact == Version.parse("1.2.3")
    for text in ("^1.2.3", "1.2", "1.2.3 || 2", "*", ">=1.2.3"):
        assert Range.parse(text).exact is None


@given(st.text(max_size=40))
def test_any_text_is_a_range_or_a_value_error(text: str) -> None:
    try:
        found = Range.parse(text)
    except ValueError:
        return
    for version in KNOWN:
        assert (Version.parse(version) in found) in (True, False)


def npm_semver() -> Path | None:
    """npm's own `semver`, which comes with Node.js."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    folder = Path(npm).resolve().parent.parent / "node_modules" / "semver"
    return folder if folder.is_dir() else None


@pytest.mark.node
def test_ranges_mean_what_they_mean_to_npm() -> None:
    semver = npm_semver()
    if semver is None:
        pytest.skip("npm is not installed")
    chance = random.Random(7)
    numbers = itertools.product(range(3), range(3), range(2), ("", "-rc.1", "-0", "-alpha.2"))
    versions = [f"{a}.{b}.{c}{tags}" for a, b, c, tags in numbers]
    ranges = sorted({_random_range(chance) for _ in range(1500)})
    code = (
        "const s = require(process.argv[1]); const [rs, vs] = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(rs.map(r => s.validRange(r) === null ? null : vs.filter(v => s.satisfies(v, r)))))"
    )
    told = subprocess.run(
        ["node", "-e", code, str(semver)],
        input=json.dumps([ranges, versions]),
        capture_output=True,
        text=True,
        check=True,
    )
    for text, theirs in zip(ranges, json.loads(told.stdout), strict=True):
        ours = [version for version in versions if Version.parse(version) in Range.parse(text)]
        assert ours == theirs, text


def _random_range(chance: random.Random) -> str:
    """A range; without `*` beside `||` and without `>=0`, which npm simplifies away together with the pre-releases."""

    def version() -> str:
        a, b, c = (chance.choice("012") for _ in range(3))
        tags = chance.choice(["", "-rc.1", "-0", "-alpha.2"])
        return chance.choice([a, f"{a}.{b}", f"{a}.x", f"{a}.{b}.*", f"{a}.{b}.{c}{tags}", f"{a}.{b}.{c}{tags}"])

    def comparator() -> str:
        found = chance.choice(["", "", "^", "~", ">=", "<", "<=", ">", "="]) + version()
        return comparator() if found.startswith(">=0") else found

    def alternative() -> str:
        if chance.random() < 0.1:
            return f"{version()} - {version()}".replace("0.", "1.", 1)
        return " ".join(comparator() for _ in range(chance.choice([1, 1, 2])))

    return " || ".join(alternative() for _ in range(chance.choice([1, 1, 2])))
