"""One frozen model per section of the configuration; every key says what it means, with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
EMBEDDED_MODEL: Final = "smollm2-135m-instruct"
"""The name under which `server.upstreams.embedded` serves it."""
DEFAULT_TIER: Final = "default"
DAY: Final = 86_400

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * DAY)]
Rate = Annotated[float, Field(ge=0, le=1)]
Usd = Annotated[Decimal, Field(ge=0)]
TokenRate = Annotated[int, Field(gt=0, le=10**12)]
"""Above it the scripts' arithmetic would not be exact."""
MonthlyUsd = Annotated[Decimal, Field(ge=0, le=9_000_000)]
"""In nano-dollars, what a double holds exactly."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """What all sections share: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class ServerSettings(Section):
    """`[server]`: the process and its sockets."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """TCP port to listen on; 0 takes a free one."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Serving processes that share the port."""
    allowed_origins: tuple[str, ...] = ()
    """Web origins whose pages may connect, as `https://chat.example.com`. Empty: only the server's own origin, and
    clients that send no `Origin` (they are no browsers). `*`: any."""
    max_frame_bytes: Annotated[int, Field(ge=4096, le=64 * 1024 * 1024)] = 1_048_576
    """Largest WebSocket message in either direction, and largest HTTP body, in bytes."""
    drain_seconds: Seconds = 30.0
    """On SIGTERM: how long running messages may go on before they are handed over."""
    hello_seconds: Seconds = 10.0
    """How long a new socket may take to send `hello`."""
    heartbeat_seconds: Seconds = 20.0
    """Interval of the server's pings; a peer that misses two is dropped."""
    max_open_messages: Positive = 1_000
    """Messages one socket may follow at once."""
    max_connections_per_user: Positive = 10_000
    """Open sockets of one user, per process."""
    max_connections_per_address: Positive = 10_000
    """Open sockets of one client address, per process. Loopback addresses are exempt."""
    handshakes_per_minute: Positive = 6_000
    """New sockets of one client address, per process and minute. Loopback addresses are exempt."""
    handshakes_per_minute_per_user: Positive = 6_000
    """New sockets of one user, per process and minute: counted at `hello`, by which the user is known."""
    frames_per_second: Positive = 1_000
    """Frames one socket may send per second, on average; five seconds' worth may come at once."""
    frames_per_second_per_user: Positive = 5_000
    """The same for all sockets of one user together, per process."""
    frames_per_second_per_address: Positive = 10_000
    """The same for all sockets of one client address together, per process. Loopback addresses are exempt."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (CIDR) whose `X-Forwarded-For` is believed. Empty: the peer's address counts."""


class RedisSettings(Section):
    """`[redis]`: the one shared store."""

    url: str = Field(default="embedded", repr=False)
    """`embedded`, or `redis://`, `rediss://`, `redis+cluster://`, `redis+sentinel://`. A URL with a password is
    given by `url_env` or `url_file`, or by `TIDEWIRE_REDIS_URL`."""
    url_env: VariableName | None = None
    """Environment variable that holds the URL."""
    url_file: Path | None = None
    """File that holds the URL."""
    data_dir: Path
    """Folder of the embedded server's data."""
    stall_ms: Annotated[int, Field(ge=20, le=4000)] = 100
    """Silence, in milliseconds, after which new messages are refused (`store_unavailable`) instead of kept waiting.
    Raise it where Redis shares a machine that is short of CPU: it takes that machine's pauses for an outage."""


class ApiKey(Section):
    """One entry of `auth.api_keys`; made by `tidewire token --api-key`."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """The user this key stands for; unique."""
    tenant: Annotated[str, Field(min_length=1, max_length=128)] = "default"
    """The tenant that pays."""
    tier: str | None = None
    """A name under `[tiers]`; without one, the default tier."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(repr=False)
    """SHA-256 of the key, 64 lower-case hexadecimal digits."""
    scopes: tuple[Literal["chat", "jobs", "usage", "tokens", "users", "operator"], ...] = (
        "chat",
        "jobs",
        "usage",
        "tokens",
        "users",
    )
    """What the key may do: `chat`, `jobs`, `usage` (of the whole tenant), `tokens` (mint tokens for users), `users`
    (export and delete the data of users), `operator` (see all tenants' figures; only if named here)."""


class ClaimNames(Section):
    """`[auth.claims]`: the names under which your tokens carry what Tidewire needs."""

    user: str = "sub"
    """Claim with the user's id. The token has to have it."""
    tenant: str = "tenant"
    """Claim with the tenant."""
    tier: str = "tier"
    """Claim with the tier."""
    scope: str = "scope"
    """Claim with the scopes, separated by spaces (RFC 8693) or as a list."""


