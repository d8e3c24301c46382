"""Who may do what: verbs, grants, and the callers that hold them.

No verb implies another. ``admin`` least of all: it is what changes how things are kept (backups,
hooks, schedules, trimming), and who may do that need not see values. ``verbs = ["*"]`` in an access
file is short for all five. A right on every single scope is no right on everything: only the
pattern ``*`` grants the target ``*``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NoReturn, final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.sidecar.auth.globs import Glob, check_grant_pattern, widened

__all__ = ["ALL", "NO_GRANTS", "RESERVED", "Grant", "GrantSet", "Kind", "Principal", "Verb"]

Kind = Literal["token", "jwt", "peer", "anonymous"]
RESERVED: Final = "custom:llmspell."
"""Scopes of the sidecar itself, which no grant opens: answers in them were for one caller."""
_MAX_DECIDED: Final = 1024
"""Answers kept per verb; beyond it they start anew, which costs less than keeping an order."""
_MAX_KEPT_TEXT: Final = 600
"""Longer targets are no scopes, and their answers are not kept."""


class Verb(StrEnum):
    """What a caller wants to do with a target."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to do `verbs` with everything that `pattern` matches."""

    pattern: str
    verbs: frozenset[Verb]

    def __post_init__(self) -> None:
        check_grant_pattern(self.pattern)
        if not self.verbs:
            raise InvalidArgumentError("verbs", self.verbs, "must not be empty")
        object.__setattr__(self, "verbs", frozenset(map(Verb, self.verbs)))


@final
class GrantSet:
    """Grants that belong together, with the answers that they gave lately.

    Everybody whom one entry of the access file means shares the set, and so the answers.
    """

    __slots__ = ("_by_verb", "decided", "grants")

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self.grants = tuple(grants)
        self._by_verb = {
            verb: [Glob(grant.pattern) for grant in self.grants if verb in grant.verbs]
            for verb in Verb
        }
        self.decided: dict[str, dict[str, bool]] = {verb: {} for verb in Verb}

    def decide(self, verb: Verb, target: str) -> bool:
        """Return whether a grant covers it, and keep the answer."""
        globs = self._by_verb[Verb(verb)]
        # No target is empty: a caller that lost what it asks for must not get everything.
        asked = widened(target)
        allowed = bool(target) and any(glob.matches(asked) for glob in globs)
        if target.startswith(RESERVED):
            allowed = False
        if len(target) <= _MAX_KEPT_TEXT:
            answers = self.decided[verb]
            if len(answers) >= _MAX_DECIDED:
                answers.clear()
            answers[target] = allowed
        return allowed

    def __iter__(self) -> Iterator[Grant]:
        return iter(self.grants)

    def __len__(self) -> int:
        return len(self.grants)

    def __repr__(self) -> str:
        return f"GrantSet({list(self.grants)!r})"


NO_GRANTS: Final = GrantSet()


@final
class Principal:
    """Whoever makes a request, and what it may do. Immutable.

    Two are equal if kind and name are; neither holds anything of the credentials.
    """

    __slots__ = ("_decided", "grants", "kind", "name")

    name: str
    """As the access file names a token; ``<entry>/<subject>`` of a JWT; ``uid-<n>`` of a peer."""
    kind: Kind
    grants: GrantSet
    _decided: dict[str, dict[str, bool]]

    def __init__(self, name: str, kind: Kind, grants: GrantSet | Iterable[Grant]) -> None:
        held = grants if isinstance(grants, GrantSet) else GrantSet(grants)
        put = object.__setattr__
        put(self, "name", name)
        put(self, "kind", kind)
        put(self, "grants", held)
        put(self, "_decided", held.decided)

    def may(self, verb: Verb, target: str) -> bool:
        """Return whether one of the grants covers `verb` on `target`.

        `target`: a scope's text, ``event:<type>``, ``correlation:<id>``, ``backup:<id>``, a
        pattern of these, or ``*``: everything.
        """
        try:
            return self._decided[verb][target]
        except KeyError:
            return self.grants.decide(verb, target)

    def require(self, verb: Verb, target: str) -> None:
        """Raise `ForbiddenError` unless the caller may."""
        if not self.may(verb, target):
            raise ForbiddenError(verb, target)

    @property
    def label(self) -> str:
        """Kind and name, which no two callers share: ``token:planner``."""
        return f"{self.kind}:{self.name}"

    def __repr__(self) -> str:
        return f"Principal({self.label!r}, {len(self.grants)} grants)"

    def __eq__(self, other: object) -> bool:
        if type(other) is not Principal:
            return NotImplemented
        return (self.kind, self.name) == (other.kind, other.name)

    def __hash__(self) -> int:
        return hash((self.kind, self.name))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Principal cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Principal cannot be changed ({name})")


ALL: Final = Principal("anybody", "anonymous", [Grant("*", frozenset(Verb))])
"""Whoever comes, where everybody may do everything."""
