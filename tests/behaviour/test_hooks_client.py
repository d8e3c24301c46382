"""Hooks of a client: queued ones, limits on both surfaces, leases, agents, expiry, forks."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from fix_hooks import Hooked, S, Seen
from fix_state import Expiring, until

import llmspell_dist
from llmspell_dist import AgentState, blocking
from llmspell_dist.context import context
from llmspell_dist.errors import ClosedError, InvalidArgumentError
from llmspell_dist.hooks.builtin import AuditHook, CachingHook, MetricsHook, SecurityHook
from llmspell_dist.hooks.context import ComponentId, HookContext
from llmspell_dist.hooks.errors import (
    InvalidHookResultError,
    OperationCancelledError,
    UnknownHookPointError,
)
from llmspell_dist.hooks.nesting import inside
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import (
    Cancel,
    Fork,
    ForkOperation,
    Modified,
    Redirect,
    Replace,
    Retry,
)
from llmspell_dist.state.housekeeping import sweep

pytestmark = pytest.mark.integration
WITHIN_S = 10.0


# --- points ---------------------------------------------------------------------------------------


async def test_every_point_runs_what_is_registered_there(hooked: Hooked) -> None:
    """All 43, and custom ones."""
    assert len(HookPoint) == 43
    for point in (*HookPoint, "session:start", "artifact:before_create"):
        seen = Seen(lambda c: Modified({"n": c.data["n"] + 1}))
        hooked.hooks.register(str(point), seen, name="seen")
        component = ComponentId("session", "s-1", "7")
        ran = hooked.hooks.run(point, component, {"n": 1}, metadata={"a": "b"})
        outcome = await hooked.do(ran)
        assert (outcome.should_continue, outcome.data) == (True, {"n": 2})
        (run,) = seen.runs
        assert (run.point, run.component, run.metadata) == (point, component, {"a": "b"})


async def test_an_outcome_says_what_ended_the_chain(hooked: Hooked) -> None:
    """And who; a cancellation is raised."""
    hooked.hooks.register("session:start", lambda _: Retry(2, 3), name="wait")
    outcome = await hooked.do(hooked.hooks.run("session:start", "mine"))
    assert (outcome.result, outcome.hook) == (Retry(2, 3), "wait")
    hooked.hooks.clear()
    hooked.hooks.register("session:start", lambda _: Cancel("closed"), name="no")
    with pytest.raises(OperationCancelledError, match="closed"):
        await hooked.do(hooked.hooks.run("session:start", "mine"))


# --- coroutines and time limits, on both surfaces -------------------------------------------------


async def test_a_coroutine_hook_waits_on_both_surfaces(hooked: Hooked) -> None:
    """On the blocking one it runs on the client's background loop."""

    async def upper(ctx: HookContext) -> Modified:
        await asyncio.sleep(0.001)
        assert inside() == 1
        return Modified({"value": ctx.data["value"].upper()})

    hooked.hooks.register(P.BEFORE_STATE_WRITE, upper)
    with context(actor="ann"):
        await hooked.do(hooked.state.set(S, "k", "x"))
    assert await hooked.do(hooked.state.get(S, "k")) == "X"


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_the_operation_goes_on_at_a_hooks_limit(hooked: Hooked, kind: str) -> None:
    """What the hook answers later has no effect."""
    go_on = threading.Event()

    def plain(ctx: HookContext) -> Modified:
        go_on.wait(WITHIN_S)
        return Modified({"value": "late"})

    async def coroutine(ctx: HookContext) -> Modified:
        await asyncio.sleep(WITHIN_S)
        return Modified({"value": "late"})

    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, plain if kind == "plain" else coroutine, name="h", timeout=0.02
    )
    try:
        await hooked.do(hooked.state.set(S, "k", 1))
    finally:
        go_on.set()
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    assert hooked.hooks.stats()[P.BEFORE_STATE_WRITE][0].timeouts == 1


# --- a hook in a hook -----------------------------------------------------------------------------


