"""Hooks for the fleet, between clients of one process: who runs them, how far, who waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fix_state import Store, until

from llmspell_dist import ClassRules, Options, StateClass, blocking, connect
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import (
    InvalidArgumentError,
    StoreAuthenticationError,
    StorePermissionError,
    StoreUnavailableError,
)
from llmspell_dist.events.manager import Events
from llmspell_dist.hooks import fleet_inbox
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import (
    DuplicateHookError,
    HookNotFoundError,
    OperationCancelledError,
    UnknownHookPointError,
)
from llmspell_dist.hooks.fleet_asking import queue_of
from llmspell_dist.hooks.fleet_calls import Request, Travel
from llmspell_dist.hooks.fleet_members import Members
from llmspell_dist.hooks.results import Cancel, Fork, ForkOperation, Modified, Replace

pytestmark = pytest.mark.integration

S = "agent:alice"
BEFORE, AFTER = "BeforeStateWrite", "AfterStateWrite"
Clients = Callable[..., Awaitable[list[Spell]]]


@pytest.fixture
async def clients(url: str, namespace: str) -> AsyncIterator[Clients]:
    """Return a factory of clients that have joined, by their roles."""
    opened: list[Spell] = []

    async def start(*roles: str, **options: Any) -> list[Spell]:
        for role in roles:
            spell = await connect(url, namespace=namespace, options=Options(**options))
            opened.append(spell)
            await spell.hooks.fleet.join(labels={"role": role})
        await know_each_other(*opened)
        return opened[-len(roles) :]

    yield start
    for spell in reversed(opened):
        await spell.close()


async def know_each_other(*spells: Spell) -> None:
    """Wait until all know of all and of all their hooks."""

    def known() -> bool:
        maps = [one.hooks.fleet._members.map.processes for one in spells]
        own = [one.hooks.fleet._members.hooks for one in spells]
        return all(
            len(known.get(spell.hooks.fleet.process, _NOBODY).hooks) == len(hooks)
            for known in maps
            for spell, hooks in zip(spells, own, strict=True)
        )

    await until(known)


class _Nobody:
    hooks = (None,) * 99


_NOBODY: Any = _Nobody()


class Noting:
    """A hook that notes where it ran and for what."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.hops: list[str] = []

    def on(self, place: str, answer: Any = None) -> Any:
        """Return the hook of a process."""

        def note(ctx: HookContext) -> Any:
            self.ran.append((place, ctx.data["key"]))
            self.hops.append(ctx.metadata.get("fleet.hops", "0"))
            return answer

        return note


@pytest.fixture
def noting() -> Noting:
    """What ran where."""
    return Noting()


# --- who runs it ----------------------------------------------------------------------------------


async def test_every_process_runs_it_wherever_it_happens(clients: Clients, noting: Noting) -> None:
    """Each once; also where the process itself has not registered it."""
    a, b, c = await clients("x", "x", "x")
    await a.hooks.fleet(AFTER, noting.on("a"), name="note")
    await b.hooks.fleet(AFTER, noting.on("b"), name="note")
    await know_each_other(a, b, c)
    await a.state.set(S, "one", 1)
    await c.state.set(S, "two", 1)
    await until(lambda: len(noting.ran) == 4)
    assert sorted(noting.ran) == [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]


async def test_one_process_runs_it_and_that_is_the_one_where_it_happens_if_it_has_it(
    clients: Clients, noting: Noting
) -> None:
    """Else one of the others, through a queue that outlives it."""
    a, b, c = await clients("x", "x", "x")
    for name, spell in (("a", a), ("b", b)):
        await spell.hooks.fleet(AFTER, noting.on(name), name="one", run="one")
    await know_each_other(a, b, c)
    for number in range(20):
        await c.state.set(S, f"c{number}", 1)
    await b.state.set(S, "at home", 1)
    await until(lambda: len(noting.ran) == 21)
    assert ("b", "at home") in noting.ran
    assert sorted(key for _, key in noting.ran) == sorted(
        [*(f"c{n}" for n in range(20)), "at home"]
    )


