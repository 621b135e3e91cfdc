"""File, then environment, then the command line's own options: one checked `Settings`, or every problem at once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from server.config.checks import cross_checks, reason
from server.config.environment import PREFIX, path_of, relevant, value_of, variables
from server.config.schema import (
    ConfigError,
    KeyPath,
    Problem,
    annotation_at,
    dotted,
    holds_path,
    keys_at,
    leaves,
    secret_at,
    unknown,
)
from server.config.sections import DEFAULT_TIER, Overrides, Settings


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Overrides | None = None,
    *,
    sections: Collection[str] | None = None,
) -> Settings:
    """Read the file (if any), apply the environment, then `overrides`, and check it all.

    Relative paths in a file are relative to the file's folder. `sections`: only those are of interest; what is wrong
    elsewhere is replaced by defaults. Raises `ConfigError` with every problem found.
    """
    if path is None:
        return parse({}, environ, overrides=overrides, sections=sections)
    return parse(_read(path), environ, overrides=overrides, base=path.absolute().parent, sections=sections)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([Problem(str(path), "there is no such file")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(str(path), f"is not valid TOML: {error}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {reason(error)}")]) from None


def parse(
    data: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    base: Path | None = None,
    sections: Collection[str] | None = None,
) -> Settings:
    """`load` for a configuration that is already a dict. `base`: the folder relative paths start from."""
    loader = _Loader(data, environ, base or Path.cwd())
    loader.refuse_inline_secrets()
    loader.apply_environment()
    for section, values in (overrides or {}).items():
        for key, value in values.items():
            loader.put((section, key), value)
    return loader.settings(sections)


def data_home(environ: Mapping[str, str]) -> Path:
    """Where data lies unless configured: `$XDG_DATA_HOME/tidewire`, that is `~/.local/share/tidewire`."""
    xdg = environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else _user_home(environ) / ".local" / "share") / "tidewire"


def _user_home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


class _Loader:
    """One pass over one configuration. Collects problems; `settings` raises them together."""

    def __init__(self, data: Mapping[str, Any], environ: Mapping[str, str], base: Path) -> None:
        self.data: dict[str, Any] = json.loads(json.dumps(data, default=str))
        self.environ = environ
        self.base = base
        self.origin: dict[KeyPath, str] = {}
        """Which variable set a key."""
        self.problems: list[Problem] = []

    def problem(self, path: KeyPath, message: str) -> None:
        """Note a problem, once."""
        if (variable := self.origin.get(path)) is not None:
            message += f" (set by {variable})"
        found = Problem(dotted(path), message)
        if found not in self.problems:
            self.problems.append(found)

    def put(self, path: KeyPath, value: Any) -> None:
        """Set a value, making the tables above it."""
        node = self.data
        for step in path[:-1]:
            child = node.setdefault(str(step), {})
            if not isinstance(child, dict):
                return
            node = child
        node[str(path[-1])] = value

    def parent(self, path: KeyPath) -> Any:
        """The table or list that holds what is at `path`."""
        node: Any = self.data
        for step in path[:-1]:
            node = node[step]
        return node

    # -- before validation -----------------------------------------------------------------------------------------

    def refuse_inline_secrets(self) -> None:
        """Note each secret that stands in the file, and forget it."""
        for path, value in leaves(self.data):
            if message := _inline_secret(path, value):
                self.problem(path, message)
                del self.parent(path)[path[-1]]

    def apply_environment(self) -> None:
        """Overlay every variable; one that means nothing is a problem, unless the configuration names it itself."""
        strangers = []
        for name, text in relevant(self.environ):
            path = path_of(name, self.data)
            annotation = annotation_at(path) if path else None
            if path is not None and annotation is not None:
                self.origin[path] = name
                self.put(path, value_of(text, annotation))
            elif path is not None and secret_at(path):
                reference = (*path[:-1], f"{path[-1]}_env")
                self.origin[reference] = name
                self.put(reference, name)
            else:
                strangers.append(name)
        named = {value for path, value in leaves(self.data) if str(path[-1]).endswith("_env")}
        known = [*variables(self.data), *sorted(str(name) for name in named)]
        for name in strangers:
            if name not in named:
                self.problem((name,), unknown(name, known))

    def resolve_urls(self) -> None:
        """Replace `url_env` and `url_file` by what they hold. A URL given by `TIDEWIRE_…_URL` beats both."""
        for section in ("redis", "ledger"):
            values = self.data.get(section)
            if isinstance(values, dict) and (section, "url") not in self.origin:
                url = self.referenced_url(section, values)
                if url is not None:
                    values["url"] = url

    def referenced_url(self, section: str, values: dict[str, Any]) -> str | None:
        """What `url_env` or `url_file` of a section holds."""
        variable, file = values.get("url_env"), values.get("url_file")
        if isinstance(variable, str):
            if not self.environ.get(variable):
                self.problem((section, "url_env"), "names an environment variable that is not set")
            return self.environ.get(variable) or None
        if isinstance(file, str):
            try:
                return self.absolute(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                self.problem((section, "url_file"), f"cannot be read: {reason(error)}")
        return None

    def fill_defaults(self) -> None:
        """What depends on the user's home, and the one tier there is if none is given."""
        home = data_home(self.environ)
        ledger = f"sqlite:///{home / 'ledger.db'}"
        for section, key, value in (("redis", "data_dir", str(home / "redis")), ("ledger", "url", ledger)):
            values = self.data.setdefault(section, {})
            if isinstance(values, dict):
                values.setdefault(key, value)
        if not self.data.get("tiers"):
            self.data["tiers"] = {DEFAULT_TIER: {}}

    def place_paths(self) -> None:
        """Make relative paths absolute: from the file's folder, wherever the server was started."""
        for path, value in leaves(self.data):
            if isinstance(value, str) and holds_path(path):
                self.parent(path)[path[-1]] = str(self.absolute(value))
        ledger = self.data["ledger"]
        if isinstance(ledger, dict) and isinstance(url := ledger.get("url"), str) and url.startswith("sqlite:///"):
            file = url.removeprefix("sqlite:///")
            ledger["url"] = f"sqlite:///{self.absolute(file)}" if file and file != ":memory:" else url

    def absolute(self, path: str) -> Path:
        """A path of the configuration, from `base` or, with `~/`, from the user's home."""
        return _user_home(self.environ) / path[2:] if path.startswith("~/") else self.base / path

    # -- validation ------------------------------------------------------------------------------------------------

    def settings(self, sections: Collection[str] | None = None) -> Settings:
        """The checked result; see `load` for `sections`. Raises `ConfigError`."""
        self.resolve_urls()
        self.fill_defaults()
        self.place_paths()
        names = {key: set(value) for key, value in self.data.items() if isinstance(value, dict)}
        settings = self.validate()
        for path, message in cross_checks(settings, names, self.environ):
            self.problem(path, message)
        found = [
            problem
            for problem in sorted(self.problems, key=lambda problem: problem.path)
            if sections is None or re.split(r"[.\[]", problem.path)[0] in sections
        ]
        if found:
            raise ConfigError(found)
        return settings

    def validate(self) -> Settings:
        """Validate. What is wrong is noted and cut out, so that the rest can be checked in the same run."""
        try:
            return Settings.model_validate_json(json.dumps(self.data))
        except ValidationError as invalid:
            errors = invalid.errors(include_url=False)
        for error in errors:
            self.problem(error["loc"], self.explain(error["loc"], error["type"], error["msg"]))
        for error in errors:
            section, *rest = error["loc"]
            values = self.data.get(str(section))
            if isinstance(values, dict) and rest:
                values.pop(str(rest[0]), None)
            else:
                self.data.pop(str(section), None)
        self.fill_defaults()
        return Settings.model_validate_json(json.dumps(self.data))

    def explain(self, path: KeyPath, kind: str, message: str) -> str:
        """One validation error in the words of the documentation."""
        if kind == "extra_forbidden":
            return unknown(str(path[-1]), keys_at(path[:-1]))
        if kind == "missing":
            return "is needed"
        if kind == "string_pattern_mismatch":
            return _PATTERN_HINTS.get(str(path[-1]), "should be the name of an environment variable")
        message = re.sub(r"Input should|Value should|Tuple should", "should", message)
        for theirs, ours in _WORDS:
            message = message.replace(theirs, ours)
        if not kind.endswith(("_type", "_parsing", "_from_float")):
            return message
        value = self.parent(path)[path[-1]]
        quoted = isinstance(value, str) and path not in self.origin and re.fullmatch(r"[\d._]+|true|false", value)
        return f"{message}, not {_KINDS[type(value)]}" + (": write it without quotes" if quoted else "")


