"""A hook gives its place to another one of its name, and is there again if that cannot stand."""

from __future__ import annotations

import asyncio

import pytest

from llmspell_dist import InvalidArgumentError, blocking, connect
from llmspell_dist.hooks import HookContext, HookNotFoundError
from llmspell_dist.hooks.registration import Registration

pytestmark = pytest.mark.integration

POINT = "BeforeStateWrite"


def look(_: HookContext) -> None:
    """Say to go on."""


def replaced(hooks: Registration) -> None:
    """Replace a hook, once by what can be registered and once by what cannot."""
    before = hooks.register(POINT, look, name="guard", priority=1)
    with pytest.raises(InvalidArgumentError), hooks.replacing("guard", POINT):
        hooks.register(POINT, look, name="guard", queued=True)
    assert hooks.get_hooks() == [before]
    with hooks.replacing("guard", POINT):
        assert hooks.get_hooks() == []
        after = hooks.register(POINT, look, name="guard", priority=2)
    assert hooks.get_hooks() == [after]
    with pytest.raises(HookNotFoundError), hooks.replacing("other", POINT):
        pytest.fail("there is none")
    assert hooks.get_hooks() == [after]


async def test_a_hook_is_there_again_if_its_successor_is_refused(url: str, namespace: str) -> None:
    """And gone if that was registered; on both surfaces."""
    async with connect(url, namespace=namespace) as spell:
        replaced(spell.hooks)

    def block() -> None:
        with blocking.connect(url, namespace=namespace) as spell:
            replaced(spell.hooks)

    await asyncio.to_thread(block)


async def test_a_hook_of_the_fleet_is_there_again_if_its_successor_is_refused(
    url: str, namespace: str
) -> None:
    """And gone if that was registered: the others hear of that one."""
    async with connect(url, namespace=namespace) as spell:
        fleet = spell.hooks.fleet
        before = await fleet.add(POINT, look, name="guard", run="one")
        with pytest.raises(InvalidArgumentError):
            async with fleet.replacing("guard", POINT):
                await fleet.add(POINT, look, name="guard", queued=True)
        assert spell.hooks.get_hooks() == [before]
        async with fleet.replacing("guard", POINT):
            assert spell.hooks.get_hooks() == []
            after = await fleet.add(POINT, look, name="guard", priority=7)
        assert spell.hooks.get_hooks() == [after]
        with pytest.raises(HookNotFoundError):
            async with fleet.replacing("other", POINT):
                pytest.fail("there is none")
        own = next(one for one in fleet.processes() if one.id == fleet.process)
        assert [hook.priority for hook in own.hooks] == [7]


def test_a_hook_of_the_fleet_is_replaced_without_an_event_loop(url: str, namespace: str) -> None:
    """As with one."""
    with blocking.connect(url, namespace=namespace) as spell:
        fleet = spell.hooks.fleet
        before = fleet.add(POINT, look, name="guard")
        with pytest.raises(InvalidArgumentError), fleet.replacing("guard", POINT):
            fleet.add(POINT, look, name="guard", queued=True)
        assert spell.hooks.get_hooks() == [before]
        with fleet.replacing("guard", POINT):
            after = fleet.add(POINT, look, name="guard", priority=7)
        assert spell.hooks.get_hooks() == [after]
        with pytest.raises(HookNotFoundError), fleet.replacing("other", POINT):
            pytest.fail("there is none")
