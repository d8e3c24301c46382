"""Who restores reads what he has restored: his own caches forget it at once, on both surfaces."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fix_state import Store
from fix_watch import take, told

from llmspell_dist import NearCache, Options, blocking, connect
from llmspell_dist.hooks import CachingHook
from llmspell_dist.hooks.points import HookPoint as P

pytestmark = [pytest.mark.integration, pytest.mark.backup]
ALICE = "agent:alice"


async def test_a_restore_is_seen_by_its_own_client_at_once(
    url: str, namespace: str, tmp_path: Path
) -> None:
    """Near cache and kept results of hooks; watches begin anew, history tells."""
    options = Options(namespace=namespace, near_cache=NearCache())
    async with connect(url, options=options) as spell:
        near: Any = spell.near_cache
        await near.warm(ALICE)
        spell.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
        await spell.state.set(ALICE, "k", "old")
        async with spell.backups.to(f"file://{tmp_path}/backups") as kept:
            info = await kept.create()
            await spell.state.set(ALICE, "k", "new")
            assert await spell.state.get(ALICE, "k") == "new"
            async with spell.state.watch(ALICE) as watch:
                await kept.restore(info.id, rollback=False)
                assert await spell.state.get(ALICE, "k") == "old"
                assert told(await take(watch, 2)) == [
                    ("reset", "", None),
                    ("snapshot", "k", "old"),
                ]
        history = await spell.state.history(ALICE, "k")
        assert [one.op for one in history] == ["restored", "set", "set"]
        assert await spell.state.get_at(ALICE, "k", history[1].revision) == "new"
        assert await spell.state.get_at(ALICE, "k", history[0].revision) == "old"


async def test_of_the_blocking_surface_too(
    url: str, namespace: str, tmp_path: Path, store: Store
) -> None:
    """Its backups run in the background, and tell the caches of the threads."""

    def work() -> None:
        options = Options(namespace=namespace, near_cache=NearCache())
        with blocking.connect(url, options=options) as spell:
            near: Any = spell.near_cache
            near.warm(ALICE)
            spell.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
            spell.state.set(ALICE, "k", "old")
            with spell.backups.to(f"file://{tmp_path}/backups") as kept:
                info = kept.create()
                spell.state.set(ALICE, "k", "new")
                assert spell.state.get(ALICE, "k") == "new"
                kept.restore(info.id, rollback=False)
                assert spell.state.get(ALICE, "k") == "old"

    await asyncio.to_thread(work)
    assert store.record(ALICE, "k").flags & 16
