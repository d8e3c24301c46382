"""The process of an agent: it holds the lease, its writes are fenced, the next one goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_agents import agents_of
from fix_faults import environment
from fix_leases import LeaseStore, hasten, renewals
from fix_state import Store, until

from llmspell_dist import InvalidArgumentError, connect
from llmspell_dist.agents.effects import EffectStatus
from llmspell_dist.agents.errors import AgentNotFoundError, EffectUnknownError
from llmspell_dist.agents.execution import ExecutionStatus
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import AgentState
from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    LeaseLostError,
    LeaseRequiredError,
    LeaseUnavailableError,
    SpellError,
    StaleFencingTokenError,
)

pytestmark = [pytest.mark.integration, pytest.mark.agent, pytest.mark.both_surfaces]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
S = "agent:alice"


@pytest.fixture
def agents(spell: Spell) -> Agents:
    """Agents that can be run."""
    return agents_of(spell, spell.leases, now=lambda: T0)


def alice() -> AgentState:
    """Return the state of an agent that has done nothing."""
    return AgentState.new("alice", "t", now=lambda: T0)


async def test_a_process_holds_the_lease_and_has_the_state(agents: Agents, spell: Spell) -> None:
    """Inside the block nobody else gets the lease; after it the next one has it at once."""
    await agents.save(alice())
    async with agents.run("alice", label="w1") as agent:
        assert agent.state == alice()
        assert agent.token is not None
        assert f"token {agent.token}" in repr(agent)
        with pytest.raises(LeaseUnavailableError):
            await spell.leases.acquire(S, wait=0, owner="other")
        await agent.add_message("user", "hi")
    async with agents.run("alice", wait=0) as following:
        assert following.token is not None
        assert following.token > agent.token
        assert [m.content for m in following.state.conversation] == ["hi"]


async def test_every_write_of_a_process_is_fenced(
    agents: Agents, spell: Spell, store: Store
) -> None:
    """Once another has taken over, nothing that the first one does is stored."""
    await agents.save(alice())
    async with agents.run("alice") as stale:
        await stale.effect("sent").run(lambda: 1)
    async with agents.run("alice", ttl=600) as agent:  # nothing is renewed meanwhile
        before = store.dump()
        effect = stale.effect("mail")
        for call in (
            stale.add_message("user", "stale"),
            stale.record_tool_usage("web", 1, True),
            stale.set_context(a=1),
            stale.set_custom(a=1),
            stale.transition("processing"),
            stale.pause(),
            stale.stop(),
            stale.save(),
            stale.save(force=True),
            effect.run(lambda: 1),
            effect.resolve(1),
            effect.retry(),
        ):
            with pytest.raises(StaleFencingTokenError) as caught:
                await call
            assert (caught.value.given, caught.value.current) == (stale.token, agent.token)
        assert store.dump() == before


async def test_the_lease_of_a_process_is_at_hand(agents: Agents, spell: Spell) -> None:
    """Other keys of the scope are written fenced with it; a handle without a lease has none."""
    await agents.save(alice())
    assert agents.agent("alice").lease is None
    async with agents.run("alice") as stale:
        assert stale.lease is not None
        assert stale.lease.token == stale.token
        stale.lease.check()
        await stale.lease.state.set(S, "mood", "curious")
        await spell.leases.require(S, lease=stale.lease)
        await stale.lease.state.set(S, "mood", "calm")
    with pytest.raises(LeaseLostError):
        stale.lease.check()
    async with agents.run("alice") as agent:
        with pytest.raises(StaleFencingTokenError):
            await stale.lease.state.set(S, "mood", "stale")
        assert agent.lease is not None
        assert await spell.leases.unrequire(S, lease=agent.lease)
    await spell.state.set(S, "mood", "free")


async def test_a_process_pauses_itself_where_the_scope_demands_the_lease(
    agents: Agents, spell: Spell
) -> None:
    """By its handle; who names the agent from outside is refused."""
    await agents.save(alice())
    await spell.leases.require(S)
    async with agents.run("alice") as agent:
        await agent.transition("processing")
        for call in (agents.pause, agents.stop):
            with pytest.raises(LeaseRequiredError):
                await call("alice")
        assert (await agent.pause(reason="night")).status is ExecutionStatus.SUSPENDED
        with pytest.raises(LeaseRequiredError):
            await agents.resume("alice")
        assert (await agent.resume()).status is ExecutionStatus.PROCESSING
        assert (await agent.stop()).status is ExecutionStatus.COMPLETED
        assert (await agents.load("alice")).execution == agent.state.execution


async def test_a_slow_plain_function_does_not_cost_the_lease(
    agents: Agents, spell: Spell, lease_store: LeaseStore
) -> None:
    """It is renewed while the function runs, again and again."""
    await agents.save(alice())
    async with agents.run("alice", ttl=60) as agent:
        lease = agent.lease
        assert lease is not None
        begun, going = threading.Event(), threading.Event()

        def slow() -> str:
            begun.set()
            assert going.wait(30)
            return "sent"

        task = asyncio.create_task(agent.effect("mail").run(slow))
        await until(begun.is_set)
        await renewals(lease_store, spell)
        going.set()
        assert await task == "sent"
        lease.check()
        await agent.add_message("user", "still here")


async def test_an_effect_of_one_who_lost_the_lease_is_unknown_to_the_next(
    agents: Agents, spell: Spell
) -> None:
    """The claim that a dead process left is not waited for: its holder can write no more."""
    await agents.save(alice())
    async with agents.run("alice", label="first") as first:
        await first.effect("mail", limit=3600).__aenter__()
    async with agents.run("alice", label="second") as second:
        with pytest.raises(EffectUnknownError) as caught:
            await second.effect("mail").run(print)
        assert (caught.value.claimed_by, caught.value.token) == ("first", first.token)
        await second.effect("mail").resolve("sent")
        assert await second.effect("mail").run(print) == "sent"
        (record,) = await second.effects()
        assert record.status is EffectStatus.COMMITTED


async def test_the_error_of_an_effect_is_not_hidden_by_the_lost_lease(agents: Agents) -> None:
    """The outcome cannot be stored any more; what the block raised is what its user sees."""
    await agents.save(alice())

    async def outlives_the_lease() -> None:
        async with AsyncExitStack() as effects:
            async with agents.run("alice") as agent:
                await effects.enter_async_context(agent.effect("mail"))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await outlives_the_lease()
    async with agents.run("alice") as agent:
        with pytest.raises(EffectUnknownError, match="lost the lease"):
            await agent.effect("mail").run(print)


@pytest.mark.parametrize("create", [alice(), alice], ids=["state", "factory"])
async def test_a_process_can_begin_a_new_agent(agents: Agents, create: Any) -> None:
    """A state or a function that makes one, used only if there is no agent."""
    async with agents.run("alice", create=create) as agent:
        await agent.set_context(goal=1)
    async with agents.run("alice", create=create) as agent:
        assert agent.state.context == {"goal": 1}
    assert (await agents.load("alice")).context == {"goal": 1}


async def test_without_an_agent_the_lease_is_given_back(agents: Agents, spell: Spell) -> None:
    """An agent that is not there, or a state of another one: nothing is held or stored."""
    with pytest.raises(AgentNotFoundError):
        async with agents.run("alice"):
            pass
    with pytest.raises(InvalidArgumentError, match="create"):
        async with agents.run("bob", create=alice()):
            pass
    for name in ("alice", "bob"):
        lease = await spell.leases.acquire(f"agent:{name}", wait=0)
        await lease.release()
    with pytest.raises(AgentNotFoundError):
        await agents.load("bob")


async def test_an_exception_of_the_block_gives_the_lease_back(agents: Agents) -> None:
    """It reaches the caller as it is."""
    await agents.save(alice())
    with pytest.raises(ZeroDivisionError):
        async with agents.run("alice"):
            _ = 1 / 0
    async with agents.run("alice", wait=0):
        pass


async def test_a_process_whose_lease_is_broken_is_stopped(agents: Agents, spell: Spell) -> None:
    """Its task is cancelled where it waits, and the block ends with what happened."""
    await agents.save(alice())
    inside = asyncio.Event()

    async def process() -> None:
        async with agents.run("alice"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(process())
    await inside.wait()
    await spell.leases.break_lease(S, reason="a test")
    hasten(spell)
    with pytest.raises(LeaseLostError):
        await task


async def test_processes_one_after_the_other_lose_nothing(
    agents: Agents, url: str, namespace: str
) -> None:
    """Workers of several clients wait in line; each finds what the earlier ones did."""
    await agents.save(alice())

    async def worker(number: int) -> None:
        async with connect(url, namespace=namespace) as spell:
            mine = agents_of(spell, spell.leases)
            for _ in range(3):
                async with mine.run("alice") as agent:
                    seen = len(agent.state.conversation)
                    agent.state.context["count"] = seen + 1
                    agent.state.add_message("assistant", number)
                    await agent.save()

    await asyncio.gather(*(worker(number) for number in range(4)))
    state = await agents.load("alice")
    assert len(state.conversation) == state.context["count"] == 12


WORKER = """
import asyncio, sys
import llmspell_dist

