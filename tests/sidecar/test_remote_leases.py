"""Leases of a sidecar's client, where the surface that both share says nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_sidecar import Sidecar
from fix_state import until

from llmspell_dist import connect
from llmspell_dist.errors import ClosedError

pytestmark = [pytest.mark.integration, pytest.mark.one_server]
S = "agent:alice"


async def test_closing_gives_back_what_has_just_been_granted(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is on its way: nobody is given a lease of a closed client, nor is it kept."""
    ours = sidecar.services.spell.leases
    spell = await connect(sidecar.url)
    leases: Any = spell.leases
    request, granted, going_on = leases._request, asyncio.Event(), asyncio.Event()

    async def late(method: str, *path: str, **more: Any) -> Any:
        found = await request(method, *path, **more)
        if path[-1] == "main":
            granted.set()
            await going_on.wait()
        return found

    monkeypatch.setattr(leases, "_request", late)
    asking = asyncio.create_task(spell.leases.acquire(S, ttl=60).__aenter__())
    await granted.wait()
    assert (await ours.show(S)).held
    await spell.close()
    going_on.set()
    with pytest.raises(ClosedError):
        await asking
    assert not (await ours.show(S)).held


async def test_closing_leaves_the_line(sidecar: Sidecar) -> None:
    """Whoever waits is told, and nothing is granted to it any more."""
    ours = sidecar.services.spell.leases
    async with ours.acquire(S):
        spell = await connect(sidecar.url)
        waiting = asyncio.create_task(spell.leases.acquire(S, ttl=60).__aenter__())

        async def in_line() -> bool:
            return bool((await ours.show(S)).waiting)

        await until(in_line)
        await spell.close()
        with pytest.raises(ClosedError):
            await waiting

        async def nobody_waits() -> bool:
            return not (await ours.show(S)).waiting

        await until(nobody_waits)
    assert not (await ours.show(S)).held
