"""The command line: `tidewire serve`, `demo`, `chat`, `token`, `doctor`, `conformance`.

Everything a command needs is imported inside it, so that `--help` and `--version` answer at once. What goes wrong is
told in one line each on standard error, with exit code 2; a defect is a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

if TYPE_CHECKING:
    from server.config import Settings

MISUSE: Final = 2
"""Exit code of everything that the user can mend."""
DEFAULT_SECRET_VARIABLE: Final = "TIDEWIRE_JWT_SECRET"

Config = Annotated[Path | None, Parameter(name=["--config", "-c"], env_var="TIDEWIRE_CONFIG")]

app = App(
    name="tidewire",
    help="WebSocket-first, real-time chat backend for LLM products.",
    help_epilogue="Try it without any set-up: `tidewire demo`",
    version=lambda: f"tidewire {version('tidewire')}",
    help_format="markdown",
)


class Misuse(Exception):
    """Something the user can mend; the text says how."""


def main() -> NoReturn:
    """The entry point of the program `tidewire`; ends the process with the command's exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    try:
        with _known_failures():
            code = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except Misuse as error:
        for line in str(error).splitlines():
            print(f"tidewire: {line}", file=sys.stderr)
        return MISUSE
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


@contextmanager
def _known_failures() -> Iterator[None]:
    """Turn what can be expected to go wrong into `Misuse`."""
    try:
        yield
    except CycloptsError as error:
        raise Misuse(f"{' '.join(str(error).split())} See tidewire --help.") from None
    except Exception as error:
        if not isinstance(error, _failures()):
            raise
        raise Misuse(str(error)) from None


def _failures() -> tuple[type[Exception], ...]:
    """The failures whose text is meant for the user. Only of modules that are loaded: others cannot have raised."""
    names = (
        ("server.config.schema", "ConfigError"),
        ("server.ledger.errors", "LedgerUnavailable"),
        ("server.ledger.report", "BadQuery"),
        ("server.process", "CannotStart"),
        ("server.prompts.registry", "BadRegistry"),
        ("server.prompts.commands", "PromptsMisuse"),
        ("server.store.embedded", "EmbeddedRedisError"),
        ("server.store.link", "StoreError"),
        ("server.upstreams.child", "ChildError"),
        ("server.upstreams.embedded", "EmbeddedModelMissing"),
        ("server.usage", "NothingThere"),
        ("server.usage_plot", "CannotPlot"),
    )
    return (Misuse, *(getattr(sys.modules[module], name) for module, name in names if module in sys.modules))


@app.command
def serve(
    *,
    config: Config = None,
    host: str | None = None,
    port: Annotated[int | None, Parameter(name=["--port", "-p"])] = None,
) -> int:
    """Serve until SIGTERM or SIGINT.

    Example: `tidewire serve --config tidewire.toml --port 8080`

    Parameters
    ----------
    config
        The configuration, a TOML file; see docs/configuration.md. Every value can also come from the environment.
    host
        Address to listen on, instead of the file's.
    port
        Port to listen on, instead of the file's; 0 takes a free one.
    """
    from server.config import load

    return _serve(load(config, os.environ, _overrides(host, port)))