async def test_labels_choose_who_runs_it(clients: Clients, noting: Noting) -> None:
    """And a process that joins with other labels is another choice."""
    a, b, c = await clients("api", "audit", "audit")
    for name, spell in (("a", a), ("b", b), ("c", c)):
        await spell.hooks.fleet(AFTER, noting.on(name), name="note", labels={"role": "audit"})
    await know_each_other(a, b, c)
    await a.state.set(S, "k", 1)
    await until(lambda: len(noting.ran) == 2)
    assert sorted(noting.ran) == [("b", "k"), ("c", "k")]
    assert a.hooks.find("note", AFTER) is None
    await c.hooks.fleet.join(labels={"role": "api"})
    assert c.hooks.find("note", AFTER) is None
    await until(lambda: len(a.hooks.fleet._members.map.targets("a", "note", AFTER)) == 1)
    await a.state.set(S, "again", 1)
    await until(lambda: len(noting.ran) == 3)
    assert noting.ran[-1] == ("b", "again")
    await a.hooks.fleet.join(labels={"role": "audit"})
    assert a.hooks.find("note", AFTER) is not None


async def test_nobody_pays_for_points_that_nobody_wants(clients: Clients, noting: Noting) -> None:
    """A process has a hook of its own there only as long as another has one for it."""
    a, b = await clients("x", "x")
    assert a.hooks.get_hooks() == []
    await b.hooks.fleet(AFTER, noting.on("b"), name="note")
    await know_each_other(a, b)
    assert [hook.name for hook in a.hooks.get_hooks()] == ["fleet:note"]
    assert [hook.name for hook in b.hooks.get_hooks()] == ["note"]
    await b.hooks.fleet.remove("note", AFTER)
    await know_each_other(a, b)
    assert a.hooks.get_hooks() == b.hooks.get_hooks() == []


async def test_a_late_joiner_asks_and_is_asked(clients: Clients, noting: Noting) -> None:
    """As soon as it has joined."""
    (a,) = await clients("x")
    await a.hooks.fleet(AFTER, noting.on("a"), name="note")
    (b,) = await clients("x")
    await b.state.set(S, "k", 1)
    await until(lambda: noting.ran == [("a", "k")])
    await b.hooks.fleet(AFTER, noting.on("b"), name="note")
    await know_each_other(a, b)
    await a.state.set(S, "l", 1)
    await until(lambda: len(noting.ran) == 3)


async def test_who_falls_silent_is_forgotten(
    clients: Clients, noting: Noting, store: Store
) -> None:
    """By whoever notices; nobody is asked in its place."""
    (a,) = await clients("x")
    ghost = Members(a._driver, a._hub, "ghost", lambda _: None)
    from llmspell_dist.hooks.fleet_model import FleetHook

    ghost.hooks = {("note", AFTER): FleetHook("note", AFTER, await_remote=True)}
    await ghost.say()
    await until(lambda: len(a.hooks.fleet.processes()) == 2)
    assert [hook.name for hook in a.hooks.get_hooks()] == ["fleet:note"]
    key = store.space.hook_fleet("0")
    said = store.raw("HGET", key, "ghost")
    store.raw("HSET", key, "ghost", b"%015d" % (int(said[:15]) - 16_000) + said[15:])
    store.raw("HDEL", key, "$swept")
    await a.hooks.fleet._members.say()
    await until(lambda: len(a.hooks.fleet.processes()) == 1)
    assert a.hooks.get_hooks() == []


# --- waited for -----------------------------------------------------------------------------------


