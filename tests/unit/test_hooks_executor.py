"""Running hooks: order, results, failures, time limits, cancellation; without a server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llmspell_dist.errors import InvalidArgumentError, LimitError
from llmspell_dist.hooks.breaker import BreakerConfig, BreakerState, CircuitBreaker
from llmspell_dist.hooks.composite import Voting
from llmspell_dist.hooks.context import ComponentId, HookContext
from llmspell_dist.hooks.errors import (
    DuplicateHookError,
    HookError,
    HookNotFoundError,
    HookTimeoutError,
    InvalidHookResultError,
    OperationCancelledError,
    UnknownHookPointError,
)
from llmspell_dist.hooks.executor import Ended, Executor
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.inputs import Recording
from llmspell_dist.hooks.nesting import deeper, inside, nested, surface
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.recorder import Recorder, Run
from llmspell_dist.hooks.recording import Execution
from llmspell_dist.hooks.registration import Registration
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cache,
    Cancel,
    Fork,
    ForkOperation,
    Modified,
    Redirect,
    Replace,
    Retry,
    Skipped,
)
from llmspell_dist.hooks.running import AsyncRunner
from llmspell_dist.state.steps import Call

POINT = "test:point"
ME = ComponentId("test", "me")


class Bench(Registration):
    """A registry and an executor, without a client."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = AsyncRunner()
        self.executor = Executor(self.runner)

    async def run(self, data: dict[str, Any] | None = None, point: str = POINT) -> Ended | None:
        self.context = HookContext(point, ME, {"value": 1} if data is None else data)
        steps = self.executor.run(self._registry.chain(point), self.context)
        given = None
        self.waits = 0
        while True:
            try:
                request = steps.send(given)
            except StopIteration as done:
                came: Ended | None = done.value
                return came
            assert isinstance(request, Call)
            self.waits += 1
            given = await request.function(*request.arguments)


@pytest.fixture
async def bench() -> Any:
    """A registry and an executor; what was put aside is ended."""
    bench = Bench()
    yield bench
    await bench.runner.close()


def one(bench: Bench, point: str = POINT) -> Any:
    """Return the figures of the only hook."""
    (found,) = bench.stats()[point]
    return found


# --- order and results ----------------------------------------------------------------------------


