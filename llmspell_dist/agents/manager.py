"""Agents of many processes: their state, their processes, effects that run once; asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from llmspell_dist.agents.calling import LimitOverError, call_async
from llmspell_dist.agents.effect_steps import EffectSteps
from llmspell_dist.agents.effects import EffectRecord, EffectStatus, check_limit, effect_key, who
from llmspell_dist.agents.errors import AgentNotFoundError, EffectUnknownError
from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
from llmspell_dist.agents.handle import HandleSteps
from llmspell_dist.agents.listing import PAGE_AGENTS, AgentFilter, AgentSummary, Listing
from llmspell_dist.agents.model import AgentState, Clock, Message, Role, utc_now
from llmspell_dist.agents.protocols import AsyncLeases
from llmspell_dist.agents.steps import AgentSteps, agent_scope
from llmspell_dist.errors import (
    CodecError,
    InvalidArgumentError,
    LimitError,
    SpellError,
    mask_secrets,
)
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import Core
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.model import Page
from llmspell_dist.ttl import ttl_ms

__all__ = ["Agent", "Agents", "Effect"]

Limit = float | timedelta
Create = AgentState | Callable[[], AgentState] | None
Messages = list[Message]
Effects = list[EffectRecord]


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
        now: Clock = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._driver = driver
        self._leases = leases
        self._now = now
        self._new_id = new_id
        self._steps = AgentSteps(driver.core, now)
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
        self, agent_id: str, into: str | None = None, *, at: Revision | datetime | None = None
    ) -> AgentState:
        """Save the state that an agent has, or had at a moment, as a new agent, and return that.

        Only the id differs (by default a new one); effects stay with the agent that they belong to.
        `at` is a revision or a (server) time; `HistoryUnavailableError` if the log does not reach
        back that far, `AgentNotFoundError` if there was no agent, `AgentExistsError` if `into` is
        in use.
        """
        name = f"{agent_id}-{self._new_id()}" if into is None else into
        return await self._driver.run(self._steps.fork(agent_id, name, at))

    # --- execution

    async def pause(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """Suspend an agent's execution and store that; `IllegalTransitionError` if it cannot be."""
        return await self._transition(
            agent_id,
            lambda old: old.to(ExecutionStatus.SUSPENDED, reason, agent_id=agent_id),
        )

    async def resume(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """Let a suspended agent do what it did before, and store that."""
        return await self._transition(agent_id, lambda old: old.resumed(reason, agent_id=agent_id))

    async def stop(self, agent_id: str, *, reason: str | None = None) -> ExecutionState:
        """End an agent's execution as completed, and store that."""
        return await self._transition(
            agent_id,
            lambda old: old.to(ExecutionStatus.COMPLETED, reason, agent_id=agent_id),
        )

    async def _transition(
        self, agent_id: str, change_to: Callable[[ExecutionState], ExecutionState]
    ) -> ExecutionState:
        execution, _ = await self._driver.run(self._steps.transition(agent_id, change_to))
        return execution

    # --- one agent

    def agent(self, agent_id: str, *, label: str | None = None) -> Agent:
        """Return a handle of one agent that holds no lease; nothing is read yet.

        `label` is who claims effects, for people; by default the actor of the context.
        """
        return Agent(self._driver, self._driver.core, agent_id, self._now, label)

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
            agent = Agent(self._driver, lease.core, agent_id, self._now, label)
            await agent._open(create)  # noqa: SLF001 - a handle of ours
            yield agent

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

        About `limit` agents are looked at, so a page can be short or empty, or a bit longer.
        `tags`: all of them; `status`: one of them; `prefix`: how the id begins. No snapshot, no
        order: an agent that is there all the time comes at least once.
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


class Agent:
    """A handle of one agent: what it changes is stored at once, in one commit each.

    `state` is what was loaded, and follows what the handle does. Changes made in it directly are
    stored by `save`.
    """

    def __init__(
        self, driver: AsyncDriver, core: Core, agent_id: str, now: Clock, label: str | None
    ) -> None:
        self._driver = driver
        self._steps = HandleSteps(AgentSteps(core, now), agent_id)
        self._effects = EffectSteps(self._steps)
        self._now = now
        self._label = label

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
    def state(self) -> AgentState:
        """The state as it was loaded, with what this handle did since."""
        return self._steps.state

    async def _open(self, create: Create) -> None:
        if callable(create):
            try:
                await self.refresh()
            except AgentNotFoundError:
                create = create()
            else:
                return
        await self._driver.run(self._steps.open(create))

    async def refresh(self, *, tail: int | None = None) -> AgentState:
        """Load the state anew, with all messages or the last `tail`, and return it."""
        return await self._driver.run(self._steps.refresh(tail))

    async def save(self, *, force: bool = False) -> Revision:
        """Save what was changed in `state` itself, as `Agents.save` does."""
        return await self._driver.run(self._steps.save(force))

    async def add_message(
        self, role: Role | str, content: Any, *, metadata: dict[str, Any] | None = None
    ) -> Message:
        """Add a message to the end of the conversation and return it."""
        message = Message(Role.coerce(role), content, self._now(), metadata)
        await self._driver.run(self._steps.add_messages((message,), message.timestamp))
        return message

    async def add_messages(self, *messages: Message) -> Revision:
        """Add several messages in one commit."""
        return await self._driver.run(self._steps.add_messages(messages))

    async def messages(self, start: int = 0, stop: int | None = None) -> Messages:
        """Return messages as ``conversation[start:stop]`` of what is stored now.

        The others are not read: ``messages(-20)`` costs the same in a conversation of any length.
        """
        return await self._driver.run(self._steps.messages(start, stop))

    async def record_tool_usage(self, tool: str, duration_ms: float, success: bool) -> Revision:
        """Count one call of a tool."""
        return await self._driver.run(self._steps.record_tool_usage(tool, duration_ms, success))

    async def set_context(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        remove: Iterable[str] = (),
        **variables: Any,
    ) -> Revision:
        """Set context variables, given as a mapping or by name, and remove others."""
        named = {**(mapping or {}), **variables}
        return await self._driver.run(self._steps.set_context(named, remove))

    async def set_custom(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        remove: Iterable[str] = (),
        **data: Any,
    ) -> Revision:
        """Set custom data, given as a mapping or by name, and remove other."""
        named = {**(mapping or {}), **data}
        return await self._driver.run(self._steps.set_custom(named, remove))

    async def transition(
        self, status: ExecutionStatus | str, reason: str | None = None
    ) -> ExecutionState:
        """Let the execution go to another status, judged by what is stored, and return it.

        `IllegalTransitionError` unless the table of `ExecutionStatus` has it.
        """
        return await self._driver.run(self._steps.transition(status, reason))

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
        )

    async def effects(self) -> Effects:
        """Return the agent's effects by the time of their claim, as they stand now.

        A claim that was left behind stands as unknown.
        """
        return await self._driver.run(self._effects.listed())


