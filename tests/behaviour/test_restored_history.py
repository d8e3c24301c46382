"""The past of keys whose scope was put back: what was before, in between, and since."""

from __future__ import annotations

import pytest
from fix_restored import Restoring
from fix_state import Raw, Store

from llmspell_dist import ConflictError, HistoryUnavailableError, Revision, StateManager
from llmspell_dist.classes import StateClass
from llmspell_dist.revision import MAX_SEQ

pytestmark = pytest.mark.integration
S, OTHER = "agent:alice", "agent:bob"


def before(revision: Revision) -> Revision:
    """The moment before a revision."""
    if revision.seq:
        return Revision(revision.ms, revision.seq - 1)
    return Revision(revision.ms - 1, MAX_SEQ)


async def test_history_names_the_restore_and_goes_on(
    state: StateManager, restoring: Restoring
) -> None:
    """For what is there after it, what it removed, and what was never there."""
    first = await state.set(S, "k", 1)
    kept = restoring.keep(S)
    second = await state.set(S, "k", 2)
    await state.set(S, "late", 1)
    restoring.begin()
    between = await state.set(S, "k", 3)
    await state.set(OTHER, "k", 3)
    swapped = restoring.swap(S, kept)
    changes = await state.history(S, "k")
    assert [c.op for c in changes] == ["restored", "set", "set", "set"]
    assert [c.revision for c in changes] == [swapped, between, second, first]
    assert (changes[0].key, changes[0].has_value, changes[0].previous) == ("k", False, None)
    assert changes[0].state_class is None
    assert [c.op for c in await state.history(S, "late")] == ["restored", "set"]
    assert [c.op for c in await state.history(S, "never")] == ["restored"]
    assert [c.op for c in await state.history(OTHER, "k")] == ["set"]


async def test_history_after_later_writes_leads_over_the_restore(
    state: StateManager, restoring: Restoring
) -> None:
    """The key's chain leads to the restore's beginning, which is of no scope."""
    await state.set(S, "k", 1)
    kept = restoring.keep(S)
    await state.set(S, "k", 2)
    marker = restoring.begin()
    await state.set(S, "k", 3)
    restoring.swap(S, kept)
    for number in range(3):
        await state.set(S, f"n{number}", 0)
    await state.set(S, "k", 4)
    await state.expire(S, "k", 1000)
    await state.set(S, "k", 5)
    changes = await state.history(S, "k")
    assert [(c.op, c.value) for c in changes] == [
        ("set", 5),
        ("ttl", None),
        ("set", 4),
        ("restored", None),
        ("set", 3),
        ("set", 2),
        ("set", 1),
    ]
    assert changes[2].previous == marker
    for limit in range(1, 8):
        assert await state.history(S, "k", limit=limit) == changes[:limit]


async def test_a_long_history_is_paged_over_restores(
    state: StateManager, restoring: Restoring
) -> None:
    """More than a page before, between and after several restores; also where a page ends there."""
    expected: list[str] = []
    await state.set(S, "k", 0)
    expected.append("set")
    kept = restoring.keep(S)
    for _ in range(3):
        kept = restoring.keep(S)
        restoring.whole(S, kept)
        expected.append("restored")
        for number in range(99):  # with the restore, a page
            await state.set(S, "k", number)
            expected.append("set")
    restoring.whole(S, kept)
    restoring.whole(S, kept)
    expected += ["restored"] * 2
    changes = await state.history(S, "k", limit=1000)
    assert [c.op for c in changes] == expected[::-1]
    assert len({c.revision for c in changes}) == len(expected)
    assert [c.revision for c in changes] == sorted((c.revision for c in changes), reverse=True)


async def test_values_at_moments_around_a_restore(
    state: StateManager, restoring: Restoring
) -> None:
    """Before it began, while it went on (the state of before), and after."""
    await state.set(S, "k", "kept")
    await state.set(S, "removed-later", "kept")
    await state.append(S, "list", 1, 2)
    await state.merge(S, "map", {"a": 1})
    kept = restoring.keep(S)
    last = await state.set(S, "k", "newer")
    await state.delete(S, "removed-later")
    late = await state.set(S, "late", "late")
    await state.append(S, "list", 3)
    marker = restoring.begin()
    between = await state.set(S, "k", "between")
    swapped = restoring.swap(S, kept)

    async def at(revision: Revision) -> list[object]:
        keys = ("k", "removed-later", "late")
        return [await state.get_at(S, key, revision, default=None) for key in keys]

    assert await at(last) == ["newer", "kept", None]
    assert await at(late) == ["newer", None, "late"]
    assert await at(marker) == ["newer", None, "late"]
    assert await at(between) == ["between", None, "late"]
    assert await at(before(swapped)) == ["between", None, "late"]
    assert await at(swapped) == ["kept", "kept", None]
    assert await state.get_at(S, "list", swapped) == [1, 2]
    assert await state.get_at(S, "map", swapped) == {"a": 1}
    assert await state.get_at(S, "list", before(swapped)) == [1, 2, 3]
    assert await state.get_at(S, "never", swapped, default=7) == 7
    # Also when others of the scope went on.
    await state.set(S, "other", 1)
    assert await at(swapped) == ["kept", "kept", None]
    assert await at(between) == ["between", None, "late"]
    assert await state.get_many(S, ["k", "late"]) == {"k": "kept"}