async def test_lower_priorities_run_first_and_equal_ones_as_registered(bench: Bench) -> None:
    """From HIGHEST to LOWEST."""
    order: list[str] = []
    for name, priority in (
        ("last", Priority.LOWEST),
        ("normal", 0),
        ("first", Priority.HIGHEST),
        ("normal too", 0),
        ("high", Priority.HIGH),
    ):
        bench.register(POINT, lambda _, n=name: order.append(n), name=name, priority=priority)
    assert await bench.run() is None
    assert order == ["first", "high", "normal", "normal too", "last"]
    assert bench.waits == 0


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [
        (None, True),
        (CONTINUE, True),
        (Skipped("why"), True),
        (Modified({"value": 2}), True),
        (Fork((ForkOperation("a", "set"),)), True),
        (Cancel("no"), False),
        (Replace(1), False),
        (Redirect("agent:x"), False),
        (Retry(), False),
        (Cache("k", 1), False),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_what_ends_a_chain_and_what_goes_on(
    bench: Bench, kind: str, answer: Any, goes_on: bool
) -> None:
    """Of plain functions and coroutines alike."""
    after: list[Any] = []

    def plain(_: HookContext) -> Any:
        return answer

    async def coroutine(_: HookContext) -> Any:
        return answer

    bench.register(POINT, plain if kind == "plain" else coroutine, name="first")
    bench.register(POINT, lambda c: after.append(c.data["value"]), name="second")
    came = await bench.run()
    assert bool(after) == goes_on
    if goes_on:
        assert came is None
        assert after == [2 if isinstance(answer, Modified) else 1]
        assert bool(bench.context.forks) == isinstance(answer, Fork)
    else:
        assert came is not None
        assert (came.result, came.hook.name) == (answer, "first")


async def test_a_coroutine_that_need_not_wait_costs_no_task(bench: Bench) -> None:
    """Its first step is taken in line; it runs in the task of its caller, also when it waits."""
    tasks = []

    async def quick(_: HookContext) -> None:
        tasks.append(asyncio.current_task())

    async def waits(_: HookContext) -> None:
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    bench.register(POINT, quick)
    assert await bench.run() is None
    assert bench.waits == 0
    bench.register(POINT, waits)
    assert await bench.run() is None
    assert bench.waits == 1
    assert set(tasks) == {asyncio.current_task()}


async def test_classes_say_themselves_what_they_are(bench: Bench) -> None:
    """`metadata`, `should_execute` and `execute`; `register` goes before the metadata."""

    class Mine:
        metadata = HookMetadata("mine", "what it does", -5, "lua", ("a",), "2.0.0")
        runs = 0

        def should_execute(self, ctx: HookContext) -> bool:
            return bool(ctx.data["value"])

        def execute(self, _: HookContext) -> None:
            self.runs += 1

    hook = Mine()
    found = bench.register(POINT, hook)
    assert (found.name, found.priority, found.language) == ("mine", -5, "lua")
    assert (found.tags, found.version) == (("a",), "2.0.0")
    assert bench.register(POINT, Mine(), name="other", priority=7).priority == 7
    await bench.run({"value": 1})
    await bench.run({"value": 0})
    assert hook.runs == 1
    assert [h.name for h in bench.get_hooks(POINT, language="lua")] == ["mine", "other"]
    assert [h.name for h in bench.get_hooks(priority=(-10, 0))] == ["mine"]


@pytest.mark.parametrize("answer", [7, "text", {"cancel": True}, Cancel])
async def test_what_is_no_result_is_refused(bench: Bench, answer: Any) -> None:
    """With the hook, the point, and what would have been allowed."""
    bench.register(POINT, lambda _: answer, name="odd")
    with pytest.raises(InvalidHookResultError, match=r"hook odd at test:point failed: it returned"):
        await bench.run()


# --- registering ----------------------------------------------------------------------------------


async def test_registering_refuses_what_cannot_be_meant(bench: Bench) -> None:
    """Each with what is wrong."""
    bench.register(POINT, lambda _: None, name="there")

    def hook(_: HookContext) -> None:
        pass

    with pytest.raises(DuplicateHookError, match="hook there at test:point"):
        bench.register(POINT, hook, name="there")
    with pytest.raises(UnknownHookPointError, match=r"\(is BeforeStateWrite meant\?\), got"):
        bench.register("BeforeStateWrites", hook)
    with pytest.raises(UnknownHookPointError, match="is BeforeStateWrite meant"):
        bench.register("before_state_write", hook)
    by_name = bench.register("BEFORE_STATE_WRITE", hook, name="by name")
    assert by_name.point is P.BEFORE_STATE_WRITE
    bench.unregister("by name")
    bad: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "a\nb"},
        {"priority": 2**31},
        {"priority": True},
        {"priority": "high"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"on_failure": "explode"},
        {"breaker": 3},
    ]
    for how in bad:
        with pytest.raises(InvalidArgumentError) as caught:
            bench.register(POINT, hook, **how)
        assert next(iter(how)) in str(caught.value)
    for shape in (lambda: None, lambda _a, _b: None, lambda *, _ctx: None):
        with pytest.raises(InvalidArgumentError, match="hook must take one argument"):
            bench.register(POINT, shape, name="x")
    for fits in (lambda *_: None, lambda _a, _b=1: None, print, dict, Voting(hook)):
        if not isinstance(fits, type):
            bench.register(POINT, fits, name="fits")
            bench.unregister("fits")
    for no_hook in (None, 3, "hook", HookContext):
        with pytest.raises(InvalidArgumentError, match="hook"):
            bench.register(POINT, no_hook, name="x")
    with pytest.raises(InvalidArgumentError, match="name"):
        bench.register(POINT, lambda _: None)
    for before in (P.BEFORE_STATE_WRITE, "lease:before_acquire"):
        with pytest.raises(InvalidArgumentError, match="queued"):
            bench.register(before, hook, queued=True)
    with pytest.raises(InvalidArgumentError, match="on_failure"):
        bench.register(P.AFTER_STATE_WRITE, hook, queued=True, on_failure="raise")
    with pytest.raises(InvalidArgumentError, match="it has happened"):
        bench.register(P.AFTER_STATE_WRITE, hook, on_failure="cancel")
    assert [h.name for h in bench.get_hooks()] == ["there"]


