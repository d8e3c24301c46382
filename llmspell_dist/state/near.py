"""What the state manager asks of a near cache, which lies in a layer above it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.steps import Steps

__all__ = ["ABSENT", "MISS", "NearReads"]

MISS: Final = object()
"""The key has to be read."""
ABSENT: Final = object()
"""The key has no value."""


class NearReads(Protocol):
    """`llmspell_dist.cache.near.Near`, as far as reads go."""

    def look(self, scope: str | Scope, key: str) -> Any:
        """Return the value of a key from memory, `ABSENT`, or `MISS`."""

    def read(self, scope: str | Scope, key: str) -> Steps[Any] | None:
        """Return what reads a key and keeps its value; None if its scope is not to be kept."""

    def read_many(self, scope: str | Scope, keys: Iterable[str]) -> Steps[dict[str, Any]]:
        """Return the values of those of some keys that have one, from memory where they are."""

    def given(self, value: Any, default: Any, as_type: type | None) -> Any:
        """Return what the caller gets for a value, or for `ABSENT`."""
