"""Who gets in, who does not, and that a refusal never repeats a token. Every attack here once worked somewhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.identity import (
    ANONYMOUS_USER,
    MAX_TOKEN_CHARS,
    Authenticator,
    Principal,
    api_key_sha256,
    new_api_key,
)
from server.access.jwks import KeySet, KeysUnavailable
from server.config import parse

SECRET = b"0123456789abcdef0123456789abcdef"
NOW = 1_900_000_000.0
MINIMAL: dict[str, Any] = {
    "targets": {"a": {"driver": "embedded"}},
    "routes": {"default": {"targets": ["a"]}},
    "tiers": {"free": {}, "gold": {}},
}
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


class FixedKeys(KeySet):
    """A key set that was fetched before the test; `keys` None: it never could be."""

    def __init__(self, keys: list[dict[str, Any]] | None) -> None:
        super().__init__("http://127.0.0.1:9/unused", monotonic=lambda: 0.0)
        self._keys = keys

    async def _fetch_once(self) -> None:
        """Nothing new to be had."""


def public(kid: str, key: Any, algorithm: str) -> dict[str, Any]:
    kind = jwt.get_algorithm_by_name(algorithm)
    return {"kid": kid, "use": "sig", **kind.to_jwk(key.public_key(), as_dict=True)}


def authenticator(
    auth: dict[str, Any] | None = None,
    *,
    secret: bytes | None = SECRET,
    keys: KeySet | None = None,
) -> Authenticator:
    settings = parse({**MINIMAL, "auth": auth or {}}, {"HOME": "/h", "S": SECRET.decode() * 2})
    return Authenticator(
        settings.auth,
        tiers=settings.tiers.keys(),
        default_tier=settings.default_tier,
        secret=secret,
        keys=keys,
        now=lambda: NOW,
    )


def with_secret(**auth: Any) -> Authenticator:
    return authenticator({"jwt_secret_env": "S", **auth})


def with_keys(**auth: Any) -> Authenticator:
    keys = [public("r", RSA_KEY, "RS256"), public("e", EC_KEY, "ES256"), public("d", ED_KEY, "EdDSA")]
    return authenticator({"jwks_url": "https://id.example.com/keys", **auth}, secret=None, keys=FixedKeys(keys))


def claims(**more: Any) -> dict[str, Any]:
    merged = {"sub": "ann", "tenant": "acme", "tier": "gold", "aud": "tidewire", "exp": NOW + 60, **more}
    return {name: value for name, value in merged.items() if value is not None}


def signed(payload: dict[str, Any] | None = None, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    return jwt.encode(claims() if payload is None else payload, key, algorithm=algorithm, headers=header or None)


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def refusal(entrance: Authenticator, token: str | None, code: str = "unauthenticated") -> str:
    with pytest.raises(ProtocolError) as caught:
        await entrance.authenticate(token)
    assert caught.value.code == code
    for piece in (token or "").split("."):
        assert len(piece) < 8 or piece not in str(caught.value.as_dict())
    return caught.value.message


# -- what is accepted ----------------------------------------------------------------------------------------------


async def test_a_signed_token() -> None:
    principal = await with_secret().authenticate(signed())
    assert principal == Principal("acme", "sub", "ann", "gold", scopes.USER, NOW + 60)


async def test_defaults_of_missing_claims() -> None:
    principal = await with_secret(default_tenant="solo").authenticate(signed(claims(tenant=None, tier=None)))
    assert (principal.tenant, principal.tier) == ("solo", "free")


async def test_claim_names_can_be_mapped() -> None:
    names = {"user": "uid", "tenant": "org", "tier": "plan", "scope": "scp"}
    token = signed(claims(sub=None, uid="bob", org="globex", plan="free", scp=["usage", "admin"]))
    principal = await with_secret(claims=names).authenticate(token)
    assert principal == Principal("globex", "sub", "bob", "free", frozenset({"usage"}), NOW + 60)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [(None, scopes.USER), ("chat", {"chat"}), ("chat tokens", {"chat", "tokens"}), ("", set()), (["jobs"], {"jobs"})],
)
async def test_scopes(scope: Any, expected: set[str]) -> None:
    principal = await with_secret().authenticate(signed(claims(scope=scope)))
    assert principal.scopes == expected


async def test_audience_may_be_a_list_and_issuer_is_checked_if_set() -> None:
    assert await with_secret().authenticate(signed(claims(aud=["other", "tidewire"])))
    entrance = with_secret(issuer="https://id")
    assert await entrance.authenticate(signed(claims(iss="https://id")))
    assert "issuer" in await refusal(entrance, signed(claims(iss="https://evil")))
    assert "`iss`" in await refusal(entrance, signed())


async def test_leeway() -> None:
    entrance = with_secret()
    assert await entrance.authenticate(signed(claims(exp=NOW - 29)))
    assert await entrance.authenticate(signed(claims(nbf=NOW + 29)))
    assert "expired" in await refusal(entrance, signed(claims(exp=NOW - 31)), "token_expired")
    assert "not valid yet" in await refusal(entrance, signed(claims(nbf=NOW + 31)))


@pytest.mark.parametrize(
    ("kid", "key", "algorithm"), [("r", RSA_KEY, "RS256"), ("e", EC_KEY, "ES256"), ("d", ED_KEY, "EdDSA")]
)
async def test_public_keys(kid: str, key: Any, algorithm: str) -> None:
    entrance = with_keys()
    assert (await entrance.authenticate(signed(key=key, algorithm=algorithm, kid=kid))).user == "ann"
    assert (await entrance.authenticate(signed(key=key, algorithm=algorithm))).user == "ann"


async def test_api_keys() -> None:
    key, other = new_api_key(), new_api_key()
    assert key.startswith("tw_")
    assert len(key) > 40
    entry = {"name": "batch", "tenant": "acme", "tier": "gold", "sha256": api_key_sha256(key), "scopes": ["jobs"]}
    entrance = authenticator({"api_keys": [entry, {"name": "old", "sha256": hashlib.sha256(b"plain").hexdigest()}]})
    assert await entrance.authenticate(key) == Principal("acme", "key", "batch", "gold", frozenset({"jobs"}), None)
    assert await entrance.authenticate("plain") == Principal(
        "default", "key", "old", "free", scopes.ALL - {scopes.OPERATOR}, None
    )
    assert "not known" in await refusal(entrance, other)
    assert "not known" in await refusal(entrance, key[:-1])


async def test_anonymous_is_one_fixed_user_so_that_a_reload_can_resume() -> None:
    entrance = authenticator({"anonymous": True})
    first, second = await entrance.authenticate(None), await entrance.authenticate("")
    assert first == second
    assert (first.kind, first.user) == ("anonymous", ANONYMOUS_USER)
    assert "A token is needed" in await refusal(with_secret(), None)
    await refusal(authenticator({"anonymous": True}), "a wrong token is still wrong")


# -- attacks -------------------------------------------------------------------------------------------------------


async def test_algorithm_none() -> None:
    for name in ("none", "None", "NONE", "nOnE", ""):
        for entrance in (with_secret(), with_keys()):
            token = f"{segment({'alg': name, 'typ': 'JWT'})}.{segment(claims())}."
            assert "signed with" in await refusal(entrance, token)
    assert await refusal(with_secret(), f"{segment({'typ': 'JWT'})}.{segment(claims())}.{segment(b'x')}")


async def test_a_public_key_is_no_secret() -> None:
    """RS256 → HS256 confusion: the token is signed with HMAC, under the published key as its secret."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (
        RSA_KEY.public_key().public_bytes(*form),
        json.dumps(public("r", RSA_KEY, "RS256")).encode(),
        segment(b"").encode(),
    ):
        head = f"{segment({'alg': 'HS256', 'kid': 'r'})}.{segment(claims())}"
        forged = hmac.digest(secret, head.encode(), "sha256")
        assert "signed with" in await refusal(with_keys(), f"{head}.{segment(forged)}")


