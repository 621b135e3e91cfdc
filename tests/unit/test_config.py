"""Settings: what is accepted, what is refused and with which words."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

import server.config
from server.access.credentials import jwt_secret, target_specs
from server.config import ConfigError, Settings, data_home, demo_settings, is_loopback, load, parse
from server.config.environment import value_of, variables
from server.config.schema import FIXED_SECTIONS, NAMED_SECTIONS, annotation_at, dotted, keys_at
from server.config.sections import Section

HOME = {"HOME": "/home/ann"}
MINIMAL: dict[str, Any] = {
    "targets": {"a": {"driver": "embedded"}},
    "routes": {"default": {"targets": ["a"]}},
}
SHA = "ab" * 32


def settings(data: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **more: Any) -> Settings:
    """`MINIMAL`, with sections replaced by those of `data`."""
    return parse({**MINIMAL, **(data or {})}, {**HOME, **(environ or {})}, **more)


def problems(data: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **more: Any) -> dict[str, str]:
    """What is wrong: path → message."""
    with pytest.raises(ConfigError) as caught:
        settings(data, environ, **more)
    return {problem.path: problem.message for problem in caught.value.problems}


def outcome(data: dict[str, Any], environ: dict[str, str]) -> set[str]:
    """The paths of what is wrong; empty if nothing is. Anything but a `ConfigError` is a defect."""
    try:
        parse(data, environ)
    except ConfigError as error:
        return {problem.path for problem in error.problems}
    return set()


# -- what comes out ------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    result = settings()
    assert (result.server.host, result.server.port, result.server.workers) == ("127.0.0.1", 8080, 1)
    assert result.redis.url == "embedded"
    assert result.redis.data_dir == Path("/home/ann/.local/share/tidewire/redis")
    assert result.ledger.url == "sqlite:////home/ann/.local/share/tidewire/ledger.db"
    assert result.messages.claim_seconds == 86_400
    assert list(result.tiers) == ["default"]
    assert result.default_tier == "default"
    assert not result.auth.anonymous


def test_the_documented_file_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "tidewire.toml"
    file.write_text(
        """
        [server]
        allowed_origins = ["https://chat.example.com"]
        [redis]
        data_dir = "data"
        [auth]
        jwt_secret_env = "MY_SECRET"
        [[auth.api_keys]]
        name = "batch"
        tenant = "acme"
        tier = "free"
        sha256 = "SHA"
        scopes = ["jobs"]
        [tiers.free]
        tokens_per_minute = 1000
        monthly_usd = 9.99
        on_redis_outage = "local"
        [tenants.acme]
        monthly_usd = 100
        [targets."gpt-4.1"]
        driver = "openai"
        model = "gpt-4.1"
        api_key_file = "key.txt"
        first_token_seconds = 5
        [routes.default]
        targets = ["gpt-4.1"]
        [prompts]
        dir = "prompts"
        [ledger]
        url = "sqlite:///usage.db"
        """.replace("SHA", SHA)
    )
    (tmp_path / "key.txt").write_text("sk-1\n")
    environ = {**HOME, "MY_SECRET": "s" * 32}
    result = load(file, environ)
    assert result.tiers["free"].monthly_usd == Decimal("9.99")
    assert result.tenants["acme"].tokens_per_minute is None
    assert result.redis.data_dir == tmp_path / "data"
    assert result.prompts.dir == tmp_path / "prompts"
    assert result.ledger.url == f"sqlite:///{tmp_path}/usage.db"
    assert result.default_tier == "free"
    assert jwt_secret(result.auth, environ) == b"s" * 32
    spec = target_specs(result, environ)["gpt-4.1"]
    assert (spec.api_key, spec.first_token_seconds, spec.connect_seconds) == ("sk-1", 5.0, 5.0)
    assert spec.base_url == "https://api.openai.com/v1"


def test_demo() -> None:
    demo = demo_settings(HOME)
    assert demo.auth.anonymous
    assert is_loopback(demo.server.host)
    assert demo.targets[demo.routes["default"].targets[0]].driver == "embedded"
    other = demo_settings(HOME, {"server": {"port": 9000}})
    assert other.server.port == 9000
    assert other.redis.data_dir != demo.redis.data_dir
    with pytest.raises(ConfigError, match="loopback"):
        demo_settings({**HOME, "TIDEWIRE_SERVER_HOST": "0.0.0.0"})


def test_data_home_follows_xdg() -> None:
    assert data_home({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/tidewire")
    assert data_home({"HOME": "/h", "XDG_DATA_HOME": "relative"}) == Path("/h/.local/share/tidewire")


def test_settings_survive_serialisation() -> None:
    """Worker processes get them as JSON."""
    before = settings({"tiers": {"free": {"monthly_usd": "0.1"}}})
    assert Settings.model_validate_json(before.model_dump_json()) == before


def test_default_tier_is_default_then_the_first() -> None:
    assert settings({"tiers": {"gold": {}, "default": {}}}).default_tier == "default"
    assert settings({"tiers": {"gold": {}, "free": {}}}).default_tier == "gold"
    assert settings({"tiers": {"gold": {}, "free": {}}, "auth": {"default_tier": "free"}}).default_tier == "free"


# -- the environment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TIDEWIRE_SERVER_PORT", "TIDEWIRE_SERVER__PORT"])
def test_environment_beats_file_and_options_beat_both(name: str) -> None:
    assert settings({"server": {"port": 1}}, {name: "2"}).server.port == 2
    assert settings({"server": {"port": 1}}, {name: "2"}, overrides={"server": {"port": 3}}).server.port == 3
    assert settings({"server": {"port": 1}}, {name: ""}).server.port == 1


def test_environment_reaches_every_kind_of_value() -> None:
    environ = {
        "TIDEWIRE_SERVER_ALLOWED_ORIGINS": '["https://a.com", "https://b.com"]',
        "TIDEWIRE_SERVER_TRUSTED_PROXIES": "10.0.0.1, 10.1.0.0/16",
        "TIDEWIRE_AUTH_ANONYMOUS": "True",
        "TIDEWIRE_AUTH_CLAIMS__USER": "uid",
        "TIDEWIRE_AUTH_API_KEYS": f'[{{name = "k", sha256 = "{SHA}"}}]',
        "TIDEWIRE_TARGETS__NEW__DRIVER": "openai",
        "TIDEWIRE_TARGETS__NEW__MODEL": "4711",
        "TIDEWIRE_TARGETS__NEW__BASE_URL": "http://127.0.0.1:9/v1",
        "TIDEWIRE_TARGETS__NEW__IDLE_SECONDS": "1.5",
        "TIDEWIRE_ROUTES__MY_ROUTE__TARGETS": "a,new",
        "TIDEWIRE_TIERS__FREE__MONTHLY_USD": "0.30",
        "TIDEWIRE_TIERS__FREE__ROUTES__MY_ROUTE__TOKENS_PER_MINUTE": "70",
        "TIDEWIRE_PROMPTS_DIR": "/p",
        "TIDEWIRE_LOG_LEVEL": "debug",
    }
    result = settings({"routes": {"my-route": {"targets": ["a"]}}}, environ)
    assert result.server.allowed_origins == ("https://a.com", "https://b.com")
    assert result.server.trusted_proxies == ("10.0.0.1", "10.1.0.0/16")
    assert result.auth.anonymous
    assert result.auth.claims.user == "uid"
    assert result.auth.api_keys[0].name == "k"
    assert result.targets["new"].model == "4711"
    assert result.targets["new"].idle_seconds == 1.5
    assert result.routes["my-route"].targets == ("a", "new")
    assert result.tiers["free"].monthly_usd == Decimal("0.3")
    assert result.tiers["free"].routes["my-route"].tokens_per_minute == 70
    assert result.prompts.dir == Path("/p")


def test_unknown_variables_are_errors_that_name_the_nearest() -> None:
    found = problems(
        None, {"TIDEWIRE_SERVER_PROT": "1", "TIDEWIRE_TARGETS__A__MODLE": "x", "TIDEWIRE_TARGETS_A_MODEL": "x"}
    )
    assert "`TIDEWIRE_SERVER_PORT`" in found["TIDEWIRE_SERVER_PROT"]
    assert "`TIDEWIRE_TARGETS__A__MODEL`" in found["TIDEWIRE_TARGETS__A__MODLE"]
    assert "`TIDEWIRE_TARGETS__A__MODEL`" in found["TIDEWIRE_TARGETS_A_MODEL"]


def test_variables_of_a_kubernetes_service_are_ignored() -> None:
    environ = {
        "TIDEWIRE_PORT": "tcp://10.0.0.1:80",
        "TIDEWIRE_SERVICE_HOST": "10.0.0.1",
        "TIDEWIRE_SERVICE_PORT_HTTP": "80",
        "TIDEWIRE_PORT_80_TCP_ADDR": "10.0.0.1",
        "TIDEWIRE_SERVER_PORT": "tcp://10.0.0.2:80",
    }
    assert settings(None, environ).server.port == 8080


def test_a_bad_value_names_its_variable() -> None:
    found = problems(None, {"TIDEWIRE_SERVER_PORT": "eighty"})
    assert "integer" in found["server.port"]
    assert "TIDEWIRE_SERVER_PORT" in found["server.port"]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_text_setting_takes_any_text(text: str) -> None:
    value = value_of(text, annotation_at(("targets", "a", "model")))
    try:
        expected = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        expected = None
    assert value == (expected if isinstance(expected, str) else text)


@given(st.integers(1, 65_535))
def test_numbers_round_trip_through_the_environment(port: int) -> None:
    assert settings(None, {"TIDEWIRE_SERVER_PORT": str(port)}).server.port == port


def test_every_variable_listed_is_understood() -> None:
    for name in variables(MINIMAL):
        if name.endswith(("_API_KEYS", "_CLAIMS")) or name in ("TIDEWIRE_CONFIG", "TIDEWIRE_TOKEN"):
            continue
        assert name not in outcome({**MINIMAL}, {**HOME, name: "x"}), name


# -- secrets -------------------------------------------------------------------------------------------------------


def test_inline_secrets_are_refused_with_the_way_out_and_never_quoted() -> None:
    data = {
        "auth": {"jwt_secret": "hunter2" * 5, "api_keys": [{"name": "k", "key": "hunter2", "sha256": SHA}]},
        "targets": {"a": {"driver": "openai", "model": "m", "api_key": "hunter2"}},
        "redis": {"url": "redis://:hunter2@db:6379"},
        "ledger": {"url": "postgresql://tide:hunter2@db/ledger"},
    }
    found = problems(data)
    assert "jwt_secret_env" in found["auth.jwt_secret"]
    assert "A_API_KEY" in found["targets.a.api_key"]
    assert "tidewire token --api-key" in found["auth.api_keys[0].key"]
    assert "TIDEWIRE_REDIS_URL" in found["redis.url"]
    assert "TIDEWIRE_LEDGER_URL" in found["ledger.url"]
    assert "hunter2" not in str(found)
    assert len(found) == 5


def test_a_secret_in_a_reference_is_recognised_and_not_quoted() -> None:
    found = problems({"targets": {"a": {"driver": "openai", "model": "m", "api_key_env": "sk-hunter2"}}})
    assert found == {"targets.a.api_key_env": "should be the name of an environment variable, not the key itself"}


def test_every_name_of_a_variable_says_what_it_should_be() -> None:
    assert problems({"jobs": {"webhook_secret_env": ""}}) == {
        "jobs.webhook_secret_env": "should be the name of an environment variable"
    }


def test_a_secret_may_be_a_variable_of_its_own() -> None:
    environ = {**HOME, "TIDEWIRE_TARGETS__A__API_KEY": "sk-1", "TIDEWIRE_AUTH_JWT_SECRET": "s" * 32}
    result = settings(None, environ)
    assert target_specs(result, environ)["a"].api_key == "sk-1"
    assert jwt_secret(result.auth, environ) == b"s" * 32
    assert "sk-1" not in repr(result)
    assert "sk-1" not in repr(target_specs(result, environ))


def test_a_variable_that_the_file_names_is_no_setting() -> None:
    result = settings({"auth": {"jwt_secret_env": "TIDEWIRE_OWN"}}, {"TIDEWIRE_OWN": "s" * 32})
    assert result.auth.uses_secret


def test_urls_by_reference(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://tide:pw@db/ledger\n")
    data = {"redis": {"url_env": "REDIS_URL"}, "ledger": {"url_file": "url"}}
    result = settings(data, {"REDIS_URL": "rediss://:pw@db"}, base=tmp_path)
    assert result.redis.url == "rediss://:pw@db"
    assert result.ledger.url == "postgresql://tide:pw@db/ledger"
    assert "pw@" not in repr(result)
    assert settings(data, {"TIDEWIRE_REDIS_URL": "redis://x", "REDIS_URL": "y"}, base=tmp_path).redis.url == "redis://x"
    assert "not set" in problems(data, base=tmp_path)["redis.url_env"]
    assert "cannot be read" in problems({"ledger": {"url_file": "no"}}, base=tmp_path)["ledger.url_file"]


def test_missing_and_weak_secrets(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    assert "GONE is not set" in problems({"auth": {"jwt_secret_env": "GONE"}})["auth.jwt_secret_env"]
    short = problems({"auth": {"jwt_secret_env": "S"}}, {"S": "s" * 31})["auth.jwt_secret_env"]
    assert "shorter than 32 bytes" in short
    strong = {"jwt_secret_env": "S", "algorithms": ["HS512"]}
    assert "64 bytes" in problems({"auth": strong}, {"S": "s" * 63})["auth.jwt_secret_env"]
    empty = problems({"auth": {"jwt_secret_file": "empty"}}, base=tmp_path)
    assert "empty" in empty["auth.jwt_secret_file"]
    both = {"driver": "openai", "model": "m", "api_key_env": "K", "api_key_file": "f"}
    assert "not both" in problems({"targets": {"a": both}}, {"K": "k"})["targets.a.api_key_file"]


# -- what is wrong -------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_with_path_type_and_hint() -> None:
    data = {
        "server": {"prot": 1, "port": "80", "workers": 1.5, "drain_seconds": -1},
        "serve": {},
        "auth": {"api_keys": [{"name": "k", "sha256": "XY", "tier": "gold"}], "anonymous": "yes"},
        "tiers": {"free": 3},
        "targets": {"a": {"driver": "openaj"}, "b": {"driver": "openai"}, "c": {"driver": "embedded", "modle": "m"}},
        "routes": {"r": {"targets": ["a", "d"]}, "s": {"targets": []}, "t": {}},
        "messages": {"retention_seconds": 100_000},
        "breaker": {"probes": True, "failure_rate": 2},
    }
    found = problems(data)
    expected = {
        "server.prot": "did you mean `port`",
        "server.port": "integer, not a text: write it without quotes",
        "server.workers": "integer, not a number with a fraction",
        "server.drain_seconds": "greater than 0",
        "serve": "did you mean `server`",
        "auth.anonymous": "boolean, not a text",
        "auth.api_keys[0].sha256": "64 lower-case hexadecimal digits",
        "tiers.free": "table, not an integer",
        "targets.a.driver": "'openai', 'litellm' or 'embedded'",
        "targets.b.model": "is needed",
        "targets.c.modle": "did you mean `model`",
        "routes.r.targets[1]": "there is no target `d`",
        "routes.s.targets": "at least 1 item",
        "routes.t.targets": "is needed",
        "messages.claim_seconds": "at least messages.retention_seconds",
        "breaker.probes": "integer, not a boolean",
        "breaker.failure_rate": "less than or equal to 1",
    }
    assert found.keys() == expected.keys()
    for path, words in expected.items():
        assert words in found[path], path


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        ({"routes": {}}, "routes", "tidewire demo"),
        ({"routes": {"r": {"targets": ["aa"]}}}, "routes.r.targets[0]", "did you mean `a`"),
        ({"routes": {"r": {"targets": ["a", "a"]}}}, "routes.r.targets[1]", "twice"),
        ({"routes": {"r": {"targets": ["a"], "hedge_after_ms": 5}}}, "routes.r.hedge_after_ms", "second target"),
        ({"auth": {"anonymous": True}, "server": {"host": "0.0.0.0"}}, "auth.anonymous", "loopback"),
        (
            {"tiers": {"t": {"routes": {"mane": {"tokens_per_minute": 5}}}}, "routes": {"main": {"targets": ["a"]}}},
            "tiers.t.routes.mane",
            "did you mean `main`",
        ),
        ({"tenants": {"t": {"routes": {"default": {}}}}}, "tenants.t.routes.default", "limits nothing"),
        ({"auth": {"default_tier": "gold"}}, "auth.default_tier", "no tier `gold`"),
        ({"auth": {"api_keys": [{"name": "k", "sha256": SHA, "tier": "x"}]}}, "auth.api_keys[0].tier", "no tier `x`"),
        ({"auth": {"api_keys": [{"name": n, "sha256": SHA} for n in "ab"]}}, "auth.api_keys[1].sha256", "twice"),
        ({"auth": {"jwks_url": "ftp://x"}}, "auth.jwks_url", "https://"),
        ({"auth": {"jwks_url": "https://x", "algorithms": ["HS256"]}}, "auth.algorithms[0]", "RS256"),
        ({"auth": {"jwks_url": "https://x", "algorithms": ["none"]}}, "auth.algorithms[0]", "RS256"),
        ({"redis": {"url": "http://x"}}, "redis.url", "redis+cluster://"),
        ({"ledger": {"url": "mysql://x"}}, "ledger.url", "postgresql://"),
        ({"server": {"allowed_origins": ["chat.example.com"]}}, "server.allowed_origins[0]", "https://"),
        ({"server": {"trusted_proxies": ["proxy"]}}, "server.trusted_proxies[0]", "10.0.0.0/8"),
        ({"breaker": {"open_seconds": 10, "open_seconds_max": 5}}, "breaker.open_seconds_max", "at least"),
        ({"targets": {"a": {"driver": "openai", "model": "m", "base_url": "x"}}}, "targets.a.base_url", "http://"),
    ],
)
def test_cross_checks(data: dict[str, Any], path: str, words: str) -> None:
    found = problems(data)
    assert list(found) == [path]
    assert words in found[path]


def test_a_secret_and_public_keys_exclude_each_other() -> None:
    auth = {"jwt_secret_env": "S", "jwks_url": "https://x"}
    assert "not both" in problems({"auth": auth}, {"S": "s" * 32})["auth.jwks_url"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[server\n")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# \xff")
    for file, words in (
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "cannot be read"),
        (broken, "line 1"),
        (latin, "UTF-8"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(file, HOME)
    with pytest.raises(ConfigError, match="no route"):
        load(None, HOME)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_sections = st.sampled_from(sorted(FIXED_SECTIONS | NAMED_SECTIONS))


@given(st.dictionaries(_sections, _json, max_size=4))
def test_any_shape_gives_settings_or_a_config_error(data: dict[str, Any]) -> None:
    outcome(data, HOME)


@given(_sections, st.data())
def test_any_value_of_a_known_key_gives_settings_or_a_config_error(section: str, draw: st.DataObject) -> None:
    path = (section,) if section in FIXED_SECTIONS else (section, "a")
    values = draw.draw(st.dictionaries(st.sampled_from(keys_at(path)), _json, max_size=4))
    outcome({**MINIMAL, section: values if len(path) == 1 else {"a": values}}, HOME)


# -- what is written about it --------------------------------------------------------------------------------------


def _models(section: type[Section], path: str) -> dict[type[Section], str]:
    """The model of every table of the file, and the first place where it stands."""
    found: dict[type[Section], str] = {}
    for name, field in section.model_fields.items():
        for kind in re.findall(r"(\w+(?:Settings|Key|Names))", str(field.annotation)):
            below = f"{path}.{name}".strip(".")
            model = getattr(server.config, kind)
            deeper = f"{below}.NAME" if str(field.annotation).startswith("dict") else below
            found = {**_models(model, deeper), model: below, **found}
    return found


def _shown(field: FieldInfo) -> str:
    """A default as the documentation writes it; empty if there is none or it is not one value."""
    default = field.default
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        return f"`{default:g}`" if default < 1_000 else f"`{default:.0f}`"
    return f'`"{default}"`' if isinstance(default, str) else ""


def test_every_key_is_described_in_code_and_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    models = _models(Settings, "")
    assert len(models) == 15
    for model, path in models.items():
        _, part = re.split(rf"\n## `\[+{re.escape(path)}\b", text, maxsplit=1)
        part = part.split("\n## ", 1)[0]
        for name, field in model.model_fields.items():
            assert field.description, f"{path}.{name}"
            row = re.search(rf"^\| `{name}` \|(.*)$", part, re.MULTILINE)
            assert row, f"{path}.{name}"
            assert _shown(field) in row[1], f"{path}.{name}"


def test_dotted() -> None:
    assert dotted(("auth", "api_keys", 0, "sha256")) == "auth.api_keys[0].sha256"
