"""What results of hooks come to where several hooks, attempts, keys or operations are involved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fix_hooks import OTHER, Hooked, S

from llmspell_dist import ConflictError, InvalidArgumentError
from llmspell_dist.errors import WrongKindError
from llmspell_dist.hooks import RetryHook
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import InvalidHookResultError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import (
    Fork,
    ForkOperation,
    HookResult,
    Modified,
    Redirect,
    Replace,
    Retry,
)

pytestmark = pytest.mark.integration


def _counting(key: str = "count") -> Fork:
    return Fork((ForkOperation("count", "increment", {"scope": S, "key": key}),))


def _busy(times: int) -> Callable[[HookContext], HookResult | None]:
    left = [times]

    def busy(_: HookContext) -> HookResult | None:
        left[0] -= 1
        return Retry(0, 10) if left[0] >= 0 else None

    return busy


# --- Retry begins anew ----------------------------------------------------------------------------


async def test_retry_begins_with_what_was_given(hooked: Hooked) -> None:
    """Forks and modifications of the earlier rounds count for nothing."""
    hooks, state = hooked.hooks, hooked.state
    hooks.register(P.BEFORE_STATE_WRITE, lambda _: _counting(), name="counts")
    added = lambda ctx: Modified({"value": ctx.data["value"] + 1})  # noqa: E731
    hooks.register(P.BEFORE_STATE_WRITE, added, name="adds")
    hooks.register(P.BEFORE_STATE_WRITE, _busy(3))
    await hooked.do(state.set(S, "k", 0))
    hooks.clear()
    assert await hooked.do(state.get_many(S, ["k", "count"])) == {"k": 1, "count": 1}
    hooks.register(P.BEFORE_STATE_READ, lambda c: Modified({"key": c.data["key"] + "k"}), name="m")
    hooks.register(P.BEFORE_STATE_READ, _busy(2))
    await hooked.do(state.set(S, "kk", "here"))
    assert await hooked.do(state.get(S, "k")) == "here"


@pytest.mark.parametrize("attempts", [1, 3])
async def test_forks_wait_until_it_has_succeeded(hooked: Hooked, attempts: int) -> None:
    """None is carried out beside what failed, however often; those of hooks behind it are."""
    hooks, state = hooked.hooks, hooked.state
    await hooked.do(state.set(S, "k", "text"))
    hooks.register(P.BEFORE_STATE_WRITE, lambda _: _counting(), name="counts")
    hooks.register(P.AFTER_STATE_WRITE, lambda _: _counting("behind"), name="too")
    hooks.register(P.AFTER_STATE_WRITE, lambda _: Retry(0, attempts), name="again")
    with pytest.raises(WrongKindError):
        await hooked.do(state.increment(S, "k"))
    hooks.clear()
    assert await hooked.do(state.get_all(S)) == {"k": "text", "behind": attempts}


async def test_forks_of_a_conflict_are_carried_out(hooked: Hooked) -> None:
    """At once, whatever becomes of the operation; those of before only if it succeeds."""
    hooks, state = hooked.hooks, hooked.state
    await hooked.do(state.set(S, "k", 1))
    hooks.register(P.BEFORE_STATE_WRITE, lambda _: _counting(), name="counts")
    hooks.register(P.STATE_CONFLICT, lambda _: _counting("conflicts"), name="too")
    with pytest.raises(ConflictError):
        await hooked.do(state.compare_and_set(S, "k", 2, expected=None))
    hooks.clear()
    assert await hooked.do(state.get_all(S)) == {"k": 1, "conflicts": 1}


async def test_a_contended_update_is_left_to_itself(hooked: Hooked) -> None:
    """It tries again: a `RetryHook` that knows conflicts keeps out of the way."""
    state = hooked.state
    hooked.hooks.register(P.AFTER_STATE_WRITE, RetryHook(errors=(ConflictError,)))
    await hooked.do(state.set(S, "k", 0))
    rivals = [10, 20]

    async def rival(ctx: HookContext) -> None:
        """Write between the update's reading and its writing."""
        if ctx.operation_type == "update" and rivals:
            await hooked.do(state.set(S, "k", rivals.pop()))

    hooked.hooks.register(P.BEFORE_STATE_WRITE, rival, timeout=5)
    assert await hooked.do(state.update(S, "k", lambda value: value + 1, attempts=5)) == 11
    assert not rivals


# --- Redirect in listings -------------------------------------------------------------------------


