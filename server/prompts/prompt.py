"""One version of a prompt: what its file declares, read, checked and compiled. Pure.

The file is TOML, as the configuration is: types are what they look like, a text between `'''` needs neither escapes nor
indentation, and a key that stands twice is an error. Where JSON is wanted (schemas), JSON text may stand as well.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, ValidationError, field_validator, model_validator

from protocol.frames import MAX_SAFE_INTEGER, Name
from server.prompts.answer_schema import check_schema
from server.prompts.template import BadTemplate, CannotRender, Text
from server.prompts.variables import NAME_PATTERN, Part, Variable
from server.prompts.version import Version

MAX_FILE_BYTES: Final = 1_048_576
PROMPT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A prompt's name is its folder's; no `@`, which stands before a version."""
_RESERVED: Final = frozenset({"loop", "self", "super", "caller", "true", "false", "none", "True", "False", "None"})
_TOOL_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"

Map = dict[str, Any]


class Message(Part):
    """One message of the template, or the place where the client's own messages go."""

    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Annotated[str, Field(min_length=1)] | None = None
    """A template."""
    insert: Literal["messages"] | None = None
    """Here go the client's messages, or its conversation; without such a place, at the end."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Message:
        if (self.insert is None) == (self.role is None or self.content is None) or (
            self.insert is not None and (self.role is not None or self.content is not None)
        ):
            raise ValueError('give `role` and `content`, or insert = "messages"')
        return self


def _json_text(value: Any) -> Any:
    """What JSON text says; what stands as a table has to be something that JSON can say."""
    try:
        if isinstance(value, str):
            return orjson.loads(value)
        orjson.dumps(value)  # refuses integers beyond 64 bits
        json.dumps(value, allow_nan=False)  # refuses dates and NaN
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    return value


class Tool(Part):
    """A function that the model may call, and the client runs."""

    name: Annotated[str, Field(pattern=_TOOL_NAME)]
    description: str = ""
    parameters: Map = Field(default_factory=dict)
    """JSON Schema of the arguments: a table, or JSON text."""
    strict: bool | None = None

    _text = field_validator("parameters", mode="before")(_json_text)

    def as_chat(self) -> Map:
        """In the chat-completions format."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude_unset=True)}


class Output(Part):
    """The form of the answer."""

    name: Annotated[str, Field(pattern=_TOOL_NAME)] = "answer"
    schema_: Map = Field(alias="schema")
    """JSON Schema: a table, or JSON text."""
    strict: bool = True

    _text = field_validator("schema_", mode="before")(_json_text)

    @field_validator("schema_")
    @classmethod
    def _fit_to_check(cls, schema: Map) -> Map:
        check_schema(schema)
        return schema

    def as_chat(self) -> Map:
        """As `response_format` of the chat-completions format."""
        return {
            "type": "json_schema",
            "json_schema": {"name": self.name, "strict": self.strict, "schema": self.schema_},
        }


class Options(Part):
    """Model hints: what a request is sent with that names no value of its own."""

    model: Name | None = None
    """The route that answers where the request names none."""
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | Map | None = None


class Declared(Part):
    """A prompt file as it is written."""

    description: str = ""
    rollout_percent: Annotated[float, Field(ge=0, le=100)] = 100.0
    """Share of users that get it while nobody has set another by `tidewire prompts rollout`."""
    variables: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Variable] = Field(default_factory=dict)
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] = Field(default_factory=list)
    output: Output | None = None
    options: Options = Options()


