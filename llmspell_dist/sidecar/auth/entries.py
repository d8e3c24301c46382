"""What an access file says, as checked values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmspell_dist.sidecar.auth.claims import ClaimRule
from llmspell_dist.sidecar.auth.grants import GrantSet, Principal

__all__ = [
    "ALGORITHMS",
    "NAME",
    "NAME_RULE",
    "Entries",
    "IssuerEntry",
    "JWTRule",
    "KeySource",
    "PeerEntry",
    "TokenEntry",
]

NAME: Final = re.compile(r"(?!llms_)[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""What the name of an entry must match in full."""
NAME_RULE: Final = (
    "must be 1 to 64 of A-Z a-z 0-9 . _ -, begin with a letter or digit, be no secret"
)
ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""All asymmetric: a public key can never be taken for a shared secret, and ``none`` is none."""


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One bearer token, known by the digest of its secret."""

    digest: bytes
    principal: Principal
    expires: float
    """Seconds since 1970; infinite if it does not expire."""

    def __repr__(self) -> str:
        return f"TokenEntry({self.principal.name!r})"


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the public keys of an issuer are. Equal sources share what was fetched."""

    url: str = ""
    path: Path | None = None
    ca_file: Path | None = None
    """Certificates that the server's must descend from; None: those that the system trusts."""
    token_file: Path | None = None
    """Holds the bearer token to show to the server, as Kubernetes' own asks for one."""

    def __str__(self) -> str:
        return self.url or str(self.path)


@dataclass(frozen=True, slots=True)
class JWTRule:
    """Grants for the tokens whose claims fit."""

    claims: ClaimRule
    grants: GrantSet


@dataclass(frozen=True, slots=True)
class IssuerEntry:
    """Who issues JWTs, for whom they must be meant, and what they are good for."""

    name: str
    issuer: str
    audiences: tuple[str, ...]
    source: KeySource
    algorithms: frozenset[str]
    leeway_s: float
    rules: tuple[JWTRule, ...]


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """Grants for the processes of a user, of a group, or of both at once."""

    uid: int | None
    gid: int | None
    grants: GrantSet


@dataclass(frozen=True, slots=True)
class Entries:
    """A whole access file."""

    tokens: tuple[TokenEntry, ...] = ()
    issuers: tuple[IssuerEntry, ...] = ()
    peers: tuple[PeerEntry, ...] = ()
    anonymous: Principal | None = None
