"""`tidewire prompts …`: check, release, list, show, render, rollout, rollback, audit."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from cyclopts import App, Parameter

from server.config import Settings, load
from server.prompts.check import Step, check, steps
from server.prompts.diff import least_version
from server.prompts.prompt import Prompt
from server.prompts.registry import Registry
from server.prompts.releasing import release as release_drafts
from server.prompts.rollout import ALL, Shares, read_audit, read_shares, set_share
from server.prompts.selection import EVERYBODY
from server.prompts.service import of_route
from server.prompts.template import CannotRender
from server.prompts.variables import bind
from server.prompts.version import Range, Version
from server.store.embedded import EmbeddedRedis, FolderInUse
from server.store.store import Store
from server.telemetry.logs import configure

Config = Annotated[Path | None, Parameter(name=["--config", "-c"], env_var="TIDEWIRE_CONFIG")]
Folder = Annotated[Path | None, Parameter(name=["--dir", "-d"])]
Result = TypeVar("Result")
AUDIT_SHOWN: Final = 50

app = App(name="prompts", help="Check, release and roll out versioned prompts.", help_format="markdown")


class PromptsMisuse(Exception):
    """Something the user can mend; the text says how."""


def _registry(config: Path | None, folder: Path | None) -> Registry:
    """The prompts of `--dir`, or of the configuration. Raises `PromptsMisuse`, `BadRegistry` or `ConfigError`."""
    found = folder or load(config, os.environ, sections=("prompts",)).prompts.dir
    if found is None:
        raise PromptsMisuse("which prompts? give --dir FOLDER, or --config FILE with prompts.dir in it")
    return Registry.load(found)


def _find(registry: Registry, reference: str, drafts: bool = True) -> Prompt:
    """The prompt that `name` (newest release), `name@range` or `name@version` means."""
    try:
        wanted = of_route(reference)
        within = wanted.ranges[0] if wanted.ranges else Range.parse("*")
    except ValueError as error:
        raise PromptsMisuse(f"{reference}: {error}") from None
    offered = registry.versions(wanted.name) if drafts else registry.released.get(wanted.name, ())
    found = [prompt for prompt in offered if prompt.version in within]
    if not found:
        known = ", ".join(str(prompt.version) for prompt in offered) or "none"
        kind = "version" if drafts else "released version"
        raise PromptsMisuse(f"there is no {kind} of {wanted.name!r} in {within.text or '*'}; there are: {known}")
    return found[-1]


@app.command(name="check")
def check_command(*, config: Config = None, dir: Folder = None) -> int:  # noqa: A002 - the option's name
    """Whether released versions are as they were, drafts are valid, and no number understates its changes.

    Exit code 1 if not. Example: `tidewire prompts check --dir prompts`

    Parameters
    ----------
    config
        The configuration, whose prompts.dir is checked.
    dir
        A folder of prompts, instead.
    """
    registry = _registry(config, dir)
    problems = check(registry)
    for name in registry.names:
        for step in steps(registry, name):
            if not step.released:
                _print_draft(step)
    for problem in problems:
        print(f"REFUSED {problem}")
    count = sum(len(versions) for versions in registry.released.values())
    print(f"{count} released, {sum(map(len, registry.drafts.values()))} drafts, {len(problems)} problems")
    return 1 if problems else 0


def _print_draft(step: Step) -> None:
    since = "first version" if step.before is None else f"since {step.before.version}: {step.level.name.lower()}"
    print(f"draft   {step.prompt.id}, {since}")
    for change in step.changes:
        print(f"        {change}")
    if step.before is not None and step.problem is None:
        least = least_version(step.before.version, step.level)
        print(f"        {step.prompt.version} will do; at least {least} is needed")


@app.command
def release(reference: str, /, *, config: Config = None, dir: Folder = None) -> int:  # noqa: A002
    """Release a draft: from then on it is served, and its file must not change. Commit the file and prompts.lock.

    Example: `tidewire prompts release support@1.2.0 --dir prompts`

    Parameters
    ----------
    reference
        NAME@VERSION, or `all` drafts.
    """
    registry = _registry(config, dir)
    if reference == "all":
        drafts = [draft for versions in registry.drafts.values() for draft in versions]
        if registry.draft_problems:
            raise PromptsMisuse("\n".join(map(str, registry.draft_problems)))
    else:
        drafts = [_exactly(registry, reference)]
    release_drafts(registry, drafts)
    for draft in drafts:
        share = draft.declared.rollout_percent
        whom = "everybody" if share >= EVERYBODY else f"{share:g} % of users until `tidewire prompts rollout`"
        print(f"released {draft.id}, for {whom}; commit {draft.name}/{draft.version}.toml and prompts.lock")
    return 0


def _exactly(registry: Registry, reference: str) -> Prompt:
    name, _, version = reference.partition("@")
    for problem in registry.draft_problems:
        if problem.path == f"{name}/{version}.toml":
            raise PromptsMisuse(str(problem))
    if any(str(prompt.version) == version for prompt in registry.released.get(name, ())):
        raise PromptsMisuse(f"{reference} is released already")
    for prompt in registry.drafts.get(name, ()):
        if str(prompt.version) == version:
            return prompt
    raise PromptsMisuse(f"there is no draft {reference}: write {name}/{version or 'VERSION'}.toml")


@app.command(name="list")
def list_command(*, config: Config = None, dir: Folder = None) -> int:  # noqa: A002
    """Every version: released or draft, and the share of users it is for.

    With a configuration whose Redis answers, the shares are those that hold now; else those of the files.
    """
    registry = _registry(config, dir)
    shares = Shares(_known_shares(config) if config is not None else None)
    rows = [("PROMPT", "STATE", "SHARE", "DESCRIPTION")]
    for name in registry.names:
        released = {str(prompt.version) for prompt in registry.released.get(name, ())}
        for prompt in registry.versions(name):
            is_released = str(prompt.version) in released
            state = ("released" if shares.of(prompt) > 0 else "withdrawn") if is_released else "draft"
            share = f"{shares.of(prompt):g} %" if is_released else "-"
            rows.append((prompt.id, state, share, prompt.declared.description))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 0


def _known_shares(config: Path) -> dict[str, float] | None:
    from server.store.link import StoreError

    try:
        return _in_redis(load(config, os.environ), read_shares)
    except (StoreError, TimeoutError, PromptsMisuse):
        return None


@app.command
def show(reference: str, /, *, config: Config = None, dir: Folder = None) -> int:  # noqa: A002
    """What a prompt wants and does, as JSON: its variables, messages, tools, form of the answer and hints.

    Example: `tidewire prompts show support@^1 --dir prompts`

    Parameters
    ----------
    reference
        NAME, NAME@RANGE or NAME@VERSION.
    """
    prompt = _find(_registry(config, dir), reference)
    declared = prompt.declared.model_dump(exclude_unset=True, by_alias=True)
    print(json.dumps({"name": prompt.name, "version": str(prompt.version), **declared}, indent=2, ensure_ascii=False))
    return 0


@app.command
def render(
    reference: str,
    /,
    *,
    var: Annotated[list[str] | None, Parameter(consume_multiple=False, negative=())] = None,
    config: Config = None,
    dir: Folder = None,  # noqa: A002
) -> int:
    """The messages that a model is sent, filled in.

    Example: `tidewire prompts render support@1.2.0 --var product=tea --var 'topics=["price"]' --dir prompts`

    Parameters
    ----------
    reference
        NAME, NAME@RANGE or NAME@VERSION; a draft, too.
    var
        NAME=VALUE. May be repeated. What is no text is written as JSON.
    """
    prompt = _find(_registry(config, dir), reference)
    given: dict[str, Any] = {}
    for pair in var or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise PromptsMisuse(f"--var {pair}: write NAME=VALUE")
        given[name] = _value(prompt, name, value)
    values, problems = bind(prompt.variables, given)
    if problems:
        raise PromptsMisuse("\n".join(f"variable {name}: {problem}" for name, problem in problems.items()))
    try:
        filled = prompt.fill(values)
    except CannotRender as error:
        raise PromptsMisuse(f"{prompt.id} cannot be filled in with this: {error}") from None
    for message in filled.before:
        print(f"--- {message['role']}\n{message['content']}")
    print("--- (the client's messages)")
    for message in filled.after:
        print(f"--- {message['role']}\n{message['content']}")
    return 0


def _value(prompt: Prompt, name: str, text: str) -> Any:
    variable = prompt.variables.get(name)
    if variable is None or variable.type == "string":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # of the wrong type: it is told so


# --- rollouts --------------------------------------------------------------------------------------------------------


@app.command
def rollout(
    reference: str,
    /,
    *,
    percent: Annotated[float, Parameter(name=["--percent", "-p"])],
    by: str | None = None,
    config: Config = None,
) -> int:
    """Set the share of users that a released version is for, on all nodes at once.

    A greater share only adds users; who has a version keeps it. Example: `tidewire prompts rollout support@1.2.0 -p 10`

    Parameters
    ----------
    reference
        NAME@VERSION.
    percent
        From 0 to 100.
    by
        Who does it, for the audit log; your login name unless given.
    """
    if not 0 <= percent <= EVERYBODY:
        raise PromptsMisuse("--percent goes from 0 to 100")
    settings, registry = _served(config)
    return _set(settings, _released_exactly(registry, reference), percent, by, "rollout")


@app.command
def rollback(
    reference: str,
    /,
    *,
    by: str | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    config: Config = None,
) -> int:
    """Withdraw a version from all users, on all nodes at once; its conversations go back to the version before, too.

    Only who asks for exactly this version still gets it. Example: `tidewire prompts rollback support`

    Parameters
    ----------
    reference
        NAME (the newest version that has users) or NAME@VERSION.
    by
        Who does it, for the audit log; your login name unless given.
    force
        Also if nothing would remain for those who ask for this major version.
    """
    settings, registry = _served(config)
    shares = Shares(_in_redis(settings, read_shares))
    if "@" in reference:
        prompt = _released_exactly(registry, reference)
    else:
        offered = [p for p in registry.released.get(reference, ()) if p.version.is_release and shares.of(p) > 0]
        if not offered:
            raise PromptsMisuse(f"no version of {reference!r} has users")
        prompt = offered[-1]
    rest = Range.parse(f"^{'.'.join(map(str, prompt.version.core[: 1 if prompt.version.core[0] else 2]))}")
    others = [p for p in registry.released[prompt.name] if p.version in rest and p != prompt and shares.of(p) > 0]
    if not others and not force:
        raise PromptsMisuse(
            f"{prompt.id} is the last one in {rest}: whoever asks for that would get an error; --force does it"
        )
    return _set(settings, prompt, 0.0, by, "rollback")


def _released_exactly(registry: Registry, reference: str) -> Prompt:
    name, _, text = reference.partition("@")
    try:
        version = Version.parse(text)
    except ValueError as error:
        raise PromptsMisuse(f"write NAME@VERSION: {error}") from None
    for prompt in registry.released.get(name, ()):
        if prompt.version == version:
            return prompt
    raise PromptsMisuse(f"{reference} is not released; `tidewire prompts list` shows what is")


def _set(settings: Settings, prompt: Prompt, percent: float, by: str | None, what: str) -> int:
    who = by or getpass.getuser()
    step = _in_redis(settings, lambda store: set_share(store, prompt, percent, who, what))
    print(f"{step.prompt}: {step.before:g} % -> {step.after:g} % of users, by {step.who}")
    return 0


@app.command
def audit(name: str | None = None, /, *, config: Config = None) -> int:
    """Who rolled out or back what, and when: the newest steps, oldest first.

    Parameters
    ----------
    name
        Of this prompt only.
    """
    settings = load(config, os.environ)
    for step in _in_redis(settings, lambda store: read_audit(store, name, AUDIT_SHOWN)):
        when = datetime.fromtimestamp(step.at, UTC).isoformat(timespec="seconds")
        print(f"{when}  {step.what:<8}  {step.prompt}  {step.before:g} % -> {step.after:g} %  {step.who}")
    return 0


def _served(config: Path | None) -> tuple[Settings, Registry]:
    settings = load(config, os.environ)
    if settings.prompts.dir is None:
        raise PromptsMisuse("the configuration has no prompts.dir")
    return settings, Registry.load(settings.prompts.dir)


def _in_redis(settings: Settings, work: Callable[[Store], Awaitable[Result]]) -> Result:
    """Do something in the Redis of the configuration. Raises `StoreError`, `TimeoutError` or `EmbeddedRedisError`."""

    configure({"TIDEWIRE_LOG_LEVEL": "error"})

    async def run() -> Result:
        async with _redis_of(settings) as url:
            store = await Store.connect(url, ALL, settings.redis.stall_ms / 1000)
            try:
                return await work(store)
            finally:
                await store.close()

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _redis_of(settings: Settings) -> AsyncIterator[str]:
    """Where the Redis of the configuration is; an embedded one that does not run yet is started for the moment."""
    if settings.redis.url != "embedded":
        yield settings.redis.url
        return
    server = EmbeddedRedis(settings.redis.data_dir)
    try:
        await server.start()
    except FolderInUse:
        yield server.url
        return
    try:
        yield server.url
    finally:
        await server.stop()
