"""Access control without a sidecar: clocks, signed JWTs, and an issuer that serves its keys."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

NOW: Final = 1_800_000_000.0
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
AUDIENCE: Final = "llmspell"
SUBJECT: Final = "system:serviceaccount:prod:planner"


class ManualTime:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.passed = 0.0

    @property
    def clocks(self) -> Any:
        """The clocks as access control takes them."""
        from llmspell_dist.sidecar.auth.clocks import Clocks

        return Clocks(now=lambda: NOW + self.passed, monotonic=lambda: 50.0 + self.passed)

    def advance(self, seconds: float) -> None:
        self.passed += seconds


@pytest.fixture
def manual_time() -> ManualTime:
    """Clocks that stand still until the test moves them."""
    return ManualTime()


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """Return a private key of ``RSA``, ``P-256``, ``P-384``, ``P-521`` or ``Ed25519``."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, Any] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
    return ec.generate_private_key(curves[kind]())


def public_jwk(kind: str, kid: str | None, number: int = 0, **more: Any) -> dict[str, Any]:
    """Return the public half as an issuer would publish it."""
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    algorithm: Any = {"RSA": RSAAlgorithm, "Ed25519": OKPAlgorithm}.get(kind, ECAlgorithm)
    jwk = dict(algorithm.to_jwk(private_key(kind, number).public_key(), as_dict=True))
    jwk.pop("key_ops", None)
    return jwk | ({} if kid is None else {"kid": kid}) | more


def jwks(*keys: dict[str, Any]) -> bytes:
    """Return a key set."""
    return json.dumps({"keys": keys}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a service account's token; a change to None leaves one out."""
    service_account = {"name": "planner", "uid": "5f1c"}
    found = {
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": SUBJECT,
        "iat": NOW - 60,
        "nbf": NOW - 60,
        "exp": NOW + 3600,
        "kubernetes.io": {"namespace": "prod", "serviceaccount": service_account},
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def signed(
    payload: Mapping[str, Any],
    *,
    kind: str = "RSA",
    number: int = 0,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    headers: Mapping[str, Any] | None = None,
) -> str:
    """Return a JWT."""
    import jwt

    header = ({} if kid is None else {"kid": kid}) | dict(headers or {})
    return jwt.encode(dict(payload), private_key(kind, number), algorithm, headers=header)


@dataclass
class Issuer:
    """An HTTP server on loopback that serves a key set, and counts how often."""

    url: str
    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of every request."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Answers wait for it; open unless a test closes it."""


@contextmanager
def _serving(tls: ssl.SSLContext | None) -> Iterator[Issuer]:

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append({name.lower(): value for name, value in self.headers.items()})
            found.gate.wait(30)
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        def log_message(self, *_: object) -> None:
            """Nothing: pytest's output is not for it."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Nothing: clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if tls is not None:
        scheme = "https"
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    url = f"{scheme}://127.0.0.1:{server.server_port}/jwks"
    found = Issuer(url, jwks(public_jwk("RSA", "rsa")))
    found.gate.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer whose key set holds an RSA key ``rsa``."""
    with _serving(None) as found:
        yield found


@pytest.fixture
def authority() -> trustme.CA:
    """An authority that nobody else knows."""
    return trustme.CA()


@pytest.fixture
def secure_issuer(authority: trustme.CA) -> Iterator[Issuer]:
    """The same behind TLS, with a certificate of `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with _serving(context) as found:
        yield found


def jwt_entry(source: str, **changes: str) -> str:
    """Return a ``[[jwt]]`` table as TOML; a change replaces the text of a value."""
    values = {
        "name": '"cluster"',
        "issuer": f'"{ISSUER}"',
        "audience": f'"{AUDIENCE}"',
        "jwks": f'"{source}"',
        "leeway": "0",
        "rules": (
            '[{claims = {sub = "system:serviceaccount:prod:*"}, '
            'grants = [{scopes = ["agent:*"], verbs = ["read"]}]}]'
        ),
    }
    return "[[jwt]]\n" + "".join(f"{key} = {text}\n" for key, text in (values | changes).items())


def token_entry(digest: str, name: str = "planner", **changes: str) -> str:
    """Return a ``[[token]]`` table as TOML; a change replaces the text of a value."""
    values = {
        "name": f'"{name}"',
        "sha256": f'"{digest}"',
        "grants": '[{scopes = ["agent:*"], verbs = ["read", "write"]}]',
    }
    return "[[token]]\n" + "".join(f"{key} = {text}\n" for key, text in (values | changes).items())


@pytest.fixture
def access_path(tmp_path: Path) -> Path:
    """Where a test writes its access file."""
    return tmp_path / "access.toml"