async def test_another_process_can_veto(clients: Clients, store: Store) -> None:
    """The operation waits, and is not carried out; its caller knows who and why."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(BEFORE, lambda _: Cancel("not here"), name="guard", await_remote=True)
    await know_each_other(a, b)
    with pytest.raises(OperationCancelledError, match="fleet:guard at BeforeStateWrite: not here"):
        await a.state.set(S, "k", 1)
    assert await a.state.get(S, "k") is None
    assert a.hooks.fleet.stats.answered == 1


def marking(mark: str) -> Callable[[HookContext], Modified]:
    """Return a hook that puts something of its own in the place of the value."""
    return lambda _: Modified({"value": mark})


async def test_what_other_processes_modify_comes_together(clients: Clients) -> None:
    """In the order of their ids."""
    a, b, c = await clients("x", "x", "x")
    for spell in (b, c):
        mark = f"by {spell.hooks.fleet.process}"
        await spell.hooks.fleet(BEFORE, marking(mark), name="mark", await_remote=True)
    await know_each_other(a, b, c)
    await a.state.set(S, "k", 1)
    last = max(b.hooks.fleet.process, c.hooks.fleet.process)
    assert await a.state.get(S, "k") == f"by {last}"


async def test_one_of_several_can_answer_instead(clients: Clients) -> None:
    """Also through a queue."""
    a, b, c = await clients("x", "x", "x")
    for spell in (b, c):
        await spell.hooks.fleet(
            "BeforeStateRead", lambda _: Replace("mine"), name="r", run="one", await_remote=True
        )
    await know_each_other(a, b, c)
    assert await a.state.get(S, "k") == "mine"


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("how", ["fails", "is late", "is gone"])
async def test_a_failure_elsewhere_decides_as_was_said(
    clients: Clients, caplog: pytest.LogCaptureFixture, goes_on: bool, how: str
) -> None:
    """The operation goes on, or is cancelled."""
    a, b = await clients("x", "x")

    async def hook(_: HookContext) -> None:
        if how == "fails":
            raise ValueError("boom")
        await asyncio.Event().wait()

    timeout = 5.0 if how == "fails" else 0.2
    await b.hooks.fleet(
        BEFORE,
        hook,
        name="h",
        await_remote=True,
        continue_on_failure=goes_on,
        timeout=timeout,
    )
    await know_each_other(a, b)
    if how == "is gone":
        await b.hooks.fleet._inbox.close()
    if goes_on:
        await a.state.set(S, "k", 1)
        assert "hook h at BeforeStateWrite" in caplog.text
    else:
        with pytest.raises(OperationCancelledError) as caught:
            await a.state.set(S, "k", 1)
        name = b.hooks.fleet.processes()[0].name
        assert name
        assert caught.value.reason == (
            f"in process {name}: ValueError: boom"
            if how == "fails"
            else f"1 of 1 processes had not answered after 0.2 s ({name})"
        )
    assert "boom" not in caplog.text, "a message may hold the data"
    stats = a.hooks.fleet.stats
    assert stats.failed + stats.unanswered == 1
    assert (await a.state.get(S, "k") == 1) is goes_on


async def test_the_strictest_options_hold_whoever_came_first(clients: Clients) -> None:
    """Another process with a hook of that name and no veto takes nobody's veto away."""
    a, b, c = await clients("x", "x", "x")
    guard, other = sorted((a, b), key=lambda one: one.hooks.fleet.process, reverse=True)
    await guard.hooks.fleet(
        *(BEFORE, lambda _: Cancel("guarded")),
        name="guard",
        await_remote=True,
        continue_on_failure=False,
        timeout=5,
    )
    await other.hooks.fleet(BEFORE, lambda _: None, name="guard")
    await know_each_other(a, b, c)
    for spell in (c, other):
        with pytest.raises(OperationCancelledError, match="guarded"):
            await spell.state.set(S, "k", 1)


async def test_a_guard_that_was_taken_away_just_now_stops_nothing(clients: Clients) -> None:
    """Whoever asks may not know yet; a process that only says so while it has it has failed."""
    a, b = await clients("x", "x")
    how: dict[str, Any] = {"await_remote": True, "continue_on_failure": False, "timeout": 5}
    await b.hooks.fleet(BEFORE, lambda _: Cancel("no"), name="guard", **how)
    await know_each_other(a, b)
    known = a.hooks.fleet._members.map
    hook = b.hooks.fleet._own.pop(("guard", BEFORE))
    with pytest.raises(OperationCancelledError, match="there is no such hook"):
        await a.state.set(S, "k", 1)
    b.hooks.fleet._own["guard", BEFORE] = hook
    await b.hooks.fleet.remove("guard", BEFORE)
    await until(lambda: a.hooks.get_hooks() == [])
    a.hooks.fleet._look(known)  # as before it heard of it
    a.hooks.fleet._members.map, a.hooks.fleet._members._generation = known, b""
    await a.state.set(S, "k", 2)
    assert await a.state.get(S, "k") == 2


