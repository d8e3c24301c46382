"""Inputs of hooks: recorded as they are given, injected in their order, differences named."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.codec import Codec
from llmspell_dist.errors import ConflictError, StoreTimeoutError
from llmspell_dist.hooks.context import ComponentId, HookContext
from llmspell_dist.hooks.errors import ReplayDivergedError
from llmspell_dist.hooks.inputs import LIVE, Injected, RecordedInput, Recording
from llmspell_dist.hooks.kept import (
    RecordedError,
    Unrecorded,
    keep,
    keep_error,
    restore,
    store,
)
from llmspell_dist.ttl import KEEP

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def context(inputs: Any = None) -> HookContext:
    """Return a context with these inputs."""
    made = HookContext("session:start", ComponentId("agent", "a"))
    if inputs is not None:
        made.inputs = inputs
    return made


def test_a_context_that_nobody_records_takes_inputs_as_they_are() -> None:
    """And calls the function itself."""
    ctx = context()
    assert ctx.inputs is LIVE
    assert ctx.now().tzinfo is UTC
    assert ctx.new_id() != ctx.new_id()
    assert 0 <= ctx.random() < 1
    assert ctx.call("add", lambda a, b: a + b, 1, b=2) == 3


def test_a_replay_gives_the_recorded_inputs_in_their_order() -> None:
    """Whatever the clock, the ids and the function would say now."""
    recording = Recording(clock=lambda: NOON, ids=lambda: "id-1", chance=lambda: 0.25)

    def hook(ctx: HookContext, answer: int) -> list[Any]:
        return [ctx.now(), ctx.call("ask", lambda _: answer, "q"), ctx.new_id(), ctx.random()]

    first = hook(context(recording), 7)
    injected = Injected(recording.taken)
    assert hook(context(injected), 8) == first == [NOON, 7, "id-1", 0.25]
    injected.finish()
    assert injected.divergence is None


async def test_answers_that_are_awaited_keep_the_order_of_the_calls() -> None:
    """However long each takes."""
    recording = Recording()
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "slow"

    async def quick() -> str:
        gate.set()
        return "quick"

    async def hook(ctx: HookContext) -> list[str]:
        answers: list[str] = await asyncio.gather(ctx.call("slow", slow), ctx.call("quick", quick))
        return answers

    assert await hook(context(recording)) == ["slow", "quick"]
    assert [one.name for one in recording.taken] == ["slow", "quick"]
    gate.clear()  # `slow` would wait for ever now
    assert await hook(context(Injected(recording.taken))) == ["slow", "quick"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda ctx: ctx.new_id(), "input 1: recorded now(), asked for new_id()"),
        (
            lambda ctx: (ctx.now(), ctx.call("read", int, "2")),
            "input 2: recorded call('read', …), asked for call('read', …), argument 1 differs",
        ),
        (
            lambda ctx: (ctx.now(), ctx.call("read", int, 1)),
            "input 2: recorded call('read', …), asked for call('read', …), argument 1 differs",
        ),
        (
            lambda ctx: (ctx.now(), ctx.call("write", int, "1")),
            "input 2: recorded call('read', …), asked for call('write', …)",
        ),
        (
            lambda ctx: (ctx.now(), ctx.call("read", int, "1"), ctx.random()),
            "input 3: recorded nothing, asked for random()",
        ),
    ],
)
def test_the_first_input_that_is_asked_for_otherwise_is_named(ask: Any, said: str) -> None:
    """Which it is, what was recorded, what was asked."""
    recording = Recording(clock=lambda: NOON)
    recorded = context(recording)
    recorded.now()
    recorded.call("read", int, "1")
    injected = Injected(recording.taken)
    with pytest.raises(ReplayDivergedError) as caught:
        ask(context(injected))
    assert str(caught.value) == said
    assert injected.divergence is caught.value


async def test_paths_side_by_side_may_ask_in_another_order() -> None:
    """The answers of then come at once, so that the order is another one; nothing has changed."""
    recording = Recording()
    gate = asyncio.Event()

    async def first(x: str) -> str:
        if x == "a":
            await gate.wait()
        return f"1{x}"

    async def second(x: str) -> str:
        gate.set()
        return f"2{x}"

    async def hook(ctx: HookContext) -> list[Any]:
        async def path(x: str) -> list[str]:
            return [await ctx.call("first", first, x), await ctx.call("second", second, x)]

        return list(await asyncio.gather(path("a"), path("b")))

    assert await hook(context(recording)) == [["1a", "2a"], ["1b", "2b"]]
    assert [one.arguments[0] for one in recording.taken] == [["a"], ["b"], ["b"], ["a"]]
    gate.clear()
    injected = Injected(recording.taken)
    assert await hook(context(injected)) == [["1a", "2a"], ["1b", "2b"]]
    injected.finish()
    assert injected.divergence is None


def test_of_several_inputs_left_the_first_is_named() -> None:
    """Whatever was asked for behind it."""
    recording = Recording(clock=lambda: NOON)
    recorded = context(recording)
    recorded.call("ask", int, "1")
    recorded.now()
    recorded.call("ask", int, "2")
    injected = Injected(recording.taken)
    context(injected).now()
    injected.finish()
    assert str(injected.divergence) == "input 1: recorded call('ask', …), asked for nothing"


def test_an_input_that_is_not_asked_for_any_more_is_named() -> None:
    """At the end of the run."""
    recording = Recording()
    context(recording).new_id()
    injected = Injected(recording.taken)
    injected.finish()
    assert str(injected.divergence) == "input 1: recorded new_id(), asked for nothing"


def test_the_first_difference_stays_the_first_though_the_hook_goes_on() -> None:
    """A hook that swallows the error hides nothing."""
    injected = Injected([RecordedInput("now", value=NOON)])
    for _ in range(2):
        with pytest.raises(ReplayDivergedError):
            context(injected).random()
    assert injected.divergence is not None
    assert injected.divergence.position == 1


def test_inputs_beyond_the_recorded_ones_can_be_taken_from_outside() -> None:
    """And the difference is noted all the same."""
    injected = Injected([], beyond=LIVE)
    assert context(injected).call("add", lambda a: a + 1, 1) == 2
    assert injected.divergence is not None


def test_what_a_call_raised_is_raised_again() -> None:
    """Of its class, if that is Python's or the library's own."""

    class OwnError(Exception):
        """Only this program knows it."""

    raised = [
        TimeoutError("late"),
        KeyError("k"),
        StoreTimeoutError("here", "slow"),
        OwnError("mine"),
    ]
    recording = Recording()
    for error in raised:

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            context(recording).call("fail", fail)
    injected = Injected(recording.taken)
    for error in raised[:3]:
        with pytest.raises(type(error)) as caught:
            context(injected).call("fail", int)
        assert str(caught.value) == str(error)
    with pytest.raises(RecordedError, match="OwnError: mine"):
        context(injected).call("fail", int)


async def test_an_answer_that_never_came_is_a_timeout_in_the_replay() -> None:
    """The run ended before it was there."""
    recording = Recording()
    never = asyncio.get_running_loop().create_future
    task = asyncio.ensure_future(context(recording).call("never", never))
    await asyncio.sleep(0)
    assert recording.taken[0].error is not None
    with pytest.raises(TimeoutError, match="the run ended before"):
        await context(Injected(recording.taken)).call("never", never)
    task.cancel()


def test_a_child_context_shares_its_parents_inputs() -> None:
    """So that one order holds for the whole run."""
    recording = Recording()
    context(recording).child("session:end").new_id()
    assert [one.kind for one in recording.taken] == ["new_id"]


# --- values as they are kept ----------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.text(),
    st.binary(max_size=9),
    st.floats(allow_nan=False),
    st.just(NOON),
    st.just(Decimal("1.50")),
)
NAMES = st.one_of(st.text(max_size=9), st.sampled_from(["$unrecorded", "$named", "value"]))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(NAMES, inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_can_be_stored_comes_back_equal(value: Any) -> None:
    """Even what looks like the marks of history."""
    codec = Codec()
    assert restore(codec.decode(codec.encode(store(keep(value))))) == value


def test_what_cannot_be_stored_leaves_a_gap_that_names_its_type() -> None:
    """And everything around it stays."""
    kept = keep({"a": object(), "b": [1, print], "c": {object()}, "when": datetime(2026, 1, 1)})  # noqa: DTZ001
    assert kept["b"][0] == 1
    assert isinstance(kept["b"][1], Unrecorded)
    assert str(kept["a"]) == "<not recorded: object>"
    assert kept["when"] == Unrecorded("datetime without a time zone")
    assert restore(store(kept)) == kept


def test_a_value_that_contains_itself_is_cut() -> None:
    """Recording never fails a hook."""
    around: list[Any] = []
    around.append(around)
    codec = Codec()
    codec.encode(store(keep(around)))


def test_words_that_mean_themselves_come_back_as_themselves() -> None:
    """KEEP is not data, and a hook may look for it."""
    assert restore(store(keep({"ttl": KEEP})))["ttl"] is KEEP


def test_a_copy_does_not_follow_the_original() -> None:
    """What a hook changes later is not what it was told."""
    original = {"list": [1]}
    kept = keep(original)
    original["list"].append(2)
    assert kept == {"list": [1]}


def test_errors_of_the_library_keep_their_facts() -> None:
    """As far as they are data."""
    error = keep_error(ConflictError(None, 3, [("agent:a", "k", 1, 2)])).error()
    assert isinstance(error, ConflictError)
    assert error.actual == 3
