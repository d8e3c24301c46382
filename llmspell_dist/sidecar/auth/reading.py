"""An access file's text to checked values: every mistake names file, entry and rule. Pure.

The shape is msgspec's to check, TOML the standard library's; what is left here is what the entries
mean. No error quotes a value that may be a secret.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.claims import ClaimRule
from llmspell_dist.sidecar.auth.entries import (
    ALGORITHMS,
    NAME,
    NAME_RULE,
    Entries,
    IssuerEntry,
    JWTRule,
    PeerEntry,
    TokenEntry,
)
from llmspell_dist.sidecar.auth.errors import AccessFileError
from llmspell_dist.sidecar.auth.grants import Grant, GrantSet, Principal, Verb
from llmspell_dist.sidecar.auth.sources import key_source

__all__ = ["read_entries"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_LEEWAY_S: Final = 300
_MAX_ID: Final = 2**32 - 2
_NOBODY: Final = 65534
"""What the kernel says of every user from another user namespace."""


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table without unknown names in it."""


class _Grant(_Shape, frozen=True):
    scopes: list[str]
    verbs: list[str]


class _Token(_Shape, frozen=True):
    name: str
    sha256: str
    grants: list[_Grant]
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _Rule(_Shape, frozen=True):
    claims: dict[str, Any]
    grants: list[_Grant]


class _JWT(_Shape, frozen=True):
    name: str
    issuer: str
    audience: str | list[str]
    jwks: str
    rules: list[_Rule]
    algorithms: list[str] = msgspec.field(default_factory=lambda: ["RS256", "ES256"])
    leeway: int | float = 30
    jwks_ca_file: str | None = None
    jwks_token_file: str | None = None


class _Peer(_Shape, frozen=True):
    grants: list[_Grant]
    uid: int | None = None
    gid: int | None = None


class _Anonymous(_Shape, frozen=True):
    grants: list[_Grant]


class _File(_Shape, frozen=True):
    token: list[_Token] = []
    jwt: list[_JWT] = []
    peer: list[_Peer] = []
    anonymous: _Anonymous | None = None


class _BrokenRule(Exception):  # noqa: N818 - becomes an AccessFileError, which knows the file
    def __init__(self, entry: str, rule: str) -> None:
        super().__init__(entry, rule)
        self.entry, self.rule = entry, rule