async def test_what_was_restored_and_is_gone_is_not_made_up(
    state: StateManager, restoring: Restoring, store: Store
) -> None:
    """The log does not hold it; that a key was not there, it tells."""
    await state.set(S, "k", 1)
    await state.set(S, "m", 1)
    await state.merge(S, "map", {"a": 1})
    kept = restoring.keep(S)
    swapped = restoring.whole(S, kept)
    later = await state.set(S, "k", 2)
    await state.set(S, "new", 1)
    await state.merge(S, "map", {"b": 1})
    merged = store.record(S, "map").revision
    await state.expire(S, "m", 1000)
    ended = store.record(S, "m").revision
    with pytest.raises(HistoryUnavailableError, match="restore"):
        await state.get_at(S, "k", swapped)
    assert await state.get_at(S, "k", later) == 2
    assert await state.get_at(S, "new", swapped, default=None) is None
    assert await state.get_at(S, "map", merged) == {"a": 1, "b": 1}  # it is as it was then
    await state.merge(S, "map", {"c": 1})
    with pytest.raises(HistoryUnavailableError, match="restore"):
        await state.get_at(S, "map", merged)
    with pytest.raises(HistoryUnavailableError, match="restore"):
        await state.get_at(S, "m", swapped)
    assert await state.get_at(S, "m", ended) == 1
    await state.clear(S)
    with pytest.raises(HistoryUnavailableError, match="restore"):
        await state.get_at(S, "never", swapped)  # the clear does not say what it removed


async def test_a_trimmed_log_still_tells_what_is_there(
    state: StateManager, restoring: Restoring, raw: Raw, store: Store
) -> None:
    """What was put back before the oldest entry is what it was at every moment since."""
    await state.set(S, "k", 1)
    await state.set(S, "k", 2)
    kept = restoring.keep(S)
    swapped = restoring.whole(S, kept)
    first = await state.set(S, "other", 1)
    second = await state.set(S, "other", 2)
    await state.set(S, "other", 3)
    raw("XTRIM", store.space.log("0"), "MINID", str(second))
    assert await state.get_at(S, "k", second) == 2
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "k", before(swapped))
    assert await state.get_at(S, "k", first) == 2
    assert await state.history(S, "k") == []


async def test_a_record_counts_as_put_back_until_it_changes(
    state: StateManager, restoring: Restoring, store: Store
) -> None:
    """Whatever changes it, its own chain begins; copies begin one of their own."""
    await state.set(S, "t", 1)
    await state.append(S, "l", 1)
    await state.merge(S, "m", {"a": 1})
    await state.increment(S, "n")
    await state.set(S, "c", 1, state_class=StateClass.BULK)
    await state.append(S, "copied", 1)
    restoring.whole(S, restoring.keep(S))
    assert all(store.record(S, key).flags & 16 for key in ("t", "l", "m", "n", "c"))
    store.check()
    await state.expire(S, "t", 100)
    await state.append(S, "l", 2)
    await state.merge(S, "m", {"b": 2})
    await state.increment(S, "n")
    await state.set(S, "c", 2, state_class=StateClass.BULK)
    await state.copy_scope(S, OTHER)
    assert not any(store.record(S, key).flags & 16 for key in ("t", "l", "m", "n", "c"))
    assert not any(store.record(OTHER, key).flags & 16 for key in ("t", "l", "m", "n", "copied"))
    assert [c.op for c in await state.history(OTHER, "copied")] == ["set"]
    assert [c.op for c in await state.history(S, "t")] == ["ttl", "restored", "set"]


async def test_a_compare_and_set_of_before_is_refused(
    state: StateManager, restoring: Restoring
) -> None:
    """Also with the revision that the value had when it was kept."""
    revision = await state.set(S, "k", 1)
    kept = restoring.keep(S)
    await state.set(S, "k", 2)
    marker = restoring.begin()
    restoring.swap(S, kept)
    with pytest.raises(ConflictError):
        await state.compare_and_set(S, "k", 3, expected=revision)
    record = await state.get_record(S, "k")
    assert record is not None
    assert (record.value, record.revision) == (1, marker)
    await state.compare_and_set(S, "k", 3, expected=marker)
