"""What of a backup is restored, and to which scopes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from llmspell_dist.scope import Scope

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """Scopes, keys and classes to restore; by default all, each to where it was.

    `keys` are exact. `mapping` says for the printed name of a scope where it goes, None to leave it
    out.
    """

    keys: Collection[str] | None = None
    classes: Collection[int] | None = None
    mapping: Callable[[str], Scope | None] = Scope.parse

    def record_filter(self) -> Callable[[bytes, int], bool] | None:
        """Return what says whether a key of a class is restored; None: every one is."""
        if self.keys is None and self.classes is None:
            return None
        keys = None if self.keys is None else frozenset(one.encode() for one in self.keys)
        classes = frozenset(range(16)) if self.classes is None else frozenset(self.classes)

        def takes(key: bytes, state_class: int) -> bool:
            return state_class in classes and (keys is None or key in keys)

        return takes
