"""Agents for one request: over the client's own state, or under the leases that it carries."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.effect_steps import EffectSteps
from llmspell_dist.agents.handle import HandleSteps
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import utc_now
from llmspell_dist.agents.steps import AgentSteps
from llmspell_dist.errors import ConflictError
from llmspell_dist.sidecar.call import LEASE_HEADER, Call
from llmspell_dist.state.driver import driver_of as client_driver

if TYPE_CHECKING:
    from llmspell_dist.agents.model import AgentState
    from llmspell_dist.revision import Revision
    from llmspell_dist.sidecar.entity_tags import Tags
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["agent_of", "agents_of", "driver_of", "effects_of", "save_over"]


def driver_of(call: Call) -> AsyncDriver:
    """Return what carries out the request's operations, under the leases that it carries."""
    driver = client_driver(call.spell)
    carried = call.headers.get(LEASE_HEADER)
    return driver if carried is None else driver.over(call.services.fenced_core(carried))


def agents_of(call: Call) -> Agents:
    """Return the agents, whose every write carries the request's leases."""
    if LEASE_HEADER not in call.headers:
        return call.spell.agents
    return Agents(driver_of(call), points=call.spell.hooks.points)


def agent_of(call: Call, label: str | None = None) -> Agent:
    """Return a handle of the agent in the path."""
    return agents_of(call).agent(call.parameters["agent_id"], label=label)


def effects_of(call: Call) -> EffectSteps:
    """Return the steps of the effects of the agent in the path."""
    core = driver_of(call).core
    return EffectSteps(HandleSteps(AgentSteps(core, utc_now), call.parameters["agent_id"]))


async def save_over(agents: Agents, wanted: AgentState, missing: int, match: Tags) -> Revision:
    """Save a state in place of the one that is stored, if that is at one of these revisions.

    What lies there is loaded, made equal, and saved under the library's own comparison: so only
    what differs is written, and whoever wrote meanwhile is not overwritten.
    """
    # Its caller loads nothing, so no hook of a load is asked.
    driver, steps = agents._driver, agents._steps  # noqa: SLF001 - agents of ours
    there = await driver.run(steps.found(wanted.agent_id, None))
    if match != "*" and there.revision not in match:
        expected = next(iter(match)) if len(match) == 1 else None
        keys = [(f"agent:{wanted.agent_id}", "agent", expected, there.revision)]
        raise ConflictError(expected, there.revision, keys, _changed(wanted.agent_id))
    _adopt(there, wanted, missing)
    return await agents.save(there)


def _changed(agent_id: str) -> str:
    return f"agent {agent_id!r} was changed since: load it again"


def _adopt(there: AgentState, wanted: AgentState, missing: int) -> None:
    """Make a loaded state equal to another; the messages that agree stay as they are stored."""
    for one in fields(there):
        if one.name not in {"stored", "conversation", "agent_id"}:
            setattr(there, one.name, getattr(wanted, one.name))
    stored, messages = there.conversation, wanted.conversation
    same = 0
    for old, new in zip(stored[missing:], messages, strict=False):
        if old != new:
            break
        same += 1
    if missing + same < len(stored):
        del stored[missing + same :]
    stored.extend(messages[same:])