async def test_other_options_under_a_taken_name_are_named(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    """The process and the option."""
    a, b = await clients("x", "x")
    await a.hooks.fleet(BEFORE, lambda _: None, name="guard", await_remote=True)
    await know_each_other(a, b)
    await b.hooks.fleet(BEFORE, lambda _: None, name="guard")
    name = b.hooks.fleet.processes()[0].name
    assert f"has another await_remote in process {name}: the strictest holds" in caplog.text


async def test_clearing_its_own_hooks_frees_no_process_from_those_of_others(
    clients: Clients,
) -> None:
    """They are not its own to clear."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(BEFORE, lambda _: Cancel("no"), name="guard", await_remote=True)
    await know_each_other(a, b)
    a.hooks.register(BEFORE, lambda _: None, name="own")
    assert a.hooks.clear() == 1
    assert a.hooks.clear(BEFORE) == 0
    with pytest.raises(OperationCancelledError):
        await a.state.set(S, "k", 1)


async def test_priority_travels(clients: Clients) -> None:
    """A hook stands at the same place in every process."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(
        BEFORE, lambda _: Cancel("guarded"), name="guard", await_remote=True, priority=-100
    )
    await know_each_other(a, b)
    a.hooks.register(BEFORE, lambda _: Replace(None), name="earlier", priority=-99)
    with pytest.raises(OperationCancelledError, match="guarded"):
        await a.state.set(S, "k", 1)


class OnlyTools:
    """A hook that wants to run for tools only."""

    def __init__(self) -> None:
        self.ran = 0

    def should_execute(self, ctx: HookContext) -> bool:
        """Whether it is about a tool; what is about a user is a mistake."""
        if ctx.data["scope"].startswith("user:"):
            raise ValueError("users are none of its business")
        return str(ctx.data["scope"]).startswith("tool:")

    def execute(self, ctx: HookContext) -> Cancel:
        """Veto."""
        self.ran += 1
        return Cancel(f"closed: {ctx.data['key']}")


async def test_what_is_asked_before_a_hook_runs_at_home_is_asked_elsewhere_too(
    clients: Clients,
) -> None:
    """Whether it wants to; whether it is switched on, and hooks at all."""
    a, b = await clients("x", "x")
    hook = OnlyTools()
    await b.hooks.fleet(
        BEFORE, hook, name="guard", await_remote=True, continue_on_failure=False, timeout=5
    )
    await know_each_other(a, b)
    await a.state.set(S, "k", 1)
    with pytest.raises(OperationCancelledError, match="closed: k"):
        await a.state.set("tool:t", "k", 1)
    with pytest.raises(OperationCancelledError, match="ValueError: users"):
        await a.state.set("user:u", "k", 1)
    b.hooks.disable("guard")
    await a.state.set("tool:t", "k", 1)
    b.hooks.enable("guard")
    b.hooks.enabled = False
    await a.state.set("tool:t", "k", 1)
    b.hooks.enabled = True
    with pytest.raises(OperationCancelledError):
        await a.state.set("tool:t", "k", 1)
    assert hook.ran == 2


async def test_a_breaker_counts_what_fails_for_others(clients: Clients) -> None:
    """Open, it leaves the hook out; what that means is for who asked to say."""
    a, b = await clients("x", "x")
    calls = []

    def failing(_: HookContext) -> None:
        calls.append(1)
        raise ValueError("boom")

    hook = await b.hooks.fleet(
        BEFORE, failing, name="h", await_remote=True, continue_on_failure=False, timeout=5
    )
    await know_each_other(a, b)
    for _ in range(3):
        with pytest.raises(OperationCancelledError, match="ValueError"):
            await a.state.set(S, "k", 1)
    with pytest.raises(OperationCancelledError, match="circuit breaker is open"):
        await a.state.set(S, "k", 1)
    assert (len(calls), hook.failures, hook.skipped) == (3, 3, 1)


async def test_what_a_hook_elsewhere_forks_is_carried_out(clients: Clients) -> None:
    """As if it had been said at home."""
    a, b = await clients("x", "x")
    more = {"scope": "custom:count", "key": "n"}
    fork = Fork((ForkOperation("count", "increment", more),))
    await b.hooks.fleet(BEFORE, lambda _: fork, name="forker", await_remote=True)
    await know_each_other(a, b)
    await a.state.set(S, "k", 1)
    assert await a.state.get("custom:count", "n") == 1


