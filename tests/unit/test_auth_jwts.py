"""JWTs: real keys, Kubernetes' claims, and every trick that a stranger may try."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fix_auth import (
    AUDIENCE,
    ISSUER,
    NOW,
    SUBJECT,
    claims,
    jwks,
    jwt_entry,
    private_key,
    public_jwk,
    signed,
)
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.errors import UnauthenticatedError
from llmspell_dist.sidecar.auth.grants import Verb

if TYPE_CHECKING:
    from fix_auth import ManualTime

pytestmark = [pytest.mark.unit, pytest.mark.security]

ALL_ALGORITHMS = [
    *(("RSA", name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    *(("P-256", "ES256"), ("P-384", "ES384"), ("P-521", "ES512"), ("Ed25519", "EdDSA")),
]
KEYS = [
    public_jwk("RSA", "rsa", use="sig"),
    public_jwk("RSA", "rs256-only", 1, alg="RS256"),
    *(public_jwk(kind, kind) for kind in ("P-256", "P-384", "P-521", "Ed25519")),
]
EVERY = f"[{', '.join(repr(name) for _, name in ALL_ALGORITHMS)}]"


@pytest.fixture
def load(access_path: Path, tmp_path: Path, manual_time: ManualTime) -> Callable[..., Access]:
    """Load an access file of one issuer whose keys lie in a file."""

    def make(*keys: dict[str, Any], more: str = "", **changes: str) -> Access:
        (tmp_path / "jwks.json").write_bytes(jwks(*(keys or KEYS)))
        access_path.write_text(jwt_entry("jwks.json", **changes) + more)
        return Access.load(access_path, clocks=manual_time.clocks)

    return make


async def _reason(access: Access, token: str) -> str:
    assert access.cached(f"Bearer {token}") is None
    with pytest.raises(UnauthenticatedError) as caught:
        await access.authenticate(f"Bearer {token}")
    assert access.cached(f"Bearer {token}") is None
    assert str(caught.value) == "not accepted"
    return caught.value.reason


def _part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(header: Any, payload: Any, signature: bytes = b"x") -> str:
    return f"{_part(header)}.{_part(payload)}.{_part(signature)}"


def _hs256(secret: bytes, kid: str = "rsa") -> str:
    body = f"{_part({'alg': 'HS256', 'kid': kid})}.{_part(claims())}"
    return f"{body}.{_part(hmac.digest(secret, body.encode(), hashlib.sha256))}"


def _public(kind: str, encoding: Encoding = Encoding.PEM) -> bytes:
    found: bytes = (
        private_key(kind).public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    )
    return found


def _tampered(token: str, **changes: Any) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{_part(claims(**changes))}.{signature}"


# -- what is accepted


@pytest.mark.parametrize(("kind", "algorithm"), ALL_ALGORITHMS)
async def test_every_asymmetric_algorithm_verifies(
    load: Callable[..., Access], kind: str, algorithm: str
) -> None:
    """With a key of its type and curve."""
    access = load(algorithms=EVERY)
    kid = "rsa" if kind == "RSA" else kind
    token = signed(claims(), kind=kind, algorithm=algorithm, kid=kid)
    principal = await access.authenticate(f"Bearer {token}")
    assert principal.label == f"jwt:cluster/{SUBJECT}"
    assert access.cached(f"Bearer {token}") is principal


async def test_a_service_account_has_the_grants_of_its_rules(load: Callable[..., Access]) -> None:
    """All rules whose claims fit, by subject, namespace or group, count together."""
    rules = [
        ('sub = "system:serviceaccount:prod:*"', 'scopes = ["agent:*"], verbs = ["read"]'),
        (
            '"kubernetes.io" = {namespace = "prod", serviceaccount.name = "planner"}',
            'scopes = ["workflow:*"], verbs = ["write"]',
        ),
        ('groups = "admins"', 'scopes = ["*"], verbs = ["*"]'),
        ('"kubernetes.io".namespace = "dev"', 'scopes = ["global"], verbs = ["write"]'),
    ]
    texts = [f"{{claims = {{{wanted}}}, grants = [{{{grant}}}]}}" for wanted, grant in rules]
    access = load(rules=f"[{', '.join(texts)}]")
    principal = await access.authenticate(f"Bearer {signed(claims())}")
    assert principal.may(Verb.READ, "agent:a")
    assert principal.may(Verb.WRITE, "workflow:w1/step:plan")
    assert not principal.may(Verb.WRITE, "global")
    assert not principal.may(Verb.ADMIN, "*")
    other = await access.authenticate(f"Bearer {signed(claims(sub=SUBJECT + '2'))}")
    assert other.grants is principal.grants
    admin = await access.authenticate(f"Bearer {signed(claims(groups=['dev', 'admins']))}")
    assert admin.may(Verb.ADMIN, "*")


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
async def test_one_of_the_tokens_audiences_must_be_ours(
    load: Callable[..., Access], audience: Any
) -> None:
    """A text or, as Kubernetes has it, a list."""
    await load().authenticate(f"Bearer {signed(claims(aud=audience))}")


async def test_a_token_without_key_id_is_verified_where_there_is_no_choice(
    load: Callable[..., Access],
) -> None:
    """One key for its algorithm; with two it must say which."""
    token = signed(claims(), kid=None)
    assert "no key None" in await _reason(load(), token)
    access = load(public_jwk("RSA", None), public_jwk("P-256", "P-256"))
    await access.authenticate(f"Bearer {token}")


async def test_several_entries_may_have_one_issuer(load: Callable[..., Access]) -> None:
    """Each with an audience and grants of its own; the token is that of the first that takes it."""
    access = load(more=jwt_entry("jwks.json", name='"two"', audience='"two"'))
    principal = await access.authenticate(f"Bearer {signed(claims(aud='two'))}")
    assert principal.name == f"two/{SUBJECT}"
    first = await access.authenticate(f"Bearer {GOOD}")
    assert first.name == f"cluster/{SUBJECT}"
    reason = await _reason(access, signed(claims(aud="three")))
    assert reason.count("it is for another audience") == 2


# -- time


async def test_a_verified_token_is_good_until_it_expires_and_not_longer(
    load: Callable[..., Access], manual_time: ManualTime
) -> None:
    """Also from memory."""
    access, authorization = load(), f"Bearer {signed(claims(exp=NOW + 100))}"
    await access.authenticate(authorization)
    manual_time.advance(99.9)
    assert access.cached(authorization) is not None
    manual_time.advance(0.1)
    assert access.cached(authorization) is None
    assert not access._rules._verified
    with pytest.raises(UnauthenticatedError) as caught:
        await access.authenticate(authorization)
    assert "expired" in caught.value.reason


async def test_leeway_is_given_at_both_ends(
    load: Callable[..., Access], manual_time: ManualTime
) -> None:
    """For clocks that differ."""
    access = load(leeway="10")
    await access.authenticate(f"Bearer {signed(claims(exp=NOW - 9, iat=NOW + 10))}")
    assert "expired" in await _reason(access, signed(claims(exp=NOW - 10)))
    assert "nbf" in await _reason(access, signed(claims(nbf=NOW + 11)))
    manual_time.advance(1)
    await access.authenticate(f"Bearer {signed(claims(nbf=NOW + 11))}")


# -- what is refused

GOOD = signed(claims())
ATTACKS: dict[str, tuple[str, str]] = {
    "alg none": (_raw({"alg": "none", "kid": "rsa"}, claims(), b""), "malformed|not allowed"),
    "alg None": (_raw({"alg": "None", "kid": "rsa"}, claims()), "not allowed"),
    "alg NONE, signed": (_raw({"alg": "NONE", "kid": "rsa"}, claims()), "not allowed"),
    "alg null": (_raw({"alg": None, "kid": "rsa"}, claims()), "not allowed"),
    "alg missing": (_raw({"kid": "rsa"}, claims()), "not allowed"),
    "alg a list": (_raw({"alg": ["RS256"], "kid": "rsa"}, claims()), "not allowed|malformed"),
    "signature cut off": (GOOD.rsplit(".", 1)[0] + ".", "characters|signature|malformed"),
    "public key as HMAC secret": (_hs256(_public("RSA")), "HS256' is not allowed"),
    "public DER as HMAC secret": (_hs256(_public("RSA", Encoding.DER)), "not allowed"),
    "HMAC with another's key": (_hs256(_public("P-256"), "P-256"), "not allowed"),
    "algorithm not in the list": (signed(claims(), algorithm="RS384"), "not allowed"),
    "algorithm of another key type": (
        _raw({"alg": "ES256", "kid": "rsa"}, claims(), b"x" * 64),
        "no key 'rsa' for ES256",
    ),
    "EC algorithm over RSA key id": (
        signed(claims(), kind="P-256", algorithm="ES256", kid="rsa"),
        "no key 'rsa'",
    ),
    "ES256 of zeros": (_raw({"alg": "ES256", "kid": "P-256"}, claims(), bytes(64)), "signature"),
    "wrong key": (signed(claims(), number=7), "signature"),
    "wrong key id": (signed(claims(), kid="other"), "no key 'other'"),
    "another's key id": (signed(claims(), kid="rs256-only"), "signature"),
    "key id as path": (signed(claims(), kid="../../dev/null"), "no key"),
    "key id a number": (_raw({"alg": "RS256", "kid": 1}, claims()), "malformed|no text"),
    "key in the header": (
        signed(claims(), number=7, headers={"jwk": public_jwk("RSA", "rsa", 7)}),
        "signature",
    ),
    "key url in the header": (
        signed(claims(), number=7, headers={"jku": "http://127.0.0.1:9/", "x5u": "http://x/"}),
        "signature",
    ),
    "critical extension": (signed(claims(), headers={"crit": ["b64"]}), "extension|malformed"),
    "other issuer": (signed(claims(iss="https://evil.example")), "not in the access file"),
    "issuer with slash": (signed(claims(iss=f"{ISSUER}/")), "not in the access file"),
    "issuer in other case": (signed(claims(iss=ISSUER.upper())), "not in the access file"),
    "no issuer": (signed(claims(iss=None)), "no text"),
    "issuer a list": (_raw({"alg": "RS256", "kid": "rsa"}, claims(iss=[ISSUER])), "no text"),
    "other audience": (signed(claims(aud=["other"])), "another audience"),
    "audience as prefix": (signed(claims(aud=AUDIENCE + "2")), "another audience"),
    "audience in other case": (signed(claims(aud=AUDIENCE.upper())), "another audience"),
    "no audience": (signed(claims(aud=None)), "is missing"),
    "empty audience": (signed(claims(aud=[])), "is missing"),
    "audience a number": (signed(claims(aud=5)), "InvalidAudience|another audience"),
    "expired": (signed(claims(exp=NOW - 1)), "expired 1 s ago"),
    "expires now": (signed(claims(exp=NOW)), "expired 0 s ago"),
    "no expiry": (signed(claims(exp=None)), "is missing"),
    "expiry a text": (signed(claims(exp="9999999999")), "exp is no moment"),
    "expiry true": (signed(claims(exp=True)), "exp is no moment"),
    "expiry infinite": (signed(claims(exp=float("inf"))), "exp is no moment"),
    "expiry no number": (signed(claims(exp=float("nan"))), "exp is no moment"),
    "expiry huge": (signed(claims(exp=10**400)), "exp is no moment|malformed"),
    "expiry a list": (signed(claims(exp=[NOW + 9])), "exp is no moment"),
    "not yet valid": (signed(claims(nbf=NOW + 60)), "nbf is 60 s ahead"),
    "issued in the future": (signed(claims(iat=NOW + 60)), "iat is 60 s ahead"),
    "nbf a text": (signed(claims(nbf="x")), "nbf is no moment"),
    "no subject": (signed(claims(sub=None)), "is missing"),
    "subject a list": (signed(claims(sub=[SUBJECT])), "sub is no text"),
    "subject empty": (signed(claims(sub="")), "sub is no text"),
    "subject too long": (signed(claims(sub=SUBJECT + "x" * 300)), "sub is no text"),
    "subject with newline": (signed(claims(sub=SUBJECT + "\nroot")), "not printable"),
    "subject of no rule": (signed(claims(sub="system:serviceaccount:dev:x")), "no rule fits"),
    "payload replaced": (_tampered(GOOD, sub=SUBJECT + "2"), "signature"),
    "payload no object": (_raw({"alg": "RS256", "kid": "rsa"}, [1]), "malformed"),
    "payload no JSON": (_raw({"alg": "RS256", "kid": "rsa"}, b"{"), "malformed"),
    "payload deep": (
        _raw({"alg": "RS256", "kid": "rsa"}, b"[" * 5000 + b"]" * 5000),
        "malformed",
    ),
    "header deep": (_raw(b"[" * 5000 + b"]" * 5000, claims()), "malformed"),
    "header no JSON": (_raw(b"\xff\xfe", claims()), "malformed"),
    "header of digits": (_raw(b"9" * 9000, claims()), "malformed"),
    "two parts": (GOOD.rsplit(".", 1)[0], "neither"),
    "five parts, as if encrypted": (GOOD + ".x.y", "neither"),
    "empty parts": ("..", "malformed"),
    "huge": (_raw({"alg": "RS256"}, claims(pad="x" * 20_000)), "more than"),
    "line break inside": (GOOD[:50] + "\r\n" + GOOD[50:], "characters"),
    "space inside": (GOOD.replace(".", ". ", 1), "characters"),
    "padding": (GOOD + "=", "malformed"),
    "standard base64": (GOOD.rsplit(".", 1)[0] + ".++//", "malformed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_token_that_is_not_right_in_every_way_is_not_accepted(
    load: Callable[..., Access], attack: str
) -> None:
    """For the reason that makes it wrong; nothing of it is kept."""
    token, why = ATTACKS[attack]
    access = load()
    reason = await _reason(access, token)
    assert any(one in reason for one in why.split("|")), reason
    assert reason.isprintable()
    assert not access._rules._verified


async def test_a_key_is_used_with_its_own_algorithm_only(load: Callable[..., Access]) -> None:
    """What the issuer says of the key counts, also against the list of the access file."""
    access = load(algorithms=EVERY)
    good = signed(claims(), number=1, kid="rs256-only")
    await access.authenticate(f"Bearer {good}")
    for algorithm in ("RS384", "PS256"):
        token = signed(claims(), number=1, kid="rs256-only", algorithm=algorithm)
        assert "no key 'rs256-only'" in await _reason(access, token)


@pytest.mark.parametrize("extension", [{"b64": True}, {"crit": []}, {"crit": ["exp"]}])
async def test_a_signed_token_that_demands_an_extension_is_refused(
    load: Callable[..., Access], extension: dict[str, Any]
) -> None:
    """We understand none, also none that would change nothing."""
    body = f"{_part({'alg': 'EdDSA', 'kid': 'Ed25519'} | extension)}.{_part(claims())}"
    token = f"{body}.{_part(private_key('Ed25519').sign(body.encode()))}"
    reason = await _reason(load(algorithms=EVERY), token)
    assert reason in {"JWT: it demands an extension", "JWT: malformed"}


async def test_no_flipped_bit_of_the_signed_text_is_accepted(load: Callable[..., Access]) -> None:
    """In any of many places."""
    access = load()
    for at in range(0, len(GOOD), 7):
        wrong = "A" if GOOD[at] != "A" else "B"
        token = GOOD[:at] + wrong + GOOD[at + 1 :]
        with pytest.raises(UnauthenticatedError):
            await access.authenticate(f"Bearer {token}")
    assert not access._rules._verified


async def test_what_is_remembered_of_good_tokens_is_bounded(
    load: Callable[..., Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used go first, and are verified again."""
    monkeypatch.setattr("llmspell_dist.sidecar.auth.rules._MAX_JWTS", 3)
    access = load()
    tokens = [f"Bearer {signed(claims(jti=str(number)))}" for number in range(4)]
    for token in tokens[:3]:
        await access.authenticate(token)
    assert access.cached(tokens[0]) is not None
    await access.authenticate(tokens[3])
    assert [access.cached(token) is not None for token in tokens] == [True, False, True, True]
    await access.authenticate(tokens[1])
    assert len(access._rules._verified) == 3


