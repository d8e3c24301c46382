"""Credentials that are none, over HTTP: 401, a challenge, and no word about why."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from fix_auth import claims, jwks, jwt_entry, private_key, public_jwk, signed, token_entry
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.minting import new_token

pytestmark = [pytest.mark.one_server, pytest.mark.security]

KEY = "/v1/state/agent:alice/note"
SECRET, DIGEST = new_token()


def now(**changes: Any) -> dict[str, Any]:
    """Return claims that hold now, but for the changes."""
    at = time()
    return claims(**{"iat": at - 60, "nbf": at - 60, "exp": at + 600} | changes)


def unsigned(header: dict[str, Any], payload: dict[str, Any]) -> str:
    """Return a JWT without a signature."""
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()) for one in (header, payload)]
    return b".".join([*(part.rstrip(b"=") for part in parts), b""]).decode()


def public_pem() -> bytes:
    """Return the issuer's public key, as anybody can have it."""
    public: bytes = (
        private_key("RSA")
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def hs256(key: bytes) -> str:
    """Return a JWT that is signed with a public key, as if it were a secret."""
    import hashlib
    import hmac

    head, payload, _ = unsigned({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, now()).split(".")
    mac = hmac.new(key, f"{head}.{payload}".encode(), hashlib.sha256).digest()
    return f"{head}.{payload}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


WRONG: dict[str, Any] = {
    "nothing": lambda: None,
    "empty": lambda: "",
    "no scheme": lambda: SECRET,
    "basic": lambda: "Basic " + base64.b64encode(b"planner:" + SECRET.encode()).decode(),
    "bearer without a token": lambda: "Bearer",
    "made up": lambda: f"Bearer {new_token()[0]}",
    "cut": lambda: f"Bearer {SECRET[:-1]}",
    "longer": lambda: f"Bearer {SECRET}x",
    "the hash": lambda: f"Bearer {DIGEST}",
    "twice": lambda: f"Bearer {SECRET}, Bearer {SECRET}",
    "huge": lambda: "Bearer " + "x" * 60_000,
    "expired": lambda: f"Bearer {signed(now(exp=time() - 30))}",
    "not yet": lambda: f"Bearer {signed(now(nbf=time() + 300))}",
    "without an end": lambda: f"Bearer {signed(now(exp=None))}",
    "other audience": lambda: f"Bearer {signed(now(aud=['other']))}",
    "no audience": lambda: f"Bearer {signed(now(aud=None))}",
    "other issuer": lambda: f"Bearer {signed(now(iss='https://evil.example'))}",
    "other subject": lambda: f"Bearer {signed(now(sub='system:serviceaccount:evil:x'))}",
    "other key": lambda: f"Bearer {signed(now(), number=1)}",
    "alg none": lambda: "Bearer " + unsigned({"alg": "none", "typ": "JWT"}, now()),
    "alg None": lambda: "Bearer " + unsigned({"alg": "nOnE", "kid": "rsa"}, now()),
    "HS256 with the public key": lambda: f"Bearer {hs256(public_pem())}",
    "HS256 with nothing": lambda: f"Bearer {hs256(b'')}",
    "key of its own": lambda: (
        "Bearer " + signed(now(), number=1, headers={"jwk": public_jwk("RSA", "rsa", 1)})
    ),
    "key from elsewhere": lambda: (
        "Bearer " + signed(now(), number=1, headers={"jku": "http://127.0.0.1:1/jwks"})
    ),
    "no claims": lambda: f"Bearer {signed({})}",
    "signature cut": lambda: f"Bearer {signed(now())[:-10]}",
    "payload changed": lambda: "Bearer " + changed_payload(),
}


def changed_payload() -> str:
    """Return a signed JWT whose claims were exchanged afterwards."""
    head, _, signature = signed(now()).split(".")
    _, payload, _ = unsigned({"alg": "RS256"}, now(sub="system:serviceaccount:prod:root")).split(
        "."
    )
    return f"{head}.{payload}.{signature}"


@pytest.fixture
def access(access_path: Path) -> Access:
    """One token and one issuer."""
    (access_path.parent / "jwks.json").write_bytes(jwks(public_jwk("RSA", "rsa")))
    access_path.write_text(token_entry(DIGEST) + jwt_entry("jwks.json"))
    return Access.load(access_path)


@pytest.fixture
async def guarded(start_sidecar: StartSidecar, access: Access) -> AsyncIterator[Sidecar]:
    """A sidecar that wants credentials; what is right about them works to the end."""
    sidecar: Sidecar = await start_sidecar(access)
    yield sidecar
    by_token = {"authorization": f"Bearer {SECRET}"}
    assert (await sidecar.ask("GET", KEY, headers=by_token)).status_code == 404
    by_jwt = {"authorization": f"Bearer {signed(now())}"}
    assert (await sidecar.ask("GET", KEY, headers=by_jwt)).status_code == 404


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_credentials_are_refused_without_a_reason(guarded: Sidecar, name: str) -> None:
    """The same words for all of them: nothing tells a guesser how near it is."""
    said = WRONG[name]()
    headers = {} if said is None else {"authorization": said}
    answer = await guarded.ask("GET", KEY, headers=headers)
    nothing = await guarded.ask("GET", KEY)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert (document["code"], document["facts"]) == ("UNAUTHENTICATED", nothing.json()["facts"])
    if said and len(said) > 30:
        assert said[-20:] not in answer.text
    assert "sha256" not in answer.text
    assert "expired" not in answer.text


@pytest.mark.parametrize("name", ["nothing", "made up", "expired", "alg none"])
async def test_no_route_but_the_public_ones_is_served_to_them(guarded: Sidecar, name: str) -> None:
    """Before anything of the request is looked at: a body that is none is not told so."""
    from llmspell_dist.sidecar.routes import all_endpoints

    said = WRONG[name]()
    headers = {} if said is None else {"authorization": said}
    for endpoint in all_endpoints():
        if endpoint.socket:
            continue
        path = "/".join("x" if part.startswith("{") else part for part in endpoint.path.split("/"))
        answer = await guarded.ask(endpoint.method, path, headers=headers)
        expected = {200} if endpoint.public else {401}
        assert answer.status_code in expected, endpoint.path


async def test_the_library_itself_would_not_sign_such_a_token() -> None:
    """What the test above sends is what an attacker builds by hand."""
    with pytest.raises(jwt.exceptions.InvalidKeyError):
        jwt.encode(now(), public_pem(), "HS256")