@pytest.mark.parametrize("bad", [(1, 0), (0,), [0, 1], ("a", 1), (0, True), 5])
async def test_a_bad_range_of_priorities_is_refused(bench: Bench, bad: Any) -> None:
    """By name."""
    with pytest.raises(InvalidArgumentError, match=r"priority|lowest|highest"):
        bench.get_hooks(priority=bad)


async def test_hooks_are_switched_removed_and_cleared(bench: Bench) -> None:
    """One, at one point or at all; all of a point; all there are."""
    runs: list[str] = []
    for point in (POINT, "test:other"):
        for name in ("a", "b"):
            bench.register(point, lambda _, n=name: runs.append(n), name=name)
    bench.disable("a", POINT)
    await bench.run()
    await bench.run(point="test:other")
    assert runs == ["b", "a", "b"]
    bench.enable("a")
    bench.enabled = False
    await bench.run()
    assert len(runs) == 3
    bench.enabled = True
    assert bench.unregister("a") == 2
    await bench.run()
    assert runs[3:] == ["b"]
    with pytest.raises(HookNotFoundError, match="no hook a"):
        bench.unregister("a")
    with pytest.raises(HookNotFoundError, match="no hook c at test:point"):
        bench.disable("c", POINT)
    assert bench.clear(POINT) == 1
    assert bench.clear() == 1
    assert bench.get_hooks() == []


def test_points_at_which_nothing_stands_any_more_are_forgotten() -> None:
    """Whoever registers at a point of each session leaves nothing behind."""
    bench = Bench()
    for number in range(3):
        kept = bench.register(f"session:{number}", lambda _: None, name="look")
        if number:
            bench.unregister("look", f"session:{number}")
        else:
            assert bench.discard(kept)
            assert not bench.discard(kept)
    assert not bench._registry._hooks


async def test_a_bulk_is_registered_as_a_whole(bench: Bench) -> None:
    """If one is wrong, none is there."""

    def first(_: HookContext) -> None:
        pass

    done = bench.register_bulk([(POINT, first), {"point": "a:b", "hook": first, "priority": 3}])
    assert [hook.point for hook in done] == [POINT, "a:b"]
    with pytest.raises(DuplicateHookError):
        bench.register_bulk([("c:d", first), (POINT, first)])
    with pytest.raises(InvalidArgumentError, match="pairs of point and hook"):
        bench.register_bulk([("c:d", first), first])  # type: ignore[list-item]
    assert {hook.point for hook in bench.get_hooks()} == {POINT, "a:b"}


# --- failures -------------------------------------------------------------------------------------


def _raises(_: HookContext) -> None:
    raise KeyError("a secret value")


async def _raises_later(_: HookContext) -> None:
    await asyncio.sleep(0)
    raise KeyError("a secret value")


