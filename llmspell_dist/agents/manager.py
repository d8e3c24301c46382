"""Agents of many processes: their state, their processes, effects that run once; asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.effect import Effect
from llmspell_dist.agents.execution import (
    ExecutionState,
    ExecutionStatus,
    Transition,
    paused,
    resumed,
    stopped,
)
from llmspell_dist.agents.listing import PAGE_AGENTS, AgentFilter, AgentSummary, Listing
from llmspell_dist.agents.model import AgentState, Clock, utc_now
from llmspell_dist.agents.protocols import AsyncLeases
from llmspell_dist.agents.steps import AgentSteps, agent_scope
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.model import Page
from llmspell_dist.state.points import NO_POINTS, Points

if TYPE_CHECKING:
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.state.core import Core

__all__ = ["Agent", "Agents", "Effect"]

Create = AgentState | Callable[[], AgentState] | None


class Agents:
    """The agents of a namespace.

    What is saved is loaded equal. A state is stored in parts, so that adding a message or counting
    a tool call costs the same however much there is. Every method raises what `StateManager` does.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        leases: AsyncLeases | None = None,
        *,
        points: Points = NO_POINTS,
        now: Clock = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._driver = driver
        self._leases = leases
        self._points = points
        self._now = now
        self._new_id = new_id
        self._steps = AgentSteps(driver.core, now, points)
        self._listing = Listing(driver.core, self._steps.reads)

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    # --- states

    async def save(self, state: AgentState, *, force: bool = False) -> Revision:
        """Save a state in one commit and return its revision; only what differs travels.

        A state that was loaded (or saved) must still be what lies there, else `ConflictError` names
        the keys that somebody changed, and nothing is written. A new one must have no agent in its
        place, else `AgentExistsError`. ``force=True`` replaces whatever is there.
        """
        return await self._driver.run(self._steps.save(state, force))

    async def load(self, agent_id: str) -> AgentState:
        """Return an agent's state as of one moment; `AgentNotFoundError` if there is none.

        All messages come along; each is decoded when somebody looks at it.
        """
        return await self._driver.run(self._steps.load(agent_id, None))

    async def load_fast(self, agent_id: str, *, tail: int = 20) -> AgentState:
        """Return an agent's state with the last `tail` messages only.

        `Agent.messages` reads earlier ones. Such a state can be saved: messages can be added to its
        conversation, but the earlier ones not be changed.
        """
        return await self._driver.run(self._steps.load(agent_id, tail))

    async def metadata(self, agent_id: str) -> AgentSummary:
        """Return what an agent is and does, without its conversation, variables and statistics."""
        return await self._driver.run(self._listing.summary(agent_id))

    async def delete(self, agent_id: str) -> bool:
        """Remove an agent and everything else in its scope, effects included, in one step.

        Returns whether there was one. Without an agent the scope is left as it is.
        """
        return await self._driver.run(self._steps.delete(agent_id))

    async def fork(
        self, agent_id: str, into: str | None = None, *, at: Revision | datetime | str | None = None
    ) -> AgentState:
        """Save the state that an agent has, or had at a moment, as a new agent, and return that.

        Only the id differs (by default a new one); effects stay with the agent that they belong to.
        `at` is a revision, its text, or a time of the server that is not in the future;
        `HistoryUnavailableError` if the log does not reach back that far, `AgentNotFoundError` if
        there was no agent, `AgentExistsError` if `into` is in use.
        """
        name = f"{agent_id}-{self._new_id()}" if into is None else into
        return await self._driver.run(self._steps.fork(agent_id, name, at))

    # --- execution

    async def pause(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """Suspend an agent's execution and store that; `IllegalTransitionError` if it cannot be.

        Carries no lease: where the scope demands one, `LeaseRequiredError`; the process that runs
        the agent uses `Agent.pause`. The same goes for `resume` and `stop`.
        """
        return await self._transition(agent_id, paused(agent_id, reason))

    async def resume(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """Let a suspended agent do what it did before, and store that."""
        return await self._transition(agent_id, resumed(agent_id, reason))

    async def stop(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """End an agent's execution as completed, and store that."""
        return await self._transition(agent_id, stopped(agent_id, reason))

    async def _transition(self, agent_id: str, change_to: Transition) -> ExecutionState:
        done = await self._driver.run(self._steps.transition(agent_id, change_to))
        return done.execution

    # --- one agent

    def agent(self, agent_id: str, *, label: str | None = None) -> Agent:
        """Return a handle of one agent that holds no lease; nothing is read yet.

        `label` is who claims effects, for people; by default the actor of the context.
        """
        return self._handle(self._driver.core, agent_id, label)

    def _handle(
        self, core: Core, agent_id: str, label: str | None, lease: Lease | None = None
    ) -> Agent:
        return Agent(
            *(self._driver, core, agent_id, self._now),
            label=label,
            lease=lease,
            points=self._points,
        )

    @asynccontextmanager
    async def run(
        self,
        agent_id: str,
        *,
        ttl: float | timedelta = 10.0,
        wait: float | timedelta | None = None,
        label: str | None = None,
        create: Create = None,
    ) -> AsyncIterator[Agent]:
        """Be the process of an agent for the length of a block: ``async with agents.run("a")``.

        Takes the lease ``main`` of the agent's scope (waits up to `wait` seconds; None: without
        end), loads the state, and fences every write of the handle: once another process has taken
        over they are refused with `StaleFencingTokenError`. `create` is the state of a new agent,
        or a function that returns it, for when there is none; without it `AgentNotFoundError`.
        """
        if self._leases is None:
            raise InvalidArgumentError("leases", None, "must be given to Agents to run an agent")
        scope = agent_scope(agent_id)
        async with self._leases.acquire(
            scope, name="main", ttl=ttl, wait=wait, label=label
        ) as lease:
            agent = self._handle(lease.core, agent_id, label, lease)
            await self._at("BeforeAgentInit", agent, refusable=True)
            await agent._open(create)  # noqa: SLF001 - a handle of ours
            await self._at("AfterAgentInit", agent)
            await self._at("BeforeAgentExecution", agent, refusable=True)
            try:
                yield agent
            except Exception as error:
                await self._at("AgentError", agent, error=error)
                raise
            finally:
                await self._ended(agent)

    async def _ended(self, agent: Agent) -> None:
        for point in ("AfterAgentExecution", "BeforeAgentShutdown", "AfterAgentShutdown"):
            await self._at(point, agent)

    async def _at(
        self,
        point: str,
        agent: Agent,
        *,
        error: BaseException | None = None,
        refusable: bool = False,
    ) -> None:
        """Let the hooks of a point run, under the agent's lease."""
        if self._points.wants(point):
            data = {"agent_id": agent.agent_id, "token": agent.token}
            steps = self._points.at(
                *(point, ("agent", agent.agent_id), data), error=error, refusable=refusable
            )
            await self._driver.run(steps)

    # --- many agents

    async def list(
        self,
        *,
        agent_type: str | None = None,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None = None,
        tags: str | Iterable[str] = (),
        capability: str | None = None,
        prefix: str | None = None,
        updated_since: datetime | None = None,
        cursor: str | None = None,
        limit: int = PAGE_AGENTS,
    ) -> Page[AgentSummary]:
        """Return some of the agents that match, and the cursor of the next page (None: the last).

        At most `limit` agents are looked at, so with filters a page can be short or empty; give its
        `cursor` for the next one. `tags`: all of them; `status`: one of them; `prefix`: how the id
        begins. No snapshot, no order: an agent that is there all the time comes at least once, and
        twice only if scopes of the namespace came or went between the pages.
        """
        wanted = AgentFilter.of(
            agent_type=agent_type,
            status=status,
            tags=tags,
            capability=capability,
            prefix=prefix,
            updated_since=updated_since,
        )
        return await self._driver.run(self._listing.page(wanted, cursor, limit))
