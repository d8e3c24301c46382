"""Runs the steps of state operations on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from inspect import isawaitable, isgenerator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commits import read_outcome, read_revision
from llmspell_dist.redis.durable import AckedOutcome
from llmspell_dist.state.leftovers import Leftovers
from llmspell_dist.state.steps import (
    Call,
    CallerLeftError,
    CommitRequest,
    FollowedRequest,
    Pause,
)

if TYPE_CHECKING:
    from llmspell_dist.redis.groups import Operation
    from llmspell_dist.redis.lanes import Lanes
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.interception import FollowedCommit
    from llmspell_dist.state.steps import Request, Steps

__all__ = ["AsyncDriver", "HasDriver", "driver_of"]

T = TypeVar("T")


class AsyncDriver:
    """Carries steps out over the lanes."""

    __slots__ = ("commit", "core", "execute", "lanes", "leftovers", "submit")

    def __init__(self, core: Core, lanes: Lanes, leftovers: Leftovers | None = None) -> None:
        self.core = core
        self.lanes = lanes
        self.leftovers = Leftovers() if leftovers is None else leftovers
        """What goes on behind commits whose callers were cancelled."""
        self.submit = lanes.submit
        self.commit = lanes.commit
        self.execute = lanes.execute

    async def run(
        self,
        steps: Steps[T],
        followed: FollowedCommit | FollowedRequest | None = None,
        go_on: Callable[[Any], Any] | None = None,
        given: Any = None,
    ) -> T:
        """Carry an operation out and return its result.

        `followed`: the steps stand behind this commit, so they go on if their caller is cancelled.
        """
        if go_on is None:
            go_on = steps.send
        try:
            while True:
                request = go_on(given)
                kind = type(request)
                try:
                    if kind is CommitRequest:
                        given = await self.commit(request.commit, request.ack)  # type: ignore[union-attr]
                    elif kind is list or kind is Pause or kind is Call:
                        given = await self._other(request)
                    elif kind is FollowedRequest:
                        followed = cast("FollowedRequest", request)
                        given = await self._outcome(followed, steps)
                    else:
                        given = await self.execute(request)  # type: ignore[arg-type]
                    go_on = steps.send
                except SpellError as error:  # the steps may know what to do
                    go_on, given = steps.throw, error
                except asyncio.CancelledError:
                    if followed is not None and kind is not FollowedRequest:
                        self._leave(
                            followed, self.run(steps, followed, steps.throw, CallerLeftError())
                        )
                    raise
        except StopIteration as done:
            result: T = done.value
            return result

    # --- callers that are cancelled while their commit is on its way

    async def _outcome(self, request: FollowedRequest, steps: Steps[Any]) -> Any:
        """Return a commit's outcome; the steps behind it go on if the caller is cancelled."""
        future = self.commit(request.commit, request.ack)
        try:
            return await future
        except asyncio.CancelledError:
            outcome = self._outcome_of(future)
            if outcome is not None:
                self._leave(request, self._behind(request, outcome, steps))
            raise

    async def followed(self, followed: FollowedCommit) -> Any:
        """Return a commit's outcome; what follows it happens if the caller is cancelled too."""
        future = self.commit(followed.commit)
        try:
            return await future
        except asyncio.CancelledError:
            outcome = self._outcome_of(future)
            if outcome is not None:
                self._leave(followed, self._concluded(followed, outcome))
            raise

    def _outcome_of(self, future: asyncio.Future[Any]) -> asyncio.Future[Any] | None:
        """Return what gives the outcome of a commit whose caller was cancelled, if there is one.

        A commit that had not left yet never happens.
        """
        return self.lanes.follow(future) if future.cancelled() else future

    def _leave(
        self, followed: FollowedCommit | FollowedRequest, work: Coroutine[Any, Any, Any]
    ) -> None:
        for call in followed.calls:
            call.left = True
        self.leftovers.take(work)

    async def _behind(
        self, request: FollowedRequest, outcome: asyncio.Future[Any], steps: Steps[Any]
    ) -> None:
        given: Any
        go_on: Callable[[Any], Any]
        try:
            given, go_on = await outcome, steps.send
        except SpellError as error:
            given, go_on = error, steps.throw
        await self.run(steps, request, go_on, given)

    async def _concluded(self, followed: FollowedCommit, outcome: asyncio.Future[Any]) -> None:
        followed.left = True
        given: Any
        try:
            given = read_revision(await outcome, followed.commit, self.core.server)
        except SpellError as error:
            given = followed.failed(error)
        else:
            given = followed.ended(given)
        if isgenerator(given):
            steps: Any = given
            await self.run(steps, followed)

    def over(self, core: Core) -> AsyncDriver:
        """Return a driver of another core over the same lanes."""
        return AsyncDriver(core, self.lanes, self.leftovers)

    async def _other(self, request: Request) -> Any:
        if isinstance(request, list):
            waiting = [self.execute(one) for one in request]
            try:
                return [await one for one in waiting]
            finally:
                for one in waiting:
                    one.cancel()
        if isinstance(request, Pause):
            return await self.pause(request.seconds)
        assert isinstance(request, Call)  # noqa: S101 - there is no other kind
        result = request.function(*request.arguments)
        return await result if isawaitable(result) else result

    async def pause(self, seconds: float) -> None:
        """Wait between two attempts."""
        await asyncio.sleep(seconds)

    async def settle(self, operation: Operation) -> Revision | None:
        """Carry an operation of unknown outcome out, unless it was."""
        outcome = await self.lanes.settle(operation)
        if type(outcome) is AckedOutcome and not outcome.reached:
            self.core.refuse_ack(outcome)
        return read_outcome(outcome, operation.commit, self.core.server, operation.id).revision


class HasDriver(Protocol):
    """A client, as the library's own sidecar and telemetry see it."""

    _driver: AsyncDriver


def driver_of(client: HasDriver) -> AsyncDriver:
    """Return what carries out a client's operations, for parts of the library that are no client.

    It has the client's `core` too. Users have no business with it: the client does not show it.
    """
    return client._driver  # noqa: SLF001 - the one place that looks
