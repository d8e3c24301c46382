"""What the near cache holds: values by scope and key, bounded, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from llmspell_dist.state.near import ABSENT

if TYPE_CHECKING:
    from llmspell_dist.revision import Revision

__all__ = ["IMMUTABLE", "Entry", "Store"]

IMMUTABLE: Final = frozenset(
    (type(None), bool, int, float, str, bytes, datetime, date, UUID, Decimal, type(ABSENT))
)
"""Types whose values can be handed out as they are: nobody can change them."""
_OVERHEAD: Final = 200
"""About what Python takes for an entry without its value."""


class Entry:
    """One value, as it was read."""

    __slots__ = ("as_of", "expires_ms", "key", "packed", "scope", "size", "until", "value")

    def __init__(
        self,
        scope: dict[str, Entry],
        key: str,
        value: Any,
        as_of: Revision,
        until: float,
        *,
        packed: bytes | None = None,
        expires_ms: int = 0,
    ) -> None:
        self.scope = scope
        """The entries of its scope, which it is one of."""
        self.key = key
        self.value = value
        self.as_of = as_of
        """The scope's revision when this was the key's value."""
        self.packed = packed
        """A value that could be changed is decoded anew for each who asks; else None."""
        self.expires_ms = expires_ms
        self.until = until
        """Until when, by this process's clock, it may be served at most."""
        held = len(packed) if packed is not None else len(value) if _sized(value) else 32
        self.size = _OVERHEAD + len(key) + held


def _sized(value: Any) -> bool:
    return type(value) in (str, bytes)


class Store:
    """The entries of all scopes in the order of their last use."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._order: OrderedDict[Entry, None] = OrderedDict()
        self.touch = self._order.move_to_end
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._order)

    def put(self, entry: Entry) -> None:
        """Add an entry; others go for it if need be."""
        old = entry.scope.get(entry.key)
        if old is not None:
            self.drop(old)
        entry.scope[entry.key] = entry
        self._order[entry] = None
        self.bytes += entry.size
        while len(self._order) > self._max_entries or self.bytes > self._max_bytes:
            # In one step: a thread that is served from memory moves entries without a lock.
            oldest, _ = self._order.popitem(last=False)
            self._forget(oldest)
            self.evictions += 1

    def drop(self, entry: Entry) -> bool:
        """Take an entry away; False if it is gone already."""
        if entry not in self._order:
            return False
        del self._order[entry]
        self._forget(entry)
        return True

    def _forget(self, entry: Entry) -> None:
        entry.scope.pop(entry.key, None)
        self.bytes -= entry.size
