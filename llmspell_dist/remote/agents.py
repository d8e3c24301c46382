"""Agents through a sidecar: the library's own, whose steps are asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.handle import HandleSteps
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import Clock, utc_now
from llmspell_dist.errors import SpellError
from llmspell_dist.remote.agent_steps import RemoteAgentSteps, RemoteListing
from llmspell_dist.remote.effect_steps import RemoteEffectSteps
from llmspell_dist.remote.leases import carrying
from llmspell_dist.state.points import NO_POINTS, Points
from llmspell_dist.state.steps import Pause

if TYPE_CHECKING:
    from llmspell_dist.agents.protocols import AsyncLeases
    from llmspell_dist.leases.holding import Lease
    from llmspell_dist.remote.driver import RemoteDriver
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["RemoteAgent", "RemoteAgents"]

T = TypeVar("T")


class RemoteAgent(Agent):
    """A handle of one agent, through a sidecar; effects are carried out here."""

    def __init__(
        self,
        driver: RemoteDriver,
        core: Core,
        agent_id: str,
        now: Clock,
        *,
        label: str | None = None,
        lease: Lease | None = None,
        points: Points = NO_POINTS,
    ) -> None:
        fenced: Any = carrying(driver, core)
        super().__init__(fenced, core, agent_id, now, label=label, lease=lease, points=points)
        self._steps = HandleSteps(RemoteAgentSteps(core, now), agent_id)
        self._effects = RemoteEffectSteps(self._steps)
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def _update(self, steps: Steps[T]) -> T:
        """Carry out a change behind those before it: several requests have no order among them."""
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:  # as in a forked child
            self._turns = loop, asyncio.Lock()
        begun = _begun(steps)
        next(begun)  # what it sends is what the caller gave, not what that is by its turn
        try:
            async with self._turns[1]:
                return await super()._update(begun)
        finally:
            begun.close()


def _begun(steps: Steps[T]) -> Steps[T]:
    """Go through steps; a first one that does nothing comes when their first request is made."""
    go_on, given = steps.send, cast("Any", None)
    try:
        request = go_on(given)
        yield Pause(0)
        while True:
            try:
                given = yield request
                go_on = steps.send
            except SpellError as error:  # the steps may know what to do
                go_on, given = cast("Any", steps.throw), error
            request = go_on(given)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


class RemoteAgents(Agents):
    """The agents of a namespace, through a sidecar; every method of `Agents`, with its promises.

    Hooks of agents and tools do not run: those of the sidecar are for what is carried out there.
    """

    def __init__(
        self,
        driver: RemoteDriver,
        leases: AsyncLeases | None = None,
        *,
        points: Points = NO_POINTS,
        now: Clock = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        super().__init__(cast("Any", driver), leases, points=points, now=now, new_id=new_id)
        self._remote = driver
        self._steps = RemoteAgentSteps(driver.core, now)
        self._listing = RemoteListing(driver.core, self._steps.reads)

    def _handle(
        self, core: Core, agent_id: str, label: str | None, lease: Lease | None = None
    ) -> Agent:
        return RemoteAgent(
            *(self._remote, core, agent_id, self._now),
            label=label,
            lease=lease,
            points=self._points,
        )