async def test_listings_follow_a_redirect_of_a_key(hooked: Hooked) -> None:
    """As `get` does; a key that has nothing there is left out, as by `get_many`."""
    state = hooked.state
    await hooked.do(state.set_many(S, {"mail": "ann@x", "gone": 1, "n": 1, "name": "ann"}))
    await hooked.do(state.set_many(OTHER, {"mail": "PUBLIC", "nn": 7}))
    sent = {"mail": Redirect(OTHER), "gone": Redirect(OTHER), "n": Redirect(OTHER, "nn")}
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda c: sent.get(c.data.get("key")), name="r")
    expected = {"mail": "PUBLIC", "n": 7, "name": "ann"}
    assert await hooked.do(state.get_all(S)) == expected
    assert dict(await hooked.do(state.items(S))) == expected
    assert await hooked.do(state.get_many(S, ["mail", "gone", "n", "name"])) == expected


# --- Modified and Replace behind a batch ----------------------------------------------------------


async def test_the_result_of_a_batch_is_changed_by_its_keys(hooked: Hooked) -> None:
    """One for all: the last changed key's of `set_many`; `delete_many` counts what is said."""
    state, hooks = hooked.state, hooked.hooks
    for answer in (Modified({"result": "mine"}), Replace("mine")):
        hooks.register(P.AFTER_STATE_WRITE, lambda _, answer=answer: answer, name="changes")
        assert await hooked.do(state.set_many(S, {"a": 1, "b": 2})) == "mine"
        assert await hooked.do(state.delete_many(S, ["a", "b", "none"])) == 2
        hooks.clear()

    def only_a(ctx: HookContext) -> HookResult | None:
        return Replace("a's") if ctx.data["key"] == "a" else None

    hooks.register(P.AFTER_STATE_WRITE, only_a)
    assert await hooked.do(state.set_many(S, {"a": 1, "b": 2})) == "a's"
    hooks.clear()
    hooks.register(P.AFTER_STATE_WRITE, lambda c: Replace(c.data["key"] == "none"), name="lies")
    assert await hooked.do(state.delete_many(S, ["a", "b", "none"])) == 1
    hooks.clear()
    assert await hooked.do(state.get_all(S)) == {}


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", {"a": 1}, 5, None])
async def test_a_transaction_refuses_what_cannot_be_appended(hooked: Hooked, value: Any) -> None:
    """As `append` alone does, and nothing is written."""
    hooked.hooks.register(P.BEFORE_STATE_WRITE, lambda _: Modified({"value": value}), name="m")
    with pytest.raises(InvalidArgumentError, match="must be a list of what to append"):
        await hooked.do(hooked.state.append(S, "l", 1))
    with pytest.raises(InvalidArgumentError, match="must be a list of what to append"):
        await hooked.transact(lambda tx: tx.append(S, "l", 1))
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {}


@pytest.mark.parametrize(
    ("operation", "parameters", "named"),
    [
        ("delete_many", {"scope": S, "keys": 5}, "keys"),
        ("delete_many", {"scope": S, "keys": "abc"}, "keys"),
        ("merge", {"scope": S, "key": "m", "mapping": 5}, "mapping"),
        ("merge", {"scope": S, "key": "m", "mapping": {}, "remove": 5}, "remove"),
        ("append", {"scope": S, "key": "l", "items": "abc"}, "items"),
        ("set_many", {"scope": S, "mapping": 5}, "mapping"),
        ("set", None, "parameters"),
        ("set", {"scope": 5, "key": "k", "value": 1}, "scope"),
        ("get", {"scope": S, "key": None}, "key"),
        (["set"], {}, "operation"),
        ("nothing", {}, "operation"),
    ],
)
async def test_bad_forks_are_refused_before_anything_is_sent(
    hooked: Hooked, operation: Any, parameters: Any, named: str
) -> None:
    """The error says whose they are and what is wrong."""
    fork = Fork((ForkOperation("odd", operation, parameters),))
    hooked.hooks.register(P.BEFORE_STATE_WRITE, lambda _: fork, name="forks")
    with pytest.raises(InvalidHookResultError, match=f"hook forks .* forked odd: {named} "):
        await hooked.do(hooked.state.set(S, "k", 1))
    hooked.hooks.clear()
    assert await hooked.do(hooked.state.get_all(S)) == {}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("version", 5),
        ("language", 5),
        ("queued", "yes"),
        ("replayable", "x"),
        ("tags", "abc"),
        ("tags", 5),
        ("tags", [1]),
    ],
)
async def test_what_register_is_given_is_checked(hooked: Hooked, argument: str, value: Any) -> None:
    """Nothing is registered."""
    with pytest.raises(InvalidArgumentError, match=f"^{argument} must be"):
        hooked.hooks.register(P.AFTER_STATE_WRITE, lambda _: None, name="odd", **{argument: value})
    assert hooked.hooks.get_hooks() == []
