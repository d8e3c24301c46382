"""Hooks at the points of agents: they see, change and refuse what is stored, and who loads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_hooks import Hooked, Seen
from fix_sidecar import Sidecar
from fix_state import Store, until

from llmspell_dist import (
    ClassRules,
    ConflictError,
    InvalidArgumentError,
    LeaseLostError,
    Options,
    StaleFencingTokenError,
    StateClass,
    connect,
)
from llmspell_dist.agents import (
    AgentExistsError,
    AgentNotFoundError,
    AgentState,
    IllegalTransitionError,
    Message,
    Role,
)
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import CodecError
from llmspell_dist.hooks import (
    AuditHook,
    CachingHook,
    DebuggingHook,
    LoggingHook,
    MetricsHook,
    RateLimitHook,
    SecurityHook,
    ValidationHook,
)
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import HookError, InvalidHookResultError, OperationCancelledError
from llmspell_dist.hooks.results import Cancel, Modified, Replace
from llmspell_dist.state.transactions import TransactionSteps

pytestmark = [pytest.mark.integration, pytest.mark.agent]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
KINDS = ("save", "load", "update", "delete")
BEFORE = tuple(f"agent:before_{kind}" for kind in KINDS)
AFTER = tuple(f"agent:after_{kind}" for kind in KINDS)


def new_state(agent_id: str = "alice") -> AgentState:
    """The state of an agent that holds something everywhere."""
    state = AgentState.new(agent_id, "planner", tags=["a"], now=lambda: T0)
    state.add_message("user", ["my pin is 1234", {"n": 1}], metadata={"pin": "1234"}, at=T0)
    state.context["topic"] = "tea"
    state.custom["score"] = 1
    state.record_tool_usage("web", 1.5, True, at=T0)
    return state


async def laid_down(hooked: Hooked) -> AgentState:
    """Save an agent, and load it."""
    await hooked.do(hooked.spell.agents.save(new_state()))
    found: AgentState = await hooked.do(hooked.spell.agents.load("alice"))
    return found


def watching(hooked: Hooked | Spell, *points: str, answer: Any = lambda _: None) -> Seen:
    """Register a hook at some points, by default at all."""
    seen = Seen(answer)
    for point in points or (*BEFORE, *AFTER):
        hooked.hooks.register(point, seen, name="seen")
    return seen


def steps_of(seen: Seen) -> list[tuple[str, str]]:
    """At which points a hook ran, and for what."""
    return [(str(run.point), run.data["operation"]) for run in seen.runs]


# --- who passes which point -----------------------------------------------------------------------

M = Message(Role.USER, "one", T0)
Doing = Callable[[Any, Any, AgentState], Any]
OPERATIONS: dict[str, tuple[str, str, Doing]] = {
    "save": ("save", "save", lambda agents, _, state: agents.save(state)),
    "save by force": ("save", "save", lambda agents, _, state: agents.save(state, force=True)),
    "load": ("load", "load", lambda agents, _, __: agents.load("alice")),
    "load_fast": ("load", "load_fast", lambda agents, _, __: agents.load_fast("alice", tail=1)),
    "delete": ("delete", "delete", lambda agents, _, __: agents.delete("alice")),
    "pause": ("update", "pause", lambda agents, _, __: agents.pause("alice", reason="r")),
    "refresh": ("load", "load", lambda _, agent, __: agent.refresh()),
    "messages": ("load", "messages", lambda _, agent, __: agent.messages(-1)),
    "add_message": ("update", "add_messages", lambda _, agent, __: agent.add_message("user", "x")),
    "add_messages": ("update", "add_messages", lambda _, agent, __: agent.add_messages(M, M, M)),
    "tool": (
        *("update", "record_tool_usage"),
        lambda _, agent, __: agent.record_tool_usage("web", 2, False),
    ),
    "set_context": ("update", "set_context", lambda _, agent, __: agent.set_context(a=1)),
    "set_custom": ("update", "set_custom", lambda _, agent, __: agent.set_custom(remove=["score"])),
    "transition": ("update", "transition", lambda _, agent, __: agent.transition("processing")),
    "stop of a handle": ("update", "stop", lambda _, agent, __: agent.stop()),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_each_operation_passes_its_points_once(
    hooked: Hooked, operation: str, loaded: bool
) -> None:
    """Before and behind, also several messages at once; whether the handle has loaded or not."""
    kind, name, do = OPERATIONS[operation]
    state = await laid_down(hooked)
    agent = hooked.spell.agents.agent("alice")
    if loaded:
        await hooked.do(agent.refresh())
    seen = watching(hooked)
    state.context["topic"] = "milk"
    await hooked.do(do(hooked.spell.agents, agent, state))
    before, after = f"agent:before_{kind}", f"agent:after_{kind}"
    assert steps_of(seen) == [(before, name), (after, name)]
    first, last = seen.runs
    assert first.component.type == "agent"
    assert (first.data["agent_id"], first.data["scope"]) == ("alice", "agent:alice")
    assert first.operation_type == last.operation_type == name
    assert last.error is None
    if kind in {"save", "update"}:
        assert (
            last.data["revision"] == (await hooked.do(hooked.spell.agents.load("alice"))).revision
        )
    elif kind == "delete":
        assert last.data["result"] is True


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_refused_operation_changes_nothing(
    hooked: Hooked, operation: str, store: Store
) -> None:
    """Not a byte in Redis, and the caller's own state stays as it was."""
    _, _, do = OPERATIONS[operation]
    state = await laid_down(hooked)
    agent = hooked.spell.agents.agent("alice")
    held = await hooked.do(agent.refresh())
    state.context["topic"] = "milk"
    before, was = store.dump(), (await hooked.do(hooked.spell.agents.load("alice")))
    seen = watching(hooked, *BEFORE, answer=lambda _: Cancel("no"))
    behind = watching(hooked, *AFTER)
    with pytest.raises(OperationCancelledError, match="cancelled by hook seen at agent:before_"):
        await hooked.do(do(hooked.spell.agents, agent, state))
    assert len(seen.runs) == 1
    assert not behind.runs
    assert store.dump() == before
    assert held == was
    assert state.context["topic"] == "milk"
    hooked.hooks.clear()
    await hooked.do(hooked.spell.agents.save(state))  # it can still be saved


