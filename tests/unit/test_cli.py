"""The command line: what users type, what they are told, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jwt
import pytest

from server.access.identity import Authenticator, api_key_sha256
from server.access.minting import Signer, api_key_with_config
from server.cli import run
from server.config import load, parse
from server.config.sections import EMBEDDED_MODEL
from server.upstreams.embedded import MODEL_NAME

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[auth]
jwt_secret_env = "CHAT_SECRET"
issuer = "https://chat.example.com"
[tiers.free]
[tiers.gold]
[targets.a]
driver = "openai"
model = "m"
api_key_env = "A_KEY_THAT_IS_NOT_SET_HERE"
"""

Said = tuple[int, str, str]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without anything of ours but a home."""
    for name in [name for name in os.environ if name.startswith("TIDEWIRE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return monkeypatch


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tidewire.toml"
    file.write_text(CONFIG)
    return file


class Terminal:
    """Runs commands and collects what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        code = run([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        return code, out, err


def program(*arguments: object) -> Said:
    """Run a command in a process of its own, because it sets up logging for its whole process."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tidewire(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def assert_one_line(said: Said, words: str) -> None:
    code, out, err = said
    assert code == 2
    assert out == ""
    assert err.startswith("tidewire: ")
    assert err.count("\n") == 1
    assert words in err


# -- help ----------------------------------------------------------------------------------------------------------


def test_version(tidewire: Terminal) -> None:
    assert tidewire("--version") == (0, f"tidewire {version('tidewire')}\n", "")


def test_help_lists_every_command(tidewire: Terminal) -> None:
    code, out, _ = tidewire("--help")
    assert code == 0
    for command in ("serve", "demo", "chat", "token", "doctor"):
        assert command in out
        assert "tidewire " + command in tidewire(command, "--help")[1]


def test_help_needs_nothing_heavy() -> None:
    """What makes starting slow is imported only by the command that needs it."""
    program = "import sys, server.cli; server.cli.run(['--version']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    for heavy in ("pydantic", "aiohttp", "redis", "jwt", "uvicorn", "structlog", "litellm", "server.config"):
        assert heavy not in modules


# -- misuse --------------------------------------------------------------------------------------------------------


def test_misuse_is_one_line(tidewire: Terminal) -> None:
    assert_one_line(tidewire("sevre"), '"sevre"')
    assert_one_line(tidewire("serve", "--prot", "1"), "--port")
    assert_one_line(tidewire("serve", "--port", "http"), "--port")
    assert_one_line(tidewire("serve", "--config", "/no/such/file.toml"), "no such file")
    assert_one_line(tidewire("serve"), "tidewire demo")
    assert_one_line(tidewire("demo", "--port", "99999"), "server.port")


def test_each_problem_of_a_configuration_has_its_line(tidewire: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[server]\nprot = 1\n[auth]\nanonymous = 1\n")
    code, _, err = tidewire("serve", "--config", file)
    assert code == 2
    assert [line.split()[1] for line in err.splitlines()] == ["auth.anonymous:", "routes:", "server.prot:"]


def test_a_port_in_use(environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert_one_line(program("demo", "--port", taken.getsockname()[1]), "cannot listen")


def test_a_wrong_log_level(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TIDEWIRE_LOG_LEVEL", "loud")
    assert_one_line(program("demo"), "TIDEWIRE_LOG_LEVEL")


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_of_a_configuration_is_accepted_by_its_server(
    tidewire: Terminal, environment: pytest.MonkeyPatch, config: Path
) -> None:
    environment.setenv("CHAT_SECRET", SECRET)
    code, out, err = tidewire(
        "token", "--config", config, "--user", "ann", "--tenant", "acme", "--tier", "gold", "--expires", "2h",
        "--scope", "chat", "--scope", "usage",
    )  # fmt: skip
    assert (code, err) == (0, "")
    environ = {"CHAT_SECRET": SECRET, "HOME": "/h"}
    settings = load(config, environ, sections=("auth", "tiers"))
    principal = asyncio.run(Authenticator.from_settings(settings, environ).authenticate(out.strip()))
    assert (principal.tenant, principal.user, principal.tier) == ("acme", "ann", "gold")
    assert principal.scopes == {"chat", "usage"}
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 7200


def test_a_token_without_a_configuration(tidewire: Terminal, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MY_SECRET", SECRET)
    code, out, _ = tidewire("token", "--secret-env", "MY_SECRET", "--user", "ann", "--tier", "any")
    assert code == 0
    assert jwt.decode(out.strip(), SECRET, algorithms=["HS256"], audience="tidewire")["tier"] == "any"
    environment.setenv("TIDEWIRE_JWT_SECRET", SECRET)
    assert tidewire("token", "--user", "ann")[0] == 0


def test_token_misuse(tidewire: Terminal, environment: pytest.MonkeyPatch, config: Path, tmp_path: Path) -> None:
    assert_one_line(tidewire("token", "--user", "ann"), "TIDEWIRE_JWT_SECRET")
    assert_one_line(tidewire("token"), "--user")
    assert_one_line(tidewire("token", "--api-key"), "--name")
    assert_one_line(tidewire("token", "--config", config, "--user", "ann"), "CHAT_SECRET is not set")
    environment.setenv("CHAT_SECRET", SECRET)
    assert_one_line(tidewire("token", "--config", config, "--user", "ann", "--tier", "x"), "no tier 'x'")
    assert_one_line(tidewire("token", "--config", config, "--user", ""), "printable")
    assert_one_line(tidewire("token", "--config", config, "--user", "a", "--expires", "0s"), "expire")
    assert_one_line(tidewire("token", "--config", config, "--user", "a", "--scope", "all"), "no scope 'all'")
    environment.setenv("SHORT", "short")
    assert_one_line(tidewire("token", "--secret-env", "SHORT", "--user", "a"), "shorter than 32 bytes")
    other = tmp_path / "jwks.toml"
    other.write_text('[auth]\njwks_url = "https://id.example.com/keys"\n')
    assert_one_line(tidewire("token", "--config", other, "--user", "a"), "identity provider")


def test_an_api_key_and_the_lines_that_accept_it(tidewire: Terminal, tmp_path: Path) -> None:
    code, out, _ = tidewire("token", "--api-key", "--name", 'ba"tch', "--tenant", "acme", "--scope", "jobs")
    assert code == 0
    key, _, lines = out.partition("\n")
    assert key.startswith("tw_")
    assert key not in lines
    file = tmp_path / "c.toml"
    file.write_text(lines)
    [entry] = load(file, {"HOME": "/h"}, sections=("auth",)).auth.api_keys
    assert (entry.name, entry.tenant, entry.scopes) == ('ba"tch', "acme", ("jobs",))
    assert entry.sha256 == api_key_sha256(key)


def test_a_signer_needs_a_secret() -> None:
    settings = parse({}, {"HOME": "/h"}, sections=("auth",))
    assert Signer.from_settings(settings, {}) is None
    with pytest.raises(ValueError, match="printable"):
        api_key_with_config("a\nb", "t", None)


# -- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_reports_a_broken_configuration(environment: pytest.MonkeyPatch, config: Path) -> None:
    code, out, _ = program("doctor", "--config", config, "--json")
    assert code == 1
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert findings["targets.a.api_key_env"]["status"] == "fail"
    assert findings["routes"]["status"] == "fail"
    code, out, _ = program("doctor", "--config", config)
    assert code == 1
    assert "auth.jwt_secret_env" in out


def test_names_that_two_modules_share() -> None:
    assert EMBEDDED_MODEL == MODEL_NAME
