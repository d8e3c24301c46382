"""A scope that is restored is what it was: every kind of value, with all that belongs to it."""

from __future__ import annotations

from typing import Any

import pytest
from fix_restore import Restores, contents, log_items, scan
from fix_state import Store, sweep_all

from llmspell_dist import ConflictError, Scope, StateClass, StateManager
from llmspell_dist.client import Spell
from llmspell_dist.records import RESTORED

pytestmark = [pytest.mark.integration, pytest.mark.backup]
S = "agent:alice"


async def fill(state: StateManager, scope: str) -> dict[str, Any]:
    """Every kind, some with a TTL."""
    await state.set(scope, "v", {"a": 1}, ttl=1000, schema_version=5)
    await state.set(scope, "v", {"a": 2})
    await state.set(scope, "n", 2**53 + 1, state_class=StateClass.TRUSTED)
    await state.set(scope, "big", "x" * 600_000)
    await state.append(scope, "l", 1, "two", ttl=2000)
    await state.merge(scope, "m", {"f": [1], 2: None})
    await state.set(scope, "bulk", "b" * 100, state_class=StateClass.BULK)
    return await state.get_all(scope)


async def test_every_kind_comes_back_with_what_belongs_to_it(
    spell: Spell, state: StateManager, store: Store, restores: Restores
) -> None:
    """Value, kind, class, schema version, created, expiry; and what came later is gone."""
    values = await fill(state, S)
    now_ms = store.raw.now_ms()
    before = contents(store, S, now_ms=now_ms)
    items = scan(store, [S])
    await state.set(S, "v", "changed")
    await state.append(S, "l", "more")
    await state.merge(S, "m", {}, remove=["f"])
    await state.delete(S, "n")
    await state.set(S, "later", 1)
    (done,) = await restores.restore(items)
    assert done.keys == len(values)
    assert await state.get_all(S) == values
    assert contents(store, S, now_ms=now_ms) == before
    store.check()
    await sweep_all(spell)
    assert len(store.elements()) == 3
    assert await state.get_all(S) == values


async def test_records_get_a_new_revision_and_say_that_they_were_restored(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Nobody's compare-and-set is fooled by a value that looks the same."""
    seen = await state.set(S, "a", 1)
    items = scan(store, [S])
    (done,) = await restores.restore(items)
    record = store.record(S, "a")
    assert record.flags & RESTORED
    assert seen < record.revision < done.revision
    with pytest.raises(ConflictError):
        await state.compare_and_set(S, "a", 2, expected=seen)
    await state.compare_and_set(S, "a", 2, expected=record.revision)
    assert not store.record(S, "a").flags & RESTORED


async def test_changes_of_the_log_are_repeated(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """Onto records that are older or newer than they."""
    await fill(state, S)
    items = scan(store, [S])
    begin = store.log()[0].revision
    await state.set(S, "v", "changed", ttl=None)
    await state.append(S, "l", 3, 4)
    await state.merge(S, "m", {"g": 1}, remove=["f"])
    await state.increment(S, "n", 5)
    await state.delete(S, "bulk")
    now_ms = store.raw.now_ms()
    before = contents(store, S, now_ms=now_ms)
    values = await state.get_all(S)
    entries = log_items(store, begin)
    await state.clear(S)
    await restores.restore(items, [entries])
    assert await state.get_all(S) == values
    assert contents(store, S, now_ms=now_ms) == before
    store.check()


async def test_another_scope_can_be_restored_to(
    state: StateManager, store: Store, restores: Restores
) -> None:
    """The source stays."""
    values = await fill(state, S)
    await restores.restore(scan(store, [S]), mapping=lambda _: Scope.parse("agent:copy"))
    assert await state.get_all("agent:copy") == await state.get_all(S) == values
