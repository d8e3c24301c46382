"""Conditions: of many writers one wins, and the others are told who did."""

from __future__ import annotations

import asyncio

import pytest
from fix_state import Expiring, Store

from llmspell_dist import ConflictError, InvalidArgumentError, Revision, StateManager

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


async def test_of_200_callers_one_sets_an_absent_key(state: StateManager) -> None:
    """The winner has a revision, the others None, and the value is the winner's."""
    won = await asyncio.gather(*[state.set_if_absent(S, "k", i) for i in range(200)])
    winners = [i for i, revision in enumerate(won) if revision is not None]
    assert len(winners) == 1
    assert await state.get(S, "k") == winners[0]
    record = await state.get_record(S, "k")
    assert record is not None
    assert record.revision == won[winners[0]]


@pytest.mark.parametrize("expected", ["revision", "absent"])
async def test_of_200_compare_and_sets_one_wins(state: StateManager, expected: str) -> None:
    """Every other one is refused with the winner's revision."""
    base = await state.set(S, "k", "base") if expected == "revision" else None
    outcomes = await asyncio.gather(
        *[state.compare_and_set(S, "k", i, expected=base) for i in range(200)],
        return_exceptions=True,
    )
    won = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Revision)]
    assert len(won) == 1
    assert await state.get(S, "k") == won[0]
    for i, outcome in enumerate(outcomes):
        if i not in won:
            assert isinstance(outcome, ConflictError)
            assert (outcome.expected, outcome.actual) == (base, outcomes[won[0]])
            assert outcome.keys == [(S, "k", base, outcomes[won[0]])]


async def test_chains_of_compare_and_set_lose_no_step(state: StateManager) -> None:
    """Workers that retry on conflict count exactly."""
    await state.set(S, "k", 0)

    async def worker() -> None:
        done = 0
        while done < 10:
            record = await state.get_record(S, "k")
            assert record is not None
            try:
                await state.compare_and_set(S, "k", record.value + 1, expected=record.revision)
            except ConflictError:
                continue
            done += 1

    await asyncio.gather(*[worker() for _ in range(10)])
    assert await state.get(S, "k") == 100


async def test_a_key_deleted_and_set_again_is_not_the_one_that_was_read(
    state: StateManager,
) -> None:
    """No ABA: the same value at another revision does not satisfy the condition."""
    read = await state.set(S, "k", "a")
    await state.delete(S, "k")
    again = await state.set(S, "k", "a")
    with pytest.raises(ConflictError) as caught:
        await state.compare_and_set(S, "k", "b", expected=read)
    assert caught.value.actual == again
    with pytest.raises(ConflictError):
        await state.delete(S, "k", expected=read)
    await state.clear(S)
    third = await state.set(S, "k", "a")
    assert third > again > read
    with pytest.raises(ConflictError):
        await state.compare_and_set(S, "k", "b", expected=again)


async def test_revisions_go_on_after_a_clear(state: StateManager) -> None:
    """The scope remembers its last revision when it is empty."""
    before = await state.set(S, "k", 1)
    await state.clear(S)
    cleared = (await state.stat(S)).revision
    assert cleared is not None
    assert await state.set(S, "k", 1) > cleared > before


@pytest.mark.parametrize("gone", ["never", "deleted", "expired"])
async def test_a_condition_on_an_absent_key_holds_however_it_went(
    state: StateManager, expiring: Expiring, gone: str
) -> None:
    """Never set, deleted and expired are the same."""
    if gone == "deleted":
        await state.set(S, "k", 1)
        await state.delete(S, "k")
    elif gone == "expired":
        await expiring(S, k=1, other=1)
        revision = (await state.history(S, "k"))[0].revision
        with pytest.raises(ConflictError) as caught:
            await state.compare_and_set(S, "k", 2, expected=revision)
        assert caught.value.actual is None
        assert await state.set_if_absent(S, "other", 2) is not None
    revision = await state.compare_and_set(S, "k", 2, expected=None)
    record = await state.get_record(S, "k")
    assert record is not None
    assert (record.value, record.revision, record.expires) == (2, revision, None)


async def test_a_refused_write_changes_nothing_at_all(state: StateManager, store: Store) -> None:
    """Value, expiry, log, index: everything is as it was."""
    await state.set(S, "k", 1, ttl=100)
    await state.append(S, "list", 1)
    before = store.dump()
    for attempt in (
        state.compare_and_set(S, "k", 2, expected=None),
        state.compare_and_set(S, "k", 2, expected=Revision(1, 1), ttl=5),
        state.compare_and_set(S, "list", [], expected=Revision(1, 1)),
        state.compare_and_set(S, "new", 2, expected=Revision(1, 1)),
        state.delete(S, "k", expected=Revision(1, 1)),
        state.delete(S, "k", expected=None),
    ):
        with pytest.raises(ConflictError):
            await attempt
    assert await state.set_if_absent(S, "k", 2, ttl=5) is None
    assert not await state.delete(S, "missing")
    assert not await state.delete(S, "missing", expected=None)
    assert not await state.expire(S, "missing", 5)
    assert not await state.persist(S, "list")
    assert await state.delete_many(S, ["missing", "too"]) == 0
    assert store.dump() == before


async def test_a_delete_at_its_revision_goes_through(state: StateManager) -> None:
    """The revision of the last write, of whatever kind."""
    await state.set(S, "k", [1])
    await state.append(S, "k", 2)
    record = await state.get_record(S, "k")
    assert record is not None
    assert await state.delete(S, "k", expected=record.revision)


@pytest.mark.parametrize("expected", ["1-1", 5, b"1-1", (1, 1)])
async def test_an_expected_revision_must_be_one(
    state: StateManager, store: Store, expected: object
) -> None:
    """Text is no revision; nothing is sent."""
    before = store.dump()
    with pytest.raises(InvalidArgumentError, match="expected"):
        await state.compare_and_set(S, "k", 1, expected=expected)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="expected"):
        await state.delete(S, "k", expected=expected)  # type: ignore[arg-type]
    assert store.dump() == before
