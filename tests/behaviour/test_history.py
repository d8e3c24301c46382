"""The past of a key: what happened to it, and what it was at any moment that the log holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_state import Expiring, Store, until

from llmspell_dist import (
    HistoryUnavailableError,
    InvalidArgumentError,
    Revision,
    StateClass,
    StateManager,
    context,
)

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


async def test_history_tells_what_happened_newest_first(state: StateManager) -> None:
    """Operation, value, revision before, who and for what."""
    with context(actor="planner", correlation_id="run-7", causation_id="cause"):
        first = await state.set(S, "k", 1)
    second = await state.set(S, "k", {"a": 1}, ttl=100, state_class=StateClass.TRUSTED)
    await state.persist(S, "k")
    await state.delete(S, "k")
    changes = await state.history(S, "k")
    assert [change.op for change in changes] == ["delete", "ttl", "set", "set"]
    one = changes[-1]
    assert (one.scope, one.key, one.value, one.has_value) == (S, "k", 1, True)
    assert (one.revision, one.time, one.previous) == (first, first.time, None)
    assert (one.actor, one.correlation_id) == ("planner", "run-7")
    assert one.context.causation_id == "cause"
    assert one.operation
    two = changes[-2]
    assert (two.revision, two.previous, two.value) == (second, first, {"a": 1})
    assert two.state_class is StateClass.TRUSTED
    assert two.expires is not None
    assert changes[1].expires is None
    assert changes[0].previous == changes[1].revision
    assert two.actor is not None  # the client's own name
    assert len({change.operation for change in changes}) == 4
    assert await state.history(S, "k", limit=2) == changes[:2]


async def test_partial_updates_tell_what_was_new(state: StateManager) -> None:
    """The elements, the fields set and removed, the sum."""
    await state.append(S, "l", 1, [2])
    await state.append(S, "l", 3)
    await state.merge(S, "m", {"a": 1, 2: None})
    await state.merge(S, "m", {"b": 2}, remove=["a", 2])
    await state.increment(S, "n", 5)
    await state.increment(S, "n", 0.5)
    assert [c.value for c in await state.history(S, "l")] == [(3,), (1, [2])]
    merges = await state.history(S, "m")
    assert [(c.value, set(c.removed)) for c in merges] == [
        ({"b": 2}, {"a", 2}),
        ({"a": 1, 2: None}, set()),
    ]
    assert [c.value for c in await state.history(S, "n")] == [5.5, 5]


async def test_history_of_one_key_is_not_that_of_its_neighbours(state: StateManager) -> None:
    """However many changes of others lie between."""
    expected = []
    for i in range(5):
        expected.append(await state.set(S, "k", i))
        for j in range(30):
            await state.set(S, f"other{j}", i)
            await state.set("user:u", "k", j)
    assert [c.revision for c in await state.history(S, "k")] == expected[::-1]
    assert [c.value for c in await state.history(S, "k")] == [4, 3, 2, 1, 0]


async def test_a_long_history_is_read_to_its_end(state: StateManager) -> None:
    """Over more than one round trip."""
    for i in range(250):
        await state.set(S, "k", i)
    changes = await state.history(S, "k", limit=1000)
    assert [change.value for change in changes] == list(range(249, -1, -1))
    assert len(await state.history(S, "k")) == 100
    assert len(await state.history(S, "k", limit=249)) == 249


async def test_history_goes_on_through_deletes_and_clears(state: StateManager) -> None:
    """Lives of a key before the present one belong to it."""
    await state.set(S, "k", 1)
    await state.delete(S, "k")
    await state.set(S, "other", 1)
    await state.set(S, "k", 2)
    await state.clear(S)
    await state.set(S, "other", 2)
    await state.append(S, "k", 3)
    assert [c.op for c in await state.history(S, "k")] == [
        "append",
        "clear",
        "set",
        "delete",
        "set",
    ]
    assert [c.op for c in await state.history(S, "other")] == ["set", "clear", "set"]


KINDS: dict[str, list[Any]] = {
    "value": ["a", None, {"b": [1]}, "x" * 1000],
    "number": [1, 2.5, 2**63 - 1, -7],
}


@pytest.mark.parametrize("kind", ["value", "number", "increment", "list", "map", "mixed"])
async def test_the_value_at_every_revision_can_be_read(state: StateManager, kind: str) -> None:
    """By its revision, by its time, and just before it."""
    expected: list[tuple[Revision, Any]] = []

    async def note(value: Any) -> None:
        record = await state.get_record(S, "k")
        assert record is not None
        assert record.value == value
        expected.append((record.revision, value))

    if kind in KINDS:
        for value in KINDS[kind]:
            await state.set(S, "k", value)
            await note(value)
    elif kind == "increment":
        for total in (1, 3, 6, 10):
            await state.increment(S, "k", total - (expected[-1][1] if expected else 0))
            await note(total)
    elif kind == "list":
        await state.set(S, "k", [0])
        await note([0])
        for i in range(1, 5):
            await state.append(S, "k", i)
            await note(list(range(i + 1)))
    elif kind == "map":
        await state.set(S, "k", {"z": 0})
        await note({"z": 0})
        await state.merge(S, "k", {"a": 1})
        await note({"z": 0, "a": 1})
        await state.merge(S, "k", {"b": 2}, remove=["z"])
        await note({"a": 1, "b": 2})
        await state.merge(S, "k", {"a": 3})
        await note({"a": 3, "b": 2})
    else:
        await state.append(S, "k", 1)
        await note([1])
        await state.expire(S, "k", 1000)
        await note([1])
        await state.set(S, "k", 5)
        await note(5)
        await state.increment(S, "k", 2)
        await note(7)
        await state.persist(S, "k")
        await note(7)
        await state.set(S, "k", {"a": 1})
        await note({"a": 1})
        await state.merge(S, "k", {"b": 2})
        await note({"a": 1, "b": 2})
    await state.set(S, "other", 1)
    for i, (revision, value) in enumerate(expected):
        assert await state.get_at(S, "k", revision) == value
        before = expected[i - 1][1] if i else "none"
        just_before = (
            Revision(revision.ms, revision.seq - 1)
            if revision.seq
            else Revision(revision.ms - 1, 2**32 - 1)
        )
        assert await state.get_at(S, "k", just_before, "none") == before
    last = expected[-1]
    assert await state.get_at(S, "k", last[0].time + timedelta(milliseconds=1)) == last[1]
    assert await state.get_at(S, "k", datetime.now(UTC) + timedelta(hours=1)) == last[1]
    assert await state.get_at(S, "k", datetime(2020, 1, 1, tzinfo=UTC), "none") == "none"


async def test_a_time_means_the_last_commit_of_its_millisecond(state: StateManager) -> None:
    """So the moment of a change includes it."""
    first = await state.set(S, "k", 1)
    await until(lambda: datetime.now(UTC) > first.time + timedelta(milliseconds=2))
    second = await state.set(S, "k", 2)
    assert await state.get_at(S, "k", second.time) == 2
    assert await state.get_at(S, "k", first.time) == 1
    assert await state.get_at(S, "k", first.time - timedelta(milliseconds=1)) is None


async def test_a_key_that_was_gone_at_a_moment_has_the_default(state: StateManager) -> None:
    """Deleted, cleared, not yet there."""
    first = await state.set(S, "k", 1)
    await state.delete(S, "k")
    deleted = (await state.stat(S)).revision
    second = await state.set(S, "k", 2)
    await state.clear(S)
    cleared = (await state.stat(S)).revision
    third = await state.set(S, "k", 3)
    assert deleted is not None
    assert cleared is not None
    for at, value in ((first, 1), (deleted, "none"), (second, 2), (cleared, "none"), (third, 3)):
        assert await state.get_at(S, "k", at, "none") == value
    assert await state.get_at(S, "never", third, "none") == "none"
    assert await state.get_at("user:never", "k", third, "none") == "none"


async def test_an_expired_value_is_gone_from_its_expiry_on(
    state: StateManager, expiring: Expiring, store: Store
) -> None:
    """Whether or not anybody has removed it by then."""
    await state.set(S, "k", "old")
    old = (await state.history(S, "k"))[0].revision
    await expiring(S, k="short")
    short = store.record(S, "k")
    expired = Revision(short.expires_ms, 2**32 - 1)
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    assert await state.get_at(S, "k", in_an_hour, "none") == "none"
    for _ in range(2):
        assert await state.get_at(S, "k", old) == "old"
        assert await state.get_at(S, "k", short.revision) == "short"
        assert await state.get_at(S, "k", expired, "none") == "none"
        await state.set(S, "k", "new")
    assert await state.get_at(S, "k", in_an_hour) == "new"


async def test_a_list_that_was_replaced_is_read_from_the_log_while_it_can_be(
    state: StateManager, store: Store
) -> None:
    """Its elements stay a moment; after that its past is not available, and that is said."""
    await state.append(S, "l", 1)
    revision = (await state.history(S, "l"))[0].revision
    await state.set(S, "l", "other")
    assert await state.get_at(S, "l", revision) == [1]
    for key in store.all_keys():
        if b":p:" in key:
            store.raw("DEL", key)
    with pytest.raises(HistoryUnavailableError) as caught:
        await state.get_at(S, "l", revision)
    assert (caught.value.scope, caught.value.key) == (S, "l")
    assert caught.value.reason


async def test_a_map_s_past_is_in_the_log_whole(state: StateManager, store: Store) -> None:
    """From its first field on, also after it was deleted."""
    await state.merge(S, "m", {"a": 1})
    await state.merge(S, "m", {"b": 2}, remove=["a"])
    revisions = [change.revision for change in await state.history(S, "m")]
    await state.delete(S, "m")
    for key in store.all_keys():
        if b":p:" in key:
            store.raw("DEL", key)
    assert await state.get_at(S, "m", revisions[1]) == {"a": 1}
    assert await state.get_at(S, "m", revisions[0]) == {"b": 2}


async def test_before_the_trimmed_log_there_is_no_past(state: StateManager, store: Store) -> None:
    """The history ends there; a value that may have been is not guessed."""
    first = await state.set(S, "k", 1)
    await state.set(S, "still", "there")
    second = await state.set(S, "k", 2)
    third = await state.set(S, "k", 3)
    store.raw("XTRIM", store.space.log("0"), "MINID", str(second))
    assert [c.value for c in await state.history(S, "k")] == [3, 2]
    assert await state.get_at(S, "k", second) == 2
    assert await state.get_at(S, "k", third) == 3
    assert await state.get_at(S, "still", third) == "there"
    with pytest.raises(HistoryUnavailableError) as caught:
        await state.get_at(S, "k", first)
    assert "log" in caught.value.reason
    store.raw("XTRIM", store.space.log("0"), "MAXLEN", 0)
    assert await state.history(S, "k") == []
    assert await state.get_at(S, "k", third) == 3
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "k", second)


async def test_a_map_whose_beginning_was_trimmed_has_no_past(
    state: StateManager, store: Store
) -> None:
    """Merges alone do not make a value."""
    await state.merge(S, "m", {"a": 1})
    await state.merge(S, "m", {"b": 2})
    second = (await state.history(S, "m"))[0].revision
    await state.merge(S, "m", {"c": 3})
    store.raw("XTRIM", store.space.log("0"), "MINID", str(second))
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "m", second)


async def test_a_limit_must_make_sense(state: StateManager) -> None:
    """From 1 to 10,000."""
    bad: list[Any] = [0, -1, 10_001, "5", None, 2.0, True]
    for limit in bad:
        with pytest.raises(InvalidArgumentError, match="limit"):
            await state.history(S, "k", limit=limit)


async def test_a_moment_is_a_revision_or_an_aware_time(state: StateManager) -> None:
    """After 1970."""
    naive, early = datetime(2024, 1, 1), datetime(1960, 1, 1, tzinfo=UTC)  # noqa: DTZ001
    bad: list[Any] = ["1-1", 5, None, naive, early, (1, 1)]
    for at in bad:
        with pytest.raises(InvalidArgumentError, match=r"at|time"):
            await state.get_at(S, "k", at)
