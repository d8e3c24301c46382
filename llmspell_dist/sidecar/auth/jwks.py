"""A JSON Web Key Set to keys, each with the algorithms that it may be used with. Pure.

Which algorithm a key serves is the key's to say, never the token's: by its type, curve and ``alg``.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any, Final, NamedTuple

import jwt
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

__all__ = ["JWKSError", "PublicKey", "parse_jwks"]

_MAX_KEYS: Final = 100
_RSA_BITS: Final = range(2048, 8193)
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


class JWKSError(Exception):
    """A key set cannot be had or read; becomes a problem that names its source."""


class PublicKey(NamedTuple):
    """One key that can verify signatures."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any
    """As PyJWT takes it."""


def parse_jwks(content: bytes) -> tuple[PublicKey, ...]:
    """Return the usable keys of a set; `JWKSError` if it is none, or has no usable key.

    Left out, as issuers add kinds of keys over time: unknown types and curves, symmetric keys, keys
    for encryption, RSA of less than 2,048 bits, and keys with a private part.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise JWKSError("is not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise JWKSError("is no JSON Web Key Set: it has no list of keys")
    if len(keys) > _MAX_KEYS:
        raise JWKSError(f"has more than {_MAX_KEYS} keys")
    usable = tuple(found for key in keys if (found := _public_key(key)) is not None)
    if not usable:
        raise JWKSError("has no key that can verify a signature with an asymmetric algorithm")
    return usable


def _public_key(jwk: dict[str, Any]) -> PublicKey | None:
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or "d" in jwk or not isinstance(operations, list):
        return None
    if "verify" not in operations:
        return None
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        return None
    try:
        algorithms, key = _loaded(jwk)
    # Whatever a malformed number or point makes of it, the other keys stay usable.
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    stated = jwk.get("alg")
    if stated is not None:
        algorithms &= {stated} if isinstance(stated, str) else frozenset()
    return PublicKey(kid, algorithms, key) if algorithms else None


def _loaded(jwk: dict[str, Any]) -> tuple[frozenset[str], Any]:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "RSA":
        modulus = jwk["n"].rstrip("=")
        number = urlsafe_b64decode(modulus + "=" * (-len(modulus) % 4))
        if int.from_bytes(number, "big").bit_length() not in _RSA_BITS:
            return frozenset(), None
        return _RSA, RSAAlgorithm.from_jwk(jwk)
    if kind == "EC" and curve in _CURVES:
        return frozenset({_CURVES[curve]}), ECAlgorithm.from_jwk(jwk)
    if kind == "OKP" and curve == "Ed25519":
        return frozenset({"EdDSA"}), OKPAlgorithm.from_jwk(jwk)
    return frozenset(), None
