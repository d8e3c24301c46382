"""Replay: the same inputs give the same answer, and where not, the first difference is named."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest
from fix_replay import POINT, execution

from llmspell_dist import blocking, connect
from llmspell_dist.blocking import _hook_history as here_history
from llmspell_dist.blocking import fleet as here_fleet
from llmspell_dist.blocking import replay as here_replay
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.debugging import MAX_STATES, Breakpoint, DebugSession
from llmspell_dist.hooks.errors import (
    DebugSessionOverError,
    ExecutionNotFoundError,
    NotReplayableError,
)
from llmspell_dist.hooks.fleet import Fleet
from llmspell_dist.hooks.history import HookHistory
from llmspell_dist.hooks.modifications import Modification
from llmspell_dist.hooks.recording import Execution
from llmspell_dist.hooks.replay_model import ReplayConfig
from llmspell_dist.hooks.replaying import Replayer
from llmspell_dist.hooks.replays import Replays
from llmspell_dist.hooks.results import Cancel, Modified
from llmspell_dist.hooks.schedules import ReplaySchedules

pytestmark = pytest.mark.integration

S = "agent:alice"


class Limits:
    """A hook whose answer depends on the clock, on chance, on an id, and on another service."""

    def __init__(self) -> None:
        self.limit = 10
        self.asked = 0

    async def ask(self, _user: str) -> int:
        """What the service says now."""
        self.asked += 1
        return self.limit

    async def execute(self, ctx: HookContext) -> Any:
        """Refuse what is over the limit; else stamp it."""
        at = ctx.now()
        limit = await ctx.call("limit", self.ask, ctx.data["key"])
        if ctx.data["value"] > limit:
            return Cancel(f"over {limit}")
        return Modified({"value": [ctx.data["value"], at, ctx.new_id(), ctx.random()]})


async def recorded(spell: Spell, hook: Any, *values: Any, **how: Any) -> list[Execution]:
    """Have a hook run for these values; return its executions."""
    spell.hooks.register(POINT, hook, name="limits", replayable=True, **how)
    with context(correlation_id="run"):
        for number, value in enumerate(values):
            await asyncio.gather(spell.state.set(S, f"k{number}", value), return_exceptions=True)
    await spell.hooks.history.flush()
    return await spell.hooks.history.query(correlation_id="run")


# --- exact ----------------------------------------------------------------------------------------


async def test_an_exact_replay_answers_as_the_first_time(spell: Spell) -> None:
    """With the clock, the id, the number and the other service's answer of then."""
    hook = Limits()
    runs = await recorded(spell, hook, 1, 11)
    hook.limit = 0
    for run, value in zip(runs, (1, 11), strict=True):
        replayed = await spell.replay.run(run.id)
        assert replayed.identical
        assert replayed.first_difference is None
        assert replayed.result == run.result
        assert run.context is not None
        assert run.context["data"]["value"] == value
    assert hook.asked == 2, "the service was not asked again"


async def test_it_replays_after_a_restart_of_the_process(url: str, namespace: str) -> None:
    """All that it needs is in the store."""
    async with connect(url, namespace=namespace) as spell:
        (run,) = await recorded(spell, Limits(), 3)
    async with connect(url, namespace=namespace) as again:
        again.hooks.register(POINT, Limits(), name="limits")
        assert (await again.replay.run(run.id)).identical


async def test_a_hook_that_has_changed_is_found_out(spell: Spell) -> None:
    """By the first input that it takes otherwise, or by what it answers."""
    (run,) = await recorded(spell, Limits(), 1)

    async def asks_first(ctx: HookContext) -> None:
        await ctx.call("limit", asyncio.sleep, 0)

    replayed = await spell.replay.run(run, hook=asks_first)
    assert not replayed.identical
    said = "input 2: recorded call('limit', …), asked for call('limit', …), argument 1 differs"
    assert replayed.first_difference == said
    assert replayed.error is not None

    async def says_no(ctx: HookContext) -> Cancel:
        ctx.now()
        await ctx.call("limit", asyncio.sleep, "k0")
        ctx.new_id()
        ctx.random()
        return Cancel("no")

    replayed = await spell.replay.run(run, hook=says_no)
    assert replayed.divergence is None
    assert replayed.first_difference == "result: 'modified' became 'cancel'"


async def test_an_error_is_replayed_as_one(spell: Spell) -> None:
    """The same error is no difference."""

    def fails(ctx: HookContext) -> None:
        raise ValueError(ctx.new_id())

    (run,) = await recorded(spell, fails, 1)
    replayed = await spell.replay.run(run.id)
    assert replayed.identical
    assert replayed.error == run.error


