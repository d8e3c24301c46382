"""Whatever a hook raises, lets out or holds on to: operations, queue and housekeeping go on."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from fix_hooks import Hooked, S

import llmspell_dist
from llmspell_dist import blocking
from llmspell_dist.hooks.breaker import BreakerState
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import HookError, OperationCancelledError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import Cancel, Modified, Retry

pytestmark = pytest.mark.integration
WITHIN_S = 10.0


async def lets_a_cancellation_out(_: HookContext) -> None:
    """Wait for a task of its own that it has cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def raises_it_at_once(_: HookContext) -> None:
    """As if it had been cancelled, in its first step."""
    raise asyncio.CancelledError


def plain(_: HookContext) -> None:
    """As if it had been cancelled."""
    raise asyncio.CancelledError


FOREIGN = [lets_a_cancellation_out, raises_it_at_once, plain]


# --- cancellations that are not the caller's ------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["no limit", "limit"])
@pytest.mark.parametrize("hook", FOREIGN, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("point", [P.BEFORE_STATE_WRITE, P.AFTER_STATE_WRITE], ids=str)
async def test_a_cancellation_of_the_hooks_own_is_a_failure_of_it(
    hooked: Hooked, hook: Callable[..., Any], point: P, timeout: float | None
) -> None:
    """By its policy; its caller is not cancelled."""
    hooked.hooks.register(point, hook, name="odd", timeout=timeout, breaker=False)
    await hooked.do(hooked.state.set(S, "k", 1))
    assert await hooked.do(hooked.state.get(S, "k")) == 1
    (stats,) = hooked.hooks.stats()[point]
    assert stats.failures == 1
    hooked.hooks.clear()
    hooked.hooks.register(point, hook, on_failure="raise", timeout=timeout, name="odd")
    with pytest.raises(HookError) as caught:
        await hooked.do(hooked.state.set(S, "k", 2))
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_caller_who_is_cancelled_is_cancelled(url: str, namespace: str) -> None:
    """Its own cancellation is no failure of the hook."""
    begun = asyncio.Event()

    async def waits(_: HookContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.BEFORE_STATE_WRITE, waits)
        writing = asyncio.create_task(spell.state.set(S, "k", 1))
        await begun.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        (stats,) = spell.hooks.stats()[P.BEFORE_STATE_WRITE]
        assert stats.failures == 0


async def test_the_housekeeper_outlives_what_hooks_for_expired_keys_let_out(
    url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next key that expires is removed too, and close() raises nothing."""
    monkeypatch.setattr("llmspell_dist.client.INTERVAL_S", 0.02)
    monkeypatch.setattr("llmspell_dist.state.housekeeping.INTERVAL_S", 0.01)
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def odd(ctx: HookContext) -> None:
        if ctx.operation_type == "expired":
            seen.put_nowait(ctx.data["key"])
            await lets_a_cancellation_out(ctx)

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, odd, breaker=False)
        for key in ("first", "second"):
            await spell.state.set(S, key, 1, ttl=0.01)
            async with asyncio.timeout(WITHIN_S):
                assert await seen.get() == key


# --- queued hooks ---------------------------------------------------------------------------------


def _exits(_: HookContext) -> None:
    sys.exit(1)


@pytest.mark.parametrize("hook", [*FOREIGN, _exits], ids=lambda hook: hook.__name__)
async def test_the_queue_goes_on_whatever_a_hook_raises(
    hooked: Hooked, hook: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The next runs are carried out; `drain` tells the truth."""
    ran: list[int] = []

    def odd(ctx: HookContext) -> Any:
        ran.append(ctx.data["value"])
        return hook(ctx) if ctx.data["value"] == 0 else None

    hooked.hooks.register(P.AFTER_STATE_WRITE, odd, queued=True, breaker=False)
    for number in range(3):
        await hooked.do(hooked.state.set(S, "k", number))
    assert await hooked.do(hooked.hooks.drain(WITHIN_S))
    assert ran == [0, 1, 2]
    assert "failed" in caplog.text


async def test_a_worker_that_is_dead_is_replaced(url: str, namespace: str) -> None:
    """Somebody may cancel every task of the loop; what is queued then runs all the same."""
    ran: list[int] = []
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda ctx: ran.append(ctx.data["value"]), name="q", queued=True
        )
        await spell.state.set(S, "k", 0)
        assert await spell.hooks.drain(WITHIN_S)
        (worker,) = [task for task in asyncio.all_tasks() if task.get_name() == "llmspell-hooks"]
        worker.cancel()
        await asyncio.wait([worker])
        await spell.state.set(S, "k", 1)
        assert await spell.hooks.drain(WITHIN_S)
    assert ran == [0, 1]


async def test_a_stop_lets_go_of_who_waits_for_room(
    url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written is written: its caller gets the revision, and the runs lost are counted."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks._queue._capacity = 2
        begun = asyncio.Event()

        async def stays(_: HookContext) -> None:
            begun.set()
            await asyncio.Event().wait()

        spell.hooks.register(P.AFTER_STATE_WRITE, stays, queued=True, timeout=60)
        writes = [asyncio.create_task(spell.state.set(S, f"k{n}", n)) for n in range(8)]
        await begun.wait()
        while await spell.state.count(S) < 8:
            pass
        await spell.hooks.close(0.01)
        async with asyncio.timeout(WITHIN_S):
            revisions = await asyncio.gather(*writes)
        assert len(set(revisions)) == 8
        assert spell.hooks._queue.lost == 8
    assert "8 runs of queued hooks" in caplog.text


def test_a_stop_lets_go_of_threads_that_wait_for_room(url: str, namespace: str) -> None:
    """As without threads."""
    with blocking.connect(url, namespace=namespace) as spell:
        spell.hooks._queue._queue.maxsize = 2
        begun, go_on = threading.Event(), threading.Event()

        def stays(_: HookContext) -> None:
            begun.set()
            go_on.wait(WITHIN_S)

        spell.hooks.register(P.AFTER_STATE_WRITE, stays, queued=True)
        revisions: list[Any] = []
        threads = [
            threading.Thread(target=lambda n=n: revisions.append(spell.state.set(S, f"k{n}", n)))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        assert begun.wait(WITHIN_S)
        while spell.state.count(S) < 8:
            pass
        spell.hooks.close(0.01)
        for thread in threads:
            thread.join(WITHIN_S)
        assert len(set(revisions)) == 8
        assert spell.hooks._queue.lost == 8
        spell.state.set(S, "late", 1)
        assert spell.hooks._queue.lost == 9
        go_on.set()


# --- behind a write: all of them run --------------------------------------------------------------


def _raises(_: HookContext) -> None:
    raise ValueError("no")


def _odd(_: HookContext) -> Any:
    return 5


BATCHES: dict[str, Callable[[Hooked], Awaitable[Any]]] = {
    "set": lambda hooked: hooked.do(hooked.state.set(S, "a", 1)),
    "increment": lambda hooked: hooked.do(hooked.state.increment(S, "a")),
    "set_many": lambda hooked: hooked.do(hooked.state.set_many(S, {"a": 1, "b": 2, "c": 3})),
    "transaction": lambda hooked: hooked.transact(
        lambda tx: tx.set(S, "a", 1), lambda tx: tx.set(S, "b", 1), lambda tx: tx.set(S, "c", 1)
    ),
}


@pytest.mark.parametrize("bad", [_raises, _odd, lets_a_cancellation_out], ids=lambda b: b.__name__)
@pytest.mark.parametrize("name", BATCHES)
async def test_an_error_behind_a_write_hides_it_from_nobody(
    hooked: Hooked, name: str, bad: Callable[..., Any]
) -> None:
    """Later hooks, queued hooks and those of a batch's other keys run; then the first is raised."""
    inline: list[str] = []
    queued: list[str] = []
    hooked.hooks.register(
        P.AFTER_STATE_WRITE, lambda ctx: queued.append(ctx.data["key"]), name="q", queued=True
    )
    hooked.hooks.register(
        P.AFTER_STATE_WRITE, bad, on_failure="raise", name="bad", breaker=False, priority=0
    )
    hooked.hooks.register(
        P.AFTER_STATE_WRITE, _raises, on_failure="raise", name="worse", breaker=False, priority=1
    )
    hooked.hooks.register(
        P.AFTER_STATE_WRITE, lambda ctx: inline.append(ctx.data["key"]), name="i", priority=2
    )
    with pytest.raises(HookError) as caught:
        await BATCHES[name](hooked)
    assert caught.value.hook == "bad"
    assert await hooked.do(hooked.hooks.drain(WITHIN_S))
    keys = ["a"] if name in ("set", "increment") else ["a", "b", "c"]
    assert (inline, queued) == (keys, keys)


# --- what a hook that fails has changed -----------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["in line", "limit"])
@pytest.mark.parametrize("kind", ["plain", "coroutine", "waits", "puts another"])
async def test_what_a_hook_assigned_before_it_failed_is_undone(
    hooked: Hooked, kind: str, timeout: float | None
) -> None:
    """What hooks before it assigned stays."""

    def plain(ctx: HookContext) -> None:
        ctx.data["value"] = "half done"
        raise ValueError

    async def coroutine(ctx: HookContext) -> None:
        plain(ctx)

    async def waits(ctx: HookContext) -> None:
        ctx.data["key"] = "elsewhere"
        await asyncio.sleep(0.001)
        plain(ctx)

    def puts_another(ctx: HookContext) -> None:
        ctx.data = {**ctx.data, "value": "half done"}
        raise ValueError

    def assigns(ctx: HookContext) -> None:
        ctx.data["value"] += "!"

    bad = {"plain": plain, "coroutine": coroutine, "waits": waits, "puts another": puts_another}
    hooked.hooks.register(P.BEFORE_STATE_WRITE, assigns, priority=0, name="first")
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, bad[kind], priority=1, breaker=False, timeout=timeout, name="bad"
    )
    hooked.hooks.register(P.BEFORE_STATE_WRITE, assigns, priority=2, name="last")
    for _ in range(3):  # measured and not, all the same
        await hooked.do(hooked.state.set(S, "k", "x"))
        assert await hooked.do(hooked.state.get(S, "k")) == "x!!"
        await hooked.do(hooked.state.set_many(S, {"k": "y"}))
        assert await hooked.do(hooked.state.get_all(S)) == {"k": "y!!"}


async def test_data_that_a_hook_put_in_its_place_is_written(hooked: Hooked) -> None:
    """By every operation."""

    def puts_another(ctx: HookContext) -> None:
        ctx.data = {**ctx.data, "value": "other"}

    hooked.hooks.register(P.BEFORE_STATE_WRITE, puts_another)
    await hooked.do(hooked.state.set(S, "a", "x"))
    await hooked.do(hooked.state.set_if_absent(S, "b", "x"))
    await hooked.do(hooked.state.set_many(S, {"c": "x"}))
    assert set((await hooked.do(hooked.state.get_all(S))).values()) == {"other"}


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_hook_beyond_its_limit_changes_nothing_any_more(hooked: Hooked, kind: str) -> None:
    """Neither what it assigns nor what it changes in a value; in time it may do both."""
    late, over = threading.Event(), threading.Event()

    def change(ctx: HookContext) -> None:
        ctx.data["value"]["n"] = "late"
        ctx.data["key"] = "late"
        over.set()

    def plain(ctx: HookContext) -> None:
        late.wait(WITHIN_S)
        change(ctx)

    async def coroutine(ctx: HookContext) -> None:
        while not late.is_set():
            with suppress(asyncio.CancelledError):  # it holds on
                await asyncio.sleep(0.01)
        change(ctx)

    def held_up(ctx: HookContext) -> None:
        late.set()
        assert over.wait(WITHIN_S)

    async def held_up_there(ctx: HookContext) -> None:
        late.set()
        assert await asyncio.to_thread(over.wait, WITHIN_S)

    hook = plain if kind == "plain" else coroutine
    hooked.hooks.register(P.BEFORE_STATE_WRITE, hook, timeout=0.02, priority=0, name="late")
    hooked.hooks.register(
        P.BEFORE_STATE_WRITE, held_up if kind == "plain" else held_up_there, priority=1, name="then"
    )
    await hooked.do(hooked.state.set(S, "k", {"n": 1}))
    assert await hooked.do(hooked.state.get_all(S)) == {"k": {"n": 1}}


def _disguised(hook: Callable[..., Any]) -> Callable[[HookContext], Any]:
    """Give back a plain function whose answer is a coroutine."""

    def disguised(ctx: HookContext) -> Any:
        return hook(ctx)

    return disguised


async def test_a_hook_in_a_thread_may_change_the_data_in_time(hooked: Hooked) -> None:
    """Assigned or in place; and a plain function may give back a coroutine."""

    def plain(ctx: HookContext) -> None:
        ctx.data["value"]["n"].append("in time")
        ctx.metadata["seen"] = "yes"

    async def there(ctx: HookContext) -> Modified:
        assert ctx.metadata["seen"] == "yes"
        await asyncio.sleep(0.001)
        return Modified({"value": ctx.data["value"] | {"more": 1}})

    hooked.hooks.register(P.BEFORE_STATE_WRITE, plain, timeout=5, priority=0)
    hooked.hooks.register(P.BEFORE_STATE_WRITE, _disguised(there), timeout=5, priority=1)
    given: dict[str, Any] = {"n": []}
    await hooked.do(hooked.state.set(S, "k", given))
    assert await hooked.do(hooked.state.get(S, "k")) == {"n": ["in time"], "more": 1}
    assert given == {"n": []}, "the caller's own object is not the hook's"


async def test_a_disguised_coroutine_may_cancel(hooked: Hooked) -> None:
    """Its answer counts as any other."""

    async def no(_: HookContext) -> Cancel:
        return Cancel("no")

    hooked.hooks.register(P.BEFORE_STATE_WRITE, _disguised(no), timeout=5, name="no")
    with pytest.raises(OperationCancelledError, match="no"):
        await hooked.do(hooked.state.set(S, "k", 1))


async def test_attempts_without_a_delay_let_others_have_their_turn(
    url: str, namespace: str
) -> None:
    """A limit of the caller's ends them."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(
            P.BEFORE_STATE_WRITE, lambda _: Retry(0, 10**9), name="again", breaker=False
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await spell.state.set(S, "k", 1)


# --- callers that are cancelled while their write is on its way -----------------------------------


def _transacted(spell: Any) -> Any:
    async def transact() -> None:
        async with spell.state.transaction() as tx:
            tx.set(S, "a", 1)

    return transact()


IN_FLIGHT: dict[str, Callable[[Any], Any]] = {
    "set": lambda spell: spell.state.set(S, "a", 1),
    "increment": lambda spell: spell.state.increment(S, "a"),
    "append": lambda spell: spell.state.append(S, "l", 1),
    "set_many": lambda spell: spell.state.set_many(S, {"a": 1}),
    "transaction": _transacted,
    "update": lambda spell: spell.state.update(S, "a", lambda value: (value or 0) + 1, default=0),
}


@pytest.mark.parametrize("name", IN_FLIGHT)
async def test_a_write_is_seen_behind_though_its_caller_was_cancelled(
    url: str, namespace: str, name: str
) -> None:
    """As often as it happened, in line and queued; whenever the caller is cancelled."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await spell.state.set(S, "other", 1)
        inline: list[Any] = []
        queued: list[Any] = []
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda ctx: inline.append(ctx.data["result"]), name="i"
        )
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda ctx: queued.append(ctx.error), name="q", queued=True
        )
        asked = asyncio.Event()
        spell.hooks.register(P.BEFORE_STATE_WRITE, lambda _: asked.set(), name="b")
        before = (await spell.log.stat()).entries
        for turns in [*range(12), 1, 2, 3, 2, 1, 2]:
            asked.clear()
            call = asyncio.ensure_future(IN_FLIGHT[name](spell))
            await asked.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await spell.ping()
        assert await spell.hooks.drain(WITHIN_S)
        written = (await spell.log.stat()).entries - before
        assert written > 0
        assert len(inline) == len(queued) == written
        assert all(result is not None for result in inline)
        assert set(queued) == {None}