class AuthSettings(Section):
    """`[auth]`: who may come in. Several ways may be open at once."""

    api_keys: tuple[ApiKey, ...] = ()
    """Keys for servers and scripts, known by their SHA-256 only."""
    jwt_secret_env: VariableName | None = None
    """Environment variable with the secret of HS256 tokens, at least 32 bytes."""
    jwt_secret_file: Path | None = None
    """File with that secret; surrounding white space is ignored."""
    jwks_url: str | None = None
    """Where the public keys of your identity provider are, instead of a secret."""
    issuer: str | None = None
    """If set, a token's `iss` must be this."""
    audience: str = "tidewire"
    """A token's `aud` must be, or contain, this."""
    algorithms: tuple[str, ...] = ()
    """Accepted signatures. Empty: HS256 with a secret; RS256, ES256 and EdDSA with `jwks_url`."""
    claims: ClaimNames = ClaimNames()
    """Names of the claims."""
    default_tenant: Annotated[str, Field(min_length=1)] = "default"
    """Tenant of a token without that claim."""
    default_tier: str | None = None
    """Tier of whoever names none. Without it: `default` if there is such a tier, else the first one."""
    leeway_seconds: Annotated[float, Field(ge=0, le=300)] = 30.0
    """How far the clocks of token maker and server may differ."""
    anonymous: bool = False
    """Whether `hello` needs no token. All anonymous clients are one user (`demo`); loopback hosts only."""

    @property
    def uses_secret(self) -> bool:
        """Whether tokens are checked against a shared secret."""
        return self.jwt_secret_env is not None or self.jwt_secret_file is not None

    @property
    def accepted_algorithms(self) -> tuple[str, ...]:
        """`algorithms`, or the default of the kind of key."""
        return self.algorithms or (("HS256",) if self.uses_secret else ("RS256", "ES256", "EdDSA"))


class RouteLimitSettings(Section):
    """`[tiers.NAME.routes.ROUTE]` and `[tenants.NAME.routes.ROUTE]`: limits of their own for messages of one route."""

    tokens_per_minute: TokenRate | None = None
    """Input and output tokens per minute, in a bucket of their own instead of the general one."""
    requests_per_minute: TokenRate | None = None
    """Messages per minute, in a bucket of their own instead of the general one."""
    concurrent_messages: Positive | None = None
    """Messages that may run at once, beside those that the general limit allows."""
    max_output_tokens: Positive | None = None
    """Most output tokens of one message, instead of the general number."""
    monthly_usd: MonthlyUsd | None = None
    """Spending limit for this route per calendar month (UTC), in US dollars; within the general one."""


class TierSettings(Section):
    """`[tiers.NAME]`: limits of each user of this tier."""

    tokens_per_minute: TokenRate = 100_000_000
    """Input and output tokens per minute; the bucket holds one minute's worth."""
    requests_per_minute: TokenRate = 100_000
    """Messages per minute."""
    concurrent_messages: Positive = 1_000
    """Messages that may run at once."""
    max_output_tokens: Positive = 16_384
    """Most output tokens of one message; also what is reserved if the request names no limit."""
    monthly_usd: MonthlyUsd | None = None
    """Spending limit per calendar month (UTC), in US dollars. Absent: none."""
    conversations: Positive = 10_000
    """Conversations of one user."""
    conversation_entries: Positive = 100_000
    """Entries (questions, answers, tool results) of one conversation."""
    conversation_bytes: Positive = 268_435_456
    """Bytes of one conversation, images and files included."""
    on_redis_outage: Literal["refuse", "local"] = "refuse"
    """When the quota store is down: refuse new messages, or admit by a local estimate and settle later."""
    routes: dict[str, RouteLimitSettings] = {}
    """Limits of their own for some routes."""


class TenantSettings(Section):
    """`[tenants.NAME]`: limits of a tenant's users together; what is absent is not limited."""

    tokens_per_minute: TokenRate | None = None
    """Input and output tokens per minute."""
    requests_per_minute: TokenRate | None = None
    """Messages per minute."""
    concurrent_messages: Positive | None = None
    """Messages that may run at once."""
    max_output_tokens: Positive | None = None
    """Most output tokens of one message."""
    monthly_usd: MonthlyUsd | None = None
    """Spending limit per calendar month (UTC), in US dollars."""
    on_redis_outage: Literal["refuse", "local"] | None = None
    """Overrides the tier's setting."""
    routes: dict[str, RouteLimitSettings] = {}
    """Limits of their own for some routes, of all users together."""
    webhook_secret_env: VariableName | None = None
    """Environment variable with the secret that signs this tenant's webhooks, instead of that of `[jobs]`."""
    webhook_secret_file: Path | None = None
    """File with that secret."""