async def test_a_fork_is_a_load_of_one_and_a_save_of_another(hooked: Hooked) -> None:
    """Either can be refused; what is changed before the save is what the new agent has."""
    state = await laid_down(hooked)
    seen = watching(hooked)
    agents = hooked.spell.agents
    await hooked.do(agents.fork("alice", "bob", at=state.revision))
    assert [(str(run.point), run.data["agent_id"], run.data["operation"]) for run in seen.runs] == [
        ("agent:before_load", "alice", "fork"),
        ("agent:after_load", "alice", "fork"),
        ("agent:before_save", "bob", "fork"),
        ("agent:after_save", "bob", "fork"),
    ]
    assert (seen.runs[0].data["into"], seen.runs[0].data["at"]) == ("bob", str(state.revision))
    hooked.hooks.clear()
    for point in ("agent:before_load", "agent:after_load", "agent:before_save"):
        hooked.hooks.register(point, lambda _: Cancel("no"), name="no")
        with pytest.raises(OperationCancelledError, match="no"):
            await hooked.do(agents.fork("alice", "carl"))
        hooked.hooks.clear()
        with pytest.raises(AgentNotFoundError):
            await hooked.do(agents.load("carl"))

    def renamed(ctx: HookContext) -> Modified:
        return Modified({"value": {**ctx.data["value"], "context": {"of": "the fork"}}})

    hooked.hooks.register("agent:before_save", renamed)
    forked = await hooked.do(agents.fork("alice", "carl"))
    assert forked.context == {"of": "the fork"}
    assert (await hooked.do(agents.load("carl"))) == forked


async def test_running_an_agent_passes_them_too(hooked: Hooked) -> None:
    """Its load, and the save of one that is created."""
    seen = watching(hooked)
    agents = hooked.spell.agents
    for _ in range(2):
        run = agents.run("alice", create=new_state(), ttl=5, wait=0)
        if hooked.surface == "blocking":
            with run as agent:
                agent.set_context(a=1)
        else:
            async with run as agent:
                await agent.set_context(a=1)
    created = [("agent:before_save", "save"), ("agent:after_save", "save")]
    load = [("agent:before_load", "load"), ("agent:after_load", "load")]
    update = [("agent:before_update", "set_context"), ("agent:after_update", "set_context")]
    assert steps_of(seen) == [*load, *created, *update, *load, *update]
    assert isinstance(seen.runs[1].error, AgentNotFoundError)


# --- what a hook makes of it ----------------------------------------------------------------------


def without_pin(value: Any) -> Any:
    """Return a value without the secret."""
    if type(value) is str:
        return value.replace("1234", "****")
    if type(value) is dict:
        return {name: without_pin(part) for name, part in value.items()}
    return [without_pin(part) for part in value] if type(value) is list else value


def redact(ctx: HookContext) -> Modified:
    """Keep the pin out of whatever is stored."""
    return Modified({"value": without_pin(ctx.data["value"])})


def redact_in_place(ctx: HookContext) -> None:
    """The same in the hook's own data, which is a copy."""
    ctx.data["value"] = without_pin(ctx.data["value"])


def redact_deep_in_place(ctx: HookContext) -> None:
    """The same in the messages and variables themselves."""
    value = ctx.data["value"]
    if type(value) is dict:
        for name in value:
            if name != "conversation":
                value[name] = without_pin(value[name])
        value = value.get("conversation", [])
    for message in value:
        message["content"] = without_pin(message["content"])
        message["metadata"] = without_pin(message["metadata"])