async def test_what_an_exact_replay_cannot_do_is_refused(spell: Spell) -> None:
    """Another version, a missing hook, modifications, what is not there."""
    (run,) = await recorded(spell, Limits(), 1)
    changes = ReplayConfig({"context.data.value": 2})
    with pytest.raises(InvalidArgumentError, match="use the mode modified"):
        await spell.replay.run(run, config=changes)
    off = ReplayConfig([Modification("context.data.value", 2, enabled=False)])
    assert (await spell.replay.run(run, config=off)).identical
    spell.hooks.unregister("limits")
    with pytest.raises(NotReplayableError, match="no hook of that name"):
        await spell.replay.run(run)
    spell.hooks.register(POINT, Limits(), name="limits", version="2.0.0")
    with pytest.raises(NotReplayableError, match=r"here it is version 2\.0\.0"):
        await spell.replay.run(run)
    with pytest.raises(ExecutionNotFoundError):
        await spell.replay.run("no-such-run")
    with pytest.raises(InvalidArgumentError, match="mode must be one of exact"):
        await spell.replay.run(run, mode="exactly")
    with pytest.raises(InvalidArgumentError, match="must not be debug"):
        await spell.replay.run(run, mode="debug")
    with pytest.raises(InvalidArgumentError, match="must not be debug"):
        await spell.replay.batch([run], mode="debug")
    with pytest.raises(NotReplayableError, match="not in the history"):
        await spell.replay.run(execution(context=None), hook=lambda _: None)


# --- modified, simulated --------------------------------------------------------------------------


async def test_a_modified_context_gives_another_answer(spell: Spell) -> None:
    """The inputs stay those of then, also with another version of the hook."""
    (run,) = await recorded(spell, Limits(), 1)
    spell.hooks.unregister("limits")
    spell.hooks.register(POINT, Limits(), name="limits", version="2.0.0")
    config = ReplayConfig({"context.data.value": 50}, tags=("what-if",))
    replayed = await spell.replay.run(run, mode="modified", config=config)
    assert replayed.result == Cancel("over 10")
    assert replayed.comparison is not None
    assert replayed.comparison.type == "CancellationMismatch"
    assert replayed.tags == ("what-if",)
    wrong = ReplayConfig({"context.data.vlaue": 50})
    with pytest.raises(InvalidArgumentError, match=r"path must .* context\.data\.vlaue|vlaue"):
        await spell.replay.run(run, mode="modified", config=wrong)
    report = await spell.replay.batch([run], mode="modified", config=wrong)
    assert report.failed == 1
    session = await spell.replay.debug([run], config=wrong)
    assert await session.next() is None
    assert session.report.failed == 1


async def test_new_inputs_are_refused_or_taken(spell: Spell) -> None:
    """As the configuration says; the difference is named in both cases."""
    hook = Limits()
    (run,) = await recorded(spell, hook, 1)
    changes = {"context.data.key": "another"}
    refused = await spell.replay.run(run, mode="modified", config=ReplayConfig(changes))
    assert refused.error is not None
    assert refused.error.type == "ReplayDivergedError"
    config = ReplayConfig(changes, new_inputs="take")
    taken = await spell.replay.run(run, mode="modified", config=config)
    assert taken.error is None
    assert hook.asked == 2
    for one in (refused, taken):
        assert one.first_difference is not None
        assert one.first_difference.endswith("argument 1 differs")


async def test_a_simulated_hook_writes_nothing(spell: Spell) -> None:
    """Not in a task of its own, nor in a transaction; what it wanted is told; reads go through."""
    await spell.state.set(S, "read", 7)
    (run,) = await recorded(spell, lambda _: None, 1)
    seen: list[Any] = []

    async def writes(ctx: HookContext) -> None:
        seen.append(await spell.state.get(S, "read"))

        async def elsewhere() -> None:
            await spell.state.set("agent:b", "k", 1)

        for attempt in (
            elsewhere,
            lambda: spell.state.increment("agent:c", "n"),
            lambda: spell.state.delete(S, "read"),
        ):
            await asyncio.gather(asyncio.create_task(_of(attempt())), return_exceptions=True)
        async with spell.state.transaction() as tx:
            tx.set("agent:d", "k", 1)

    replayed = await spell.replay.run(run, mode="simulate", hook=writes)
    assert seen == [7]
    assert replayed.refused_writes == ("agent:b", "agent:c", S, "agent:d")
    assert replayed.error is not None
    assert replayed.error.code == "SIMULATED_WRITE"
    assert await spell.state.get(S, "read") == 7
    for scope in ("agent:b", "agent:c", "agent:d"):
        assert await spell.state.get_all(scope) == {}
    await spell.state.set("agent:b", "k", 1)  # afterwards everything is as before


