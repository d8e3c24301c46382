"""Numbers: added to on the server, exact as far as 64 bits go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_state import Expiring, Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmspell_dist import InvalidArgumentError, StateClass, StateManager, WrongKindError
from llmspell_dist.errors import NumberOverflowError

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"
LOW, HIGH = -(2**63), 2**63 - 1


async def test_a_missing_number_counts_as_zero(state: StateManager) -> None:
    """And an expired or deleted one does."""
    assert await state.increment(S, "n") == 1
    assert await state.increment(S, "n", 41) == 42
    assert await state.increment(S, "n", -50) == -8
    assert await state.get(S, "n") == -8
    record = await state.get_record(S, "n")
    assert record is not None
    assert record.kind == "number"


SUMS: list[tuple[float, float, float]] = [
    (2**53, 1, 2**53 + 1),
    (2**53 + 1, 2, 2**53 + 3),
    (HIGH - 1, 1, HIGH),
    (LOW + 1, -1, LOW),
    (HIGH, LOW, -1),
    (LOW, HIGH, -1),
    (HIGH, -HIGH, 0),
    (10**18, -(10**18) + 1, 1),
    (-(10**18), 10**9 - 1, -(10**18) + 10**9 - 1),
    (999_999_999, 1, 10**9),
    (-1_000_000_000, 1, -999_999_999),
    (5, -5, 0),
    (0, 0, 0),
    (1, 0.5, 1.5),
    (0.1, 0.2, 0.1 + 0.2),
    (0.5, 1, 1.5),
    (1.5, -1.5, 0.0),
    (1.0, 1, 2.0),
    (1e300, 1e299, 1.1e300),
    (1e16, 1.0, 1e16 + 1.0),
    (2.5e-300, 2.5e-300, 5e-300),
]


async def test_sums_are_those_of_python(state: StateManager) -> None:
    """Exact for integers, a double if either is one, and of the right type."""
    for start, by, total in SUMS:
        await state.set(S, "n", start)
        found = await state.increment(S, "n", by)
        assert (found, type(found)) == (total, type(total))
        stored = await state.get(S, "n")
        assert (stored, type(stored)) == (total, type(total))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(numbers=st.lists(st.integers(LOW, HIGH), min_size=1, max_size=6))
async def test_integer_sums_are_exact_or_refused(state: StateManager, numbers: list[int]) -> None:
    """Over the whole range of 64 bits."""
    await state.set(S, "n", 0)
    total = 0
    for number in numbers:
        if LOW <= total + number <= HIGH:
            total += number
            assert await state.increment(S, "n", number) == total
        else:
            with pytest.raises(NumberOverflowError):
                await state.increment(S, "n", number)
    assert await state.get(S, "n") == total


async def test_an_overflow_is_refused_and_changes_nothing(
    state: StateManager, store: Store
) -> None:
    """The number stays, and the log knows nothing of it."""
    for start, by in ((HIGH, 1), (LOW, -1), (HIGH, HIGH), (LOW, LOW), (1.7e308, 1.7e308)):
        await state.set(S, "n", start)
        before = store.dump()
        with pytest.raises(NumberOverflowError):
            await state.increment(S, "n", by)
        assert store.dump() == before


NO_NUMBERS: list[Any] = [
    "5", None, True, [1], {"a": 1}, (1,), b"1", 2**64, float("inf"), "x" * 600_000,
]  # fmt: skip


async def test_only_numbers_can_be_added_to(state: StateManager, store: Store) -> None:
    """Anything else is a wrong kind, and stays as it was."""
    await state.set_many(S, {str(i): value for i, value in enumerate(NO_NUMBERS)})
    before = store.dump()
    for i in range(len(NO_NUMBERS)):
        with pytest.raises(WrongKindError) as caught:
            await state.increment(S, str(i))
        assert (caught.value.scope, caught.value.key) == (S, str(i))
        assert caught.value.operation == "increment"
    assert store.dump() == before


async def test_lists_and_maps_cannot_be_added_to(state: StateManager) -> None:
    """Nor can a number be appended to or merged into."""
    await state.append(S, "list", 1)
    await state.merge(S, "map", {"a": 1})
    await state.set(S, "n", 1)
    for key in ("list", "map"):
        with pytest.raises(WrongKindError):
            await state.increment(S, key)
    with pytest.raises(WrongKindError):
        await state.append(S, "n", 1)
    with pytest.raises(WrongKindError):
        await state.merge(S, "n", {"a": 1})
    assert await state.get_all(S) == {"list": [1], "map": {"a": 1}, "n": 1}


async def test_what_is_added_must_be_a_number(state: StateManager, store: Store) -> None:
    """Booleans are none here; nothing is sent."""
    before = store.dump(without=())
    bad: list[Any] = ["1", None, True, 2**63, float("nan"), float("inf"), 1j, b"1"]
    for by in bad:
        with pytest.raises(InvalidArgumentError, match="by"):
            await state.increment(S, "n", by)
    assert store.dump(without=()) == before


async def test_200_concurrent_increments_all_count(state: StateManager) -> None:
    """And each caller gets another sum."""
    sums = await asyncio.gather(*[state.increment(S, "n") for _ in range(200)])
    assert sorted(sums) == list(range(1, 201))
    assert await state.get(S, "n") == 200


async def test_an_increment_keeps_what_else_the_record_says(state: StateManager) -> None:
    """Created, class, schema version and TTL stay."""
    first = await state.set(S, "n", 1, ttl=100, schema_version=9, state_class=StateClass.TRUSTED)
    await state.increment(S, "n")
    record = await state.get_record(S, "n")
    assert record is not None
    assert (record.value, record.schema_version) == (2, 9)
    assert (record.state_class, record.created) == (StateClass.TRUSTED, first.time)
    assert record.expires is not None
    assert record.revision > first


async def test_an_increment_can_set_drop_and_keep_the_ttl(state: StateManager) -> None:
    """In the same atomic step."""
    await state.increment(S, "n", ttl=100)
    record = await state.get_record(S, "n")
    assert record is not None
    assert record.expires is not None
    await state.increment(S, "n")
    kept = await state.get_record(S, "n")
    assert kept is not None
    assert kept.expires == record.expires
    await state.increment(S, "n", ttl=None)
    dropped = await state.get_record(S, "n")
    assert dropped is not None
    assert dropped.expires is None


async def test_an_expired_number_begins_anew(state: StateManager, expiring: Expiring) -> None:
    """At zero, without the old TTL."""
    await expiring(S, n=100)
    assert await state.increment(S, "n") == 1
    record = await state.get_record(S, "n")
    assert record is not None
    assert record.expires is None
    assert [c.op for c in await state.history(S, "n")] == ["increment", "expired", "set"]