async def test_a_key_works_only_for_its_own_algorithm() -> None:
    assert await refusal(with_keys(), signed(key=RSA_KEY, algorithm="RS256", kid="e"))
    assert await refusal(with_keys(), signed(key=EC_KEY, algorithm="ES256", kid="r"))
    assert "signed with" in await refusal(with_keys(), signed(key=RSA_KEY, algorithm="RS512", kid="r"))
    assert "signed with" in await refusal(with_secret(), signed(key=RSA_KEY, algorithm="RS256"))
    assert "signed with" in await refusal(with_secret(), signed(key=SECRET * 2, algorithm="HS512"))


async def test_a_symmetric_key_in_a_key_set_is_ignored() -> None:
    from server.access.jwks import usable_keys

    leaked = {"kty": "oct", "kid": "o", "k": segment(SECRET)}
    assert usable_keys({"keys": [leaked, public("r", RSA_KEY, "RS256")]}) == [public("r", RSA_KEY, "RS256")]


async def test_the_token_cannot_bring_its_own_key() -> None:
    intruder = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    header: dict[str, Any] = {"jwk": public("r", intruder, "RS256"), "jku": "https://evil/keys", "kid": "r"}
    assert "signature" in await refusal(with_keys(), signed(key=intruder, algorithm="RS256", **header))