async def _of(awaitable: Any) -> Any:
    return await awaitable


async def test_a_hook_that_does_not_end_is_left_alone(spell: Spell) -> None:
    """A coroutine and a thread alike."""
    (run,) = await recorded(spell, lambda _: None, 1)
    over = threading.Event()
    soon = ReplayConfig(timeout=0.05)

    async def waits(_: HookContext) -> None:
        await asyncio.Event().wait()

    for hook in (waits, lambda _: over.wait(30) and None):
        replayed = await spell.replay.run(run, hook=hook, config=soon)
        assert replayed.error is not None
        assert replayed.error.type == "TimeoutError"
    over.set()


# --- batches --------------------------------------------------------------------------------------


async def test_a_batch_keeps_its_order_and_says_how_far_it_is(spell: Spell) -> None:
    """So many at once, and no more."""
    at_once = most = 0

    async def careful(ctx: HookContext) -> Modified:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(20):
            await asyncio.sleep(0)
        at_once -= 1
        return Modified({"value": ctx.data["value"]})

    runs = await recorded(spell, careful, *range(9), timeout=5)
    most = 0
    said: list[tuple[int, int]] = []
    report = await spell.replay.batch(
        [run.id for run in reversed(runs)],
        max_concurrent=3,
        progress=lambda done, total, _: said.append((done, total)),
    )
    assert str(report) == "9 of 9 identical"
    assert [one.execution.id for one in report.replays] == [run.id for run in reversed(runs)]
    assert said == [(done, 9) for done in range(1, 10)]
    assert most == 3


async def test_a_batch_goes_on_past_what_cannot_be_replayed_unless_it_is_to_stop(
    spell: Spell,
) -> None:
    """And the first difference is named with its execution."""
    runs = await recorded(spell, Limits(), 1, 2, 3)
    odd = execution(9, hook="gone")
    mixed: list[str | Execution] = [runs[0], odd, runs[1].id, "no-such-run", runs[2]]
    report = await spell.replay.batch(mixed)
    assert (report.total, report.identical, report.failed) == (5, 3, 2)
    assert report.missing == ["no-such-run"]
    assert report.first_difference is not None
    assert report.first_difference.startswith("gone:1.0.0 in run-9: hook gone:1.0.0 cannot be")
    stopped = await spell.replay.batch(
        mixed, config=ReplayConfig(stop_on_error=True), max_concurrent=1
    )
    assert stopped.stopped
    assert len(stopped.replays) == 2
    everything = await spell.replay.batch(hook="limits")
    assert everything.identical == 3
    with pytest.raises(InvalidArgumentError, match="and not both"):
        await spell.replay.batch(mixed, hook="limits")


# --- debugging ------------------------------------------------------------------------------------


def echo(ctx: HookContext) -> Modified:
    """Answer with the data."""
    if ctx.data["value"] < 0:
        raise ValueError("negative")
    return Modified({"value": ctx.data["value"]})


async def test_a_session_stops_at_breakpoints_and_shows_what_is_told(spell: Spell) -> None:
    """By hook, point, id, a function, or an error; each with the others as conditions."""
    runs = await recorded(spell, echo, 0, 1, -1, 3)
    points = [
        Breakpoint(execution_id=runs[1].id),
        Breakpoint(hook="limits", on_error=True),
        Breakpoint(point=POINT, when=lambda _, ctx: ctx.data["value"] == 3),
        Breakpoint(hook="another"),
    ]
    session = await spell.replay.debug(correlation_id="run", breakpoints=points)
    stop = await session.next()
    assert stop is not None
    assert (stop.why, stop.place, stop.execution.id) == ("breakpoint", 1, runs[1].id)
    assert stop.context is not None
    assert stop.context["data"]["value"] == 1
    stop = await session.next()
    assert stop is not None
    assert (stop.why, stop.place) == ("error", 2)
    assert stop.replayed is not None
    assert stop.replayed.error is not None
    assert stop.replayed.error.message == "negative"
    stop = await session.next()
    assert stop is not None
    assert (stop.why, stop.place) == ("breakpoint", 3)
    assert await session.next() is None
    assert session.done
    assert await session.next() is None
    with pytest.raises(DebugSessionOverError):
        await session.step()
    assert [one.what for one in session.timeline] == [
        *("ran", "stopped", "ran", "raised", "stopped", "ran"),
    ]
    assert str(session.report) == "4 of 4 identical"