def read_entries(content: bytes, path: Path) -> Entries:
    """Return what the file at `path` says; `AccessFileError` if it breaks a rule."""
    try:
        raw = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise AccessFileError(str(path), "", "must be UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise AccessFileError(str(path), "", f"must be TOML: {error}") from None
    try:
        return _entries(msgspec.convert(raw, _File), path.parent)
    except msgspec.ValidationError as error:
        rule, _, place = str(error).partition(" - at `$")
        entry = place.rstrip("`").lstrip(".")
        raise AccessFileError(str(path), _named(raw, entry), rule) from None
    except _BrokenRule as error:
        raise AccessFileError(str(path), _named(raw, error.entry), error.rule) from None


def _named(raw: dict[str, Any], entry: str) -> str:
    """Return the entry with the name that its author gave it, if that can be shown."""
    found = re.match(r"(token|jwt)\[(\d+)\]", entry)
    if not found:
        return entry
    table = raw[found[1]][int(found[2])]
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return entry
    return f"{found[0]} ({name}){entry[found.end() :]}"


@contextmanager
def _at(entry: str) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        place = f"{entry}.{error.argument}" if error.argument else entry
        raise _BrokenRule(place, error.rule) from None


def _entries(file: _File, folder: Path) -> Entries:
    if not (file.token or file.jwt or file.peer or file.anonymous):
        # Also what a file looks like while somebody writes it.
        raise _BrokenRule("", "must have at least one [[token]], [[jwt]], [[peer]] or [anonymous]")
    _all_differ(file.token, "token", "name")
    _all_differ(file.token, "token", "sha256")
    _all_differ(file.jwt, "jwt", "name")
    return Entries(
        tuple(_token(one, f"token[{at}]") for at, one in enumerate(file.token)),
        tuple(_issuer(one, f"jwt[{at}]", folder) for at, one in enumerate(file.jwt)),
        tuple(_peer(one, f"peer[{at}]") for at, one in enumerate(file.peer)),
        _anonymous(file.anonymous),
    )


def _all_differ(entries: Iterable[_Token | _JWT], table: str, field: str) -> None:
    seen: set[str] = set()
    for at, entry in enumerate(entries):
        value = getattr(entry, field)
        if value in seen:
            raise _BrokenRule(f"{table}[{at}].{field}", "must not be that of another entry")
        seen.add(value)


def _check_name(name: str, place: str) -> str:
    if not NAME.fullmatch(name):
        raise _BrokenRule(f"{place}.name", NAME_RULE)
    return name


def _grants(grants: list[_Grant], place: str) -> GrantSet:
    if not grants:
        raise _BrokenRule(f"{place}.grants", "must have at least one grant")
    found: list[Grant] = []
    for at, grant in enumerate(grants):
        here = f"{place}.grants[{at}]"
        if not grant.scopes:
            raise _BrokenRule(f"{here}.scopes", "must have at least one pattern")
        verbs = _verbs(grant.verbs, f"{here}.verbs")
        for number, pattern in enumerate(grant.scopes):
            try:
                found.append(Grant(pattern, verbs))
            except InvalidArgumentError as error:
                raise _BrokenRule(f"{here}.scopes[{number}]", error.rule) from None
    return GrantSet(found)


def _verbs(verbs: list[str], place: str) -> frozenset[Verb]:
    if verbs == ["*"]:
        return frozenset(Verb)
    try:
        found = frozenset(map(Verb, verbs))
    except ValueError:
        found = frozenset()
    if not found:
        raise _BrokenRule(place, f"must be some of {', '.join(Verb)}, or * alone for all of them")
    return found


def _token(entry: _Token, place: str) -> TokenEntry:
    name = _check_name(entry.name, place)
    if not _DIGEST.fullmatch(entry.sha256):
        rule = "must be the SHA-256 of the secret as 64 lower-case hex digits, never the secret"
        raise _BrokenRule(f"{place}.sha256", rule)
    expires = float("inf") if entry.expires is None else entry.expires.timestamp()
    principal = Principal(name, "token", _grants(entry.grants, place))
    return TokenEntry(bytes.fromhex(entry.sha256), principal, expires)


def _issuer(entry: _JWT, place: str, folder: Path) -> IssuerEntry:
    name = _check_name(entry.name, place)
    audiences = [entry.audience] if isinstance(entry.audience, str) else entry.audience
    if not audiences or not all(audiences):
        raise _BrokenRule(f"{place}.audience", "must be a text or a list of texts, none empty")
    if not entry.issuer:
        raise _BrokenRule(f"{place}.issuer", "must not be empty")
    if not entry.algorithms or not ALGORITHMS.issuperset(entry.algorithms):
        # HS*: whoever can verify such a token can make one. none: everybody can.
        rule = f"must be asymmetric ones: some of {', '.join(sorted(ALGORITHMS))}"
        raise _BrokenRule(f"{place}.algorithms", rule)
    if not 0 <= entry.leeway <= _MAX_LEEWAY_S:
        raise _BrokenRule(f"{place}.leeway", f"must be from 0 to {_MAX_LEEWAY_S} seconds")
    if not entry.rules:
        raise _BrokenRule(f"{place}.rules", "must have at least one rule")
    with _at(place):
        source = key_source(
            entry.jwks, folder, ca_file=entry.jwks_ca_file, token_file=entry.jwks_token_file
        )
    rules = []
    for at, rule_entry in enumerate(entry.rules):
        here = f"{place}.rules[{at}]"
        with _at(here):
            claims = ClaimRule(rule_entry.claims)
        rules.append(JWTRule(claims, _grants(rule_entry.grants, here)))
    return IssuerEntry(
        name,
        entry.issuer,
        tuple(audiences),
        source,
        frozenset(entry.algorithms),
        float(entry.leeway),
        tuple(rules),
    )


def _peer(entry: _Peer, place: str) -> PeerEntry:
    if entry.uid is None and entry.gid is None:
        raise _BrokenRule(place, "must have a uid, a gid or both")
    for field, number in (("uid", entry.uid), ("gid", entry.gid)):
        if number is None:
            continue
        if not 0 <= number <= _MAX_ID or number == _NOBODY:
            rule = f"must be from 0 to {_MAX_ID}, and not {_NOBODY}, which strangers have too"
            raise _BrokenRule(f"{place}.{field}", rule)
    return PeerEntry(entry.uid, entry.gid, _grants(entry.grants, place))


def _anonymous(entry: _Anonymous | None) -> Principal | None:
    if entry is None:
        return None
    return Principal("anonymous", "anonymous", _grants(entry.grants, "anonymous"))