@pytest.mark.parametrize(
    ("wanted", "claim", "fits"),
    [
        ("*", "", True),
        ("prod", "prod2", False),
        ("prod", ["dev", "prod"], True),
        ("prod", [["prod"]], False),
        ("1", 1, False),
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (True, True, True),
        (True, "true", False),
        ("*", None, False),
        ({"a": "b"}, {"a": "b", "c": 1}, True),
        ({"a": "b"}, {"a.b": "b"}, False),
        ({"a": "b"}, "b", False),
        ({"a": "b"}, [{"a": "b"}], True),
        ("a", {"a": "a"}, False),
    ],
)
def test_a_claim_fits_by_type_and_text(wanted: Any, claim: Any, fits: bool) -> None:
    """Numbers are no texts, true is not 1, and a table is looked into."""
    from llmspell_dist.sidecar.auth.claims import ClaimRule

    rule = ClaimRule({"x": wanted, "here": "*"})
    assert rule.matches({"x": claim, "here": "yes"}) is fits
    assert not rule.matches({"x": claim})


# -- whatever comes

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["RS256", "ES256", "EdDSA", "none", "HS256"]) | _JSON,
        "kid": st.sampled_from(["rsa", "P-256", "Ed25519"]) | _JSON,
        "typ": _JSON,
        "crit": _JSON,
        "b64": _JSON,
    },
)
_CLAIMS = st.dictionaries(st.sampled_from([*claims(), "jti"]), _JSON, max_size=4)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Access:
    """An access that all examples share."""
    folder = tmp_path_factory.mktemp("access")
    (folder / "jwks.json").write_bytes(jwks(*KEYS))
    (folder / "access.toml").write_text(jwt_entry("jwks.json", algorithms=EVERY))
    return Access.load(folder / "access.toml", clocks=Clocks(now=lambda: NOW))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One loop for all examples: starting one costs more than a refusal."""
    with asyncio.Runner() as runner:
        yield runner


def _is_refused(loop: asyncio.Runner, access: Access, authorization: str) -> None:
    assert access.cached(authorization) is None
    with pytest.raises(UnauthenticatedError) as caught:
        loop.run(access.authenticate(authorization))
    assert caught.value.reason.isprintable()


@given(authorization=st.text(max_size=80) | st.text(max_size=80).map("Bearer {}".format))
def test_any_text_is_refused_and_nothing_worse(
    loop: asyncio.Runner, hostile: Access, authorization: str
) -> None:
    """The reason is one printable line, so no log entry can be forged."""
    _is_refused(loop, hostile, authorization)


@given(header=_HEADERS | _JSON, changes=_CLAIMS, signature=st.binary(max_size=300))
def test_any_unsigned_token_is_refused_and_nothing_worse(
    loop: asyncio.Runner, hostile: Access, header: Any, changes: dict[str, Any], signature: bytes
) -> None:
    """Whatever its header and claims are made of."""
    _is_refused(loop, hostile, f"Bearer {_raw(header, claims() | changes, signature)}")


@given(changes=_CLAIMS)
def test_a_signed_token_of_any_claims_is_somebodys_or_refused(
    loop: asyncio.Runner, hostile: Access, changes: dict[str, Any]
) -> None:
    """An issuer that has lost its mind breaks nothing, and nobody without a rule gets in."""
    header = {"alg": "EdDSA", "kid": "Ed25519"}
    body = f"{_part(header)}.{_part(claims() | changes)}"
    token = f"{body}.{_part(private_key('Ed25519').sign(body.encode()))}"
    allowed = {f"cluster/{SUBJECT}"}
    with contextlib.suppress(UnauthenticatedError):
        principal = loop.run(hostile.authenticate(f"Bearer {token}"))
        assert principal.name in allowed
    assert {one.principal.name for one in hostile._rules._verified.values()} <= allowed
