"""Runs the steps of state operations on an event loop."""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commits import read_outcome
from llmspell_dist.redis.durable import AckedOutcome
from llmspell_dist.state.steps import Call, CommitRequest, Pause

if TYPE_CHECKING:
    from llmspell_dist.redis.groups import Operation
    from llmspell_dist.redis.lanes import Lanes
    from llmspell_dist.revision import Revision
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Request, Steps

__all__ = ["AsyncDriver"]

T = TypeVar("T")


class AsyncDriver:
    """Carries steps out over the lanes."""

    __slots__ = ("commit", "core", "execute", "lanes", "submit")

    def __init__(self, core: Core, lanes: Lanes) -> None:
        self.core = core
        self.lanes = lanes
        self.submit = lanes.submit
        self.commit = lanes.commit
        self.execute = lanes.execute

    async def run(self, steps: Steps[T]) -> T:
        """Carry an operation out and return its result."""
        go_on, given = steps.send, None
        try:
            while True:
                request = go_on(given)
                kind = type(request)
                try:
                    if kind is CommitRequest:
                        given = await self.commit(request.commit, request.ack)  # type: ignore[union-attr]
                    elif kind is list or kind is Pause or kind is Call:
                        given = await self._other(request)
                    else:
                        given = await self.execute(request)  # type: ignore[arg-type]
                    go_on = steps.send
                except SpellError as error:  # the steps may know what to do
                    go_on, given = steps.throw, error
        except StopIteration as done:
            result: T = done.value
            return result

    def over(self, core: Core) -> AsyncDriver:
        """Return a driver of another core over the same lanes."""
        return AsyncDriver(core, self.lanes)

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
