"""What changed between two versions of a prompt, and which version number that asks for. Pure.

Who relies on a prompt gives it variables and reads what comes out: text, fields, tool calls. A change is *major* if
somebody who did everything right may trip over it, *minor* if nobody can and there is something new, *patch* if only
words differ. Below 1.0.0 the places move one to the right, as `^0.2` means `0.2.x`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from server.prompts.prompt import Options, Output, Prompt, Tool
from server.prompts.schema_diff import Change, Level, compare
from server.prompts.variables import MAX_ITEMS, MAX_STRING, Variable
from server.prompts.version import Core, Version

_LEAST: Final = ("min_length", "min_items", "minimum")
_MOST: Final = ("max_length", "max_items", "maximum")
_LEAST_DEFAULTS: Final = {"min_length": 0, "min_items": 0}
_MOST_DEFAULTS: Final = {"max_length": MAX_STRING, "max_items": MAX_ITEMS}


def changes(old: Prompt, new: Prompt) -> list[Change]:
    """Every difference that matters to somebody, the greatest first."""
    before, now = old.declared, new.declared
    found = [
        *_variables(before.variables, now.variables),
        *_messages(old, new),
        *_tools({tool.name: tool for tool in before.tools}, {tool.name: tool for tool in now.tools}),
        *_output(before.output, now.output),
        *_options(before.options, now.options),
    ]
    if before.description != now.description:
        found.append(Change(Level.PATCH, "description", "worded differently"))
    return sorted(found, key=lambda change: -change.level)


def level_of(found: list[Change]) -> Level:
    """What all changes together ask for."""
    return max((change.level for change in found), default=Level.NONE)


def least_version(old: Version, level: Level) -> Version:
    """The lowest version after `old` that does not understate a change of that level."""
    major, minor, patch = old.core
    shift = 0 if major else 1 if minor else 2
    place = min(2, (2 if level <= Level.PATCH else 1 if level is Level.MINOR else 0) + shift)
    following: tuple[Core, Core, Core] = ((major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1))
    return Version(following[place])


def understated(old: Version, new: Version, level: Level) -> bool:
    """Whether `new` promises more than a change of that level after `old` keeps."""
    return new.core < least_version(old, level).core


# --- variables -------------------------------------------------------------------------------------------------------


def _variables(before: Mapping[str, Variable], now: Mapping[str, Variable]) -> Iterator[Change]:
    for name in sorted(before.keys() | now.keys()):
        at = f"variables.{name}"
        if name not in now:
            yield Change(Level.MAJOR, at, "removed (or renamed)")
        elif name in before:
            yield from _variable(before[name], now[name], at)
        elif now[name].required:
            yield Change(Level.MAJOR, at, "added, and required")
        else:
            yield Change(Level.MINOR, at, "added, optional")


def _variable(old: Variable, new: Variable, at: str) -> Iterator[Change]:
    if new.required and not old.required:
        yield Change(Level.MAJOR, at, "is now required")
    elif old.required and not new.required:
        yield Change(Level.MINOR, at, "is now optional")
    elif (old.default, type(old.default)) != (new.default, type(new.default)):
        yield Change(Level.MINOR, f"{at}.default", f"changed from {old.default!r} to {new.default!r}")
    if (old.type == "array") != (new.type == "array") or old.kind != new.kind:
        widened = (old.type == "array") == (new.type == "array") and (old.kind, new.kind) == ("integer", "number")
        level = Level.MINOR if widened else Level.MAJOR
        yield Change(level, f"{at}.type", f"changed from {_type(old)} to {_type(new)}")
    yield from _values(old, new, at)
    for name in (*_LEAST, *_MOST):
        yield from _limit(old, new, name, at)
    if old.description != new.description:
        yield Change(Level.PATCH, f"{at}.description", "worded differently")


def _type(variable: Variable) -> str:
    return f"array of {variable.kind}" if variable.type == "array" else variable.type


def _values(old: Variable, new: Variable, at: str) -> Iterator[Change]:
    if old.enum is None and new.enum is None:
        return
    if new.enum is None:
        yield Change(Level.MINOR, f"{at}.enum", "any value is allowed now")
        return
    gone = [value for value in old.enum or () if value not in new.enum]
    if old.enum is None or gone:
        yield Change(Level.MAJOR, f"{at}.enum", f"{', '.join(map(repr, gone)) or 'most values'} no longer allowed")
    elif any(value not in old.enum for value in new.enum):
        yield Change(Level.MINOR, f"{at}.enum", "more values are allowed")


def _limit(old: Variable, new: Variable, name: str, at: str) -> Iterator[Change]:
    defaults: Mapping[str, int] = _LEAST_DEFAULTS if name in _LEAST else _MOST_DEFAULTS
    before, now = (_given(variable, name, defaults) for variable in (old, new))
    if before == now:
        return
    narrower = now is not None and (before is None or (now > before if name in _LEAST else now < before))
    level, how = (Level.MAJOR, "narrowed") if narrower else (Level.MINOR, "widened")
    yield Change(level, f"{at}.{name}", f"{how} from {before} to {now}")


def _given(variable: Variable, name: str, defaults: Mapping[str, int]) -> Any:
    given = getattr(variable, name)
    return defaults.get(name) if given is None else given


# --- the rest --------------------------------------------------------------------------------------------------------


def _messages(old: Prompt, new: Prompt) -> Iterator[Change]:
    before, now = old.declared.messages, new.declared.messages
    if _inserts(old) != _inserts(new) or [m.role for m in before] != [m.role for m in now]:
        yield Change(Level.MINOR, "messages", "their number, roles or order changed")
    elif [m.content for m in before] != [m.content for m in now]:
        yield Change(Level.PATCH, "messages", "worded differently")


def _inserts(prompt: Prompt) -> list[bool]:
    return [message.insert is not None for message in prompt.declared.messages]


def _tools(before: Mapping[str, Tool], now: Mapping[str, Tool]) -> Iterator[Change]:
    """Tools are run by clients: one that they don't know, and arguments that they don't expect, break them."""
    for name in sorted(before.keys() | now.keys()):
        at = f"tools.{name}"
        if name not in now:
            yield Change(Level.MAJOR, at, "removed")
        elif name not in before:
            yield Change(Level.MAJOR, at, "added: a client that does not know it cannot run it")
        else:
            old, new = before[name], now[name]
            yield from compare(old.parameters, new.parameters, f"{at}.parameters", added=Level.MAJOR)
            if bool(old.strict) != bool(new.strict):
                yield Change(Level.MINOR if new.strict else Level.MAJOR, f"{at}.strict", "changed")
            if old.description != new.description:
                yield Change(Level.PATCH, f"{at}.description", "worded differently")


def _output(old: Output | None, new: Output | None) -> Iterator[Change]:
    if old is None and new is None:
        return
    if old is None or new is None:
        yield Change(Level.MAJOR, "output", "removed" if new is None else "added: it was free text")
        return
    yield from compare(old.schema_, new.schema_, "output.schema")
    if old.strict != new.strict:
        yield Change(Level.MINOR if new.strict else Level.MAJOR, "output.strict", "changed")
    if old.name != new.name:
        yield Change(Level.PATCH, "output.name", "changed")


def _options(old: Options, new: Options) -> Iterator[Change]:
    for name in Options.model_fields:
        before, now = getattr(old, name), getattr(new, name)
        if before == now:
            continue
        calls = name == "tool_choice" or (name == "parallel_tool_calls" and now is not False)
        level = Level.MAJOR if calls else Level.MINOR
        yield Change(level, f"options.{name}", f"changed from {before!r} to {now!r}")
