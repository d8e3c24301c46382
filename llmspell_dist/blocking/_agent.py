# Written by tools/make_blocking.py from llmspell_dist/agents/agent.py: change that.
"""A handle of one agent: what it changes is stored at once; blocking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.agents.effect_steps import EffectSteps
from llmspell_dist.agents.effects import EffectRecord, check_limit, effect_key, who
from llmspell_dist.agents.errors import AgentNotFoundError
from llmspell_dist.agents.execution import (
    ExecutionState,
    ExecutionStatus,
    Transition,
    moved,
    paused,
    resumed,
    stopped,
)
from llmspell_dist.agents.handle import HandleSteps
from llmspell_dist.agents.model import AgentState, Clock, Message, Role
from llmspell_dist.agents.steps import AgentSteps
from llmspell_dist.blocking._effect import Effect
from llmspell_dist.blocking.driver import SyncDriver
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import Core
from llmspell_dist.state.points import NO_POINTS, Points
from llmspell_dist.ttl import ttl_ms

if TYPE_CHECKING:
    from llmspell_dist.blocking.leases import Lease
    from llmspell_dist.state.steps import Steps

__all__ = ["Agent"]

T = TypeVar("T")

Limit = float | timedelta
Create = AgentState | Callable[[], AgentState] | None


class Agent:
    """A handle of one agent: what it changes is stored at once, in one commit each.

    `state` is what was loaded, and follows what the handle does. Changes made in it directly are
    stored by `save`.
    """

    def __init__(
        self,
        driver: SyncDriver,
        core: Core,
        agent_id: str,
        now: Clock,
        *,
        label: str | None = None,
        lease: Lease | None = None,
        points: Points = NO_POINTS,
    ) -> None:
        self._driver = driver
        self._steps = HandleSteps(AgentSteps(core, now, points), agent_id)
        self._effects = EffectSteps(self._steps)
        self._now = now
        self._label = label
        self._lease = lease
        self._points = points

    def __repr__(self) -> str:
        token = self._effects.token
        held = "without a lease" if token is None else f"fencing token {token}"
        return f"<{type(self).__name__} {self.agent_id!r}, {held}>"

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self._steps.agent_id

    @property
    def token(self) -> int | None:
        """The fencing token that every write carries; None without a lease."""
        return self._effects.token

    @property
    def lease(self) -> Lease | None:
        """The lease that `Agents.run` took for this handle; None without one.

        ``lease.state`` writes other keys of the scope fenced, ``lease.check()`` raises once it is
        lost, and ``leases.unrequire(scope, lease=…)`` wants it.
        """
        return self._lease

    @property
    def state(self) -> AgentState:
        """The state as it was loaded, with what this handle did since."""
        return self._steps.state

    @property
    def revision(self) -> Revision | None:
        """The last commit of the agent that this handle has loaded or made; None before that."""
        return self._steps.revision

    def _open(self, create: Create) -> None:
        if callable(create):
            try:
                self.refresh()
            except AgentNotFoundError:
                create = create()
            else:
                return
        self._driver.run(self._steps.open(create))

    def refresh(self, *, tail: int | None = None) -> AgentState:
        """Load the state anew, with all messages or the last `tail`, and return it."""
        return self._driver.run(self._steps.refresh(tail))

    def save(self, *, force: bool = False) -> Revision:
        """Save what was changed in `state` itself, as `Agents.save` does."""
        return self._driver.run(self._steps.save(force))

    def add_message(
        self, role: Role | str, content: Any, *, metadata: dict[str, Any] | None = None
    ) -> Message:
        """Add a message to the end of the conversation and return it, as it is stored."""
        message = Message(Role.coerce(role), content, self._now(), metadata)
        return self._update(self._steps.add_message(message))

    def add_messages(self, *messages: Message) -> Revision:
        """Add several messages in one commit."""
        return self._update(self._steps.add_messages(messages))

    def messages(self, start: int = 0, stop: int | None = None) -> list[Message]:
        """Return messages as ``conversation[start:stop]`` of what is stored now.

        The others are not read: ``messages(-20)`` costs the same in a conversation of any length.
        """
        return self._driver.run(self._steps.messages(start, stop))

    def record_tool_usage(self, tool: str, duration_ms: float, success: bool) -> Revision:
        """Count one call of a tool."""
        return self._update(self._steps.record_tool_usage(tool, duration_ms, success))

    def set_context(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        remove: Iterable[str] = (),
        **variables: Any,
    ) -> Revision:
        """Set context variables, given as a mapping or by name, and remove others."""
        named = {**(mapping or {}), **variables}
        return self._update(self._steps.set_context(named, remove))

    def set_custom(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        remove: Iterable[str] = (),
        **data: Any,
    ) -> Revision:
        """Set custom data, given as a mapping or by name, and remove other."""
        named = {**(mapping or {}), **data}
        return self._update(self._steps.set_custom(named, remove))

    def transition(
        self, status: ExecutionStatus | str, reason: str | None = None
    ) -> ExecutionState:
        """Let the execution go to another status, judged by what is stored, and return it.

        `IllegalTransitionError` unless the table of `ExecutionStatus` has it.
        """
        return self._transition(moved(self.agent_id, status, reason))

    def pause(self, *, reason: str | None = None) -> ExecutionState:
        """Suspend the execution, as `Agents.pause` does, under this handle's lease."""
        return self._transition(paused(self.agent_id, reason))

    def resume(self, *, reason: str | None = None) -> ExecutionState:
        """Let a suspended agent do what it did before, under this handle's lease."""
        return self._transition(resumed(self.agent_id, reason))

    def stop(self, *, reason: str | None = None) -> ExecutionState:
        """End the execution as completed, under this handle's lease."""
        return self._transition(stopped(self.agent_id, reason))

    def _update(self, steps: Steps[T]) -> T:
        """Carry out a change of what is stored; the state follows changes in their order."""
        return self._driver.run(steps)

    def _transition(self, change_to: Transition) -> ExecutionState:
        return self._update(self._steps.transition(change_to))

    # --- effects

    def effect(
        self,
        key: str,
        *,
        limit: Limit = 60.0,
        keep: Limit | None = None,
        failed_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        retry_failed: bool = False,
    ) -> Effect:
        """Return an effect that is carried out once, whatever happens to whom; nothing is sent yet.

        `limit`: how long carrying it out may take; after that others see an unknown outcome.
        `keep`: how long a result is kept (None: for good); after that the effect is as new.
        `failed_on`: exceptions that say that it certainly did not happen. `retry_failed`: carry out
        what failed.
        """
        effect_key(key)
        if keep is not None:
            ttl_ms(keep)
        return Effect(
            self._driver,
            self._effects,
            key,
            by=who(self._label),
            limit_ms=check_limit(limit),
            keep=keep,
            failed_on=failed_on,
            retry_failed=retry_failed,
            points=self._points,
        )

    def effects(self) -> list[EffectRecord]:
        """Return the agent's effects by the time of their claim, as they stand now.

        A claim that was left behind stands as unknown.
        """
        return self._driver.run(self._effects.listed())
