"""Rules about the claims of a verified JWT: which callers get a set of grants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.globs import Glob

__all__ = ["ClaimRule"]

_MAX_DEPTH: Final = 8


class ClaimRule:
    """What claims must be, all of them, for a rule to apply.

    Texts are patterns with ``*``, numbers and truth values are equal or not, tables look into the
    claim of that name. A claim that is a list matches if one of its elements does.
    """

    __slots__ = ("_wanted",)

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._wanted = _compiled(claims, "claims", _MAX_DEPTH)

    def matches(self, claims: Mapping[str, Any]) -> bool:
        """Return whether every claim that the rule names is there and fits."""
        return _table_fits(self._wanted, claims)


def _compiled(table: Mapping[str, Any], place: str, depth: int) -> dict[str, Any]:
    if not table:
        # Whoever means every token of an issuer says so: sub = "*".
        raise InvalidArgumentError(place, table, "must name at least one claim")
    if not depth:
        raise InvalidArgumentError(place, table, f"must be at most {_MAX_DEPTH} tables deep")
    return {name: _one(value, f"{place}.{name}", depth) for name, value in table.items()}


def _one(value: Any, place: str, depth: int) -> Any:
    if isinstance(value, str) and value:
        return Glob(value)
    if type(value) in (bool, int):
        return value
    if isinstance(value, dict):
        return _compiled(value, place, depth - 1)
    rule = "must be a text with or without *, an integer, true, false or a table"
    raise InvalidArgumentError(place, value, rule)


def _table_fits(wanted: dict[str, Any], claims: Mapping[str, Any]) -> bool:
    return all(name in claims and _fits(one, claims[name]) for name, one in wanted.items())


def _fits(wanted: Any, claim: Any) -> bool:
    if isinstance(claim, list):
        return any(_fits_one(wanted, element) for element in claim)
    return _fits_one(wanted, claim)


def _fits_one(wanted: Any, claim: Any) -> bool:
    if isinstance(wanted, Glob):
        return isinstance(claim, str) and wanted.matches(claim)
    if isinstance(wanted, dict):
        return isinstance(claim, dict) and _table_fits(wanted, claim)
    # Not True for 1: the type is part of what is wanted.
    return type(claim) is type(wanted) and bool(claim == wanted)