class Effect:
    """An effect that runs once: a mail, a payment, a call that must not repeat.

    As ``await effect.run(send, mail)``, or as a context manager: ``async with effect:``, then,
    unless `done`, act and say `commit` or `fail`; what was said is stored at the end of the block.
    A block that ends without a word, or by an exception that is not one of `failed_on`, leaves the
    outcome unknown.

    On the way in: what happened already is `done`, with its `result`. `EffectInProgressError`:
    somebody is at it, within the limit. `EffectUnknownError`: nobody knows whether it happened;
    find out, then `resolve` or `retry`. `EffectFailedError`: it failed.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        steps: EffectSteps,
        key: str,
        *,
        by: str,
        limit_ms: int,
        keep: Limit | None,
        failed_on: type[BaseException] | tuple[type[BaseException], ...],
        retry_failed: bool,
    ) -> None:
        self._driver = driver
        self._steps = steps
        self._by = by
        self._limit_ms = limit_ms
        self._keep = keep
        self._failed_on = failed_on
        self._retry_failed = retry_failed
        self._claim: EffectRecord | None = None
        self._said: tuple[EffectStatus, Any, str | None] | None = None
        self._result: Any = None
        self.key = key
        """Which effect of the agent it is."""
        self.done = False
        """Whether it has happened."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} of {self._steps.agent_id!r}>"

    @property
    def result(self) -> Any:
        """The result, once it is `done`."""
        if not self.done:
            raise InvalidArgumentError("effect", self.key, "must be done to have a result")
        return self._result

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Carry the effect out by calling a function, or return the result that it had before.

        The function is cancelled at the limit; the outcome then is unknown.
        """
        if not callable(function):
            raise InvalidArgumentError("function", function, "must be callable")
        try:
            async with self:
                if not self.done:
                    self.commit(await call_async(self._limit_ms, function, arguments))
        except LimitOverError:
            seen = await self._driver.run(self._steps.look(self.key))
            raise seen.error(EffectUnknownError, "it took longer than its limit") from None
        return self._result

    def commit(self, result: Any = None) -> None:
        """Say that it happened; stored at the end of the block."""
        self._say(EffectStatus.COMMITTED, result, None)

    def fail(self, reason: str | BaseException) -> None:
        """Say that it certainly did not happen; stored at the end of the block."""
        text = _text_of(reason) if isinstance(reason, BaseException) else reason
        if type(text) is not str:
            raise InvalidArgumentError("reason", reason, "must be a str or an exception")
        self._say(EffectStatus.FAILED, None, text)

    def _say(self, status: EffectStatus, result: Any, reason: str | None) -> None:
        if self._claim is None:
            raise InvalidArgumentError(
                "effect", self.key, "must be claimed: say it inside its block"
            )
        self._said = status, result, reason

    async def __aenter__(self) -> Self:
        if self._claim is None:
            record = await self._driver.run(
                self._steps.claim(self.key, self._by, self._limit_ms, self._retry_failed)
            )
            if record.status is EffectStatus.COMMITTED:
                self.done, self._result = True, record.result
            else:
                self._claim = record
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claim, said = self._claim, self._said
        self._claim = self._said = None
        if claim is None:
            return
        if said is None:
            if error is None:
                said = EffectStatus.UNKNOWN, None, "its block ended without saying how it ended"
            elif isinstance(error, self._failed_on):
                said = EffectStatus.FAILED, None, _text_of(error)
            else:
                said = EffectStatus.UNKNOWN, None, _text_of(error)
        try:
            await self._settle(claim, *said)
        except SpellError:
            if error is None:
                raise
            # The exception of the block is what its user must see, and the claim that is left
            # behind says to everybody else that the outcome is unknown.

    async def _settle(
        self, claim: EffectRecord, status: EffectStatus, result: Any, reason: str | None
    ) -> None:
        steps = self._steps
        try:
            await self._driver.run(steps.settle(claim, status, result, reason, self._keep))
        except (CodecError, LimitError) as error:
            # It happened, and its result cannot be stored: somebody has to say what it was.
            unknown = EffectStatus.UNKNOWN
            await self._driver.run(steps.settle(claim, unknown, None, _text_of(error), None))
            raise
        if status is EffectStatus.COMMITTED:
            self.done, self._result = True, result

    async def resolve(self, result: Any = None) -> None:
        """Say that an effect of unknown outcome did happen, and with which result.

        `EffectInProgressError` while somebody is at it, `EffectCommittedError` if it has a result.
        """
        await self._driver.run(
            self._steps.resolve(self.key, self._by, self._limit_ms, result, self._keep)
        )
        self.done, self._result = True, result

    async def retry(self) -> None:
        """Say that an effect of unknown outcome did not happen, and claim it anew.

        `run` or the block that follows, of this very object, then carries it out.
        `EffectInProgressError` while somebody is at it, `EffectCommittedError` if it has a result.
        """
        self._claim = await self._driver.run(self._steps.retry(self.key, self._by, self._limit_ms))


def _text_of(error: BaseException) -> str:
    said = str(error)
    return mask_secrets(f"{type(error).__name__}: {said}" if said else type(error).__name__)