@pytest.mark.parametrize("name", ["set", "increment", "set_many"])
async def test_hooks_behind_one_that_was_cancelled_with_its_caller_run(
    url: str, namespace: str, name: str
) -> None:
    """The one that waited is told that it was cancelled; the others see the write."""
    begun = asyncio.Event()
    seen: list[str] = []

    async def waits(_: HookContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, waits, priority=0)
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda _: seen.append("inline"), name="i", priority=1
        )
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda _: seen.append("queued"), name="q", queued=True
        )
        call = asyncio.ensure_future(IN_FLIGHT[name](spell))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await spell.hooks.drain(WITHIN_S)
    assert seen == ["inline", "queued"]


async def test_callers_who_leave_open_no_breaker_of_a_hook_behind_a_write(
    url: str, namespace: str
) -> None:
    """Time limits of clients are no failures of the hook; each run is recorded once, as cut off."""
    begun = asyncio.Event()

    async def waits(ctx: HookContext) -> None:
        ctx.data["value"] = "mine"
        begun.set()
        await asyncio.Event().wait()

    seen: list[Any] = []
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, waits, replayable=True, timeout=60)
        spell.hooks.register(
            P.AFTER_STATE_WRITE, lambda ctx: seen.append(ctx.data["value"]), name="behind"
        )
        for number in range(4):
            begun.clear()
            call = asyncio.ensure_future(spell.state.set(S, "a", number))
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await spell.hooks.drain(WITHIN_S)
        first, _ = spell.hooks.stats()[P.AFTER_STATE_WRITE]
        assert (first.breaker, first.failures, first.skipped) == (BreakerState.CLOSED, 0, 0)
        assert seen == [0, 1, 2, 3]
        await spell.hooks.history.flush()
        runs = await spell.hooks.history.query(hook="waits")
        kinds = [one.error.type for one in runs if one.error is not None]
        assert kinds == ["CancelledError"] * 4


async def test_nothing_is_tried_again_for_a_caller_who_has_left(url: str, namespace: str) -> None:
    """A hook that answers Retry to a failed write is asked, and not obeyed."""
    asked: list[str] = []

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        await spell.state.set(S, "a", "text")

        def again(ctx: HookContext) -> Retry | None:
            asked.append(type(ctx.error).__name__)
            return Retry(0, 5) if ctx.error is not None else None

        spell.hooks.register(P.AFTER_STATE_WRITE, again)
        call = asyncio.ensure_future(spell.state.increment(S, "a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await spell.hooks.drain(WITHIN_S)
    assert len(asked) == 1


async def test_a_stop_waits_for_what_stands_behind_writes_of_cancelled_callers(
    url: str, namespace: str
) -> None:
    """Not longer than for queued hooks."""
    seen: list[str] = []

    async def slow(ctx: HookContext) -> None:
        await asyncio.sleep(0.001)
        seen.append(ctx.data["key"])

    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        spell.hooks.register(P.AFTER_STATE_WRITE, slow)
        call = asyncio.ensure_future(spell.state.set(S, "k", 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
    assert seen == ["k"]
