"""Which part of a namespace a backup or a restore is about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final

from llmspell_dist.classes import StateClass
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.scope import Scope

__all__ = ["OWN_SCOPE", "Selection"]

OWN_SCOPE: Final = "custom:llmspell.backups"
"""Holds the leases of backups and how far schedules have come. It is in no backup and no restore: a
restore holds a lease in it itself, and a schedule that goes back would run twice."""

_NOT: Final = "!"


@dataclass(frozen=True, slots=True)
class Selection:
    """Scopes, classes and keys; what is empty selects everything."""

    scopes: tuple[str, ...] = ()
    """Printed scopes, or globs over them: ``agent:alice``, ``session:*``, ``workflow:w/*``.

    What stands behind a ``!`` is left out, whatever else selects it: ``!tool:*``.
    """
    classes: frozenset[StateClass] = frozenset()
    keys: frozenset[str] = frozenset()
    _matches: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        chosen = _matcher([one for one in self.scopes if not one.startswith(_NOT)])
        left_out = _matcher([one.removeprefix(_NOT) for one in self.left_out])

        @lru_cache(maxsize=8192)
        def matches(text: str) -> bool:
            return (chosen is None or chosen(text)) and not (left_out and left_out(text))

        object.__setattr__(self, "_matches", matches if self.scopes else None)

    @classmethod
    def of(
        cls,
        scopes: Iterable[str | Scope] | str | Scope = (),
        classes: Iterable[StateClass | str] | StateClass | str = (),
        keys: Iterable[str] | str = (),
    ) -> Selection:
        """Return a checked selection; a name that is no scope and no glob is refused.

        Of the scopes and globs those that begin with ``!`` say what is left out.
        """
        if isinstance(scopes, (str, Scope)):
            scopes = (scopes,)
        if isinstance(classes, (str, StateClass)):
            classes = (classes,)
        if isinstance(keys, str):
            keys = (keys,)
        return cls(
            tuple(sorted({_printed(one) for one in scopes})),
            frozenset(StateClass.coerce(one) for one in classes),
            frozenset(keys),
        )

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.scopes or self.classes or self.keys)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What says which scopes are left out."""
        return tuple(one for one in self.scopes if one.startswith(_NOT))

    @property
    def exact(self) -> tuple[str, ...] | None:
        """The scopes that are selected, if they are named one by one."""
        named = tuple(one for one in self.scopes if not one.startswith(_NOT))
        if not named or any(map(_is_glob, named)):
            return None
        return tuple(filter(self.wants_scope, named)) if self.left_out else named

    def covers(self, scope: str) -> bool:
        """Whether everything that a scope or glob means is selected, as far as that is sure."""
        if self.left_out or scope.startswith(_NOT):  # of what a glob means some may be left out
            return not (_is_glob(scope) or scope.startswith(_NOT)) and self.wants_scope(scope)
        return (
            not self.scopes
            or scope in self.scopes
            or (not _is_glob(scope) and self.wants_scope(scope))
        )

    def wants_scope(self, text: str) -> bool:
        """Whether a scope, by its printed name, may hold something that is selected."""
        return text != OWN_SCOPE and (self._matches is None or bool(self._matches(text)))

    def wants(self, key: str, state_class: int) -> bool:
        """Whether a key of a selected scope is selected."""
        return (not self.classes or state_class in self.classes) and (
            not self.keys or key in self.keys
        )

    @property
    def stored(self) -> dict[str, list[str]]:
        """The form that a backup keeps."""
        return {
            "scopes": list(self.scopes),
            "classes": sorted(str(one) for one in self.classes),
            "keys": sorted(self.keys),
        }

    def __str__(self) -> str:
        parts = [f"scopes {', '.join(self.scopes)}"] if self.scopes else []
        if self.classes:
            parts.append(f"classes {', '.join(sorted(str(one) for one in self.classes))}")
        if self.keys:
            parts.append(f"keys {', '.join(sorted(self.keys))}")
        return "; ".join(parts) or "everything"


def _matcher(scopes: list[str]) -> Callable[[str], bool] | None:
    """Return what tells whether a scope is one of these; None if there are none."""
    if not scopes:
        return None
    exact = {one for one in scopes if not _is_glob(one)}
    globs = [translate(one) for one in scopes if _is_glob(one)]
    pattern = re.compile("|".join(globs)).match if globs else None
    return lambda text: text in exact or (pattern is not None and pattern(text) is not None)


def _is_glob(text: str) -> bool:
    return any(char in text for char in "*?[")


def _printed(scope: str | Scope) -> str:
    if isinstance(scope, str) and scope.startswith(_NOT):
        return _NOT + _printed(scope.removeprefix(_NOT))
    if isinstance(scope, str) and _is_glob(scope):
        return scope
    try:
        return Scope.coerce(scope).text
    except InvalidArgumentError as error:
        rule = f"must be a scope, or a glob over printed scopes: it {error.rule}"
        raise InvalidArgumentError("scopes", scope, rule) from None