class TargetSettings(Section):
    """`[targets.NAME]`: one upstream endpoint, model and credential."""

    driver: Literal["openai", "litellm", "embedded"]
    """`openai`: any OpenAI-compatible endpoint, directly. `litellm`: 100+ other providers. `embedded`: the small
    local model."""
    base_url: str | None = None
    """Root of the API, up to and with `/v1`. `openai` without one means OpenAI itself."""
    model: str | None = None
    """The model's name at the provider. Needed unless `embedded`."""
    api_key_env: VariableName | None = None
    """Environment variable with the provider's key."""
    api_key_file: Path | None = None
    """File with the provider's key; surrounding white space is ignored."""
    connect_seconds: Seconds = 5.0
    """Time-out for the connection."""
    first_token_seconds: Seconds = 30.0
    """Time-out from dispatch to the first output."""
    idle_seconds: Seconds = 30.0
    """Longest silence between two outputs."""
    total_seconds: Seconds = 600.0
    """Longest time for one attempt."""
    context_tokens: Positive | None = None
    """Size of the model's context. Known: a request that cannot fit is refused before the call."""
    prefill: bool = False
    """Whether the model continues a trailing assistant message (needed for `on_midstream_failure = "continue"`)."""
    price_per_million_input: Usd | None = None
    """US dollars per million input tokens. Absent: the price list shipped with litellm."""
    price_per_million_output: Usd | None = None
    """US dollars per million output tokens."""
    identity: tuple[Literal["user", "safety_identifier", "metadata"], ...] | None = None
    """Fields by which the provider is told who a call is for: a pseudonym of the user, and the request's `metadata`.
    Absent: what the provider is known to take; see docs/ledger.md."""
    price_per_million_cached_input: Usd | None = None
    """US dollars per million input tokens that the provider had cached. Absent: like other input."""

    @property
    def model_name(self) -> str:
        """`model`, or the embedded one's."""
        return self.model or EMBEDDED_MODEL

    @property
    def endpoint(self) -> str | None:
        """`base_url`, or OpenAI's for that driver."""
        return self.base_url or (OPENAI_BASE_URL if self.driver == "openai" else None)


class RouteSettings(Section):
    """`[routes.NAME]`: a name clients ask for as `model`, and the targets behind it. `default` serves requests
    without a model; if there is no such route, they get `model_not_found`."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names under `[targets]`, in order of preference."""
    on_midstream_failure: Literal["restart", "continue", "fail"] = "restart"
    """When a target fails after its first token: begin anew at the next, let the next continue the text (targets
    with `prefill`), or fail."""
    hedge_after_ms: Positive | None = None
    """Ask the next target too, if the first is silent for this many milliseconds. Absent: never."""
    hedge_at_p95: bool = False
    """Ask the next target too, if the first is silent for longer than 95 % of its recent answers took to begin; until
    enough of them were seen, after `hedge_after_ms`, if given."""
    hedge_budget: Rate = 0.05
    """Largest share of requests that may be hedged."""
    max_output_tokens: Positive | None = None
    """Output tokens reserved and allowed if the request names no number; never more than the tier's."""
    prompt: str | None = None
    """Prompt that every message of this route gets, as `name` or `name@range`. Clients may give its variables and a
    narrower range, and no other prompt."""


class BreakerSettings(Section):
    """`[breaker]`: when a target is left alone for a while."""

    window_seconds: Seconds = 30.0
    """How far back calls count."""
    minimum_calls: Positive = 20
    """Fewer calls than this in the window never open the breaker."""
    failure_rate: Rate = 0.5
    """Share of failed calls that opens it; so do `minimum_calls` failures in a row."""
    slow_rate: Rate = 0.8
    """Share of slow calls that opens it."""
    slow_first_token_seconds: Seconds = 10.0
    """A call is slow if its first token takes longer."""
    slow_gap_seconds: Seconds = 10.0
    """A call is slow if it pauses longer between tokens."""
    open_seconds: Seconds = 10.0
    """First pause; doubles with each failed probe."""
    open_seconds_max: Seconds = 300.0
    """Longest pause."""
    probes: Positive = 1
    """Trial calls at once after a pause, of all nodes together."""
    ramp_seconds: Seconds = 10.0
    """How long after a successful trial call the share of calls grows from 10 % to all."""


