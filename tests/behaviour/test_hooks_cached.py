"""What hooks have kept in memory answers reads of values, and nothing that is based on a read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from fix_hooks import OTHER, Hooked, S

import llmspell_dist
from llmspell_dist import Scope
from llmspell_dist.hooks import CachingHook
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import HookError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import Cache, Fork, ForkOperation, Modified

pytestmark = pytest.mark.integration


@dataclass
class Person:
    """A typed value."""

    name: str


def _by_key(ctx: HookContext) -> Cache:
    return Cache(str(ctx.data.get("key")), 60)


async def test_an_update_is_based_on_what_is_there(hooked: Hooked) -> None:
    """Not on what was there when somebody read it; nor does it leave anything for others."""
    await hooked.do(hooked.state.set(S, "n", 1))
    hooked.hooks.register(P.BEFORE_STATE_READ, _by_key)
    assert await hooked.do(hooked.state.get(S, "n")) == 1
    for expected in (2, 3, 4):
        assert await hooked.do(hooked.state.update(S, "n", lambda n: n + 1)) == expected
    assert await hooked.do(hooked.state.get(S, "n")) == 1  # as the hook wants it
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get(S, "n")) == 4


async def test_a_transaction_is_based_on_what_is_there(hooked: Hooked) -> None:
    """Its reads go to the server."""
    await hooked.do(hooked.state.set(S, "n", 0))
    hooked.hooks.register(P.BEFORE_STATE_READ, _by_key)
    await hooked.do(hooked.state.get(S, "n"))
    for expected in range(3):

        def add(tx: Any, after: int = expected + 1) -> Any:
            return tx.set(S, "n", after)

        read, many, _ = await hooked.transact(
            lambda tx: tx.get(S, "n"), lambda tx: tx.get_many(S, ["n"]), add
        )
        assert (read, many) == (expected, {"n": expected})


async def test_other_reads_neither_keep_nor_are_answered(hooked: Hooked) -> None:
    """A key that all share holds one value, whoever asks how."""
    await hooked.do(hooked.state.set(S, "n", 1))
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda _: Cache("one", 60), name="caches")
    record = await hooked.do(hooked.state.get_record(S, "n"))
    assert record.value == 1
    assert await hooked.do(hooked.state.exists(S, "n")) is True
    assert await hooked.do(hooked.state.get_all(S)) == {"n": 1}
    assert await hooked.do(hooked.state.count(S)) == 1
    assert await hooked.do(hooked.state.get(S, "n")) == 1
    assert (await hooked.do(hooked.state.history(S, "n")))[0].value == 1
    assert (await hooked.do(hooked.state.get_record(S, "n"))).key == "n"
    assert await hooked.do(hooked.state.count(OTHER)) == 0


async def test_a_default_and_a_type_are_the_callers_own(hooked: Hooked) -> None:
    """What is kept is that there is nothing, and a value for each type."""
    hooked.hooks.register(P.BEFORE_STATE_READ, _by_key)
    assert await hooked.do(hooked.state.get(S, "p")) is None
    assert await hooked.do(hooked.state.get(S, "p", 7)) == 7
    assert await hooked.do(hooked.state.get_many(S, ["p"])) == {}
    await hooked.do(hooked.state.set(S, "q", Person("ann")))
    for _ in range(2):
        assert await hooked.do(hooked.state.get(S, "q")) == {"name": "ann"}
        assert await hooked.do(hooked.state.get(S, "q", as_type=Person)) == Person("ann")
        many = hooked.state.get_many(S, ["q"], as_type=Person)
        assert await hooked.do(many) == {"q": Person("ann")}


async def test_what_cannot_be_copied_is_not_kept(hooked: Hooked) -> None:
    """The caller gets it all the same."""

    class Odd:
        def __deepcopy__(self, _: Any) -> Odd:
            raise RuntimeError

    hooked.hooks.register(P.BEFORE_STATE_READ, _by_key)
    odd = Odd()
    for _ in range(2):
        assert await hooked.do(hooked.state.get(S, "none", odd)) is odd
    cache = hooked.hooks.engine.cache
    cache.put("k", odd, 60)
    assert cache.get("k") is None


# --- CachingHook ----------------------------------------------------------------------------------


async def test_every_write_of_this_client_ends_what_is_cached(hooked: Hooked) -> None:
    """Whoever it is done by, and whatever becomes of the hooks behind it."""
    state, hooks = hooked.state, hooked.hooks
    hooks.register(P.BEFORE_STATE_READ, CachingHook(60))

    async def cached(value: int) -> None:
        await hooked.do(state.set(S, "k", value))
        assert await hooked.do(state.get(S, "k")) == value

    fork = Fork((ForkOperation("f", "set", {"scope": S, "key": "k", "value": "forked"}),))
    await cached(1)
    hooks.register(P.BEFORE_STATE_WRITE, lambda _: fork, name="forks")
    await hooked.do(state.set(S, "another", 1))
    assert await hooked.do(state.get(S, "k")) == "forked"
    hooks.unregister("forks")

    def fail(_: HookContext) -> None:
        raise ValueError

    await cached(2)
    hooks.register(P.AFTER_STATE_WRITE, fail, on_failure="raise")
    with pytest.raises(HookError):
        await hooked.do(state.set(S, "k", 3))
    hooks.unregister("fail")
    assert await hooked.do(state.get(S, "k")) == 3
    await hooked.transact(lambda tx: tx.set(S, "k", 4))
    assert await hooked.do(state.get(S, "k")) == 4
    await hooked.do(state.set(OTHER, "k", 5))
    await hooked.do(state.copy_scope(OTHER, S))
    assert await hooked.do(state.get(S, "k")) == 5
    await hooked.do(state.clear(S))
    assert await hooked.do(state.get(S, "k")) is None
    await hooked.do(state.set(S, "k", 6))
    assert await hooked.do(state.get(S, "k", 0)) == 6


async def test_a_read_that_was_sent_elsewhere_is_cached_from_there(hooked: Hooked) -> None:
    """However a hook spells the scope: writes there end it."""
    hooked.hooks.register(
        P.BEFORE_STATE_READ, lambda _: Modified({"scope": Scope.parse(OTHER)}), name="m"
    )
    hooked.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
    for value in (1, 2):
        await hooked.do(hooked.state.set(OTHER, "k", value))
        for _ in range(2):
            assert await hooked.do(hooked.state.get(S, "k")) == value
    assert hooked.hooks.engine.cache.hits == 2


async def test_what_another_process_wrote_is_seen_later(hooked: Hooked, url: str) -> None:
    """Until then it is answered from memory: that is what it is for."""
    now = [0.0]
    cache = hooked.hooks.engine.cache
    cache._clock = lambda: now[0]
    hooked.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
    await hooked.do(hooked.state.set(S, "k", 1))
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    async with llmspell_dist.connect(url, namespace=hooked.spell.namespace) as other:
        await other.state.set(S, "k", 2)
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert cache.hits == 1
    now[0] = 61
    assert await hooked.do(hooked.state.get(S, "k")) == 2


async def test_what_expires_is_read_from_the_server(hooked: Hooked) -> None:
    """Only that knows when its time is over."""
    hooked.hooks.register(P.BEFORE_STATE_READ, CachingHook(60))
    await hooked.do(hooked.state.set(S, "k", 1, ttl=100))
    for _ in range(2):
        assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert hooked.hooks.engine.cache.hits == 0
    await hooked.do(hooked.state.persist(S, "k"))
    for _ in range(2):
        assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert hooked.hooks.engine.cache.hits == 1
    await hooked.do(hooked.state.expire(S, "k", 100))
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert hooked.hooks.engine.cache.hits == 1