async def test_hooks_do_not_run_for_what_hooks_do(hooked: Hooked) -> None:
    """Unless they ask for it; then to a depth of eight."""
    seen = Seen()
    hooked.hooks.register(P.AFTER_STATE_WRITE, seen, priority=-1)
    state = hooked.state

    if hooked.surface == "blocking":

        def count(ctx: HookContext) -> None:
            state.increment("global", "writes")

        def for_ever(ctx: HookContext) -> None:
            with hooked.hooks.nested():
                state.increment("global", "writes")

    else:

        async def count(ctx: HookContext) -> None:  # type: ignore[misc]
            await state.increment("global", "writes")

        async def for_ever(ctx: HookContext) -> None:  # type: ignore[misc]
            with hooked.hooks.nested():
                await state.increment("global", "writes")

    hooked.hooks.register(P.AFTER_STATE_WRITE, count, timeout=5)
    await hooked.do(state.set(S, "k", 1))
    assert seen.names == ["set"]
    assert await hooked.do(state.get("global", "writes")) == 1
    hooked.hooks.unregister("count")
    hooked.hooks.register(P.AFTER_STATE_WRITE, for_ever, timeout=5, breaker=False)
    await hooked.do(state.set(S, "k", 1))
    assert await hooked.do(state.get("global", "writes")) == 9
    assert len(seen.names) == 1 + 8


# --- cancellation ---------------------------------------------------------------------------------


async def test_a_caller_that_is_cancelled_in_a_hook_leaves_nothing(
    url: str, namespace: str
) -> None:
    """Nothing is written, nothing runs on, the client goes on working."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        began = asyncio.Event()

        async def hangs(_: HookContext) -> None:
            began.set()
            await asyncio.Event().wait()

        spell.hooks.register(P.BEFORE_STATE_WRITE, hangs, timeout=60)
        tasks = len(asyncio.all_tasks())
        task = asyncio.create_task(spell.state.set(S, "k", 1))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        spell.hooks.clear()
        assert await spell.state.get(S, "k") is None
        assert len(asyncio.all_tasks()) <= tasks
        await spell.state.set(S, "k", 2)


# --- queued ---------------------------------------------------------------------------------------


async def test_a_queued_hook_runs_behind_the_operation(hooked: Hooked) -> None:
    """In order, with what was known then; nobody waits for it, and `drain` does."""
    seen: list[tuple[Any, Any]] = []

    async def late(ctx: HookContext) -> None:
        await asyncio.sleep(0)
        seen.append((ctx.data["value"], ctx.operation.result if ctx.operation else None))

    hooked.hooks.register(P.AFTER_STATE_WRITE, late, queued=True)
    given = [0]
    revisions = []
    for number in range(20):
        given[0] = number
        revisions.append(await hooked.do(hooked.state.set(S, "k", given)))
    assert await hooked.do(hooked.hooks.drain(WITHIN_S))
    assert seen == [([number], revision) for number, revision in enumerate(revisions)]


async def test_nothing_queued_is_lost_at_a_clean_stop(url: str, namespace: str) -> None:
    """On both surfaces: `close` waits."""
    runs: list[int] = []

    async def slow(_: HookContext) -> None:
        await asyncio.sleep(0.001)
        runs.append(1)

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, slow, queued=True)
        await asyncio.gather(*[spell.state.set(S, f"k{n}", n) for n in range(50)])
    assert len(runs) == 50

    with blocking.connect(url, namespace=namespace) as threaded:
        threaded.hooks.register(
            P.AFTER_STATE_WRITE, lambda _: runs.append(1), name="q", queued=True
        )
        for n in range(50):
            threaded.state.set(S, "k", n)
    assert len(runs) == 100


async def test_a_full_queue_holds_up_who_fills_it(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure: nothing is dropped; a stop does not wait for ever, and says what it left."""
    monkeypatch.setattr("llmspell_dist.hooks.manager.DRAIN_S", 0.01)
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks._queue._capacity = 2
        go_on = asyncio.Event()

        async def waits(_: HookContext) -> None:
            await go_on.wait()

        spell.hooks.register(P.AFTER_STATE_WRITE, waits, queued=True, timeout=WITHIN_S)
        writes = [asyncio.create_task(spell.state.set(S, f"k{n}", n)) for n in range(5)]
        await until(lambda: sum(write.done() for write in writes) >= 3)
        for _ in range(10):  # long enough for the others, if they were let
            await spell.ping()
        assert sum(write.done() for write in writes) == 3
        assert not await spell.hooks.drain(0.01)
        go_on.set()
        await asyncio.gather(*writes)
        assert await spell.hooks.drain(WITHIN_S)
        go_on.clear()
        await spell.state.set(S, "k", 1)
        await spell.hooks.close(0.01)
        assert spell.hooks._queue.lost == 1
        await spell.state.set(S, "k", 2)
        assert await spell.state.get(S, "k") == 2, "it has happened, so its caller is told so"
        assert spell.hooks._queue.lost == 2


