"""Coming and going: watches of one scope that open and close while others do."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fix_state import Raw, Store, until
from fix_watch import take, told

from llmspell_dist import Spell, StateManager

pytestmark = pytest.mark.integration

ALICE = "agent:alice"


async def entered(state: StateManager) -> None:
    """Open a watch and close it."""
    async with state.watch(ALICE):
        pass


async def test_a_loop_that_is_left_can_be_begun_again_at_once(state: StateManager) -> None:
    """The watch that was dropped may still be on its way out."""
    since: Any = await state.set(ALICE, "k", 0)
    for number in range(1, 4):
        await state.set(ALICE, "k", number)
    for number in range(1, 4):
        async with asyncio.timeout(10):
            async for change in state.watch(ALICE, since=since):
                assert change.value == number
                since = change
                break
    assert await state.wait_for(ALICE, "k", lambda value: value == 3, timeout=5) == 3


async def test_a_newcomer_waits_for_the_one_that_leaves(
    state: StateManager, raw: Raw, store: Store
) -> None:
    """Whether the last one is closed, or was cancelled while it subscribed."""
    for turns in range(6):
        leaving = state.watch(ALICE)
        await leaving.start()
        closing = asyncio.ensure_future(leaving.aclose())
        subscribing = asyncio.ensure_future(entered(state))
        for _ in range(turns):
            await asyncio.sleep(0)
        subscribing.cancel()
        async with asyncio.timeout(5), state.watch(ALICE) as watch:
            await state.set(ALICE, "k", turns)
            assert told(await take(watch, 1)) == [("set", "k", turns)]
        await asyncio.gather(closing, subscribing, return_exceptions=True)
    await until(lambda: raw("PUBSUB", "NUMSUB", store.hash_of(ALICE))[1] == 0)


@pytest.mark.parametrize("rounds", [60, pytest.param(400, marks=pytest.mark.slow)])
async def test_many_come_and_go_and_each_hears_everything(
    spell: Spell, state: StateManager, raw: Raw, store: Store, rounds: int
) -> None:
    """Opened, closed, cancelled and dropped at any moment; nobody fails, nothing is left."""
    chance = random.Random(rounds)
    heard = 0

    async def one(worker: int) -> None:
        nonlocal heard
        dice = random.Random(chance.random())
        for number in range(rounds):
            if dice.random() < 0.3:
                starting = asyncio.ensure_future(entered(state))
                for _ in range(dice.randrange(8)):
                    await asyncio.sleep(0)
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                continue
            async with state.watch(ALICE, prefix=f"{worker}:") as watch:
                await state.set(ALICE, f"{worker}:{number}", number)
                assert [change.value for change in await take(watch, 1)] == [number]
                heard += 1
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)

    await asyncio.gather(*[one(worker) for worker in range(2)])
    assert heard > rounds
    async with asyncio.timeout(5), state.watch(ALICE) as watch:
        await state.set(ALICE, "k", 1)
        assert told(await take(watch, 1)) == [("set", "k", 1)]
    feeds = spell.state._watches.feeds  # type: ignore[union-attr]
    assert len(feeds) == 0
    assert raw("PUBSUB", "NUMSUB", store.hash_of(ALICE))[1] == 0
