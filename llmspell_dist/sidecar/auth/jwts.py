"""JWTs: verified with the keys of their issuer, and mapped to what their claims are granted.

Signature, audience and issuer are PyJWT's to check; the times are checked here, by a clock that
tests can set. Nothing of a token is believed before, except which issuer's keys to try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final, NamedTuple

import jwt

from llmspell_dist.errors import shorten
from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.entries import IssuerEntry, KeySource
from llmspell_dist.sidecar.auth.errors import UnauthenticatedError
from llmspell_dist.sidecar.auth.grants import GrantSet, Principal
from llmspell_dist.sidecar.auth.keysets import KeySet

__all__ = ["VerifiedJWT", "Verifier"]

_MAX_SUBJECT: Final = 255
_MAX_UNIONS: Final = 256
# What PyJWT raises for hostile input, beside its own errors.
_BAD_TOKEN: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class VerifiedJWT(NamedTuple):
    """Whom a JWT belongs to, and for how long that may be taken for granted."""

    principal: Principal
    until: float
    """Seconds since 1970, leeway included."""
    keys: KeySet
    generation: int
    """Of the keys, when it was verified."""

    def holds(self, now: float) -> bool:
        """Return whether it is neither expired nor verified with keys of yesterday."""
        return now < self.until and self.keys.generation == self.generation


class Verifier:
    """Verifies JWTs of the issuers of one access file."""

    def __init__(
        self,
        issuers: Sequence[IssuerEntry],
        keysets: Mapping[KeySource, KeySet],
        *,
        clocks: Clocks,
    ) -> None:
        self._issuers: dict[str, list[IssuerEntry]] = {}
        for entry in issuers:
            self._issuers.setdefault(entry.issuer, []).append(entry)
        self._keysets = keysets
        self._clocks = clocks
        self._unions: dict[tuple[str, tuple[int, ...]], GrantSet] = {}

    async def verify(self, token: str) -> VerifiedJWT:
        """Return whom the token belongs to; `UnauthenticatedError` if it is not accepted."""
        header, issuer = _unverified(token)
        entries = self._issuers.get(issuer)
        if not entries:
            raise UnauthenticatedError(f"JWT: issuer {shorten(issuer)} is not in the access file")
        refusals = []
        for entry in entries:
            try:
                return await self._verify(token, header, entry)
            except UnauthenticatedError as error:
                refusals.append(error)
        # The last may be of an audience that the token is not even for: say all.
        if len(refusals) == 1 or any(error.retryable for error in refusals):
            raise max(refusals, key=lambda error: error.retryable)
        raise UnauthenticatedError("; ".join(error.reason for error in refusals))

    async def _verify(
        self, token: str, header: Mapping[str, Any], entry: IssuerEntry
    ) -> VerifiedJWT:
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in entry.algorithms:
            raise _refused(entry, f"algorithm {shorten(algorithm)} is not allowed")
        keys = self._keysets[entry.source]
        candidates = await keys.candidates(kid, algorithm)
        generation = keys.generation
        if not candidates:
            raise _refused(entry, f"no key {shorten(kid)} for {algorithm}")
        claims = _signed_claims(token, candidates, algorithm, entry)
        until = self._check_times(claims, entry)
        return VerifiedJWT(self._principal(claims, entry), until, keys, generation)

    def _check_times(self, claims: Mapping[str, Any], entry: IssuerEntry) -> float:
        now = self._clocks.now()
        until = _moment(claims, "exp", entry)
        if until is None:
            raise _refused(entry, "no exp")
        until += entry.leeway_s
        if now >= until:
            raise _refused(entry, f"expired {now - until:.0f} s ago")
        for name in ("nbf", "iat"):
            begins = _moment(claims, name, entry)
            if begins is not None and now < begins - entry.leeway_s:
                raise _refused(entry, f"{name} is {begins - now:.0f} s ahead")
        return until

    def _principal(self, claims: Mapping[str, Any], entry: IssuerEntry) -> Principal:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT:
            raise _refused(entry, f"sub is no text of 1 to {_MAX_SUBJECT} characters")
        if not subject.isprintable():
            raise _refused(entry, "sub is not printable")
        fitting = tuple(at for at, rule in enumerate(entry.rules) if rule.claims.matches(claims))
        if not fitting:
            raise _refused(entry, f"no rule fits the claims of {shorten(subject, 120)}")
        return Principal(f"{entry.name}/{subject}", "jwt", self._grants(entry, fitting))

    def _grants(self, entry: IssuerEntry, fitting: tuple[int, ...]) -> GrantSet:
        if len(fitting) == 1:
            return entry.rules[fitting[0]].grants
        union = self._unions.get((entry.name, fitting))
        if union is None:
            if len(self._unions) >= _MAX_UNIONS:
                self._unions.clear()
            union = GrantSet(grant for at in fitting for grant in entry.rules[at].grants)
            self._unions[entry.name, fitting] = union
        return union


def _refused(entry: IssuerEntry, why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"JWT of {entry.name}: {why}")


def _unverified(token: str) -> tuple[Mapping[str, Any], str]:
    try:
        decoded = jwt.decode_complete(token, options={"verify_signature": False})
    except _BAD_TOKEN:
        raise UnauthenticatedError("JWT: malformed") from None
    header, issuer = decoded["header"], decoded["payload"].get("iss")
    if "crit" in header or "b64" in header:
        raise UnauthenticatedError("JWT: it demands an extension")
    kid = header.get("kid")
    if not isinstance(issuer, str) or not (kid is None or isinstance(kid, str)):
        raise UnauthenticatedError("JWT: iss or kid is no text")
    return header, issuer


def _signed_claims(
    token: str, candidates: Sequence[Any], algorithm: str, entry: IssuerEntry
) -> Mapping[str, Any]:
    why: Exception | None = None
    for candidate in candidates:
        try:
            return jwt.decode(
                token,
                key=candidate.key,
                algorithms=[algorithm],
                audience=entry.audiences,
                issuer=entry.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except _BAD_TOKEN as error:
            why = error
    # Its name only: texts of a library may come to quote more than they do today.
    raise _refused(entry, _WHY.get(type(why), type(why).__name__))


_WHY: Final[dict[type | None, str]] = {
    jwt.InvalidSignatureError: "the signature is not of that key",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.MissingRequiredClaimError: "one of exp, iss, aud and sub is missing",
}


def _moment(claims: Mapping[str, Any], name: str, entry: IssuerEntry) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or abs(value) > 1e12 or not isfinite(value):
        raise _refused(entry, f"{name} is no moment")
    return float(value)
