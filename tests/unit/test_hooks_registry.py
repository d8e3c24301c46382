"""What hooks have counted: nothing that ran is left out, and no figure ever goes down."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmspell_dist import Spell, connect
from llmspell_dist.hooks import HookContext, RegisteredHook
from llmspell_dist.hooks import registry as registries
from llmspell_dist.hooks.registry import Registry
from llmspell_dist.testing import memory_url

pytestmark = pytest.mark.unit

POINT = "job:done"
PLACE = ("one", POINT)


@pytest.fixture
async def spell() -> AsyncIterator[Spell]:
    """A client in memory."""
    with memory_url() as url:
        async with connect(url) as found:
            yield found


def look(_: HookContext) -> None:
    """Say to go on."""


def fails(_: HookContext) -> None:
    """Raise."""
    raise ValueError("boom")


async def ran(spell: Spell, times: int = 1) -> None:
    """Reach the point so often."""
    for _ in range(times):
        await spell.hooks.run(POINT, "job")
    await spell.hooks.drain()


@pytest.mark.parametrize("queued", [False, True])
async def test_runs_of_a_hook_are_shown_however_it_runs(spell: Spell, queued: bool) -> None:
    """Also when others have come since, so that it runs in another chain."""
    spell.hooks.register(POINT, look, name="one", queued=queued)
    await ran(spell, 3)
    spell.hooks.register(POINT, look, name="other")
    await ran(spell, 2)
    counts = {one.name: one.timing.count for one in spell.hooks.stats()[POINT]}
    assert counts == {"one": 5, "other": 2}


@pytest.mark.parametrize("queued", [False, True])
async def test_what_a_hook_counted_stays_when_it_is_taken_away(spell: Spell, queued: bool) -> None:
    """Its successor of the same name goes on from there, as often as it is replaced."""
    for number in range(1, 4):
        spell.hooks.register(POINT, fails, name="one", queued=queued, breaker=False)
        await ran(spell, 2)
        assert spell.hooks.counts()[PLACE] == (2 * number, 2 * number, 0)
        spell.hooks.unregister("one")
        assert spell.hooks.counts()[PLACE] == (2 * number, 2 * number, 0)
    assert spell.hooks.stats() == {}


async def test_a_hook_that_comes_back_is_counted_once(spell: Spell) -> None:
    """As one of the fleet does whose process has other labels for a while."""
    hook = spell.hooks.register(POINT, look, name="one")
    for number in range(1, 4):
        await ran(spell)
        spell.hooks.clear()
        spell.hooks.add(hook)
        assert spell.hooks.counts()[PLACE].runs == number


async def test_hooks_of_one_name_that_come_back_by_turns_are_counted_once(spell: Spell) -> None:
    """Not only the one that went last is known again."""
    hooks = [RegisteredHook(POINT, look, name="one") for _ in range(3)]
    for number in range(1, 10):
        hook = hooks[number % 3]
        spell.hooks.add(hook)
        await ran(spell)
        spell.hooks.discard(hook)
        assert spell.hooks.counts()[PLACE].runs == number


def test_so_many_that_are_gone_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that went last."""
    monkeypatch.setattr(registries, "_MOST_GONE", 3)
    registry = Registry()
    for number in range(5):
        registry.add(RegisteredHook(POINT, look, name=f"h{number}"))
        registry.clear()
    assert [name for name, _ in registry.counts()] == ["h2", "h3", "h4"]