# --- expiry ---------------------------------------------------------------------------------------


async def test_keys_that_housekeeping_removes_are_seen(
    url: str, namespace: str, expiring: Expiring
) -> None:
    """By the process that removed them, with the operation ``expired``."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        seen = Seen()
        spell.hooks.register(P.AFTER_STATE_WRITE, seen)
        await spell.state.set_many(S, {"a": 1, "b": 2}, ttl=0.001)
        await spell.state.set(S, "stays", 1)
        seen.runs.clear()
        await expiring.gone(S, "a", "b")
        driver, core = spell.state._driver, spell.state._driver.core
        _, removed, _ = await driver.run(sweep(core, "0", seen=spell.hooks.interceptor))
        assert removed == 2
        assert seen.names == ["expired"] * 2
        assert sorted(run.data["key"] for run in seen.runs) == ["a", "b"]
        stat = await spell.state.stat(S)
        assert {run.data["result"] for run in seen.runs} == {stat.revision}
        assert {run.metadata["batch"] for run in seen.runs} == {"expired"}


async def test_what_is_forked_behind_an_expiry_is_carried_out(
    url: str, namespace: str, expiring: Expiring, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else has an effect, since nobody waits: it is logged, and the next key is told."""

    def answer(ctx: HookContext) -> Any:
        if ctx.operation_type != "expired":
            return None
        if ctx.data["key"] == "a":
            return Retry()
        parameters = {"scope": "global", "key": "gone", "items": [ctx.data["key"]]}
        return Fork((ForkOperation("note", "append", parameters),))

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, answer, name="notes")
        await spell.state.set_many(S, {"a": 1, "b": 2}, ttl=0.001)
        await expiring.gone(S, "a", "b")
        driver, core = spell.state._driver, spell.state._driver.core
        await driver.run(sweep(core, "0", seen=spell.hooks.interceptor))
        assert await spell.state.get("global", "gone") == ["b"]
    assert "hook notes at AfterStateWrite failed: it answered Retry; nobody waits" in caplog.text


# --- leases, agents, tools, the system ------------------------------------------------------------


async def test_a_fork_where_the_library_has_none_to_carry_out_is_refused(hooked: Hooked) -> None:
    """At leases, events, agents and tools; at points of one's own it is up to their owner."""
    fork = Fork((ForkOperation("count", "increment", {"scope": S, "key": "n"}),))
    hooked.hooks.register("session:start", lambda _: fork, name="forks")
    outcome = await hooked.do(hooked.hooks.run("session:start", "mine"))
    assert (outcome.should_continue, outcome.forks) == (True, fork.operations)

    async def hold() -> None:
        lease = hooked.spell.leases.acquire(S, ttl=5, wait=0)
        if hooked.surface == "blocking":
            with lease:
                pass
        else:
            async with lease:
                pass

    async def publish() -> None:
        await hooked.do(hooked.spell.events.publish("order.paid", 1))

    for point, doing in (("lease:before_acquire", hold), (P.BEFORE_EVENT_EMIT, publish)):
        hooked.hooks.register(point, lambda _: fork, name="forks")
        wrong = f"hook forks at {point} failed: it answered Fork; the point does not allow that"
        with pytest.raises(InvalidHookResultError, match=wrong):
            await doing()
    assert not (await hooked.do(hooked.spell.leases.show(S))).held
    assert await hooked.do(hooked.state.get(S, "n")) is None


