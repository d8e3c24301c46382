"""What the near cache holds, while threads are served from it without a lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from llmspell_dist.cache.store import Entry, Store
from llmspell_dist.revision import BEGINNING


class _Served(OrderedDict[Entry, None]):
    """An order in which another thread is served just when somebody begins to go through it."""

    def __iter__(self) -> Iterator[Entry]:
        going = super().__iter__()
        self.move_to_end(next(super().__iter__()))
        return going


def test_others_are_served_while_room_is_made() -> None:
    """Each use moves an entry; that the oldest goes does not fail over it."""
    store, scope = Store(2, 10_000), dict[str, Entry]()
    store._order = _Served()
    for name in "abcd":
        store.put(Entry(scope, name, 1, BEGINNING, 1.0))
    assert list(scope) == ["c", "d"]
    assert (len(store), store.evictions) == (2, 2)
    assert store.bytes == sum(entry.size for entry in scope.values())