@dataclass(frozen=True, slots=True)
class Filled:
    """A prompt with the values filled in: chat messages before and after the client's own."""

    before: Sequence[Map]
    after: Sequence[Map]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One version of a prompt, ready to be filled in."""

    name: str
    version: Version
    declared: Declared
    texts: Sequence[Text | None] = field(repr=False)
    """The compiled template of each message; None for the place of the client's."""

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What it wants to be told."""
        return self.declared.variables

    def fill(self, values: Mapping[str, Any]) -> Filled:
        """Its messages; values only ever become text within one `content`. Raises `CannotRender`."""
        sides: tuple[list[Map], list[Map]] = [], []
        side = 0
        for message, text in zip(self.declared.messages, self.texts, strict=True):
            if text is None:
                side = 1
            elif content := text.render(values):
                sides[side].append({"role": message.role, "content": content})
        return Filled(*sides)

    def options(self) -> Map:
        """Model hints (but the route), tools and form of the answer as fields of a request."""
        options = self.declared.options.model_dump(exclude_none=True, exclude={"model"})
        if self.declared.tools:
            options["tools"] = [tool.as_chat() for tool in self.declared.tools]
        if self.declared.output is not None:
            options["response_format"] = self.declared.output.as_chat()
        return options


class BadPrompt(ValueError):
    """A prompt file cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def parse(name: str, version: Version, data: bytes) -> Prompt:
    """The prompt in a file. Raises `BadPrompt`."""
    if len(data) > MAX_FILE_BYTES:
        raise BadPrompt([f"the file has more than {MAX_FILE_BYTES} bytes"])
    try:
        declared = Declared.model_validate(tomllib.loads(data.decode()))
    except UnicodeDecodeError:
        raise BadPrompt(["the file is not UTF-8"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadPrompt([f"is not valid TOML: {error}"]) from None
    except ValidationError as error:
        raise BadPrompt([_problem(one) for one in error.errors(include_url=False, include_input=False)]) from None
    texts: list[Text | None] = []
    problems = []
    for index, message in enumerate(declared.messages):
        try:
            texts.append(None if message.content is None else Text(message.content))
        except BadTemplate as error:
            problems.append(f"messages[{index}].content, {error}")
    problems += _cross_checks(declared, [text for text in texts if text is not None])
    prompt = Prompt(name, version, declared, texts)
    if not problems:
        problems += _trial(prompt)
    if problems:
        raise BadPrompt(problems)
    return prompt


def _problem(error: Any) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error["loc"]).lstrip(".")
    what = "there is no such key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _cross_checks(declared: Declared, texts: Sequence[Text]) -> Iterator[str]:
    used = frozenset[str]().union(*(text.names for text in texts))
    for name in sorted(used - declared.variables.keys()):
        yield f"`{name}` is used in a template and not declared under [variables]"
    for name in sorted(declared.variables.keys() - used):
        yield f"variables.{name} is used in no template"
    for name in sorted(_RESERVED & declared.variables.keys()):
        yield f"variables.{name}: this name has a meaning in templates; choose another"
    if sum(message.insert is not None for message in declared.messages) > 1:
        yield 'messages: insert = "messages" may stand once'
    names = [tool.name for tool in declared.tools]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tools: `{name}` stands twice"


def _trial(prompt: Prompt) -> Iterator[str]:
    """Fill it in with the least and the most that its declarations allow, so that a client is not the first to try."""
    for pick in (min, max):
        values = {name: _sample(variable, pick is max) for name, variable in prompt.variables.items()}
        try:
            prompt.fill(values)
        except CannotRender as error:
            yield f"cannot be filled in with {', '.join(f'{k} = {str(v)[:40]!r}' for k, v in values.items())}: {error}"


def _sample(variable: Variable, most: bool) -> Any:
    """A value that the declaration allows."""
    if variable.type == "array":
        count = max(variable.min_items or 0, 1 if most else 0)
        return [_scalar_sample(variable, most)] * count
    return _scalar_sample(variable, most)


def _scalar_sample(variable: Variable, most: bool) -> Any:
    if variable.enum is not None:
        return variable.enum[-1 if most else 0]
    match variable.kind:
        case "boolean":
            return most
        case "string":
            return "x" * max(variable.min_length or 0, 1 if most else 0)
        case _:
            low, high = variable.minimum, variable.maximum
            return (high if high is not None else low or 1) if most else (low if low is not None else high or 0)
