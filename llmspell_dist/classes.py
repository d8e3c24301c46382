"""State classes: what is done with a value beyond storing it, and which class a key has.

A class is a row of the table `BEHAVIOURS`; everything that treats classes differently asks that
row, never the class by name. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from fnmatch import translate
from typing import Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope, ScopeKind

__all__ = ["BEHAVIOURS", "Behaviour", "ClassResolver", "ClassRules", "StateClass"]


class StateClass(IntEnum):
    """How a value is treated. The numbers stand in stored records and never change."""

    STANDARD = 0
    CRITICAL = 1
    BULK = 2
    EPHEMERAL = 3
    TRUSTED = 4
    SENSITIVE = 5
    EXTERNAL = 6
    ARCHIVE = 7

    @property
    def behaviour(self) -> Behaviour:
        """What is done with values of this class."""
        return BEHAVIOURS[self]

    @classmethod
    def coerce(cls, value: StateClass | str) -> StateClass:
        """Return the class, given as itself or by its name in any case."""
        if type(value) is cls:
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        names = ", ".join(name.lower() for name in cls.__members__)
        raise InvalidArgumentError("state_class", value, f"must be one of {names}")

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What is done with the values of one class."""

    log_payload: bool = True
    """Whether the change log holds the value, so that history can show it."""
    archive: bool = True
    """Whether the archiver keeps its changes."""
    default_ttl: timedelta | None = None
    """The TTL of a new value that is set without one."""
    durable_ack: bool = False
    """Whether a write waits for fsync or replicas unless the call says otherwise."""
    compress: bool = False
    encrypt: bool = False
    """Whether the value needs a cipher at rest."""
    redact: bool = False
    """Whether the value is hidden wherever it would be shown."""
    strict: bool = False
    """Whether the value must have the shape of JSON and keep the limits for foreign data."""
    skip_checks: bool = False
    """Whether redaction and inspection of the content are left out."""


BEHAVIOURS: Final[Mapping[StateClass, Behaviour]] = {
    StateClass.STANDARD: Behaviour(),
    StateClass.CRITICAL: Behaviour(durable_ack=True),
    StateClass.BULK: Behaviour(log_payload=False),
    StateClass.EPHEMERAL: Behaviour(
        log_payload=False, archive=False, default_ttl=timedelta(hours=1)
    ),
    StateClass.TRUSTED: Behaviour(skip_checks=True),
    StateClass.SENSITIVE: Behaviour(encrypt=True, redact=True),
    StateClass.EXTERNAL: Behaviour(strict=True, redact=True),
    StateClass.ARCHIVE: Behaviour(compress=True),
}

_CACHE_LIMIT: Final = 8192


@dataclass(frozen=True, slots=True)
class ClassRules:
    """Which class a key has, if the call does not say.

    The first matching `patterns` glob (``*``, ``?``, ``[...]``, over the key) decides, then the
    default of the scope by its text, then by its kind, then `default`.
    """

    patterns: tuple[tuple[str, StateClass], ...] = ()
    scopes: Mapping[str, StateClass] | tuple[tuple[str, StateClass], ...] = ()
    """Defaults by scope text (``agent:alice``) or kind (``agent``)."""
    default: StateClass = StateClass.STANDARD

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "default", StateClass.coerce(self.default))
        put(self, "patterns", tuple(_pattern(pair) for pair in _pairs("patterns", self.patterns)))
        put(self, "scopes", tuple(_scope_default(p) for p in _pairs("scopes", self.scopes)))

    def resolver(self) -> ClassResolver:
        """Return what answers for these rules, with a cache of its own."""
        return ClassResolver(self)

    @classmethod
    def inferred(cls, default: StateClass = StateClass.STANDARD) -> ClassRules:
        """Return rules that guess the class from the key, as rs-llmspell did.

        ``benchmark:`` and ``test:`` are trusted, ``temp:`` and ``cache:`` ephemeral, keys with
        ``secret``, ``token`` or ``credential`` sensitive, ``external:`` and ``user_input:``
        external.
        """
        return cls(
            patterns=(
                ("benchmark:*", StateClass.TRUSTED),
                ("test:*", StateClass.TRUSTED),
                ("temp:*", StateClass.EPHEMERAL),
                ("cache:*", StateClass.EPHEMERAL),
                ("*secret*", StateClass.SENSITIVE),
                ("*token*", StateClass.SENSITIVE),
                ("*credential*", StateClass.SENSITIVE),
                ("external:*", StateClass.EXTERNAL),
                ("user_input:*", StateClass.EXTERNAL),
            ),
            default=default,
        )


def _pairs(argument: str, pairs: object) -> list[tuple[object, object]]:
    items: Iterable[object]
    if isinstance(pairs, Mapping):
        items = pairs.items()
    elif isinstance(pairs, (list, tuple)):
        items = pairs
    else:
        raise InvalidArgumentError(argument, pairs, "must be pairs of a text and a class")
    found: list[tuple[object, object]] = []
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise InvalidArgumentError(argument, item, "must be pairs of a text and a class")
        found.append((item[0], item[1]))
    return found


def _pattern(pair: tuple[object, object]) -> tuple[str, StateClass]:
    glob, state_class = pair
    if not isinstance(glob, str) or not 1 <= len(glob) <= 256:
        raise InvalidArgumentError("patterns", glob, "must be globs of 1 to 256 characters")
    return glob, StateClass.coerce(state_class)  # type: ignore[arg-type]


def _scope_default(pair: tuple[object, object]) -> tuple[str, StateClass]:
    name, state_class = pair
    if isinstance(name, Scope):
        name = name.text
    if name not in set(ScopeKind):
        name = Scope.parse(name).text  # type: ignore[arg-type]
    return str(name), StateClass.coerce(state_class)  # type: ignore[arg-type]


class ClassResolver:
    """Answers which class a key of a scope has; pairs seen lately cost one look-up."""

    __slots__ = ("_cache", "_patterns", "_scopes", "rules")

    def __init__(self, rules: ClassRules) -> None:
        self.rules = rules
        self._patterns = [(re.compile(translate(glob)).match, c) for glob, c in rules.patterns]
        self._scopes = dict(rules.scopes)
        self._cache: dict[tuple[Scope, str], StateClass] = {}

    def resolve(
        self, scope: Scope, key: str, state_class: StateClass | str | None = None
    ) -> StateClass:
        """Return `state_class` if given, else the class that the rules give this key."""
        if state_class is not None:
            return StateClass.coerce(state_class)
        if not self._patterns and not self._scopes:
            return self.rules.default
        pair = (scope, key)
        found = self._cache.get(pair)
        if found is None:
            found = self._decide(scope, key)
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[pair] = found
        return found

    def _decide(self, scope: Scope, key: str) -> StateClass:
        for matches, state_class in self._patterns:
            if matches(key):
                return state_class
        by_kind = self._scopes.get(scope.kind.value, self.rules.default)
        return self._scopes.get(scope.text, by_kind)