_WORDS: Final = (
    ("valid string", "text"),
    ("valid tuple", "list"),
    ("valid dictionary", "table"),
    ("an object", "a table"),
)
_KINDS: Final[dict[type, str]] = {
    str: "a text",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    dict: "a table",
    list: "a list",
    type(None): "nothing",
}
_PATTERN_HINTS: Final = {
    "sha256": "should be 64 lower-case hexadecimal digits; `tidewire token --api-key` prints them",
    "jwt_secret_env": "should be the name of an environment variable, not the secret itself",
    "api_key_env": "should be the name of an environment variable, not the key itself",
    "url_env": "should be the name of an environment variable, not the URL itself",
}


def _inline_secret(path: KeyPath, value: Any) -> str | None:
    """Why what stands at `path` must not stand in a file, and where it belongs."""
    if secret := secret_at(path):
        owner = "tidewire" if path[0] == "auth" else path[-2]
        example = re.sub(r"\W", "_", f"{owner}_{secret}").upper()
        hint = f'put it into an environment variable and name that: {secret}_env = "{example}"'
        return f"a secret has no place in the file; {hint} (or a file: {secret}_file)"
    if path[:2] == ("auth", "api_keys") and path[-1] == "key":
        return "a secret has no place in the file; keep its sha256, as `tidewire token --api-key` prints it"
    if path[-1] == "url" and isinstance(value, str) and _has_password(value):
        variable = f"{PREFIX}{path[0]}_URL".upper()
        return f'a URL with a password has no place in the file; use {variable}, or url_env = "…", or url_file = "…"'
    return None


def _has_password(url: str) -> bool:
    try:
        return bool(urlsplit(url).password)
    except ValueError:
        return False