@pytest.mark.parametrize("hook", [redact, redact_in_place, redact_deep_in_place])
async def test_a_hook_keeps_something_out_of_what_is_stored(
    hooked: Hooked, store: Store, hook: Any
) -> None:
    """Of a save and of each update; the caller is given, and the handle holds, what is stored."""
    for point in ("agent:before_save", "agent:before_update"):
        hooked.hooks.register(point, hook, name="redact", on_failure="raise")
    agents = hooked.spell.agents
    state = new_state()
    mine = state.conversation[0]
    await hooked.do(agents.save(state))
    assert mine.content[0] == "my pin is 1234", "the caller's message is left alone"
    assert state == await hooked.do(agents.load("alice"))
    state.context["pin"] = "1234"
    await hooked.do(agents.save(state))  # known from the first save, and known again
    agent = agents.agent("alice")
    await hooked.do(agent.refresh())
    metadata = {"pin": "1234"}
    message = await hooked.do(agent.add_message("user", "1234 it is", metadata=metadata))
    assert (message.content, message.metadata) == ("**** it is", {"pin": "****"})
    assert metadata == {"pin": "1234"}
    await hooked.do(agent.add_messages(M, Message(Role.USER, "1234", T0)))
    if hook is not redact_deep_in_place:
        await hooked.do(agent.set_context(pin="1234", deep=[{"pin": "1234"}]))
        await hooked.do(agent.set_custom({"pin": "1234"}))
        await hooked.do(agent.transition("processing", "asked for 1234"))
        assert agent.state.execution.reason == "asked for ****"
        assert agent.state.context["deep"] == [{"pin": "****"}]
    agent.state.custom["note"] = "1234"
    await hooked.do(agent.save())
    found = await hooked.do(agents.load("alice"))
    assert found == agent.state
    assert [one.content for one in found.conversation] == [
        ["my pin is ****", {"n": 1}],
        "**** it is",
        "one",
        "****",
    ]
    assert found.custom["note"] == "****"
    assert b"1234" not in b"".join(
        part for key in store.all_keys() if b"agent:alice" in key for part in everything(store, key)
    )


def everything(store: Store, key: bytes) -> list[bytes]:
    """Return the bytes of a hash or list of the namespace."""
    kind = store.raw("TYPE", key)
    if kind == b"list":
        found: list[bytes] = store.raw("LRANGE", key, 0, -1)
        return found
    return list(store.raw("HGETALL", key)) if kind == b"hash" else []