async def main(url, namespace):
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        async with spell.agents.run("alice", ttl=6, label="victim") as agent:
            await agent.add_message("user", "before the crash")
            await agent.effect("done").run(lambda: "once")
            async with agent.effect("mail", limit=3600) as effect:
                print(agent.token, flush=True)
                await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.needs("process")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_hands_over_cleanly(
    agents: Agents, url: str, namespace: str, lease_store: LeaseStore, how: signal.Signals
) -> None:
    """Killed or stopped in the middle of an effect, it is followed by one that has all it did.

    The next one is asked about the effect whose end nobody knows; a stopped one that goes on
    changes nothing.
    """
    await agents.save(alice())
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, url, namespace),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(),
    )
    assert victim.stdout is not None
    try:
        token = int(await victim.stdout.readline())
        os.kill(victim.pid, how)
        lease_store.expire()
        async with asyncio.timeout(30), agents.run("alice", label="next") as agent:
            assert agent.token is not None
            assert agent.token > token
            assert [m.content for m in agent.state.conversation] == ["before the crash"]
            assert await agent.effect("done").run(print) == "once"
            with pytest.raises(EffectUnknownError) as caught:
                await agent.effect("mail").run(print)
            assert (caught.value.claimed_by, caught.value.token) == ("victim", token)
            await agent.effect("mail").resolve("sent")
            if how is signal.SIGSTOP:
                os.kill(victim.pid, signal.SIGCONT)
                assert await victim.wait() != 0  # it was told that its lease is lost
            assert await agent.effect("mail").run(print) == "sent"
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()
    assert (await agents.load("alice")).conversation == agent.state.conversation


async def test_agents_without_leases_cannot_be_run(spell: Spell) -> None:
    """The error says what is missing."""
    with pytest.raises(SpellError, match="leases"):
        async with agents_of(spell).run("alice"):
            pass
