"""A generated corpus of changes in files, given to `tidewire prompts`: whatever understates itself is refused.

Each case is a folder: a released version, and a draft that changes one thing (and perhaps something lesser besides),
under a version number drawn below, or not below, the least one that keeps its promise. What each change asks for, and
what the least number is, is said here and not by the code under test.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.cli import run
from server.prompts.lock import LOCK_NAME
from server.prompts.registry import Registry
from tests.prompt_files import put

Map = dict[str, Any]
Core = tuple[int, int, int]
Edit = Callable[[Map], Any]

NAME = "support"


def base() -> Map:
    """A prompt with one of everything, as the changes below expect it."""
    return {
        "description": "Answers questions.",
        "wording": "Help with",
        "variables": {
            "product": {"max_length": 40},
            "tone": {"enum": ["plain", "warm"], "default": "plain"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
            "topics": {"type": "array", "items": "string", "max_items": 5, "default": []},
        },
        "tools": [
            {
                "name": "find",
                "description": "Finds.",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
                    "required": ["query", "limit"],
                },
            }
        ],
        "output": {
            "name": "answer",
            "schema": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "maxLength": 500},
                    "score": {"type": "integer"},
                    "kind": {"enum": ["fact", "guess"]},
                    "parts": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
                },
                "required": ["text", "score"],
                "additionalProperties": False,
            },
        },
        "options": {"temperature": 0.5, "tool_choice": "auto"},
        "role": "system",
    }


def variables(p: Map) -> Map:
    found: Map = p["variables"]
    return found


def fields(p: Map) -> Map:
    found: Map = p["output"]["schema"]["properties"]
    return found


def arguments(p: Map) -> Map:
    found: Map = p["tools"][0]["parameters"]
    return found


MAJOR: dict[str, Edit] = {
    "variable removed": lambda p: variables(p).pop("tone"),
    "required variable removed": lambda p: variables(p).pop("product"),
    "variable renamed": lambda p: variables(p).update(article=variables(p).pop("product")),
    "optional variable renamed": lambda p: variables(p).update(mood=variables(p).pop("tone")),
    "required variable added": lambda p: variables(p).update(place={}),
    "variable newly required": lambda p: variables(p)["tone"].pop("default"),
    "variable retyped": lambda p: variables(p).update(product={"type": "integer"}),
    "items retyped": lambda p: variables(p)["topics"].update(items="integer"),
    "one of many": lambda p: variables(p).update(topics={"default": "x"}),
    "value no longer allowed": lambda p: variables(p)["tone"].update(enum=["plain"]),
    "only some values allowed": lambda p: variables(p)["product"].update(enum=["tea", "coffee"]),
    "shorter": lambda p: variables(p)["product"].update(max_length=39),
    "not empty": lambda p: variables(p)["product"].update(min_length=1),
    "smaller numbers": lambda p: variables(p)["count"].update(maximum=8),
    "greater numbers": lambda p: variables(p)["count"].update(minimum=2),
    "fewer items": lambda p: variables(p)["topics"].update(max_items=4),
    "field removed": lambda p: fields(p).pop("kind"),
    "field renamed": lambda p: fields(p).update(sort=fields(p).pop("kind")),
    "field retyped": lambda p: fields(p).update(score={"type": "string"}),
    "field may be null": lambda p: fields(p).update(score={"type": ["integer", "null"]}),
    "field no longer always there": lambda p: p["output"]["schema"].update(required=["text"]),
    "field with another value": lambda p: fields(p)["kind"]["enum"].append("joke"),
    "longer field": lambda p: fields(p)["text"].update(maxLength=501),
    "field removed further down": lambda p: fields(p)["parts"]["items"].update(properties={}),
    "other fields allowed": lambda p: p["output"]["schema"].pop("additionalProperties"),
    "no form of the answer": lambda p: p.pop("output"),
    "tool removed": lambda p: p.pop("tools"),
    "tool added": lambda p: p["tools"].append({"name": "store"}),
    "tool renamed": lambda p: p["tools"][0].update(name="search"),
    "argument removed": lambda p: (arguments(p)["properties"].pop("limit"), arguments(p).update(required=["query"])),
    "argument retyped": lambda p: arguments(p)["properties"].update(query={"type": "integer"}),
    "argument added": lambda p: arguments(p)["properties"].update(page={"type": "integer"}),
    "argument no longer always there": lambda p: arguments(p).update(required=["query"]),
    "tool no longer strict": lambda p: p["tools"][0].pop("strict"),
    "another tool choice": lambda p: p["options"].update(tool_choice="required"),
}
MINOR: dict[str, Edit] = {
    "optional variable added": lambda p: variables(p).update(place={"default": "here"}),
    "variable no longer required": lambda p: variables(p)["product"].update(default="tea"),
    "another default": lambda p: variables(p)["tone"].update(default="warm"),
    "another value allowed": lambda p: variables(p)["tone"]["enum"].append("dry"),
    "longer": lambda p: variables(p)["product"].update(max_length=41),
    "any length": lambda p: variables(p)["product"].pop("max_length"),
    "fractions too": lambda p: variables(p)["count"].update(type="number"),
    "more numbers": lambda p: variables(p)["count"].update(minimum=0, maximum=10),
    "field added": lambda p: fields(p).update(source={"type": "string"}),
    "field always there": lambda p: p["output"]["schema"].update(required=["text", "score", "kind"]),
    "field narrowed": lambda p: fields(p)["text"].update(maxLength=400),
    "field with fewer values": lambda p: fields(p)["kind"].update(enum=["fact"]),
    "another hint": lambda p: p["options"].update(temperature=0.6),
    "another role": lambda p: p.update(role="developer"),
}
PATCH: dict[str, Edit] = {
    "worded differently": lambda p: p.update(wording="Answer questions about"),
    "described differently": lambda p: p.update(description="Answers many questions."),
    "variable described": lambda p: variables(p)["product"].update(description="What it is about."),
    "tool described": lambda p: p["tools"][0].update(description="Finds things."),
    "field described": lambda p: fields(p)["text"].update(description="The answer."),
}
LEVELS = {name: (level, edit) for level, edits in enumerate((PATCH, MINOR, MAJOR)) for name, edit in edits.items()}
HARMLESS = ("optional variable added", "field added", "another hint", "another role")
"""Minor changes that go together with every major one."""


def text_of(p: Map) -> str:
    """The file. Every variable stands in the template; JSON's strings, numbers and lists are TOML's, too."""
    lines = [f"description = {json.dumps(p['description'])}"]
    for name, variable in p["variables"].items():
        lines += [f"[variables.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in variable.items())]
    shown = [f"{{{{ {n} | join(', ') }}}}" if "items" in v else f"{{{{ {n} }}}}" for n, v in p["variables"].items()]
    lines += ["[[messages]]", f"role = '{p['role']}'", f'content = """{p["wording"]} {" ".join(shown)}"""']
    for tool in p.get("tools", ()):
        lines += ["[[tools]]", *(_entry(key, value) for key, value in tool.items())]
    if "output" in p:
        lines += ["[output]", *(_entry(key, value) for key, value in p["output"].items())]
    lines += ["[options]", *(_entry(key, value) for key, value in p["options"].items())]
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any) -> str:
    """Schemas are given as JSON text."""
    return f"{key} = '''{json.dumps(value)}'''" if isinstance(value, dict) else f"{key} = {json.dumps(value)}"


def least_after(old: Core, level: int) -> Core:
    """The least version that promises no more than a change of this level keeps: 0 patch, 1 minor, 2 major."""
    major, minor, patch = old
    if major == 0:  # the places move one to the right
        return (0, minor + 1, 0) if level == 2 and minor else (0, minor, patch + 1)
    return ((major, minor, patch + 1), (major, minor + 1, 0), (major + 1, 0, 0))[level]


def below(old: Core, least: Core) -> st.SearchStrategy[Core]:
    """Versions after `old` and before `least`."""
    later = st.integers(1, 20)
    choices = [later.map(lambda n: (old[0], old[1], old[2] + n))]
    if least[0] > old[0]:
        choices.append(st.tuples(st.just(old[0]), later.map(lambda n: old[1] + n), st.integers(0, 9)))
    return st.one_of(choices).filter(lambda version: old < version < least)


def from_on(least: Core) -> st.SearchStrategy[Core]:
    """`least` and versions after it."""
    major, minor, patch = least
    return st.sampled_from([least, (major, minor, patch + 3), (major, minor + 1, 0), (major + 1, 0, 0)])


def shown(version: Core, tag: str = "") -> str:
    return ".".join(map(str, version)) + tag


def prompts(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of `tidewire prompts …`."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = run(["prompts", *words, "--dir", str(folder)])
    return code, told.getvalue()


@contextlib.contextmanager
def folder_of(old: Core, version: str, names: list[str]) -> Iterator[Path]:
    """A folder with a released prompt, and a draft in which so much is changed."""
    before = base()
    after = deepcopy(before)
    for name in names:
        LEVELS[name][1](after)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        put(folder, NAME, shown(old), text_of(before))
        put(folder, NAME, version, text_of(after), released=False)
        yield folder


releases = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)).filter(any)
tags = st.sampled_from(["", "", "-rc.1"])
corpus = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def changes_with(data: st.DataObject, name: str) -> list[str]:
    """Up to two lesser changes, and the change itself."""
    lesser = ([], [*PATCH], [*PATCH, *HARMLESS])[LEVELS[name][0]]
    return [*(data.draw(st.lists(st.sampled_from(lesser), max_size=2, unique=True)) if lesser else []), name]


@pytest.mark.parametrize("name", [*MAJOR, *MINOR])
@corpus
@given(data=st.data(), old=releases, tag=tags)
def test_every_understated_change_is_refused(name: str, data: st.DataObject, old: Core, tag: str) -> None:
    level = LEVELS[name][0]
    if least_after(old, level) == (old[0], old[1], old[2] + 1):
        old = (old[0] + 1, old[1], old[2])  # below 1.0.0 no number is too low for it
    version = shown(data.draw(below(old, least_after(old, level))), tag)
    with folder_of(old, version, changes_with(data, name)) as folder:
        lock = (folder / LOCK_NAME).read_bytes()
        code, told = prompts(folder, "check")
        assert code == 1, told
        assert f"REFUSED {NAME}/{version}.toml: {version} understates what it changes since {shown(old)}" in told
        assert f"it has to be {shown(least_after(old, level))} or higher" in told
        for reference in (f"{NAME}@{version}", "all"):
            code, told = prompts(folder, "release", reference)
            assert code == 2, told
        assert (folder / LOCK_NAME).read_bytes() == lock
        assert [shown(p.version.core) for p in Registry.load(folder).released[NAME]] == [shown(old)]


@pytest.mark.parametrize("name", [*MAJOR, *MINOR, *PATCH])
@corpus
@given(data=st.data(), old=releases, tag=tags)
def test_every_honest_change_is_accepted_and_released(name: str, data: st.DataObject, old: Core, tag: str) -> None:
    level = LEVELS[name][0]
    version = shown(data.draw(from_on(least_after(old, level))), tag)
    with folder_of(old, version, changes_with(data, name)) as folder:
        code, told = prompts(folder, "check")
        assert code == 0, told
        expected = ("patch", "minor", "major")[level]
        assert f"draft   {NAME}@{version}, since {shown(old)}: {expected}" in told
        assert prompts(folder, "release", f"{NAME}@{version}")[0] == 0
        assert str(Registry.load(folder).released[NAME][-1].version) == version
        assert prompts(folder, "check")[0] == 0


@pytest.mark.parametrize("name", [*MAJOR, *MINOR])
def test_an_understated_version_that_was_released_all_the_same_is_found(name: str) -> None:
    """As when two branches each release something that was right by itself."""
    with folder_of((1, 2, 3), "1.2.4", [name]) as folder:
        put(folder, NAME, "1.2.4", (folder / NAME / "1.2.4.toml").read_text())
        code, told = prompts(folder, "check")
        assert code == 1
        assert f"REFUSED {NAME}/1.2.4.toml" in told