async def test_what_is_too_large_to_be_asked_about_is_refused(
    clients: Clients, noting: Noting
) -> None:
    """Where the answer is waited for: else a veto could be got round by size."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(BEFORE, noting.on("b"), name="guard", await_remote=True)
    await know_each_other(a, b)
    large = [f"{number:x}" for number in range(300_000)]
    with pytest.raises(OperationCancelledError, match="too large to travel"):
        await a.state.set(S, "k", large)
    assert noting.ran == []


async def test_a_required_hook_that_nobody_has_lets_nothing_pass(clients: Clients) -> None:
    """Before the guard is there, and after it is gone."""
    a, b = await clients("x", "x")
    required = await a.hooks.fleet.require(BEFORE, "guard")
    with pytest.raises(OperationCancelledError, match="no process has the hook guard"):
        await a.state.set(S, "k", 1)
    a.hooks.clear()
    await b.hooks.fleet(BEFORE, lambda _: None, name="guard", await_remote=True)
    await know_each_other(a, b)
    await a.state.set(S, "k", 1)
    await b.hooks.fleet.leave()
    await until(lambda: len(a.hooks.fleet.processes()) == 1)
    with pytest.raises(OperationCancelledError, match="no process has the hook guard"):
        await a.state.set(S, "k", 2)
    await a.hooks.fleet(BEFORE, lambda _: None, name="guard")
    await a.state.set(S, "k", 3)
    await a.hooks.fleet.remove("guard", BEFORE)
    a.hooks.unregister(required.name)
    await a.state.set(S, "k", 4)
    with pytest.raises(InvalidArgumentError, match="allows Cancel"):
        await a.hooks.fleet.require(AFTER, "guard")


# --- what anybody may send ------------------------------------------------------------------------


async def test_nothing_that_arrives_makes_a_process_deaf(
    clients: Clients, noting: Noting, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and named, and the next is heard; in the inbox and in the queue."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(AFTER, noting.on("every"), name="every")
    await b.hooks.fleet(AFTER, noting.on("one"), name="one", run="one")
    await know_each_other(a, b)
    good = Request("r", "one", AFTER, Travel(1, 1e18, "p"), None, b"\1\0\x90").as_data()
    strange = [
        {"what": "ran", "id": []},
        {"what": "ran", "v": 1, "id": "x", "process": 1, "sealed": b""},
        {**good, "deadline_ms": "soon"},
        {**good, "context": b""},
        {**good, "context": b"\1\0\x81\xa1k\xa1v"},
        [],
        None,
    ]
    one = next(hook for _, hook in b.hooks.fleet._members.hooks.items() if hook.name == "one")
    raw = Events(a._driver, a._hub)  # as a client that is not this library's would
    for data in strange:
        await raw.publish(f"hook.fleet.{b.hooks.fleet.process}", data)
        await raw.publish(queue_of(one), data)
    await raw.close()
    await a.state.set(S, "k", 1)
    await until(lambda: sorted(noting.ran) == [("every", "k"), ("one", "k")])
    assert b.hooks.fleet.stats.malformed >= 8
    assert "cannot be read" in caplog.text


async def test_an_answer_waits_for_no_hook_that_runs_for_others(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many run and wait; those that wait run when there is room, the rest are counted."""
    monkeypatch.setattr(fleet_inbox, "AT_ONCE", 1)
    monkeypatch.setattr(fleet_inbox, "MAX_WAITING", 2)
    a, b = await clients("x", "x")
    begun, gate = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def slow(ctx: HookContext) -> None:
        begun.set()
        await gate.wait()
        ran.append(ctx.id)

    await a.hooks.fleet("job:slow", slow, name="slow", timeout=60)
    how: dict[str, Any] = {"await_remote": True, "continue_on_failure": False, "timeout": 60}
    await b.hooks.fleet("job:quick", lambda _: Cancel("answered"), name="quick", **how)
    await know_each_other(a, b)
    for _ in range(4):
        await b.hooks.run("job:slow", "x")
    await begun.wait()
    inbox = a.hooks.fleet._inbox
    await until(lambda: a.hooks.fleet.stats.dropped == 1)
    async with asyncio.timeout(5):
        with pytest.raises(OperationCancelledError, match="answered"):
            await a.hooks.run("job:quick", "x")
    assert (len(inbox._running), len(inbox._backlog)) == (1, 2)
    gate.set()
    await until(lambda: len(ran) == 3)
    assert a.hooks.fleet.stats.dropped == 1