@app.command
def demo(
    *,
    port: Annotated[int | None, Parameter(name=["--port", "-p"])] = None,
    lan: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Try it: two nodes, an embedded Redis, an embedded small model and a web page; no account, no key, no network.

    Listens on this machine only and lets anybody on it in. Example: `tidewire demo --port 9000`

    Parameters
    ----------
    port
        Port to listen on; 8080 unless given.
    lan
        Listen on the local network too. Nobody comes in without a link that works once; the first one is printed, the
        page makes more. For a network that you trust: the page comes over plain HTTP.
    """
    _logs()
    from server.demo.run import run as run_demo
    from server.process import serve

    return run_demo(os.environ, _overrides(None, port), serve, lan=lan)


def _overrides(host: str | None, port: int | None) -> dict[str, dict[str, Any]]:
    given = {"host": host, "port": port}
    return {"server": {key: value for key, value in given.items() if value is not None}}


def _serve(settings: Settings) -> int:
    _logs()
    from server.process import serve as serve_settings

    return serve_settings(settings)


def _logs() -> None:
    from server.telemetry.logs import configure

    try:
        configure(os.environ)
    except ValueError as error:
        raise Misuse(str(error)) from None


@app.command
def chat(
    url: str = "http://127.0.0.1:8080",
    *,
    token: Annotated[str | None, Parameter(env_var="TIDEWIRE_TOKEN")] = None,
    model: str = "default",
) -> int:
    """Chat in the terminal with a running server.

    Examples: `tidewire chat` (with the demo), `TIDEWIRE_TOKEN=… tidewire chat https://chat.example.com`

    Parameters
    ----------
    url
        The server's address.
    token
        A JWT or an API key. Better given as TIDEWIRE_TOKEN: a command line can be read by others.
    model
        The route to ask.
    """
    import asyncio

    from server.chat import chat as chat_with

    return asyncio.run(chat_with(url, token=token, model=model))


@app.command
def token(
    *,
    user: str | None = None,
    tenant: str = "default",
    tier: str | None = None,
    expires: timedelta = timedelta(hours=1),
    scope: Annotated[list[str] | None, Parameter(consume_multiple=False, negative=())] = None,
    api_key: Annotated[bool, Parameter(negative=())] = False,
    name: str | None = None,
    secret_env: str | None = None,
    config: Config = None,
) -> None:
    """Make a token for a user (JWT), or with --api-key a new API key.

    Examples:

    - `tidewire token --config tidewire.toml --user ann --tier free --expires 12h`
    - `tidewire token --secret-env MY_SECRET --user ann`
    - `tidewire token --api-key --name batch --tenant acme`

    Parameters
    ----------
    user
        The user's id (`sub`).
    tenant
        The tenant that pays.
    tier
        One of the tiers; without it, the server's default one.
    expires
        How long the token is valid, as 30m, 12h or 7d.
    scope
        What it may do: chat, jobs, usage, tokens, operator. May be repeated. Without it: what a user, or a key,
        usually may.
    api_key
        Make an API key. The key is printed once, with the lines for the configuration, which hold its SHA-256 only.
    name
        The key's name: the user it stands for.
    secret_env
        Environment variable with the secret, where there is no configuration; TIDEWIRE_JWT_SECRET if neither is given.
    config
        Configuration that names the secret.
    """
    from server.access import minting

    if api_key:
        if name is None:
            raise Misuse("an API key needs a --name, as in: tidewire token --api-key --name batch")
        print(minting.api_key_with_config(name, tenant, tier, scope or ()))
        return
    if user is None:
        raise Misuse("a token needs a --user, as in: tidewire token --config tidewire.toml --user ann")
    signer = _signer(config, secret_env, os.environ)
    try:
        print(signer.token(user, tenant, tier, expires.total_seconds(), scope))
    except ValueError as error:
        raise Misuse(str(error)) from None


def _signer(config: Path | None, secret_env: str | None, environ: Mapping[str, str]) -> Any:
    """What signs tokens: the configuration's secret, or that of a variable."""
    from server.access.minting import Signer
    from server.config import load, parse

    sections = ("auth", "tiers")
    if config is not None and secret_env is None:
        return _checked_signer(Signer.from_settings(load(config, environ, sections=sections), environ), str(config))
    variable = secret_env or DEFAULT_SECRET_VARIABLE
    if not environ.get(variable):
        raise Misuse(f"there is no secret: give --config FILE, or put one into {variable}")
    settings = parse(
        {"auth": {"jwt_secret_env": variable}}, {variable: environ[variable], "HOME": "/"}, sections=sections
    )
    return _checked_signer(Signer.from_settings(settings, environ, any_tier=True), variable)


def _checked_signer(signer: Any, source: str) -> Any:
    if signer is None:
        raise Misuse(f"{source}: auth has no jwt_secret_env; tokens are made by your identity provider, or by nobody")
    return signer


app.command("server.prompts.commands:app", name="prompts", help="Check, release and roll out versioned prompts.")


@app.command
def doctor(*, config: Config = None, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Check the configuration and everything it points to, and say what to mend. Exit code 1 if something fails.

    Without a configuration: whether `tidewire demo` can run here. Example: `tidewire doctor --config tidewire.toml`

    Parameters
    ----------
    config
        The configuration to check.
    json
        Print the findings as JSON.
    """
    from server.doctor import run as examine
    from server.telemetry.logs import configure

    configure({"TIDEWIRE_LOG_LEVEL": "error"})
    return examine(config, os.environ, as_json=json)


@app.command
def conformance(
    url: str | None = None,
    *,
    client: str | None = None,
    faults: Annotated[bool, Parameter(negative=())] = False,
    token: Annotated[str | None, Parameter(env_var="TIDEWIRE_TOKEN")] = None,
    model: str | None = None,
    codec: Literal["json", "msgpack", "both"] = "both",
    prompt: str | None = None,
    long_prompt: str | None = None,
    seconds: float = 30.0,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Check whether a server, or a client in any language, follows the protocol. Exit code 1 if something fails.

    Examples:

    - `tidewire conformance http://127.0.0.1:8080` checks a server; it is asked some thirty short questions per codec
    - `tidewire conformance --client "node my_client.mjs"` plays protocol/vectors to a client; see docs/clients.md
    - `tidewire conformance --client "node my_client.mjs" --faults` puts it before a server that breaks in mid-answer

    Parameters
    ----------
    url
        The server's address.
    client
        The command that starts the client under test.
    faults
        Put the client before a server that delays, splits, doubles, falls silent and closes, instead of the vectors.
    token
        A JWT or an API key for the server. Better given as TIDEWIRE_TOKEN: a command line can be read by others.
    model
        The route to ask; the server's default one unless given.
    codec
        Check with json, msgpack or both.
    prompt
        A question whose answer comes in a dozen deltas or more.
    long_prompt
        A question whose answer takes some seconds, so that it can be stopped.
    seconds
        How long one answer of the server may take.
    only
        The checks, vectors or faults to make; all unless given.
    json
        Print the report as JSON.
    """
    import asyncio

    from server.conformance import clients
    from server.conformance import faults as misbehaving
    from server.conformance import run as servers
    from server.conformance.checks import LONG_PROMPT, SHORT_PROMPT, Probe

    if (url is None) == (client is None):
        raise Misuse("give either the URL of a server or the --client to check; see tidewire conformance --help")
    if faults and client is None:
        raise Misuse("--faults are for clients: give the --client to check")
    codecs = servers.CODECS[codec]
    try:
        if client is not None:
            check = misbehaving.check_faults if faults else clients.check_client
            report = asyncio.run(check(client, codecs, only or ()))
        else:
            from server.chat import full_url

            questions = {"prompt": prompt or SHORT_PROMPT, "long_prompt": long_prompt or LONG_PROMPT}
            probe = Probe(full_url(url or ""), codecs[0], token, model, seconds=seconds, **questions)
            report = asyncio.run(servers.check_server(probe, codecs, only or ()))
    except (servers.Unreachable, clients.NoClient, ValueError) as error:
        raise Misuse(str(error)) from None
    print(report.as_json() if json else report.as_table())
    return report.exit_code


@app.command
def usage(
    *,
    config: Config = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    end: Annotated[str | None, Parameter(name="--to")] = None,
    group_by: Annotated[str, Parameter(name=["--group-by", "--by"])] = "tenant,model",
    tenant: str | None = None,
    user: str | None = None,
    output: Annotated[Literal["table", "csv", "json"], Parameter(name=["--format", "-f"])] = "table",
    plot: Path | None = None,
) -> None:
    """Tell what was spent, by whom and for what, from the ledger's database.

    Examples:

    - `tidewire usage --config tidewire.toml`
    - `tidewire usage -c tidewire.toml --from 2026-11-01 --group-by day,feature --plot november.svg`
    - `tidewire usage -c tidewire.toml --group-by tenant,payer --format csv > november.csv`

    Parameters
    ----------
    config
        The configuration that names the ledger.
    start
        Since when: a date or a time (UTC unless it says otherwise). The beginning of this month unless given.
    end
        Until when, itself not included; now unless given.
    group_by
        Dimensions, joined by commas: tenant, user, tier, feature, model, route, target, provider, prompt, door,
        session, job, conversation, day, hour, payer, outcome, source, price_version, or tags.NAME for any other pair
        of metadata.
    tenant
        Only this tenant's.
    user
        Only this user's.
    output
        How to print it.
    plot
        Also draw it into this file, .png, .svg or .pdf; needs the extra `plot`.
    """
    from server.usage import run as report

    report(
        config, os.environ, start=start, end=end, group_by=group_by, tenant=tenant, user=user, form=output, plot=plot
    )


if __name__ == "__main__":
    main()