async def test_leases_have_points(hooked: Hooked) -> None:
    """Before and behind taking and giving back; who is refused holds nothing."""
    seen = Seen()
    points = [
        f"lease:{one}"
        for one in ("before_acquire", "after_acquire", "before_release", "after_release")
    ]
    for point in points:
        hooked.hooks.register(point, seen, name=point)

    async def hold() -> None:
        if hooked.surface == "blocking":
            with hooked.spell.leases.acquire(S, ttl=5, wait=0):
                pass
        else:
            async with hooked.spell.leases.acquire(S, ttl=5, wait=0):
                pass

    await hold()
    assert [run.point for run in seen.runs] == points
    assert {run.data["scope"] for run in seen.runs} == {S}
    assert [run.data["token"] is not None for run in seen.runs] == [False, True, True, True]
    for point in points[:2]:
        hooked.hooks.register(point, lambda _: Cancel("no"), name="guard")
        with pytest.raises(OperationCancelledError, match="no"):
            await hold()
        hooked.hooks.unregister("guard")
        await hold()
    hooked.hooks.register(points[2], lambda _: Cancel("stay"), name="guard")
    await hold()  # what is to be given back is given back
    assert not (await hooked.do(hooked.spell.leases.show(S))).held


async def test_agents_and_tools_have_points(hooked: Hooked) -> None:
    """In their order; a refused agent does not run, a refused tool is not called."""
    seen = Seen()
    for point in HookPoint:
        if "Agent" in point or "Tool" in point:
            hooked.hooks.register(point, seen, name=str(point))
    agents, calls = hooked.spell.agents, []

    def tool(text: str) -> str:
        calls.append(text)
        if text == "fails":
            raise ValueError(text)
        return f"did {text}"

    async def run(text: str) -> Any:
        new = AgentState.new("a", "test")
        if hooked.surface == "blocking":
            with agents.run("a", create=lambda: new) as agent:
                return agent.effect(f"tool-{text}").run(tool, text)
        async with agents.run("a", create=lambda: new) as agent:
            return await agent.effect(f"tool-{text}").run(tool, text)

    assert await run("x") == "did x"
    around = ["AfterAgentExecution", "BeforeAgentShutdown", "AfterAgentShutdown"]
    begins = ["BeforeAgentInit", "AfterAgentInit", "BeforeAgentExecution"]
    tools = ["BeforeToolExecution", "AfterToolExecution"]
    assert [run.point for run in seen.runs] == [*begins, *tools, *around]
    assert seen.runs[0].component == ComponentId("agent", "a")
    seen.runs.clear()
    with pytest.raises(ValueError, match="fails"):
        await run("fails")
    points = [run.point for run in seen.runs]
    assert points == [*begins, tools[0], "ToolError", "AgentError", *around]
    assert isinstance(seen.runs[4].error, ValueError)
    hooked.hooks.clear()

    hooked.hooks.register(P.BEFORE_TOOL_EXECUTION, lambda _: Replace("mine"), name="tools")
    assert await run("y") == "mine"
    hooked.hooks.clear()
    hooked.hooks.register(P.AFTER_TOOL_EXECUTION, lambda _: Modified({"result": "***"}), name="t")
    assert await run("z") == "***"
    hooked.hooks.clear()
    for point in (P.BEFORE_TOOL_EXECUTION, P.BEFORE_AGENT_EXECUTION, P.BEFORE_AGENT_INIT):
        hooked.hooks.register(point, lambda _: Cancel("no"), name="guard")
        with pytest.raises(OperationCancelledError):
            await run("never")
        hooked.hooks.clear()
    hooked.hooks.register(P.BEFORE_AGENT_EXECUTION, lambda _: Retry(), name="odd")
    with pytest.raises(InvalidHookResultError, match="hook odd at BeforeAgentExecution"):
        await run("never")
    assert calls == ["x", "fails", "z"]


async def test_the_end_of_a_client_is_a_point(url: str, namespace: str) -> None:
    """Once, while the client still works."""
    seen = Seen()
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.SYSTEM_SHUTDOWN, seen)
        state = spell.state

        async def last(_: HookContext) -> None:
            await state.set(S, "last", True)

        spell.hooks.register(P.SYSTEM_SHUTDOWN, last)
    assert len(seen.runs) == 1
    with blocking.connect(url, namespace=namespace) as threaded:
        assert threaded.state.get(S, "last") is True
        threaded.hooks.register(P.SYSTEM_SHUTDOWN, seen)
    assert len(seen.runs) == 2