async def test_forged_and_altered() -> None:
    entrance = with_secret()
    assert "signature" in await refusal(entrance, signed(key=b"x" * 32))
    head, payload, signature = signed().split(".")
    altered = segment({**claims(), "tier": "free"})
    assert "signature" in await refusal(entrance, f"{head}.{altered}.{signature}")
    assert await refusal(entrance, f"{head}.{payload}.")
    assert "signature" in await refusal(entrance, f"{head}.{payload}.{segment(b'short')}")


async def test_wrong_audience() -> None:
    for audience in ("other", ["other"], None, 5, [], {"tidewire": 1}):
        assert await refusal(with_secret(), signed(claims(aud=audience)))


@pytest.mark.parametrize("name", ["sub", "exp"])
async def test_claims_that_must_be_there(name: str) -> None:
    assert f"`{name}`" in await refusal(with_secret(), signed(claims(**{name: None})))


@pytest.mark.parametrize(
    "broken",
    [
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": [NOW + 60]},
        {"exp": 10**400},
        {"nbf": "x"},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 257},
        {"sub": "a\x00b"},
        {"sub": ["ann"]},
        {"tenant": ""},
        {"tenant": {"x": 1}},
        {"tier": "platinum"},
        {"tier": 1},
        {"scope": 5},
        {"scope": [1]},
    ],
)
async def test_claims_of_the_wrong_form(broken: dict[str, Any]) -> None:
    head = f"{segment({'alg': 'HS256'})}.{segment({**claims(), **broken})}"
    token = f"{head}.{segment(hmac.digest(SECRET, head.encode(), 'sha256'))}"
    assert await refusal(with_secret(), token)


async def test_oversize_is_refused_before_it_is_parsed() -> None:
    assert "longer" in await refusal(with_secret(), "x" * (MAX_TOKEN_CHARS + 1))
    assert "longer" in await refusal(with_secret(), signed(claims(pad="x" * MAX_TOKEN_CHARS)))


async def test_without_jwt_set_up_only_api_keys_count() -> None:
    assert "API keys only" in await refusal(authenticator(secret=None), signed())


async def test_unknown_key_id_and_unreachable_provider() -> None:
    assert "does not have" in await refusal(with_keys(), signed(key=RSA_KEY, algorithm="RS256", kid="gone"))
    keys = FixedKeys(None)
    with pytest.raises(KeysUnavailable):
        await keys.key("r", "RS256")
    with pytest.raises(ProtocolError) as caught:
        await authenticator({"jwks_url": "https://x"}, secret=None, keys=keys).authenticate(
            signed(key=RSA_KEY, algorithm="RS256", kid="r")
        )
    assert caught.value.retryable
    assert caught.value.retry_after_ms


@given(st.text(max_size=60))
async def test_any_text_is_refused_in_order(token: str) -> None:
    for entrance in (with_secret(), with_keys()):
        with pytest.raises(ProtocolError):
            await entrance.authenticate(token)


_head = st.dictionaries(
    st.sampled_from(["alg", "kid", "b64", "crit", "typ", "zip"]),
    st.none()
    | st.text()
    | st.lists(st.sampled_from(["b64", "x"]))
    | st.booleans()
    | st.sampled_from(["HS256", "RS256", "none"]),
)


@given(_head, st.binary(max_size=40), st.binary(max_size=40))
async def test_any_three_segments_are_refused_in_order(head: dict[str, Any], payload: bytes, signature: bytes) -> None:
    token = f"{segment(head)}.{segment(payload)}.{segment(signature)}"
    for entrance in (with_secret(), with_keys()):
        with pytest.raises(ProtocolError):
            await entrance.authenticate(token)


def test_same_user() -> None:
    ann = Principal("acme", "sub", "ann", "free", scopes.USER, None)
    assert ann.same_user(Principal("acme", "sub", "ann", "gold", scopes.ALL, NOW))
    assert not ann.same_user(Principal("acme", "key", "ann", "free", scopes.USER, None))


def test_scopes_are_required() -> None:
    scopes.require(scopes.USER, scopes.CHAT)
    with pytest.raises(ProtocolError, match="tokens"):
        scopes.require(scopes.USER, scopes.TOKENS)