class MessagesSettings(Section):
    """`[messages]`: how long things are kept, and how much."""

    retention_seconds: Seconds = 3_600.0
    """How long a finished message's events can be replayed."""
    claim_seconds: Seconds = float(DAY)
    """How long an id stays used up and its outcome is kept; at least `retention_seconds`."""
    conversation_seconds: Seconds = float(30 * DAY)
    """How long a conversation is kept after its last message."""
    takeover_seconds: Annotated[float, Field(ge=0.5, le=60)] = 3.0
    """How long a node's heartbeat may stand still before others take its messages over."""
    max_bytes: Annotated[int, Field(ge=64 * 1024)] = 67_108_864
    """Largest text of one message, in bytes."""
    tail_bytes: Annotated[int, Field(ge=1024, le=16_777_216)] = 262_144
    """How much of the newest output of each followed message a node keeps in memory, in bytes; older output is read
    from Redis."""


class JobsSettings(Section):
    """`[jobs]`: batches, run beside the messages of people who wait and behind them."""

    concurrency: Annotated[int, Field(ge=0, le=10_000)] = 8
    """Items of jobs one process runs at once while nobody else is served by it; half as many otherwise. 0: none, for
    processes that only serve people."""
    quota_reserve: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each of a user's and tenant's limits (but of money) that jobs leave to everything else."""
    max_items: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Items of one job."""
    max_bytes: Annotated[int, Field(ge=4096, le=4 * 1024**3)] = 104_857_600
    """Largest upload, in bytes. An item of it is at most `server.max_frame_bytes`."""
    max_per_user: Positive = 10_000
    """Jobs of one user that are kept at once."""
    run_seconds: Seconds = float(7 * DAY)
    """Longest life of a job: what was not begun by then fails with `job_expired`."""
    retention_seconds: Seconds = float(7 * DAY)
    """How long a job and its results are kept after its end."""
    webhook_secret_env: VariableName | None = None
    """Environment variable with the secret that signs webhooks: `whsec_` and base64 of 24 to 64 bytes; two, apart by a
    space, while one replaces the other. Without one there are no webhooks."""
    webhook_secret_file: Path | None = None
    """File with that secret."""
    webhook_private: bool = False
    """Whether webhooks may go to private addresses and by http. Else https and public addresses only."""
    webhook_retry_seconds: Annotated[tuple[Seconds, ...], Field(max_length=100)] = (
        5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400,
    )  # fmt: skip
    """Pauses between deliveries of a webhook that fails (as the Standard Webhooks suggest); after the last it is given
    up."""


class LedgerSettings(Section):
    """`[ledger]`: where usage records go."""

    url: str = Field(repr=False)
    """`sqlite:///…` (three slashes and a path) or `postgresql://…`. A URL with a password is given by `url_env` or
    `url_file`, or by `TIDEWIRE_LEDGER_URL`."""
    url_env: VariableName | None = None
    """Environment variable that holds the URL."""
    url_file: Path | None = None
    """File that holds the URL."""

    user_hash_key_env: VariableName | None = None
    """Environment variable with the key of the pseudonyms that providers get instead of users' ids. Without a key: a
    random one, kept in Redis."""
    user_hash_key_file: Path | None = None
    """File with that key; surrounding white space is ignored."""


class PromptsSettings(Section):
    """`[prompts]`: versioned prompts."""

    dir: Path | None = None
    """Folder with prompt files, see docs/prompts.md. Absent: none are offered."""


class Settings(Section):
    """The whole configuration. Made by `load`, `parse` or `demo`, never by hand: those check what hangs together."""

    server: ServerSettings = ServerSettings()
    """`[server]`"""
    redis: RedisSettings
    """`[redis]`"""
    auth: AuthSettings = AuthSettings()
    """`[auth]`"""
    tiers: dict[str, TierSettings] = {}
    """`[tiers.NAME]`"""
    tenants: dict[str, TenantSettings] = {}
    """`[tenants.NAME]`"""
    targets: dict[str, TargetSettings] = {}
    """`[targets.NAME]`"""
    routes: dict[str, RouteSettings] = {}
    """`[routes.NAME]`"""
    breaker: BreakerSettings = BreakerSettings()
    """`[breaker]`"""
    messages: MessagesSettings = MessagesSettings()
    """`[messages]`"""
    jobs: JobsSettings = JobsSettings()
    """`[jobs]`"""
    ledger: LedgerSettings
    """`[ledger]`"""
    prompts: PromptsSettings = PromptsSettings()
    """`[prompts]`"""

    @property
    def default_tier(self) -> str:
        """The tier of whoever names none."""
        if self.auth.default_tier is not None:
            return self.auth.default_tier
        return DEFAULT_TIER if DEFAULT_TIER in self.tiers else next(iter(self.tiers))


Overrides = Mapping[str, Mapping[str, Any]]
"""Section → key → value; beats file and environment."""