async def test_messages_before_a_changed_one_stay_where_they_lie(
    hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that changes only what is new costs an append, whatever is stored already."""
    state = new_state()
    for number in range(50):
        state.add_message("user", f"{number}", at=T0)
    agents = hooked.spell.agents
    await hooked.do(agents.save(state))
    hooked.hooks.register("agent:before_save", redact)
    partly = await hooked.do(agents.load_fast("alice", tail=2))
    partly.add_message("user", "1234", at=T0)
    before = partly.stored.conversation.generation
    await hooked.do(agents.save(partly))
    found = await hooked.do(agents.load("alice"))
    assert found.stored.conversation.generation == before
    assert [one.content for one in found.conversation[-2:]] == ["49", "****"]
    assert len(found.conversation) == 52
    assert [one.content for one in partly.conversation] == ["48", "49", "****"]
    # Earlier ones of a conversation that is only loaded in part cannot be changed.
    hooked.hooks.clear()

    def other(ctx: HookContext) -> Modified:
        return Modified({"value": {**ctx.data["value"], "conversation": []}})

    hooked.hooks.register("agent:before_save", other)
    with pytest.raises(InvalidArgumentError, match="loaded in part"):
        await hooked.do(agents.save(partly))
    assert len(partly.conversation) == 3


async def test_every_part_of_a_state_can_be_changed(hooked: Hooked) -> None:
    """What a hook sees is plain, whole, and becomes a state again."""
    other = new_state()
    other.agent_type = "writer"
    other.metadata.tags.append("b")
    other.transition("suspended", "later", at=T0)
    other.record_tool_usage("search", 2.5, False, at=T0)
    other.hook_registrations.append({"h": 1})
    other.correlation_context = {"c": 1}
    other.last_hook_execution = T0
    other.schema_version = 3
    other.custom["more"] = (1, {2})
    agents = hooked.spell.agents
    seen = watching(hooked, "agent:before_save")
    await hooked.do(agents.save(AgentState.new("other", "t", now=lambda: T0)))
    await hooked.do(agents.save(other))
    hooked.hooks.clear()
    value = seen.runs[1].data["value"]
    assert value.keys() == seen.runs[0].data["value"].keys()
    state = AgentState.new("bob", "t", now=lambda: T0)
    hooked.hooks.register("agent:before_save", lambda _: Modified({"value": value}), name="h")
    await hooked.do(agents.save(state))
    other.agent_id = "bob"
    assert state == other == await hooked.do(agents.load("bob"))
    state.context["x"] = 1
    hooked.hooks.clear()
    await hooked.do(agents.save(state))


def _with(**more: Any) -> Callable[[HookContext], Modified]:
    return lambda ctx: Modified({"value": {**ctx.data["value"], **more}})


BAD = {
    "no state": ("save", lambda _: Modified({"value": [1]})),
    "a field too few": ("save", lambda _: Modified({"value": {"agent_type": "t"}})),
    "no type": ("save", _with(agent_type="")),
    "no role": ("save", _with(conversation=[{"role": "x", "content": 1, "timestamp": T0}])),
    "no message": ("save", _with(conversation=[5])),
    "a naive time": ("save", _with(creation_time=datetime(2024, 1, 1))),  # noqa: DTZ001
    "no metadata": ("save", _with(metadata={"nam": 1})),
    "no usage": ("save", _with(tool_usage=5)),
    "what cannot be stored": ("save", _with(context={"a": object()})),
    "another agent": ("save", lambda _: Modified({"agent_id": "bob"})),
    "a misspelt name": ("save", lambda _: Modified({"vlaue": {}})),
    "another answer": ("save", lambda _: Replace(5)),
    "no messages": ("add", lambda _: Modified({"value": []})),
    "a message that cannot be stored": (
        "add",
        lambda c: Modified({"value": [{**c.data["value"][0], "content": object()}]}),
    ),
    "a message with more": ("add", lambda c: Modified({"value": [{**c.data["value"][0], "x": 1}]})),
    "no list of messages": ("add", lambda _: Modified({"value": "text"})),
    "no mapping": ("set", lambda _: Modified({"value": ["a"]})),
    "one name, not several": ("set", lambda _: Modified({"remove": "a"})),
    "nothing to set": ("set", lambda _: Modified({"value": {}, "remove": []})),
    "no status": ("move", lambda _: Modified({"value": {"status": "asleep", "reason": None}})),
    "no reason": ("move", _with(reason=5)),
    "another status of a pause": ("pause", _with(status="idle")),
    "another operation": ("move", lambda _: Modified({"operation": "pause"})),
    "no tool call": ("tool", _with(duration_ms=-1)),
    "a load of another": ("load", lambda _: Modified({"tail": 5})),
    "a deletion of another": ("delete", lambda _: Modified({"scope": "agent:bob"})),
}
DOING: dict[str, Doing] = {
    "save": lambda agents, _, state: agents.save(state),
    "add": lambda _, agent, __: agent.add_message("user", "x"),
    "set": lambda _, agent, __: agent.set_context(a=1),
    "move": lambda _, agent, __: agent.transition("processing"),
    "pause": lambda _, agent, __: agent.pause(),
    "tool": lambda _, agent, __: agent.record_tool_usage("web", 1, True),
    "load": lambda agents, _, __: agents.load("alice"),
    "delete": lambda agents, _, __: agents.delete("alice"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_cannot_be_is_refused_with_the_hooks_name(
    hooked: Hooked, bad: str, store: Store
) -> None:
    """As a caller's bad input is, and nothing is changed."""
    doing, answer = BAD[bad]
    state = await laid_down(hooked)
    agent = hooked.spell.agents.agent("alice")
    before = store.dump()
    was = await hooked.do(hooked.spell.agents.load("alice"))
    for point in BEFORE:
        hooked.hooks.register(point, lambda _: None, name="looks", priority=-1)
        hooked.hooks.register(point, answer, name="changes")
        hooked.hooks.register(point, lambda _: None, name="looks too", priority=1)
    with pytest.raises(InvalidHookResultError) as refused:
        await hooked.do(DOING[doing](hooked.spell.agents, agent, state))
    assert refused.value.hook == "changes"
    assert refused.value.point.startswith("agent:before_")
    assert store.dump() == before
    assert state == was


async def test_a_hook_can_change_where_a_transition_goes_and_what_a_call_counts(
    hooked: Hooked,
) -> None:
    """Judged and counted as the caller's own."""
    await laid_down(hooked)
    agent = hooked.spell.agents.agent("alice")
    await hooked.do(agent.refresh())

    def other(ctx: HookContext) -> Modified:
        if ctx.data["operation"] == "transition":
            return Modified({"value": {"status": "failed", "reason": "by a hook"}})
        return Modified({"value": {"tool": "search", "duration_ms": 7, "success": False}})

    hooked.hooks.register("agent:before_update", other)
    done = await hooked.do(agent.transition("processing"))
    assert (str(done.status), done.reason) == ("failed", "by a hook")
    await hooked.do(agent.record_tool_usage("web", 1, True))
    found = await hooked.do(hooked.spell.agents.load("alice"))
    assert found == agent.state
    assert found.tool_usage.tool_performance["search"].failed_count == 1
    behind = watching(hooked, "agent:after_update")
    with pytest.raises(IllegalTransitionError):
        await hooked.do(agent.transition("idle"))
    (run,) = behind.runs
    assert isinstance(run.error, IllegalTransitionError)
    assert run.data["revision"] is None
    assert run.data["value"]["status"] == "failed"


# --- behind ---------------------------------------------------------------------------------------


async def test_hooks_behind_hear_of_errors(hooked: Hooked) -> None:
    """With the operation's own data; the caller gets the error."""
    state = await laid_down(hooked)
    agents = hooked.spell.agents
    await hooked.do(agents.agent("alice").set_context(a=1))
    state.context["mine"] = 1
    seen = watching(hooked, *AFTER)
    for doing, error in (
        (lambda: agents.save(state), ConflictError),
        (lambda: agents.save(new_state()), AgentExistsError),
        (lambda: agents.load("bob"), AgentNotFoundError),
        (lambda: agents.agent("bob").add_message("user", "x"), AgentNotFoundError),
        (lambda: agents.pause("bob"), AgentNotFoundError),
        (lambda: agents.agent("alice").set_context(a=object()), CodecError),
    ):
        with pytest.raises(error):
            await hooked.do(doing())  # type: ignore[no-untyped-call]
        assert type(seen.runs[-1].error) is error
        assert seen.runs[-1].is_error
        shown = seen.runs[-1].data
        assert shown["value" if "load" in seen.runs[-1].point else "revision"] is None
    assert len(seen.runs) == 6
    assert await hooked.do(agents.delete("bob")) is False
    assert seen.runs[-1].data["result"] is False


async def test_a_loaded_state_is_shown_and_can_be_withheld(hooked: Hooked) -> None:
    """It cannot be changed: what is loaded is saved again, and a mask would replace the value."""
    await laid_down(hooked)
    agents = hooked.spell.agents
    seen = watching(hooked, "agent:after_load")
    await hooked.do(agents.load_fast("alice", tail=0))
    shown = seen.runs[0].data
    assert (shown["missing"], shown["value"]["conversation"]) == (1, [])
    assert shown["value"]["context"] == {"topic": "tea"}
    await hooked.do(agents.agent("alice").messages())
    assert seen.runs[1].data["value"][0]["metadata"] == {"pin": "1234"}
    hooked.hooks.clear()
    hooked.hooks.register("agent:after_load", lambda _: Cancel("not you"), name="no")
    for withheld in (
        (agents.load("alice"), agents.agent("alice").messages())
        if (hooked.surface == "async")
        else ()
    ):
        with pytest.raises(OperationCancelledError, match="not you"):
            await withheld
    hooked.hooks.clear()
    hooked.hooks.register("agent:after_load", redact, name="masks")
    with pytest.raises(InvalidHookResultError, match="masks"):
        await hooked.do(agents.load("alice"))


async def test_a_failing_hook_behind_does_not_undo_what_is_stored(hooked: Hooked) -> None:
    """Its caller hears of it if that is its policy, and has what is stored."""

    def breaks(ctx: HookContext) -> None:
        raise RuntimeError("audit is down")

    hooked.hooks.register("agent:after_save", breaks, name="audit", on_failure="raise")
    agents = hooked.spell.agents
    state = new_state()
    with pytest.raises(HookError, match="hook audit at agent:after_save failed: RuntimeError"):
        await hooked.do(agents.save(state))
    hooked.hooks.clear()
    assert await hooked.do(agents.load("alice")) == state
    state.context["more"] = 1
    await hooked.do(agents.save(state))


# --- conflicts, cancellations, several at once ----------------------------------------------------


async def test_hooks_run_once_whatever_a_conflict_makes_of_it(
    hooked: Hooked, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transition that is judged again, and an update of what another has changed."""
    await laid_down(hooked)
    agents = hooked.spell.agents
    agent = agents.agent("alice")
    await hooked.do(agent.refresh())
    async with connect(url, namespace=namespace) as other:
        seen = watching(hooked)
        await other.agents.agent("alice").set_context(b=1)
        await hooked.do(agent.set_context(a=1))
        await other.agents.agent("alice").set_context(b=2)
        await hooked.do(agent.transition("processing"))
    assert len(seen.runs) == 4
    asked = []
    original = TransactionSteps.commit

    def judged(self: Any) -> Any:
        asked.append(1)
        if len(asked) < 3:
            raise ConflictError(None, None, [("agent:alice", "agent.execution", None, None)])
        return original(self)

    monkeypatch.setattr(TransactionSteps, "commit", judged)
    await hooked.do(agents.pause("alice"))
    assert len(asked) == 3
    assert len(seen.runs) == 6


async def test_what_a_handle_stores_while_a_hook_waits_is_not_lost(spell: Spell) -> None:
    """A save of which a hook has made another one is refused then; the message is there."""
    await spell.agents.save(new_state())
    agent = spell.agents.agent("alice")
    await agent.refresh()
    waits, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx: HookContext) -> Modified:
        waits.set()
        await go_on.wait()
        return redact(ctx)

    spell.hooks.register("agent:before_save", slow, on_failure="raise")
    saving = asyncio.ensure_future(agent.save())
    await waits.wait()
    await agent.add_message("user", "meanwhile")
    go_on.set()
    with pytest.raises(ConflictError):
        await saving
    assert [one.content for one in agent.state.conversation][1:] == ["meanwhile"]
    await agent.save()
    found = await spell.agents.load("alice")
    assert found == agent.state
    assert [one.content for one in found.conversation] == [
        ["my pin is ****", {"n": 1}],
        "meanwhile",
    ]


async def test_hooks_behind_hear_of_what_a_cancelled_caller_has_stored(
    spell: Spell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored, and its caller is cancelled before hearing of that."""
    await spell.agents.save(new_state())
    seen = watching(spell, "agent:after_update")
    commit, stored = spell._driver.commit, asyncio.Event()
    sent: list[asyncio.Future[Any]] = []

    def withheld(*given: Any) -> asyncio.Future[Any]:
        sent.append(commit(*given))
        sent[-1].add_done_callback(lambda _: stored.set())
        return asyncio.get_running_loop().create_future()

    with monkeypatch.context() as patched:
        patched.setattr(spell._driver, "commit", withheld)
        patched.setattr(spell._driver.lanes, "follow", lambda _: sent[-1])
        doing = asyncio.ensure_future(spell.agents.agent("alice").add_message("user", "late"))
        await stored.wait()
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        await until(lambda: bool(seen.runs))
    found = await spell.agents.load("alice")
    assert found.conversation[-1].content == "late"
    assert seen.runs[0].data["revision"] == found.revision
    assert len(sent) == 1


async def test_a_fenced_handle_is_refused_behind_its_hooks(spell: Spell) -> None:
    """Hooks do not get in the way of the lease: who has lost it hears that, and so do they."""
    seen = watching(spell, "agent:before_update", "agent:after_update")

    async def runs_late() -> None:
        async with spell.agents.run("alice", create=new_state(), wait=0) as agent:
            await spell.leases.break_lease("agent:alice", reason="test")
            with pytest.raises(StaleFencingTokenError):
                await agent.set_context(a=1)

    with pytest.raises(LeaseLostError):
        await runs_late()
    assert [type(run.error) for run in seen.runs] == [type(None), StaleFencingTokenError]


# --- nothing there, nothing to pay ----------------------------------------------------------------


def counted(spell: Spell, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a client sends from now on."""
    asked: list[str] = []

    def count(name: str) -> None:
        original = getattr(spell._driver, name)

        def counting(*arguments: Any) -> Any:
            asked.append(name)
            return original(*arguments)

        monkeypatch.setattr(spell._driver, name, counting)

    count("execute")
    count("commit")
    return asked


async def _everything(spell: Spell) -> None:
    state = new_state()
    await spell.agents.save(state)
    agent = spell.agents.agent("alice")
    await agent.refresh()
    await agent.add_message("user", "x")
    await agent.add_messages(M, M)
    await agent.record_tool_usage("web", 1.5, False)
    await agent.set_context(a=1)
    await agent.transition("processing")
    agent.state.custom["by hand"] = 1
    await agent.save()
    await agent.messages(-1)
    await spell.agents.pause("alice")
    await spell.agents.fork("alice", "bob")
    await spell.agents.delete("alice")


async def test_hooks_cost_no_round_trip(spell: Spell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where there are none, nor where some look."""
    asked = counted(spell, monkeypatch)
    await _everything(spell)
    without = [*asked]
    await spell.agents.delete("bob")
    asked.clear()
    spell.hooks.register("BeforeStateWrite", lambda _: None, name="elsewhere")
    await _everything(spell)
    assert asked == without
    await spell.agents.delete("bob")
    asked.clear()
    seen = watching(spell)
    await _everything(spell)
    assert asked == without
    assert len(seen.runs) == 26


async def test_hooks_inside_a_hook_do_not_run(spell: Spell) -> None:
    """An audit that is itself an agent's conversation does not audit itself."""
    await spell.agents.save(new_state("audit"))
    runs = []

    async def audit(ctx: HookContext) -> None:
        runs.append(ctx.data["agent_id"])
        await spell.agents.agent("audit").add_message("system", ctx.data["operation"])

    spell.hooks.register("agent:after_save", audit)
    spell.hooks.register("agent:after_update", audit)
    await spell.agents.save(new_state())
    assert runs == ["alice"]
    assert len((await spell.agents.load("audit")).conversation) == 2


# --- hooks that are there already, the fleet, replay ----------------------------------------------


async def test_the_hooks_that_are_there_already_work_at_these_points(
    hooked: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    """Secrets are masked, scopes refused, sizes checked; others log, count and write down."""
    caplog.set_level(logging.INFO, "llmspell_dist.hooks.operations")
    entries: list[dict[str, Any]] = []
    metrics, debugging = MetricsHook(), DebuggingHook()
    for point in ("agent:before_save", "agent:before_update"):
        hooked.hooks.register(point, SecurityHook(denied=["agent:bob"]), on_failure="cancel")
        check = ValidationHook(max_bytes=10_000)
        hooked.hooks.register(point, check, on_failure="cancel")
    for point in (*BEFORE, *AFTER):
        hooked.hooks.register(point, metrics)
        hooked.hooks.register(point, LoggingHook())
        hooked.hooks.register(point, debugging)
        hooked.hooks.register(point, RateLimitHook(10_000))
        hooked.hooks.register(point, CachingHook(60))
    for point in AFTER:
        hooked.hooks.register(point, AuditHook(entries.append, values=True))
    agents = hooked.spell.agents
    state = new_state()
    state.metadata.provider_config = {"api_key": "abc"}
    with context(actor="ann"):
        await hooked.do(agents.save(state))
    agent = agents.agent("alice")
    await hooked.do(agent.refresh())
    await hooked.do(agent.set_context(password="hunter2"))
    await hooked.do(agent.add_message("user", {"password": "hunter2"}))
    assert agent.state.context["password"] == agent.state.conversation[-1].content["password"]
    assert agent.state.context["password"] == "***"
    assert agent.state.metadata.provider_config == {"api_key": "***"}
    assert (entries[0]["scope"], entries[0]["operation"], entries[0]["actor"]) == (
        "agent:alice",
        "save",
        "ann",
    )
    assert "hunter2" not in str(entries)
    assert "agent:after_save save scope=agent:alice" in caplog.text
    assert metrics.counts == {"save": 1, "load": 1, "set_context": 1, "add_messages": 1}
    with pytest.raises(OperationCancelledError, match="agent:bob is not allowed"):
        await hooked.do(agents.fork("alice", "bob"))
    with pytest.raises(OperationCancelledError, match="at most 10,000"):
        await hooked.do(agent.add_message("user", "x" * 20_000))
    assert debugging.captured[0].scope == "agent:alice"


async def test_runs_can_be_recorded_and_replayed(spell: Spell) -> None:
    """All that a hook sees there is plain data: nothing of it is missing in the record."""
    for point in (*BEFORE, *AFTER):
        spell.hooks.register(point, lambda _: None, name="looks", replayable=True)
    spell.hooks.unregister("looks", point="agent:before_update")
    spell.hooks.register("agent:before_update", redact, name="redact", replayable=True)
    with context(correlation_id="run"):
        await spell.agents.save(new_state())
        await spell.agents.agent("alice").add_message("user", "1234")
        await spell.agents.load("alice")
        with pytest.raises(AgentNotFoundError):
            await spell.agents.pause("bob")
        await spell.agents.delete("alice")
    await spell.hooks.history.flush()
    runs = await spell.hooks.history.query(correlation_id="run", limit=100)
    assert len(runs) == 10
    for run in runs:
        assert run.context is not None
        assert (await spell.replay.run(run.id)).identical, run.point
        assert [gap for gap in run.gaps if "Revision" not in gap] == []
    changed = next(run for run in runs if run.hook == "redact")
    assert changed.result.data["value"][0]["content"] == "****"  # type: ignore[union-attr]


async def test_recorded_runs_about_a_secret_agent_are_not_kept_in_the_clear(
    url: str, namespace: str, store: Store
) -> None:
    """Where a class makes keys secret, and there is no cipher, a run has no data."""
    rules = ClassRules(patterns=(("other.*", StateClass.SENSITIVE),))
    async with connect(url, namespace=namespace, options=Options(classes=rules)) as spell:
        spell.hooks.register("agent:before_save", lambda _: None, name="looks", replayable=True)
        with context(correlation_id="run"):
            await spell.agents.save(new_state())
        await spell.hooks.history.flush()
        (run,) = await spell.hooks.history.query(correlation_id="run")
        assert run.context is None


async def test_a_hook_of_the_fleet_sees_agents_of_other_processes(url: str, namespace: str) -> None:
    """It runs where it was told to, and its answer counts here."""
    async with (
        connect(url, namespace=namespace) as guard,
        connect(url, namespace=namespace) as worker,
    ):
        for spell, role in ((guard, "guard"), (worker, "worker")):
            await spell.hooks.fleet.join(labels={"role": role})
        await guard.hooks.fleet("agent:before_update", redact, name="redact", await_remote=True)
        members = worker.hooks.fleet._members

        def known() -> bool:
            found = members.map.processes.get(guard.hooks.fleet.process)
            return found is not None and bool(found.hooks)

        await until(known)
        assert [hook.name for hook in worker.hooks.get_hooks()] == ["fleet:redact"]
        await worker.agents.save(new_state())
        message = await worker.agents.agent("alice").add_message("user", "1234")
        assert message.content == "****"


# --- through a sidecar ----------------------------------------------------------------------------


@pytest.fixture
async def remote(sidecar: Sidecar) -> AsyncIterator[Any]:
    """A client of the sidecar."""
    async with connect(sidecar.url) as spell:
        yield spell


def of(sidecar: Sidecar) -> Spell:
    """The client that a sidecar serves with."""
    found: Spell = sidecar.services.spell
    return found


async def test_routes_pass_each_point_once(sidecar: Sidecar) -> None:
    """Whole states and pieces, asked of it by any program."""
    spell = of(sidecar)
    await spell.agents.save(new_state())
    seen = watching(spell)
    path = "/v1/agents/alice"

    async def ask(method: str, *more: str, body: Any = None, **how: Any) -> Any:
        answer = await sidecar.ask(method, "/".join((path, *more)), body, **how)
        assert answer.status_code < 300, answer.text
        return answer

    loaded = await ask("GET")
    document = loaded.json()
    document["context"]["topic"] = "milk"
    await ask("PUT", body=document, headers={"if-match": loaded.headers["etag"]})
    message = {"role": "user", "content": "x"}
    await ask("POST", "messages", body={"messages": [message, message]})
    await ask("GET", "messages")
    await ask("POST", "tool-usage", body={"tool": "web", "duration_ms": 1, "success": True})
    await ask("POST", "context", body={"set": {"a": 1}})
    await ask("POST", "custom", body={"set": {"a": 1}})
    await ask("POST", "pause", body={})
    await ask("POST", "resume", body={})
    await ask("POST", "transition", body={"status": "processing"})
    await ask("POST", "stop", body={})
    await ask("GET", "parts")
    await ask("POST", "fork", body={"into": "bob"})
    await ask("DELETE")
    expected = [
        *[("load", "load"), ("save", "save"), ("update", "add_messages"), ("load", "messages")],
        *[("update", "record_tool_usage"), ("update", "set_context"), ("update", "set_custom")],
        *[("update", "pause"), ("update", "resume"), ("update", "transition"), ("update", "stop")],
        *[("load", "parts"), ("load", "fork"), ("save", "fork"), ("delete", "delete")],
    ]
    assert steps_of(seen) == [
        (f"agent:{when}_{kind}", name) for kind, name in expected for when in ("before", "after")
    ]


async def test_an_answer_that_is_asked_for_again_runs_no_hook(sidecar: Sidecar) -> None:
    """With an idempotency key it happens once, and so do they."""
    await of(sidecar).agents.save(new_state())
    seen = watching(of(sidecar), "agent:before_update")
    body = {"messages": [{"role": "user", "content": "x"}]}
    for _ in range(2):
        headers = {"idempotency-key": "k1"}
        await sidecar.ask("POST", "/v1/agents/alice/messages", body, headers=headers)
    assert len(seen.runs) == 1


async def test_a_refusal_by_a_sidecars_hook_is_a_problem(sidecar: Sidecar, store: Store) -> None:
    """422 with hook and reason, and nothing is changed."""
    await of(sidecar).agents.save(new_state())
    before = store.dump()
    watching(of(sidecar), *BEFORE, answer=lambda _: Cancel("not today"))
    body = {"messages": [{"role": "user", "content": "x"}]}
    answer = await sidecar.ask("POST", "/v1/agents/alice/messages", body)
    assert answer.json()["code"] == "OPERATION_CANCELLED"
    assert answer.status_code == 422
    assert "cancelled by hook seen at agent:before_update: not today" in answer.json()["detail"]
    assert store.dump() == before


async def test_what_a_client_of_a_sidecar_stores_passes_its_hooks(
    sidecar: Sidecar, remote: Any
) -> None:
    """Once for each commit: as the update that it is, or as a save by parts."""
    seen = watching(of(sidecar))
    state = new_state()
    await remote.agents.save(state)
    agent = remote.agents.agent("alice")
    await agent.refresh()
    await agent.add_message("user", "x", metadata={"n": 1})
    await agent.record_tool_usage("web", 1.5, False)
    await agent.set_context({"a": 1}, remove=["topic"])
    await agent.set_custom(b=2)
    await agent.transition("processing", "asked")
    agent.state.context["by hand"] = 1
    agent.state.custom.clear()
    await agent.save()
    await remote.agents.delete("alice")
    befores = [run for run in seen.runs if ":before_" in run.point]
    assert len(seen.runs) == 2 * len(befores)
    told = [(str(run.point)[13:], run.data["operation"]) for run in befores]
    assert told == [
        ("save", "commit"),
        ("load", "parts"),
        ("update", "add_messages"),
        ("update", "record_tool_usage"),
        ("update", "set_context"),
        ("update", "set_custom"),
        ("update", "transition"),
        ("save", "commit"),
        ("delete", "delete"),
    ]
    data = [run.data for run in befores]
    assert data[0]["value"]["agent.profile"]["type"] == "planner"
    assert data[0]["value"]["agent.conversation"][0]["metadata"] == {"pin": "1234"}
    assert data[2]["value"][0]["content"] == "x"
    assert data[3]["value"] == {"tool": "web", "duration_ms": 1.5, "success": False}
    assert (data[4]["value"], data[4]["remove"]) == ({"a": 1}, ["topic"])
    assert data[6]["value"] == {"status": "processing", "reason": "asked"}
    assert data[7]["value"]["agent.context"] == {"by hand": 1}
    assert data[7]["delete"] == ["agent.custom"]


async def test_a_sidecars_hook_keeps_something_out_of_what_its_clients_store(
    sidecar: Sidecar, remote: Any, store: Store
) -> None:
    """A client's copy has what it sent; what is stored, and loaded, has not."""
    for point in ("agent:before_save", "agent:before_update"):
        of(sidecar).hooks.register(point, redact, on_failure="raise")
    await remote.agents.save(new_state())
    agent = remote.agents.agent("alice")
    await agent.refresh()
    await agent.add_message("user", "1234 it is", metadata={"pin": "1234"})
    await agent.set_context(pin="1234")
    await agent.transition("processing", "1234")
    agent.state.custom["note"] = "1234"
    await agent.save()
    found = await remote.agents.load("alice")
    assert [one.content for one in found.conversation] == [
        ["my pin is ****", {"n": 1}],
        "**** it is",
    ]
    assert found.context["pin"] == found.custom["note"] == found.execution.reason == "****"
    lies = [everything(store, key) for key in store.all_keys() if b"agent:alice" in key]
    assert b"1234" not in b"".join(part for parts in lies for part in parts)


BAD_REMOTE: dict[str, tuple[str, Callable[[HookContext], Any]]] = {
    "no messages": ("add", lambda _: Modified({"value": []})),
    "no message": ("add", lambda _: Modified({"value": [{"role": "x"}]})),
    "what cannot be stored": ("set", lambda _: Modified({"value": {"a": object()}})),
    "another status": ("move", lambda _: Modified({"value": {"status": "idle", "reason": None}})),
    "another tool call": ("tool", _with(tool="other")),
    "a part too few": ("save", lambda _: Modified({"value": {}})),
    "another part": ("save", lambda c: Modified({"value": dict.fromkeys(c.data["value"], 5)})),
}


@pytest.mark.parametrize("bad", BAD_REMOTE)
async def test_what_cannot_be_is_refused_at_a_sidecar_too(
    sidecar: Sidecar, remote: Any, bad: str, store: Store
) -> None:
    """With the name of the sidecar's hook, and nothing is changed."""
    doing, answer = BAD_REMOTE[bad]
    await remote.agents.save(new_state())
    agent = remote.agents.agent("alice")
    state = await agent.refresh()
    state.custom["x"] = 1
    state.metadata.tags.append("b")
    before = store.dump()
    watching(of(sidecar), "agent:before_save", "agent:before_update", answer=answer)
    with pytest.raises(HookError, match="seen at agent:before_"):
        await DOING[doing](remote.agents, agent, state)
    assert store.dump() == before


async def test_a_sidecars_hook_refuses_its_clients(
    sidecar: Sidecar, remote: Any, store: Store
) -> None:
    """Every operation; what is refused is as it was."""
    await remote.agents.save(new_state())
    agent = remote.agents.agent("alice")
    state = await agent.refresh()
    state.custom["x"] = 1
    before = store.dump()
    watching(of(sidecar), *BEFORE, answer=lambda _: Cancel("no"))
    for doing in ("save", "add", "set", "move", "tool", "load", "delete"):
        with pytest.raises(OperationCancelledError, match="no"):
            await DOING[doing](remote.agents, agent, state)
    assert store.dump() == before