@pytest.mark.parametrize("hook", [_raises, _raises_later])
async def test_a_failing_hook_stops_no_other(
    bench: Bench, hook: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, and logged without what it said: that may be the data."""
    runs: list[int] = []
    bench.register(POINT, hook, name="fails")
    bench.register(POINT, lambda _: runs.append(1), name="next")
    with caplog.at_level(logging.WARNING):
        assert await bench.run() is None
    assert runs == [1]
    assert bench.stats()[POINT][0].failures == 1
    assert "hook fails at test:point failed: KeyError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("hook", [_raises, _raises_later])
async def test_a_failure_cancels_or_is_raised_where_that_is_the_policy(
    bench: Bench, hook: Callable[..., Any]
) -> None:
    """From the hook's own error."""
    runs: list[int] = []
    bench.register(POINT, lambda _: runs.append(1), name="next", priority=1)
    bench.register(POINT, hook, name="fails", on_failure="cancel")
    with pytest.raises(OperationCancelledError, match="KeyError") as cancelled:
        await bench.run()
    assert isinstance(cancelled.value.__cause__, KeyError)
    bench.unregister("fails")
    bench.register(POINT, hook, name="fails", on_failure="raise")
    with pytest.raises(HookError) as raised:
        await bench.run()
    assert isinstance(raised.value.__cause__, KeyError)
    assert (raised.value.hook, raised.value.point) == ("fails", POINT)
    assert "secret" not in str(raised.value)
    assert runs == []


# --- time limits ----------------------------------------------------------------------------------


async def test_a_coroutine_ends_at_its_limit(bench: Bench) -> None:
    """It is cancelled, and the operation goes on."""
    ended = asyncio.Event()

    async def hangs(_: HookContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    bench.register(POINT, hangs, timeout=0.01)
    assert await bench.run() is None
    assert ended.is_set()
    assert (one(bench).timeouts, one(bench).failures) == (1, 1)
    bench.clear()
    bench.register(POINT, hangs, timeout=0.01, on_failure="raise")
    with pytest.raises(HookTimeoutError, match=r"it had not ended after 0\.01 s"):
        await bench.run()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_coroutine_that_will_not_end_is_left_behind(bench: Bench) -> None:
    """What it returns later has no effect."""
    go_on = asyncio.Event()

    async def stubborn(ctx: HookContext) -> Modified:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go_on.wait()
        return Modified({"value": "too late"})

    bench.register(POINT, stubborn, timeout=0.01)
    assert await bench.run() is None
    assert bench.context.data == {"value": 1}
    assert len(bench.runner._aside) == 1
    go_on.set()
    await asyncio.wait(list(bench.runner._aside))
    assert bench.context.data == {"value": 1}
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_timeout_of_the_hooks_own_works_in_it(bench: Bench) -> None:
    """`asyncio.timeout` cancels what waits, not the operation."""

    async def gives_up(_: HookContext) -> Modified:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return Modified({"value": "gave up"})
        raise AssertionError

    bench.register(POINT, gives_up, timeout=10)
    assert await bench.run() is None
    assert bench.context.data == {"value": "gave up"}


async def test_a_plain_function_with_a_limit_runs_in_a_thread(bench: Bench) -> None:
    """At the limit it is left alone; it sees the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    go_on, threads = threading.Event(), []

    def hangs(ctx: HookContext) -> Modified:
        threads.append((threading.current_thread(), variable.get()))
        go_on.wait(10)
        return Modified({"value": "too late"})

    bench.register(POINT, hangs, timeout=0.02)
    try:
        assert await bench.run() is None
    finally:
        go_on.set()
    assert bench.context.data == {"value": 1}
    assert one(bench).timeouts == 1
    (thread, value) = threads[0]
    assert (thread is not threading.current_thread(), value) == (True, "mine")
    thread.join()
    bench.clear()
    bench.register(POINT, lambda _: Modified({"value": 2}), name="quick", timeout=5)
    await bench.run()
    assert bench.context.data == {"value": 2}


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_caller_that_is_cancelled_takes_the_hook_along(
    bench: Bench, stubborn: bool
) -> None:
    """A hook cannot keep its caller from being cancelled."""
    began, ended = asyncio.Event(), []

    async def hook(_: HookContext) -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            if not stubborn:
                raise

    bench.register(POINT, hook, timeout=30)
    task = asyncio.create_task(bench.run())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert one(bench).failures == 0


# --- recorded, while the history is behind --------------------------------------------------------


class _Behind:
    """A writer of the history that has no room for five seconds each time."""

    full = True

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[Execution] = []
        self.held: asyncio.Event | None = None

    def put(self, run: Execution) -> None:
        self.runs.append(run)

    async def room(self) -> None:
        if self.held is not None:
            self.held.set()
            await asyncio.Event().wait()
        self.now += 5.0

    def wait_for_room(self) -> None:
        self.now += 5.0


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "blocking"])
@pytest.mark.parametrize("kind", ["plain", "coroutine", "fails"])
async def test_waiting_for_room_in_the_history_is_not_the_hooks_own_time(
    kind: str, blocking: bool
) -> None:
    """Neither to its breaker, nor in its figures and what is recorded."""
    bench, writer = Bench(), _Behind()
    bench.executor = Executor(bench.runner, clock=lambda: writer.now)
    bench.executor.recorder = Recorder(writer, lambda _: False, blocking=blocking)  # type: ignore[arg-type]

    def plain(_: HookContext) -> None:
        writer.now += 0.01
        if kind == "fails":
            raise ValueError

    async def coroutine(ctx: HookContext) -> None:
        plain(ctx)

    config = BreakerConfig(failure_threshold=9)
    hook = coroutine if kind == "coroutine" else plain
    found = bench.register(POINT, hook, name="h", replayable=True, breaker=config)
    found.durations._clock = lambda: writer.now
    for _ in range(3):
        chain = bench._registry.chain(POINT)
        context = HookContext(POINT, ME, {"value": 1})
        steps = bench.executor.run(chain, context)
        request = next(steps)
        assert isinstance(request, Call)
        outcome = request.function(*request.arguments)
        with pytest.raises(StopIteration):
            steps.send(outcome if blocking else await outcome)
    assert one(bench).breaker is BreakerState.CLOSED
    assert one(bench).timing.maximum == pytest.approx(0.01)
    assert [run.duration_us for run in writer.runs] == [10_000] * 3


async def test_a_hook_whose_caller_leaves_while_it_waits_for_room_has_not_run() -> None:
    """So nothing is recorded of it."""
    bench, writer = Bench(), _Behind()
    writer.held = asyncio.Event()
    bench.executor.recorder = Recorder(writer, lambda _: False)  # type: ignore[arg-type]
    ran: list[str] = []
    bench.register(POINT, lambda _: ran.append("h"), name="h", replayable=True)
    running = asyncio.create_task(bench.run())
    await writer.held.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (ran, writer.runs) == ([], [])


# --- breakers -------------------------------------------------------------------------------------


async def test_a_hook_that_keeps_failing_is_left_out_for_a_while(bench: Bench) -> None:
    """And tried again, one call at a time; a guard that is left out lets nothing pass."""
    failing = [True]
    runs: list[int] = []

    def hook(_: HookContext) -> None:
        runs.append(1)
        if failing[0]:
            raise ValueError

    found = bench.register(POINT, hook)
    assert found.breaker is not None
    now = [100.0]
    found.breaker._clock = lambda: now[0]
    for _ in range(5):
        await bench.run()
    assert (len(runs), one(bench).skipped) == (3, 2)
    assert one(bench).breaker is BreakerState.OPEN
    failing[0] = False
    now[0] += 16
    for _ in range(3):
        await bench.run()
    assert one(bench).breaker is BreakerState.CLOSED
    assert len(runs) == 6
    assert bench._registry.chain(POINT).direct


async def test_an_operation_is_cancelled_while_its_guard_is_left_out(bench: Bench) -> None:
    """Fail closed."""
    bench.register(POINT, _raises, name="guard", on_failure="cancel")
    for _ in range(3):
        with pytest.raises(OperationCancelledError, match="KeyError"):
            await bench.run()
    with pytest.raises(OperationCancelledError, match="circuit breaker is open"):
        await bench.run()
    bench.clear()
    bench.register(POINT, _raises, name="always", breaker=False)
    for _ in range(10):
        await bench.run()
    assert one(bench).failures == 10
    bench.clear()
    bench.register(POINT, _raises, name="quick", breaker=BreakerConfig.production())
    for _ in range(4):
        await bench.run()
    assert (one(bench).failures, one(bench).skipped) == (2, 2)


# --- figures --------------------------------------------------------------------------------------


async def test_every_run_is_counted_whatever_changes_meanwhile(bench: Bench) -> None:
    """Of chains that were replaced too, and of runs that ended early."""
    ends = [False]
    bench.register(POINT, lambda _: None, name="a")
    bench.register(POINT, lambda _: Cancel("x") if ends[0] else None, name="b")
    bench.register(POINT, lambda _: None, name="c")
    for turn in range(40):
        ends[0] = turn % 4 == 0
        await bench.run()
        if turn % 2:
            bench.disable("c")
            bench.enable("c")
    counts = {hook.name: hook.timing.count for hook in bench.stats()[POINT]}
    assert counts == {"a": 40, "b": 40, "c": 30}
    assert bench.stats()[POINT][1].cancelled == 10
    timing = bench.stats()[POINT][0].timing
    assert 0 < timing.minimum <= timing.p50 <= timing.p95 <= timing.p99 <= timing.maximum
    assert "test:point" in bench.report()


async def test_a_recorder_is_told_of_replayable_hooks_only(bench: Bench) -> None:
    """The context as it was before, what the hook answered or raised, and seconds."""
    told: list[tuple[Any, ...]] = []

    class Noting:
        full = False

        def begin(self, ctx: HookContext) -> Run:
            return Run(ctx.snapshot(), {}, Recording(), ctx.timestamp, False, False)

        def end(self, *run: Any) -> None:
            told.append(run)

    bench.executor.recorder = Noting()  # type: ignore[assignment]

    def changes(ctx: HookContext) -> Modified:
        ctx.data["list"].append(2)
        return Modified({"value": 2})

    async def fails(_: HookContext) -> None:
        await asyncio.sleep(0)
        raise ValueError("x")

    bench.register(POINT, changes, replayable=True)
    bench.register(POINT, fails, replayable=True)
    bench.register(POINT, lambda _: None, name="other")
    await bench.run({"value": 1, "list": [1]})
    (before, hook, answer, seconds), (_, failed, error, _) = told
    assert before.context.data == {"value": 1, "list": [1]}
    assert (hook.name, answer, failed.name) == ("changes", Modified({"value": 2}), "fails")
    assert isinstance(error, ValueError)
    assert seconds > 0

    class Raising:
        full = False

        def begin(self, _: HookContext) -> None:
            raise KeyError("a secret value")

    bench.executor.recorder = Raising()  # type: ignore[assignment]
    assert await bench.run({"value": 1, "list": [1]}) is None


# --- hooks inside hooks ---------------------------------------------------------------------------


async def test_what_runs_inside_a_hook_is_known_and_bounded(bench: Bench) -> None:
    """Quiet by default; `nested` lets hooks run, to a depth."""
    depths = []

    async def hook(ctx: HookContext) -> None:
        depths.append(inside())
        await asyncio.sleep(0)
        depths.append(inside())
        with nested():
            depths.append(inside())

    bench.register(POINT, hook)
    await bench.run()
    assert depths == [1, 1, -1]
    assert inside() == 0
    tokens = [deeper() for _ in range(8)]
    with pytest.raises(LimitError, match="hooks inside one another"):
        deeper()
    for token in reversed(tokens):
        surface(token)


# --- what a failed hook leaves --------------------------------------------------------------------


def _assign(ctx: HookContext) -> None:
    ctx.data["value"] = "half done"
    ctx.data["more"] = True


@pytest.mark.parametrize("kind", ["plain", "coroutine", "waiting", "late", "guarded", "anew"])
@pytest.mark.parametrize("times", [1, 9])
async def test_what_a_failed_hook_assigned_does_not_count(kind: str, times: int) -> None:
    """In line or not, measured or not; what hooks before it assigned stays."""
    bench = Bench()

    def first(ctx: HookContext) -> None:
        ctx.data["value"] = "first"

    def plain(ctx: HookContext) -> None:
        _assign(ctx)
        raise LookupError

    def anew(ctx: HookContext) -> None:
        ctx.data = {"value": "anew"}
        raise LookupError

    async def coroutine(ctx: HookContext) -> None:
        _assign(ctx)
        raise LookupError

    async def waiting(ctx: HookContext) -> None:
        await asyncio.sleep(0)
        _assign(ctx)
        raise LookupError

    async def late(ctx: HookContext) -> None:
        _assign(ctx)
        await asyncio.Event().wait()

    class guarded:  # noqa: N801 - as the others
        @staticmethod
        def should_execute(ctx: HookContext) -> bool:
            _assign(ctx)
            raise LookupError

        @staticmethod
        def execute(ctx: HookContext) -> None:
            raise AssertionError(ctx)

    hook = {
        "plain": plain,
        "anew": anew,
        "coroutine": coroutine,
        "waiting": waiting,
        "late": late,
        "guarded": guarded(),
    }[kind]
    bench.register(POINT, first)
    bench.register(
        POINT, hook, name="fails", breaker=False, timeout=0.01 if kind == "late" else None
    )
    for _ in range(times):
        data: dict[str, Any] = {"value": 1}
        assert await bench.run(data) is None
        assert bench.context.data == {"value": "first"}
        # What goes on beyond its time keeps its dict; the operation goes on with another.
        assert (bench.context.data is data) is (kind != "late")


async def test_data_that_is_not_made_yet_is_made_anew() -> None:
    """As a set has it."""
    bench = Bench()

    def fails(ctx: HookContext) -> None:
        _assign(ctx)
        raise LookupError

    bench.register(POINT, fails)
    context = HookContext.of_arguments(POINT, ME, (("key", "value"), ("k", 1)), "set")
    assert bench.executor.inline(bench._registry.chain(POINT), context) is None
    assert context.data == {"key": "k", "value": 1}


# --- what is slow ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "breaker", "slow"),
    [
        (None, True, 0.050),
        (2, True, 2),
        (0.02, True, 0.02),
        (2, BreakerConfig(failure_threshold=5), 2),
        (2, BreakerConfig(slow_call_duration=0.1), 0.1),
        (None, BreakerConfig(), 0.050),
        (None, BreakerConfig.conservative(), 0.1),
        (2, CircuitBreaker(), 0.050),
    ],
)
def test_a_time_limit_says_what_is_slow(timeout: Any, breaker: Any, slow: float) -> None:
    """Unless the breaker does."""
    hook = Bench().register(POINT, lambda _: None, name="h", timeout=timeout, breaker=breaker)
    assert hook.breaker is not None
    assert hook.breaker.slow_s == slow
    assert hook.slow_s == slow


async def test_a_guard_with_time_keeps_working() -> None:
    """Sixty milliseconds are not slow if it may take two seconds."""
    now = [0.0]
    bench = Bench()
    bench.executor = Executor(bench.runner, clock=lambda: now[0])

    async def guard(_: HookContext) -> None:
        now[0] += 0.060
        await asyncio.sleep(0)

    hook = bench.register(POINT, guard, timeout=2, on_failure="cancel")
    for _ in range(5):
        assert await bench.run() is None
    assert hook.skipped == 0


# --- names and points -----------------------------------------------------------------------------


@pytest.mark.parametrize("point", [P.BEFORE_STATE_WRITE, "BeforeStateWrite", POINT])
@pytest.mark.parametrize("method", ["unregister", "enable", "disable"])
def test_a_point_in_the_place_of_a_name_is_named(method: str, point: Any) -> None:
    """And what to do instead."""
    bench = Bench()
    bench.register(POINT, lambda _: None, name="h")
    with pytest.raises(InvalidArgumentError, match=r"name .*clear\(point\)"):
        getattr(bench, method)(point)
    with pytest.raises(HookNotFoundError):
        getattr(bench, method)("other")
    getattr(bench, method)("h", point=POINT)
    bench.clear(point)
