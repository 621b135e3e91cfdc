"""Templates: Jinja's syntax, and of its language only what can neither run away nor reach anything.

Allowed are `{{ variable }}`, a few filters, `{% if %}`, and `{% for %}` over a variable (not nested). There are no
calls, no assignments, no arithmetic, no includes, no attributes beyond those of `loop`: time and output are bounded by
the template's own length and the declared limits of its variables, and the output by `MAX_BYTES` besides. What is
allowed is a list of node types, so that what Jinja may learn one day is refused until it is looked at here. The
sandbox is a second wall behind that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_BYTES: Final = 1_048_576
"""Largest text that one message of a prompt may become, UTF-8 bytes."""
LOOP_ATTRIBUTES: Final = frozenset({"index", "index0", "first", "last", "length"})
MAX_ARGUMENT: Final = 1_000
"""Largest number, and longest text, that a filter is given."""
MAX_INDENT: Final = 40
"""Spaces before each line of a text."""


class BadTemplate(ValueError):
    """A template is not allowed, or does not fit its declarations; the text says where and why."""


class CannotRender(ValueError):
    """A template cannot be filled in with these values; the text says why."""


def _shown(value: Any) -> str:
    """A value as it stands in a text."""
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _indent(text: str, width: int = 4) -> str:
    if width > MAX_INDENT:
        raise CannotRender(f"`indent` goes up to {MAX_INDENT}")
    return text.replace("\n", "\n" + " " * width)


def _join(values: Iterable[Any], separator: str = "") -> str:
    return separator.join(map(_shown, values))


_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(
    autoescape=False,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)
_ENVIRONMENT.globals.clear()
_KEPT: Final = {name: _ENVIRONMENT.filters[name] for name in ("upper", "lower", "capitalize", "title", "trim", "length",
                                                              "first", "last", "truncate")}  # fmt: skip
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {**_KEPT, "indent": _indent, "join": _join, "json": _json}
_ENVIRONMENT.filters = dict(FILTERS)
TESTS: Final = frozenset({"none", "string", "number", "boolean"})

_PLAIN: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And,
    nodes.Or, nodes.Not, nodes.Const, nodes.Concat,
)  # fmt: skip
"""Nodes that need no look at what they hold."""
_SPOKEN: Final[Mapping[type[nodes.Node], str]] = {
    nodes.Call: "a call", nodes.Assign: "`set`", nodes.AssignBlock: "`set`", nodes.Include: "`include`",
    nodes.Import: "`import`", nodes.FromImport: "`import`", nodes.Extends: "`extends`", nodes.Macro: "`macro`",
    nodes.Block: "`block`", nodes.Getattr: "an attribute", nodes.Getitem: "an index",
}  # fmt: skip


class Text:
    """A compiled template. Raises `BadTemplate` when made."""

    def __init__(self, source: str) -> None:
        try:
            tree = _ENVIRONMENT.parse(source)
        except TemplateSyntaxError as error:
            raise BadTemplate(f"line {error.lineno}: {error.message}") from None
        self.names: frozenset[str] = frozenset(_check(tree, frozenset()))
        """The variables that it uses."""
        self._compiled = _ENVIRONMENT.from_string(tree)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with the values filled in. Raises `CannotRender`."""
        parts, size = [], 0
        try:
            for part in self._compiled.generate(values):
                size += len(part.encode(errors="surrogatepass"))
                if size > MAX_BYTES:
                    raise CannotRender(f"the text is longer than {MAX_BYTES} bytes")
                parts.append(part)
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, CannotRender):
                raise
            raise CannotRender(str(error)) from None
        return "".join(parts)


def _check(node: nodes.Node, bound: frozenset[str]) -> set[str]:
    """The free variables below a node. Raises `BadTemplate` for what is not allowed."""
    match node:
        case nodes.Name():
            return set() if node.name in bound else {node.name}
        case nodes.For():
            return _check_loop(node, bound)
        case nodes.Filter():
            return _check(_filtered(node), bound)
        case nodes.Test():
            if node.name not in TESTS:
                raise _refused(node, f"the test `{node.name}`", f"there are {', '.join(sorted(TESTS))}")
        case nodes.Getattr(node=nodes.Name(name="loop"), attr=attr) if "loop" in bound and attr in LOOP_ATTRIBUTES:
            return set()
        case _ if not isinstance(node, _PLAIN):
            raise _refused(node, _SPOKEN.get(type(node), type(node).__name__), "see docs/prompts.md for what is")
    return {name for child in node.iter_child_nodes() for name in _check(child, bound)}


def _check_loop(node: nodes.For, bound: frozenset[str]) -> set[str]:
    if "loop" in bound:
        raise _refused(node, "a loop within a loop", "join the list by the filter `join`")
    if node.recursive or not isinstance(node.iter, nodes.Name) or not isinstance(node.target, nodes.Name):
        raise _refused(node, "this loop", "write {% for item in variable %}")
    inner = bound | {node.target.name, "loop"}
    below = [*node.body, *([node.test] if node.test is not None else [])]
    found = _check(node.iter, bound)
    return found.union(*(_check(c, inner) for c in below), *(_check(c, bound) for c in node.else_))


def _filtered(node: nodes.Filter) -> nodes.Expr:
    """What a filter is put on; its arguments are plain values."""
    if node.name not in FILTERS:
        raise _refused(node, f"the filter `{node.name}`", f"there are {', '.join(sorted(FILTERS))}")
    if node.dyn_args is not None or node.dyn_kwargs is not None or node.node is None:
        raise _refused(node, "this use of a filter", "give it plain values")
    for value in (*node.args, *(pair.value for pair in node.kwargs)):
        constant = value.value if isinstance(value, nodes.Const) else None
        size = len(constant) if isinstance(constant, str) else constant
        if not isinstance(size, int) or size > MAX_ARGUMENT:
            raise _refused(node, "this argument of a filter", f"give it a text or number up to {MAX_ARGUMENT}")
    return node.node


def _refused(node: nodes.Node, what: str, instead: str) -> BadTemplate:
    return BadTemplate(f"line {node.lineno}: {what} is not allowed in a template; {instead}")
