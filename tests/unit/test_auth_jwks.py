"""Keys of issuers: which are usable, how they are fetched, and how often."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from fix_auth import claims, jwks, jwt_entry, private_key, public_jwk, signed
from jwt.algorithms import RSAAlgorithm

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.entries import KeySource
from llmspell_dist.sidecar.auth.errors import KeysUnavailableError, UnauthenticatedError
from llmspell_dist.sidecar.auth.fetching import fetch
from llmspell_dist.sidecar.auth.jwks import JWKSError, parse_jwks
from llmspell_dist.sidecar.auth.keysets import KeySet

if TYPE_CHECKING:
    from fix_auth import Issuer, ManualTime

pytestmark = [pytest.mark.unit, pytest.mark.security]

CANARY = "canary-9f27d1"
RSA = public_jwk("RSA", "rsa")


def _key_of_bits(bits: int) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return dict(RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))


# -- the set


@pytest.mark.parametrize(
    "unusable",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"},
        {"kty": "new"},
        {},
        RSA | {"use": "enc"},
        RSA | {"alg": "RSA-OAEP"},
        RSA | {"alg": "HS256"},
        RSA | {"alg": "none"},
        RSA | {"alg": ["RS256"]},
        RSA | {"alg": "ES256"},
        RSA | {"kid": 5},
        RSA | {"key_ops": ["encrypt"]},
        RSA | {"key_ops": "verify"},
        RSA | {"n": "!!"},
        RSA | {"n": 5},
        RSA | {"n": ""},
        RSA | {"e": "AA"},
        {"kty": "RSA", "e": "AQAB"},
        dict(RSAAlgorithm.to_jwk(private_key("RSA"), as_dict=True)) | {"key_ops": ["verify"]},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        public_jwk("P-256", "ec") | {"y": public_jwk("P-256", "ec")["x"]},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "EC", "crv": ["P-256"]},
    ],
    ids=lambda _: "jwk",  # keys are new ones in every worker
)
def test_a_key_that_cannot_verify_is_left_out_and_the_others_stay(unusable: dict[str, Any]) -> None:
    """Issuers publish keys of many kinds, and of kinds that are still to come."""
    assert [key.kid for key in parse_jwks(jwks(unusable, RSA))] == ["rsa"]
    with pytest.raises(JWKSError, match="no key"):
        parse_jwks(jwks(unusable))


def test_short_rsa_keys_are_left_out() -> None:
    """Fewer than 2,048 bits can be broken."""
    with pytest.raises(JWKSError, match="no key"):
        parse_jwks(jwks(_key_of_bits(1024)))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no list of keys"),
        (b'{"keys": {}}', "no list of keys"),
        (b'{"keys": [1]}', "no list of keys"),
        (b'{"keys": []}', "no key"),
        (jwks(*[RSA] * 101), "more than 100"),
    ],
)
def test_what_is_no_key_set_is_named(content: bytes, rule: str) -> None:
    """And nothing of it used."""
    with pytest.raises(JWKSError, match=rule):
        parse_jwks(content)


# -- fetching


def test_the_token_for_the_issuer_is_read_anew_each_time(issuer: Issuer, tmp_path: Path) -> None:
    """Kubernetes replaces it every hour."""
    path = tmp_path / "token"
    source = KeySource(url=issuer.url, token_file=path)
    for text in ("first\n", "second"):
        path.write_text(text)
        assert fetch(source) == issuer.content
    assert [one["authorization"] for one in issuer.asked] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("content", [f"{CANARY}\r\nX: 1", f"{CANARY} 2", f"{CANARY}\x00"])
def test_a_token_file_that_holds_no_token_is_not_sent(
    issuer: Issuer, tmp_path: Path, content: str
) -> None:
    """Nor quoted."""
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(JWKSError, match="holds no token") as caught:
        fetch(KeySource(url=issuer.url, token_file=path))
    assert CANARY not in str(caught.value)
    assert issuer.asked == []


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    """Elsewhere is not what the access file names."""
    issuer.status, issuer.headers = 302, {"Location": issuer.url}
    with pytest.raises(JWKSError, match="answered 302"):
        fetch(KeySource(url=issuer.url))
    assert len(issuer.asked) == 1


@pytest.mark.parametrize("status", [204, 401, 404, 500])
def test_an_answer_other_than_200_is_none(issuer: Issuer, status: int) -> None:
    """Whatever its body says."""
    issuer.status = status
    with pytest.raises(JWKSError, match=f"answered {status}"):
        fetch(KeySource(url=issuer.url))


def test_an_endless_answer_is_cut_off(issuer: Issuer) -> None:
    """At half a megabyte."""
    issuer.content = b"x" * (512 * 1024 + 1)
    with pytest.raises(JWKSError, match="more than"):
        fetch(KeySource(url=issuer.url))


def test_an_answer_that_drips_is_cut_off(issuer: Issuer) -> None:
    """Ten seconds for all of it, however often something comes."""
    passing = iter([0.0, 11.0])
    with pytest.raises(JWKSError, match="longer than 10 s"):
        fetch(KeySource(url=issuer.url), monotonic=lambda: next(passing))


def test_what_fails_says_why(tmp_path: Path) -> None:
    """Nobody there, no certificates, no token."""
    with pytest.raises(JWKSError, match=r"cannot be reached: .*refused"):
        fetch(KeySource(url="http://127.0.0.1:9/jwks"))
    missing = tmp_path / "missing"
    with pytest.raises(JWKSError, match="No such file"):
        fetch(KeySource(url="https://127.0.0.1:9/", ca_file=missing))
    with pytest.raises(JWKSError, match="No such file"):
        fetch(KeySource(url="http://127.0.0.1:9/", token_file=missing))


@pytest.mark.parametrize("known", [True, False])
def test_the_certificate_must_be_of_the_authority_that_is_named(
    secure_issuer: Issuer, authority: trustme.CA, tmp_path: Path, known: bool
) -> None:
    """As that of a cluster: no public authority knows it."""
    path = tmp_path / "ca.crt"
    (authority if known else trustme.CA()).cert_pem.write_to_path(str(path))
    source = KeySource(url=secure_issuer.url, ca_file=path)
    if known:
        assert fetch(source) == secure_issuer.content
        return
    for wrong in (source, KeySource(url=secure_issuer.url)):
        with pytest.raises(JWKSError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(wrong)
    assert secure_issuer.asked == []


# -- keeping them


@pytest.fixture
def access(access_path: Path, issuer: Issuer, manual_time: ManualTime) -> Access:
    """An access file whose issuer serves its keys over HTTP."""
    access_path.write_text(jwt_entry(issuer.url))
    return Access.load(access_path, clocks=manual_time.clocks)


def _keys(access: Access) -> KeySet:
    (found,) = access._rules.keysets.values()
    return found


async def _settled(access: Access) -> None:
    await access.refresh()
    task = _keys(access)._asking
    if task is not None:
        await task


async def test_keys_are_fetched_when_the_first_token_needs_them(
    access: Access, issuer: Issuer
) -> None:
    """Not before, and once for many."""
    assert issuer.asked == []
    tokens = [f"Bearer {signed(claims(jti=str(number)))}" for number in range(5)]
    found = await asyncio.gather(*(access.authenticate(token) for token in tokens))
    assert len(found) == 5
    assert len(issuer.asked) == 1


async def test_a_new_key_is_found_and_strangers_cannot_make_us_ask_often(
    access: Access, issuer: Issuer, manual_time: ManualTime
) -> None:
    """At most every 30 s, however many unknown keys are named."""
    await access.authenticate(f"Bearer {signed(claims())}")
    issuer.content = jwks(RSA, public_jwk("RSA", "new", 1))
    rotated = f"Bearer {signed(claims(), number=1, kid='new')}"
    for _ in range(5):
        with pytest.raises(UnauthenticatedError) as caught:
            await access.authenticate(rotated)
        assert "no key 'new'" in caught.value.reason
    assert len(issuer.asked) == 1
    manual_time.advance(30)
    await access.authenticate(rotated)
    for number in range(20):
        token = signed(claims(), kid=f"unknown{number}")
        with pytest.raises(UnauthenticatedError, match="not accepted"):
            await access.authenticate(f"Bearer {token}")
    assert len(issuer.asked) == 2


async def test_tokens_of_a_key_that_was_taken_back_stop_working(
    access: Access, issuer: Issuer, manual_time: ManualTime
) -> None:
    """After five minutes at the latest, also those that are remembered."""
    token = f"Bearer {signed(claims())}"
    await access.authenticate(token)
    issuer.content = jwks(public_jwk("RSA", "new", 1))
    manual_time.advance(299)
    await _settled(access)
    assert access.cached(token) is not None
    manual_time.advance(1)
    await _settled(access)
    assert len(issuer.asked) == 2
    assert access.cached(token) is None
    with pytest.raises(UnauthenticatedError) as caught:
        await access.authenticate(token)
    assert "no key 'rsa'" in caught.value.reason


async def test_remembered_tokens_stay_when_the_keys_are_the_same(
    access: Access, issuer: Issuer, manual_time: ManualTime
) -> None:
    """Asking again changes nothing by itself."""
    token = f"Bearer {signed(claims())}"
    principal = await access.authenticate(token)
    manual_time.advance(301)
    await _settled(access)
    assert len(issuer.asked) == 2
    assert access.cached(token) is principal


async def test_an_issuer_that_is_away_is_no_fault_of_the_caller(
    access: Access, issuer: Issuer, manual_time: ManualTime
) -> None:
    """Another error, which may be tried again; `problem` and one line of the log say why."""
    issuer.status = 503
    token = f"Bearer {signed(claims())}"
    with pytest.raises(KeysUnavailableError) as caught:
        await access.authenticate(token)
    assert caught.value.retryable
    assert caught.value.code == "KEYS_UNAVAILABLE"
    assert str(caught.value) == "the credentials cannot be judged now"
    assert access.problem == f"{issuer.url} answered 503"
    issuer.status = 200
    with pytest.raises(KeysUnavailableError):  # it was asked just now
        await access.authenticate(token)
    manual_time.advance(2)
    await access.authenticate(token)
    assert access.problem is None


async def test_known_keys_go_on_working_while_the_issuer_is_away(
    access: Access,
    issuer: Issuer,
    manual_time: ManualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a day; the log says once what is wrong."""
    await access.authenticate(f"Bearer {signed(claims())}")
    issuer.status = 503
    with caplog.at_level(logging.ERROR, "llmspell_dist.sidecar.auth"):
        for _ in range(3):
            manual_time.advance(301)
            await _settled(access)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    later = f"Bearer {signed(claims(jti='later', exp=2e9))}"
    await access.authenticate(later)
    manual_time.advance(86_400)
    with pytest.raises(KeysUnavailableError):
        await access.authenticate(f"Bearer {signed(claims(jti='much later', exp=2e9))}")


