"""Agents without an event loop: the same state, effects and errors as the asynchronous surface."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from llmspell_dist import ConflictError, blocking
from llmspell_dist.agents import agent as agent_module
from llmspell_dist.agents import effect as effect_module
from llmspell_dist.agents import manager
from llmspell_dist.agents.errors import (
    AgentNotFoundError,
    EffectInProgressError,
    EffectUnknownError,
    IllegalTransitionError,
)
from llmspell_dist.agents.execution import ExecutionStatus
from llmspell_dist.agents.model import AgentState
from llmspell_dist.blocking import _agent, _agents, _effect
from llmspell_dist.blocking._agents import Agents

pytestmark = [pytest.mark.integration, pytest.mark.agent]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)


@pytest.fixture
def agents(url: str, namespace: str) -> Iterator[Agents]:
    """The agents of a blocking client."""
    with blocking.connect(url, namespace=namespace) as spell:
        yield Agents(spell._driver, getattr(spell, "leases", None), now=lambda: T0)


def new_agent(agents: Agents) -> AgentState:
    """Save an agent that has done nothing."""
    state = AgentState.new("alice", "t", now=lambda: T0)
    agents.save(state)
    return state


def test_a_state_is_saved_loaded_and_changed(agents: Agents) -> None:
    """Everything of a handle, and a stale save is refused."""
    state = new_agent(agents)
    agent = agents.agent("alice")
    agent.refresh()
    agent.add_message("user", ["hi"])
    agent.record_tool_usage("web", 1.5, True)
    agent.set_context(goal=1)
    agent.set_custom(score=2)
    agent.transition("processing")
    assert agent.revision == agent.state.revision == agents.load("alice").revision
    assert agent.lease is None
    assert agents.load("alice") == agent.state
    assert [m.content for m in agent.messages()] == [["hi"]]
    assert len(agents.load_fast("alice", tail=0).conversation) == 0
    state.context["goal"] = 2
    with pytest.raises(ConflictError):
        agents.save(state)
    agent.save()
    assert [summary.agent_id for summary in agents.list(status="processing").items] == ["alice"]
    assert agents.metadata("alice").status is ExecutionStatus.PROCESSING
    fork = agents.fork("alice", "bob")
    assert fork.context == {"goal": 1}
    assert agents.delete("alice")
    with pytest.raises(AgentNotFoundError):
        agents.load("alice")


def test_execution_is_paused_resumed_and_stopped(agents: Agents) -> None:
    """As the table allows."""
    new_agent(agents)
    assert agents.pause("alice").status is ExecutionStatus.SUSPENDED
    assert agents.resume("alice").status is ExecutionStatus.IDLE
    assert agents.stop("alice").status is ExecutionStatus.COMPLETED
    with pytest.raises(IllegalTransitionError):
        agents.pause("alice")


def test_effects_run_once(agents: Agents) -> None:
    """A result is stored, an exception leaves an unknown outcome, and both ways out work."""
    new_agent(agents)
    one, two = agents.agent("alice"), agents.agent("alice")
    sent: list[int] = []
    assert one.effect("mail").run(sent.append, 1) is None
    assert two.effect("mail").run(sent.append, 2) is None
    assert one.effect("named").run(dict, a=1) == {"a": 1}
    assert sent == [1]
    with pytest.raises(ZeroDivisionError), one.effect("call"):
        _ = 1 / 0
    with pytest.raises(EffectUnknownError):
        two.effect("call").run(sent.append, 3)
    effect = two.effect("call")
    effect.retry()
    with pytest.raises(EffectInProgressError):
        one.effect("call").run(sent.append, 4)
    with effect:
        effect.commit("done")
    with one.effect("call") as again:
        assert (again.done, again.result) == (True, "done")
    assert [record.key for record in one.effects()] == ["mail", "named", "call"]


def test_one_object_is_for_one_thread_at_a_time(agents: Agents) -> None:
    """Another thread is refused while the first one is at it; there is one mail."""
    new_agent(agents)
    effect = agents.agent("alice").effect("mail")
    sent: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def send() -> int:
        begun.set()
        go_on.wait(10)
        sent.append(1)
        return len(sent)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(effect.run, send)
        assert begun.wait(10)
        try:
            with pytest.raises(EffectInProgressError, match="this very Effect object"):
                effect.run(send)
        finally:
            go_on.set()
        assert first.result(10) == 1
    assert effect.run(send) == 1
    assert sent == [1]


def test_a_process_holds_the_lease(agents: Agents) -> None:
    """With a lease every write is fenced, and the next process goes on."""
    with agents.run("alice", create=lambda: AgentState.new("alice", "t")) as agent:
        agent.add_message("user", "hi")
        first = agent.token
        assert agent.lease is not None
        agent.lease.state.set("agent:alice", "mood", "curious")
        assert agent.pause().status is ExecutionStatus.SUSPENDED
        assert agent.resume().status is ExecutionStatus.IDLE
        assert agent.stop().status is ExecutionStatus.COMPLETED
    with agents.run("alice", wait=timedelta(seconds=5)) as agent:
        assert [m.content for m in agent.state.conversation] == ["hi"]
        assert first is not None
        assert agent.token is not None
        assert agent.token > first


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (manager.Agents, _agents.Agents),
        (agent_module.Agent, _agent.Agent),
        (effect_module.Effect, _effect.Effect),
    ],
)
def test_both_surfaces_have_the_same_methods(one: type, two: type) -> None:
    """By name, with the same arguments."""

    def surface(cls: type) -> dict[str, list[str]]:
        return {
            member.replace("__aenter__", "__enter__").replace("__aexit__", "__exit__"): list(
                inspect.signature(function).parameters
            )
            for member, function in vars(cls).items()
            if inspect.isfunction(function)
        }

    assert surface(one) == surface(two)
