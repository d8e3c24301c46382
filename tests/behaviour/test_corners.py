"""Corners where two features meet: found by attacking them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from fix_state import Expiring, Raw, Store, sweep_all, until

from llmspell_dist import (
    HistoryUnavailableError,
    InvalidTTLError,
    StateManager,
    StoreUnavailableError,
)
from llmspell_dist.client import Spell
from llmspell_dist.redis.scripts import load_script

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]
S = "agent:alice"


@pytest.mark.parametrize("write", ["set", "increment", "append", "merge"])
async def test_an_expire_of_a_missing_key_leaves_nothing_to_the_write_behind_it(
    state: StateManager, write: str
) -> None:
    """As one after the other would: there was nothing whose time could be set."""
    for key, there in (("missing", False), ("there", True)):
        if there:
            initial: dict[str, Any] = {"set": 1, "increment": 1, "append": [1], "merge": {"a": 1}}
            await state.set(S, key, initial[write])
        async with state.transaction() as tx:
            tx.expire(S, key, 100)
            if write == "set":
                tx.set(S, key, 2)
            elif write == "increment":
                tx.increment(S, key)
            elif write == "append":
                tx.append(S, key, 2)
            else:
                tx.merge(S, key, {"b": 2})
        record = await state.get_record(S, key)
        assert record is not None
        assert (record.expires is not None) is there


@pytest.mark.library_only("requests of several tasks take several connections, in no order")
async def test_a_clear_behind_a_rewrite_of_what_expired_counts_it(
    state: StateManager, expiring: Expiring
) -> None:
    """Both in one group: the index of expiries is brought up to date in between."""
    await expiring(S, k=1)
    _, cleared = await asyncio.gather(state.set(S, "k", 2, ttl=100), state.clear(S))
    assert cleared == 1


async def test_the_past_of_a_forgotten_scope_is_not_taken_for_absence(
    spell: Spell, state: StateManager, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty scope is forgotten after a day, when the log no longer reaches it."""
    revision = await state.set(S, "k", "was here")
    await state.delete(S, "k")
    raw: Raw = store.raw
    emptied_ms = raw.now_ms()
    await until(lambda: raw.now_ms() > emptied_ms + 2)
    await state.set("global", "other", 1)
    log = f"{spell.namespace}:{{0}}:log"
    while len(entries := raw("XRANGE", log, "-", "+")) > 1:
        raw("XDEL", log, entries[0][0])
    script = load_script("sweep")
    at_once = type(script).from_source("sweep", script.body.decode().replace("86400000", "0"))
    monkeypatch.setattr("llmspell_dist.state.housekeeping.load_script", lambda _: at_once)
    raw("ZADD", f"{spell.namespace}:{{0}}:due", "0", S)
    await sweep_all(spell)
    assert not raw("EXISTS", f"{spell.namespace}:{{0}}:{S}")
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "k", revision)
    await state.set(S, "k", "again")
    with pytest.raises(HistoryUnavailableError):
        await state.get_at(S, "k", revision)
    assert await state.get_at(S, "k", (await state.set(S, "k", "now"))) == "now"


@pytest.mark.parametrize("ttl", [1e12, 4e9, timedelta(days=36_526), 10**30])
async def test_no_form_of_a_ttl_gets_round_its_limit(state: StateManager, ttl: Any) -> None:
    """A hundred years, whatever it is given in."""
    with pytest.raises(InvalidTTLError):
        await state.set(S, "k", 1, ttl=ttl)


@pytest.mark.parametrize("planted", ["due", "ttl", "g", "p", "trash"])
async def test_a_key_of_another_type_refuses_the_commit_before_its_log_entry(
    spell: Spell, state: StateManager, store: Store, planted: str
) -> None:
    """Whatever a commit writes beside the records is looked at first: no half commits."""
    await state.append(S, "list", 1)
    await state.set(S, "old", 1)
    prefix = f"{spell.namespace}:{{0}}:"
    key = {"due": f"{prefix}due", "trash": f"{prefix}trash"}.get(planted, f"{prefix}{S}:{planted}")
    if planted == "p":
        (key,) = (found.decode() for found in store.raw("KEYS", f"{prefix}{S}:p:*"))
    there = store.raw("EXISTS", key)
    if there:
        store.raw("RENAME", key, "aside")
    store.raw("SET", key, "something else")
    entries = len(store.log())
    calls: list[Any]
    if planted == "due":
        calls = [state.set("agent:new", "k", 1), state.set(S, "k", 1, ttl=5)]
    elif planted == "ttl":
        calls = [state.set(S, "k", 1, ttl=5), state.expire(S, "old", 5)]
    elif planted == "g":
        calls = [state.append(S, "another", 1), state.delete(S, "list")]
    elif planted == "p":
        calls = [state.append(S, "list", 2), state.set(S, "list", 2), state.delete(S, "list")]
    else:
        calls = [state.clear(S)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
    assert len(store.log()) == entries
    if planted not in ("due", "trash"):
        assert await state.set("agent:other", "k", 1)
    store.raw("DEL", key)
    if there:
        store.raw("RENAME", "aside", key)