async def test_a_point_of_the_system_is_told_once(
    hooked: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    """By whichever of its names; one that is none is refused, and what cannot be done is logged."""
    seen = Seen(lambda _: Redirect("global"))
    hooked.hooks.register(P.SYSTEM_STARTUP, seen)
    for name in (P.SYSTEM_STARTUP, "SystemStartup", "SYSTEM_STARTUP"):
        await hooked.do(hooked.hooks.tell(name))
    assert len(seen.runs) == 1
    assert "hooks at SystemStartup failed: hook Seen" in caplog.text
    with pytest.raises(UnknownHookPointError, match="is SystemStartup meant"):
        await hooked.do(hooked.hooks.tell("SystemStartupp"))


# --- built in, on a store -------------------------------------------------------------------------


async def test_built_in_hooks_do_their_work_on_a_store(hooked: Hooked) -> None:
    """Secrets stay out, changes are written down, reads come from memory, all is measured."""
    metrics, caching = MetricsHook(), CachingHook(60)
    hooks, state = hooked.hooks, hooked.state
    hooks.register(P.BEFORE_STATE_WRITE, SecurityHook(scopes=["agent:*"]), on_failure="cancel")
    audit = AuditHook.to_list(state, "custom:audit", "changes", values=True)
    hooks.register(P.AFTER_STATE_WRITE, audit, timeout=5)
    for point in (P.BEFORE_STATE_WRITE, P.AFTER_STATE_WRITE):
        hooks.register(point, metrics, name="metrics")
    for point in (P.BEFORE_STATE_READ, P.AFTER_STATE_WRITE):
        hooks.register(point, caching, name="caching")
    for point in (P.BEFORE_STATE_READ, P.AFTER_STATE_READ):
        hooks.register(point, metrics, name="metrics")
    with context(actor="ann", correlation_id="run-1"):
        await hooked.do(state.set(S, "k", {"api_key": "hunter2", "n": 1}))
    with pytest.raises(OperationCancelledError, match="scope user:x is not allowed"):
        await hooked.do(state.set("user:x", "k", 1))
    assert await hooked.do(state.get(S, "k")) == {"api_key": "***", "n": 1}
    assert await hooked.do(state.get(S, "k")) == {"api_key": "***", "n": 1}
    assert hooks.engine.cache.hits == 1
    await hooked.do(state.set(S, "k", 2))
    assert await hooked.do(state.get(S, "k")) == 2
    hooks.clear()
    entries = await hooked.do(state.get("custom:audit", "changes"))
    log = await hooked.do(state.history(S, "k"))
    assert [(one["actor"], one["key"]) for one in entries] == [("ann", "k"), (log[0].actor, "k")]
    assert entries[0]["correlation_id"] == "run-1"
    assert entries[0]["value"] == {"api_key": "***", "n": 1}
    assert metrics.timing("set").count == 2
    assert metrics.timing("get").count == 3, "also what is answered from memory"


async def test_allowed_keys_cannot_be_got_round_by_whole_scopes(hooked: Hooked) -> None:
    """Nor by a watch; one of allowed keys alone begins."""
    state, keys = hooked.state, SecurityHook(keys=["pub.*", "n[0-9]*"])
    await hooked.do(state.set_many(S, {"private": 1, "pub.x": 2}))
    for point in (P.BEFORE_STATE_WRITE, P.BEFORE_STATE_READ):
        hooked.hooks.register(point, keys, on_failure="cancel")
    for method, *arguments in (
        ("clear", S),
        ("copy_scope", S, "agent:other"),
        ("move_scope", S, "agent:other"),
        ("set_many", S, {"pub.x": 3, "private": 3}),
        ("get_all", S),
    ):
        with pytest.raises(OperationCancelledError, match="not allowed"):
            await hooked.do(getattr(state, method)(*arguments))

    async def begin(prefix: str | None) -> None:
        watch = state.watch(S, prefix=prefix)
        if hooked.surface == "blocking":
            with watch:
                pass
        else:
            async with watch:
                pass

    for prefix in (None, "p", "private", "n1"):
        with pytest.raises(OperationCancelledError, match="watch is not allowed"):
            await begin(prefix)
    for prefix in ("pub.", "pub.x"):
        await begin(prefix)
    assert await hooked.do(state.get_many(S, ["pub.x"])) == {"pub.x": 2}


# --- after a fork ---------------------------------------------------------------------------------


@pytest.mark.needs("process")
def test_a_child_has_the_hooks_and_not_the_queue(url: str, namespace: str) -> None:
    """What is queued in the parent runs there, once."""
    with blocking.connect(url, namespace=namespace) as spell:
        go_on = threading.Event()
        runs: list[int] = []

        def queued(ctx: HookContext) -> None:
            go_on.wait(WITHIN_S)
            runs.append(os.getpid())

        spell.hooks.register(P.AFTER_STATE_WRITE, queued, queued=True, breaker=False)
        spell.state.set(S, "k", 1)
        child = os.fork()
        if not child:
            code = 1
            try:
                go_on.set()
                spell.state.set(S, "k", 2)
                drained = spell.hooks.drain(WITHIN_S)
                code = 0 if drained and runs == [os.getpid()] else 2
            finally:
                os._exit(code)
        go_on.set()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert spell.hooks.drain(WITHIN_S)
        assert runs == [os.getpid()]


def test_contexts_know_who_called() -> None:
    """Actor, correlation and causation, as they are where the operation was called."""
    with context(actor="ann", correlation_id="c-1", causation_id="e-1"):
        ctx = HookContext("a:b", ComponentId("x", "y"))
    assert (ctx.actor, ctx.correlation_id, ctx.causation_id) == ("ann", "c-1", "e-1")
    child = ctx.child("a:c")
    assert (child.correlation_id, child.parent, child.point) == ("c-1", ctx, "a:c")
    assert ctx.id != child.id
    nothing = HookContext("a:b", ComponentId("x", "y"), actor="client")
    assert (nothing.correlation_id, nothing.actor) == (None, "client")
    assert (nothing.child("a:c").correlation_id, nothing.child("a:c").actor) == (None, "client")


@pytest.mark.parametrize("said", [{}, {"actor": "ann", "correlation_id": "c-1"}])
async def test_a_hook_is_told_what_the_log_says(hooked: Hooked, said: dict[str, str]) -> None:
    """The client acts if nobody else does; a correlation is not invented."""
    seen = Seen()
    points = (P.BEFORE_STATE_WRITE, P.AFTER_STATE_WRITE, "own:point")
    for point in points:
        hooked.hooks.register(point, seen)
    with context(**said):
        await hooked.do(hooked.state.set(S, "k", 1))
        await hooked.do(hooked.state.set_many(S, {"k": 2}))
        await hooked.do(hooked.hooks.run("own:point", "me"))
    (last, first) = await hooked.do(hooked.state.history(S, "k"))
    assert (first.actor, first.correlation_id) == (last.actor, last.correlation_id)
    assert first.actor
    assert len(seen.runs) == 5
    for ctx in seen.runs:
        assert (ctx.actor, ctx.correlation_id) == (first.actor, first.correlation_id)


async def test_a_lost_lease_is_a_point(hooked: Hooked) -> None:
    """With the reason; it was broken here."""
    told = threading.Event()
    seen = Seen(lambda _: told.set())
    hooked.hooks.register("lease:lost", seen)
    leases = hooked.spell.leases
    acquired = leases.acquire(S, ttl=5, on_lost="event", label="mine")
    lease = acquired if hooked.surface == "blocking" else await acquired
    await hooked.do(leases.break_lease(S, reason="enough"))
    await asyncio.to_thread(told.wait, WITHIN_S)
    (run,) = seen.runs
    assert (run.data["scope"], run.data["token"]) == (S, lease.token)
    assert "enough" in run.data["reason"]


async def test_a_closed_client_runs_no_hooks(hooked: Hooked) -> None:
    """And takes none."""
    await hooked.do(hooked.spell.close())
    for call in (
        lambda: hooked.hooks.register(P.AFTER_STATE_WRITE, Seen()),
        lambda: hooked.hooks.on(P.AFTER_STATE_WRITE)(Seen()),
        lambda: hooked.hooks.run("own:point", "me"),
        hooked.hooks.drain,
    ):
        with pytest.raises(ClosedError, match="closed"):
            await hooked.do(call())


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1", True])
async def test_waiting_for_a_negative_time_is_refused(hooked: Hooked, wrong: Any) -> None:
    """By name."""
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await hooked.do(hooked.hooks.drain(wrong))
    assert await hooked.do(hooked.hooks.drain(0))