async def test_a_session_goes_step_by_step_changes_and_skips(spell: Spell) -> None:
    """Nothing runs between two calls."""
    ran: list[int] = []

    def noting(ctx: HookContext) -> None:
        ran.append(ctx.data["value"])

    await recorded(spell, noting, 0, 1, 2, 3)
    ran.clear()
    session = await spell.replay.debug(hook="limits")
    stop = await session.step()
    assert stop is not None
    assert (stop.why, stop.place, ran) == ("step", 1, [0])
    session.change("context.data.value", 10)
    stop = await session.step()
    assert stop is not None
    assert (stop.place, ran) == (2, [0, 10])
    session.skip()
    stop = await session.step()
    assert stop is not None
    assert (stop.place, ran) == (3, [0, 10])
    report = await session.finish()
    assert ran == [0, 10, 3]
    assert (report.total, len(report.replays)) == (4, 3)
    assert [state.place for state in session.states] == [0, 1, 3]
    assert session.states[1].context is not None
    assert session.states[1].context["data"]["value"] == 10
    with pytest.raises(DebugSessionOverError):
        session.skip()
    with pytest.raises(DebugSessionOverError):
        await session.step()
    assert await session.next() is None


async def test_a_modification_that_leads_nowhere_is_named(spell: Spell) -> None:
    """A misspelt path is no replay without it."""
    (run,) = await recorded(spell, Limits(), 1)
    config = ReplayConfig({"context.data.valeu": 50})
    with pytest.raises(InvalidArgumentError, match=r"context\.data\.valeu") as caught:
        await spell.replay.run(run, mode="modified", config=config)
    assert caught.value.argument == "path"
    report = await spell.replay.batch([run], mode="modified", config=config)
    assert (report.total, report.failed) == (1, 1)
    assert "valeu" in (report.first_difference or "")
    session = await spell.replay.debug([run], config=config)
    report = await session.finish()
    assert report.failed == 1
    assert report.replays[0].error is not None
    assert "valeu" in report.replays[0].error.message


async def test_a_hook_in_which_something_is_cancelled_has_failed(spell: Spell) -> None:
    """Whoever replays it is not cancelled."""
    (run,) = await recorded(spell, Limits(), 1)

    async def cancelled(_: HookContext) -> None:
        raise asyncio.CancelledError

    def plain(_: HookContext) -> None:
        raise asyncio.CancelledError

    for hook in (cancelled, plain):
        replayed = await spell.replay.run(run, hook=hook)
        assert replayed.error is not None
        assert replayed.error.type == "CancelledError"


async def test_breakpoints_act_by_themselves_too(
    spell: Spell, caplog: pytest.LogCaptureFixture
) -> None:
    """They log, change the context, or skip, and go on."""
    caplog.set_level("INFO")
    await recorded(spell, echo, 0, 1, 2)

    def of(value: int) -> Any:
        return lambda _, ctx: ctx.data["value"] == value

    session = await spell.replay.debug(
        hook="limits",
        breakpoints=[
            Breakpoint(when=of(0), action="log"),
            Breakpoint(when=of(1), action="modify", changes={"context.data.value": 5}),
            Breakpoint(when=of(2), action="skip"),
        ],
    )
    assert await session.next() is None
    assert "replay of limits:1.0.0" in caplog.text
    assert [one.result for one in session.report.replays] == [
        Modified({"value": 0}),
        Modified({"value": 5}),
    ]
    assert [one.what for one in session.timeline] == ["logged", "ran", "modified", "ran", "skipped"]


async def test_what_is_left_runs_past_pauses_and_not_past_what_breakpoints_do(spell: Spell) -> None:
    """The first one too, and the one behind an error that paused."""
    await recorded(spell, echo, 0, -1, 2, 3)
    breakpoints = [
        Breakpoint(hook="limits"),
        Breakpoint(hook="limits", on_error=True),
        Breakpoint(when=lambda _, ctx: ctx.data["value"] == 3, action="skip"),
        Breakpoint(
            when=lambda _, ctx: ctx.data["value"] in (0, 2),
            action="modify",
            changes={"context.data.value": 7},
        ),
    ]
    session = await spell.replay.debug(hook="limits", breakpoints=breakpoints)
    report = await session.finish()
    results = [one.result for one in report.replays]
    assert results == [Modified({"value": 7}), None, Modified({"value": 7})]
    assert [one.what for one in session.timeline if one.what != "stopped"] == [
        *("modified", "ran", "raised", "modified", "ran", "skipped"),
    ]