@pytest.mark.parametrize("content", [b"{", b'{"keys": []}', b"<html>"])
async def test_a_broken_key_set_replaces_nothing(
    access: Access, issuer: Issuer, manual_time: ManualTime, content: bytes
) -> None:
    """What was known stays."""
    await access.authenticate(f"Bearer {signed(claims())}")
    good, issuer.content = issuer.content, content
    manual_time.advance(301)
    await _settled(access)
    assert access.problem is not None
    assert issuer.url in access.problem
    await access.authenticate(f"Bearer {signed(claims(jti='x'))}")
    issuer.content = good
    manual_time.advance(301)
    await _settled(access)
    assert access.problem is None


async def test_the_loop_goes_on_while_keys_are_fetched(access: Access, issuer: Issuer) -> None:
    """And a caller that gives up does not take the answer from the others."""
    issuer.gate.clear()
    token = f"Bearer {signed(claims())}"
    leaves = asyncio.create_task(access.authenticate(token))
    stays = asyncio.create_task(access.authenticate(token))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not stays.done()
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    issuer.gate.set()
    assert (await stays).kind == "jwt"
    assert len(issuer.asked) == 1
    assert threading.current_thread() is threading.main_thread()


@pytest.fixture
def key_file(access_path: Path) -> None:
    """Keys in a file, and an access file that names it."""
    access_path.with_name("keys.json").write_bytes(jwks(RSA))
    access_path.write_text(jwt_entry("keys.json"))


@pytest.mark.usefixtures("key_file")
async def test_keys_in_a_file_are_read_again_when_it_changes(
    access_path: Path, manual_time: ManualTime
) -> None:
    """Within a second; while it is gone, the old ones stay."""
    path = access_path.with_name("keys.json")
    access = Access.load(access_path, clocks=manual_time.clocks)
    old, new = f"Bearer {signed(claims())}", f"Bearer {signed(claims(), number=1, kid='new')}"
    await access.authenticate(old)
    path.unlink()
    manual_time.advance(1)
    await access.refresh()
    assert access.cached(old) is not None
    assert access.problem == f"{path} cannot be read: No such file or directory"
    path.write_bytes(jwks(public_jwk("RSA", "new", 1)))
    manual_time.advance(1)
    await access.refresh()
    assert access.problem is None
    assert access.cached(old) is None
    await access.authenticate(new)