async def test_a_hook_in_which_something_is_cancelled_ends_no_consumer(
    clients: Clients, noting: Noting
) -> None:
    """It has failed, as if it had raised anything else."""
    a, b = await clients("x", "x")
    note = noting.on("one")

    async def hook(ctx: HookContext) -> None:
        note(ctx)
        if ctx.data["key"] == "first":
            raise asyncio.CancelledError

    await b.hooks.fleet(AFTER, hook, name="one", run="one")
    await know_each_other(a, b)
    await a.state.set(S, "first", 1)
    await until(lambda: len(noting.ran) == 1)
    await a.state.set(S, "second", 1)
    await until(lambda: ("one", "second") in noting.ran)
    assert not any(task.done() for task in b.hooks.fleet._consumers.values())


@pytest.mark.parametrize("refused", [StoreAuthenticationError, StorePermissionError])
async def test_a_refusal_that_passes_ends_no_consumer(
    *,
    clients: Clients,
    noting: Noting,
    refused: type[StoreUnavailableError],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A password that is being changed: what was asked meanwhile is run afterwards."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(AFTER, noting.on("one"), name="one", run="one")
    await know_each_other(a, b)
    execute, away = b._driver.execute, True

    async def refusing(call: Any) -> Any:
        if away:
            raise refused("redis://test", "the password is being changed")
        return await execute(call)

    (consumer,) = b.events._bells.consumers
    monkeypatch.setattr(consumer._feed, "_execute", refusing)
    monkeypatch.setattr(b._driver, "execute", refusing)
    await a.state.set(S, "first", 1)
    await until(lambda: caplog.text.count("hook one does not run for others now") >= 2)
    away = False
    await a.state.set(S, "second", 1)
    await until(lambda: sorted(noting.ran) == [("one", "first"), ("one", "second")])


@pytest.mark.parametrize("kind", ["hook.fleet.x", "hook.one.x"])
async def test_only_the_fleet_publishes_its_events(clients: Clients, kind: str) -> None:
    """Nobody gets round the hooks of events that way, or calls hooks by hand."""
    (a,) = await clients("x")
    with pytest.raises(InvalidArgumentError, match="hooks of the fleet"):
        await a.events.publish(kind, {})
    a.hooks.register("BeforeEventEmit", lambda _: Modified({"type": kind}), name="retype")
    with pytest.raises(InvalidArgumentError, match="hooks of the fleet"):
        await a.events.publish("harmless", {})


# --- hops and time --------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
async def test_hooks_that_set_each_other_off_end_after_so_many_hops(
    clients: Clients, hops: int
) -> None:
    """Two processes answer each other's writes for ever, if they are let."""
    a, b = await clients("x", "x")
    seen: list[str] = []

    def answering(spell: Spell) -> Any:
        async def answer(ctx: HookContext) -> None:
            if "fleet.hops" not in ctx.metadata:
                return  # at home nothing is to be done
            seen.append(ctx.metadata["fleet.hops"])
            with spell.hooks.nested():
                await spell.state.increment(S, "n")

        return answer

    for spell in (a, b):
        await spell.hooks.fleet(AFTER, answering(spell), name="ping", max_hops=hops, timeout=20)
    await know_each_other(a, b)
    await a.state.increment(S, "n")
    stopped = [a, b][hops % 2].hooks.fleet.stats
    await until(lambda: stopped.stopped_by_hops == 1)
    assert seen == [str(number + 1) for number in range(hops)]
    assert await a.state.get(S, "n") == hops + 1


@pytest.mark.parametrize("limit", ["hops", "time"])
async def test_a_guard_that_a_limit_keeps_from_being_asked_lets_nothing_pass(
    clients: Clients, limit: str
) -> None:
    """Else whoever acts from far enough away is not guarded against."""
    a, b, guard = await clients("x", "x", "x")
    refused: list[str] = []

    async def act(ctx: HookContext) -> None:
        if ctx.data["key"] != "begin" or "fleet.hops" not in ctx.metadata:
            return
        if limit == "time":  # as if all the time had gone by on the way
            asking = b.hooks.fleet._asking._members
            now_ms = asking.now_ms
            asking.now_ms = lambda: now_ms() + 61_000  # type: ignore[method-assign]
        with b.hooks.nested():
            try:
                await b.state.set(S, "price", 1)
            except OperationCancelledError as error:
                refused.append(error.reason)

    await guard.hooks.fleet(
        *(BEFORE, lambda ctx: Cancel("fixed") if ctx.data["key"] == "price" else None),
        name="prices",
        await_remote=True,
        continue_on_failure=False,
        max_hops=1 if limit == "hops" else 3,
        timeout=60,
    )
    await b.hooks.fleet(AFTER, act, name="act", await_remote=True, timeout=60)
    await know_each_other(a, b, guard)
    await a.state.set(S, "begin", 1)
    (reason,) = refused
    assert "further" in reason if limit == "hops" else "is over" in reason
    assert await a.state.get(S, "price") is None
    stats = b.hooks.fleet.stats
    assert (stats.stopped_by_hops, stats.stopped_by_time) == (limit == "hops", limit == "time")


async def test_a_request_that_comes_too_late_is_not_carried_out(
    clients: Clients, noting: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a long stop of the process."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(AFTER, noting.on("b"), name="note", timeout=60)
    await know_each_other(a, b)
    now_ms = b.hooks.fleet._members.now_ms  # every heartbeat, also one under way, sets it right
    monkeypatch.setattr(b.hooks.fleet._inbox, "_now_ms", lambda: now_ms() + 61_000)
    await a.state.set(S, "k", 1)
    await until(lambda: b.hooks.fleet.stats.late == 1)
    assert noting.ran == []


# --- what travels ---------------------------------------------------------------------------------


async def test_what_a_hook_does_elsewhere_belongs_to_the_same_correlation(
    clients: Clients,
) -> None:
    """And is caused by the request."""
    a, b = await clients("x", "x")

    async def audit(ctx: HookContext) -> None:
        await b.state.set("custom:audit", ctx.data["key"], ctx.correlation_id)

    await b.hooks.fleet(AFTER, audit, name="audit", replayable=True)
    await know_each_other(a, b)
    with context(correlation_id="run-7"):
        await a.state.set(S, "k", 1)
    await until(lambda: b.hooks.fleet.stats.ran == 1)
    assert await b.state.get("custom:audit", "k") == "run-7"
    newest = (await b.log.entries(newest_first=True, limit=1))[0]
    assert newest.meta["c"] == "run-7"
    await b.hooks.history.flush()
    (recorded,) = await b.hooks.history.query(hook="audit")
    assert recorded.correlation_id == "run-7"
    assert (await b.replay.run(recorded, hook=lambda _: None)).identical


async def test_a_secret_does_not_travel_in_the_clear(
    clients: Clients, noting: Noting, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a cipher a hook elsewhere is not told, and that is a failure of it."""
    caplog.set_level(logging.WARNING)
    rules = ClassRules(patterns=(("secret*", StateClass.SENSITIVE),))
    a, b = await clients("x", "x", classes=rules)
    heard: list[Any] = []

    async def listen() -> None:
        async with b.events.subscribe("hook.fleet.*") as events:
            ready.set()
            async for event in events:
                heard.append(event.data)  # noqa: PERF401 - looked at meanwhile

    ready = asyncio.Event()
    listening = asyncio.create_task(listen())
    await ready.wait()
    await b.hooks.fleet(BEFORE, noting.on("b"), name="note")
    await know_each_other(a, b)
    with pytest.raises(Exception, match="cipher"):
        await a.state.set(S, "secret", "hunter2")
    await a.state.set(S, "plain", "hello")
    await until(lambda: noting.ran == [("b", "plain")] and len(heard) == 2)
    listening.cancel()
    assert b"hunter2" not in repr(heard).encode()
    assert "ReplayError" in caplog.text


async def test_what_makes_no_sense_is_refused_before_anything_is_said(
    clients: Clients, noting: Noting
) -> None:
    """By name; nothing is registered."""
    (a,) = await clients("x")
    fleet = a.hooks.fleet
    for wrong, error in (
        ({"point": "BeforeStateWrit"}, UnknownHookPointError),
        ({"run": "some"}, InvalidArgumentError),
        ({"run": "labels"}, InvalidArgumentError),
        ({"run": "one", "labels": {"a": "b"}}, InvalidArgumentError),
        ({"max_hops": 99}, InvalidArgumentError),
        ({"timeout": 0}, InvalidArgumentError),
        ({"priority": "first"}, InvalidArgumentError),
    ):
        given: dict[str, Any] = {"point": AFTER, **wrong}
        with pytest.raises(error):
            await fleet(given.pop("point"), noting.on("a"), **given)
    assert a.hooks.get_hooks() == []
    await fleet(AFTER, noting.on("a"), name="n")
    with pytest.raises(DuplicateHookError):
        await fleet(AFTER, noting.on("a"), name="n")
    with pytest.raises(HookNotFoundError):
        await fleet.remove("m", AFTER)
    with pytest.raises(InvalidArgumentError):
        await fleet.join(labels={"role": 3})  # type: ignore[dict-item]


async def test_a_process_that_leaves_is_asked_no_more(clients: Clients, noting: Noting) -> None:
    """At once, and leaves nothing behind."""
    a, b = await clients("x", "x")
    await b.hooks.fleet(AFTER, noting.on("b"), name="note")
    await know_each_other(a, b)
    await b.hooks.fleet.leave()
    await until(lambda: len(a.hooks.fleet.processes()) == 1)
    await a.state.set(S, "k", 1)
    assert a.hooks.get_hooks() == []
    assert a.hooks.fleet.stats.asked == 0


@pytest.mark.parametrize("how", ["remove", "leave", "forget", "another label"])
async def test_a_hook_that_does_not_run_here_takes_none_of_its_name_away(
    clients: Clients, noting: Noting, how: str
) -> None:
    """A fleet hook for other labels goes; a plain one of this process stays and runs."""
    (a,) = await clients("x")
    mine = a.hooks.register(AFTER, noting.on("plain"), name="note")
    await a.hooks.fleet(AFTER, noting.on("fleet"), name="note", run="every", labels={"role": "y"})
    if how == "remove":
        await a.hooks.fleet.remove("note", AFTER)
    elif how == "leave":
        await a.hooks.fleet.leave()
    elif how == "forget":
        a.hooks.fleet._forget_own(("note", AFTER))
    else:
        await a.hooks.fleet.join(labels={"role": "z"})
    assert a.hooks.find("note", AFTER) is mine
    await a.state.set(S, "k", 1)
    assert noting.ran == [("plain", "k")]


async def test_a_fleet_hook_that_could_not_be_announced_takes_none_of_its_name_away(
    clients: Clients, noting: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done for it is undone, and no more."""
    (a,) = await clients("x")
    mine = a.hooks.register(AFTER, noting.on("plain"), name="note")

    async def refused(_: Members) -> None:
        raise StoreUnavailableError("test")

    monkeypatch.setattr(Members, "say", refused)
    with pytest.raises(StoreUnavailableError):
        await a.hooks.fleet(AFTER, noting.on("fleet"), name="note", labels={"role": "y"})
    assert a.hooks.find("note", AFTER) is mine
    monkeypatch.undo()
    await a.hooks.fleet.leave()
    assert a.hooks.find("note", AFTER) is mine


async def test_what_asks_others_takes_none_of_its_name_away(
    clients: Clients, noting: Noting
) -> None:
    """A plain hook that has the name by which a hook of others is asked for."""
    a, b = await clients("x", "x")
    mine = a.hooks.register(AFTER, noting.on("plain"), name="fleet:note")
    await b.hooks.fleet(AFTER, noting.on("b"), name="note")
    await until(lambda: bool(a.hooks.fleet._proxies))
    await b.hooks.fleet.remove("note", AFTER)
    await until(lambda: not a.hooks.fleet._proxies)
    assert a.hooks.find("fleet:note", AFTER) is mine


# --- without an event loop ------------------------------------------------------------------------


async def test_the_blocking_surface_takes_part(
    url: str, namespace: str, clients: Clients, noting: Noting
) -> None:
    """It asks and is asked."""
    (a,) = await clients("x")
    await a.hooks.fleet(
        BEFORE,
        lambda ctx: Cancel("no") if ctx.data["value"] < 0 else None,
        name="guard",
        await_remote=True,
    )

    def work() -> None:
        with blocking.connect(url, namespace=namespace) as spell:
            spell.hooks.fleet(AFTER, noting.on("blocking"), name="note")
            spell.state.set(S, "k", 1)
            with pytest.raises(OperationCancelledError):
                spell.state.set(S, "k", -1)
            asyncio.run_coroutine_threadsafe(_set(a), loop).result(10)
            asyncio.run_coroutine_threadsafe(_ran(noting), loop).result(10)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(work)
    assert noting.ran == [("blocking", "k"), ("blocking", "from a")]
    await until(lambda: len(a.hooks.fleet.processes()) == 1)


async def _set(spell: Spell) -> None:
    await until(lambda: len(spell.hooks.get_hooks()) == 2)
    await spell.state.set(S, "from a", 1)


async def _ran(noting: Noting) -> None:
    await until(lambda: len(noting.ran) == 2)