async def test_a_breakpoint_whose_change_leads_nowhere_fails_that_execution(spell: Spell) -> None:
    """The session goes on with the next."""
    await recorded(spell, echo, 0, 1)
    wrong = Breakpoint(
        when=lambda _, ctx: ctx.data["value"] == 0,
        action="modify",
        changes={"context.data.valeu": 7},
    )
    session = await spell.replay.debug(hook="limits", breakpoints=[wrong])
    assert await session.next() is None
    first, second = session.report.replays
    assert (first.ran, second.ran, second.identical) == (False, True, True)
    assert first.error is not None
    assert "valeu" in first.error.message


async def test_a_long_session_keeps_the_newest_thousand_states() -> None:
    """And says how many are gone."""
    runs = [execution(number) for number in range(MAX_STATES + 5)]

    class Nothing:
        version = "1.0.0"
        retention_priority = 0

        async def call(self, ctx: HookContext) -> None:
            """Do nothing."""

    session = DebugSession(Replayer(lambda *_: Nothing()), runs)
    await session.finish()
    assert len(session.states) == MAX_STATES
    assert session.dropped_states == 5
    assert session.states[0].place == 5


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({}, "breakpoint"),
        ({"hook": "h", "action": "stop"}, "action"),
        ({"hook": "h", "action": "modify"}, "changes"),
        ({"hook": "h", "changes": {"context.data.x": 1}}, "changes"),
        ({"on_error": True, "action": "skip"}, "action"),
        ({"point": "nowhere"}, "point"),
        ({"when": "always"}, "when"),
    ],
)
def test_a_breakpoint_that_makes_no_sense_is_refused(wrong: Any, argument: str) -> None:
    """By the name of what is wrong."""
    with pytest.raises(InvalidArgumentError) as caught:
        Breakpoint(**wrong)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"modifications": 5}, "modifications"),
        ({"modifications": ["context.data.x"]}, "modifications"),
        ({"modifications": {"data.x": 1}}, "path"),
        ({"modifications": {"context.metadata.x": 1}}, "value"),
        ({"timeout": 0}, "timeout"),
        ({"tags": "nightly"}, "tags"),
        ({"new_inputs": "maybe"}, "new_inputs"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: Any, argument: str) -> None:
    """By the name of what is wrong."""
    with pytest.raises(InvalidArgumentError) as caught:
        ReplayConfig(**wrong)
    assert caught.value.argument == argument


# --- without an event loop ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (here_replay.Replays, Replays),
        (here_replay.ReplaySchedules, ReplaySchedules),
        (here_replay.DebugSession, DebugSession),
        (here_fleet.Fleet, Fleet),
        (here_history.HookHistory, HookHistory),
    ],
)
def test_the_two_surfaces_take_the_same_arguments(here: type, there: type) -> None:
    """And nothing public is missing on one of them."""
    inner = {"forget", "close", "turn"}
    public = {name for name in vars(there) if not name.startswith("_")} - inner
    assert public - {name for name in vars(here) if not name.startswith("_")} == set()
    for name in sorted(public):
        ours, theirs = getattr(here, name), getattr(there, name)
        if not isinstance(theirs, property):
            assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters


def test_the_blocking_surface_replays_the_same(url: str, namespace: str) -> None:
    """One, many, step by step."""
    with blocking.connect(url, namespace=namespace) as spell:

        def stamp(ctx: HookContext) -> Modified:
            return Modified({"value": [ctx.data["value"], ctx.now()]})

        spell.hooks.register(POINT, stamp, replayable=True)
        with context(correlation_id="run"):
            for number in range(3):
                spell.state.set(S, "k", number)
        spell.hooks.history.flush()
        runs = spell.hooks.history.query(correlation_id="run")
        assert spell.replay.run(runs[0].id).identical
        assert str(spell.replay.batch(correlation_id="run")) == "3 of 3 identical"
        session = spell.replay.debug(
            correlation_id="run", breakpoints=[Breakpoint(execution_id=runs[1].id)]
        )
        stop = session.next()
        assert stop is not None
        assert stop.place == session.place == 1
        session.change("context.data.value", 9)
        assert session.step() is not None
        report = session.finish()
        assert (report.identical, report.total) == (2, 3)
